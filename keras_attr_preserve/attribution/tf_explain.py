"""tf-explain's integrated gradients, as float maps.

tf-explain's `explain` gives one picture for the whole batch and one class for
all of it. Its static methods give the numbers; this module calls those. It is
the project's outside judge: a method that no loss here has seen, in code that
is not ours.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import class_weights, run_batches
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.gradient_rules import STRAIGHT_THROUGH, gradient_rules
from keras_attr_preserve.images import check_images
from keras_attr_preserve.tap import Tap, top_class_seed

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    steps: int = 10,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by its input gradient, averaged from black to the image.

  The numbers are tf-explain's: the mean of the gradient over `steps` scalings
  of the image, from 0 to 1, without the factor (image - baseline) of the
  original method. A map is the sum of its magnitudes over the colours, as in
  tf-explain's own picture.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`; 0 is taken for "nothing there".
    targets: as for `grad_cam`.
    layer: accepted as every method does; must be None, the input is explained.
    steps: scalings of each image, 2 or more.
    batch_size: images a batch; `batch_size * steps` run at once.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    ImportError: tf-explain or OpenCV is missing.
    TypeError, ValueError: an argument is not as above.

  References:
    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365; tf-explain
    0.3.1, `IntegratedGradients.get_integrated_gradients`.
  """
  # Imported here: it brings OpenCV, which nothing else needs.
  from tf_explain.core.integrated_gradients import IntegratedGradients

  if layer is not None:
    raise ValueError(
        f"layer must be None, the input is explained; got {layer!r}.")
  if steps < 2:
    raise ValueError(f"steps must be 2 or more; got {steps}.")
  tap = Tap(model)
  images = check_images(images, model.inputs[0].shape[1:])

  @tf.function(reduce_retracing=True)
  def top(batch):
    return (top_class_seed(tap(batch).logits),)

  if targets is None:
    weights, = run_batches(top, images, batch_size=batch_size)
  else:
    weights = class_weights(targets, len(images), tap.classes)

  # tf-explain asks a model for one column of its scores, the same for all. A
  # column that holds each image's own weighted score gives each its own class.
  average = IntegratedGradients.get_integrated_gradients.python_function

  @tf.function(reduce_retracing=True)
  def explain(batch, seed):
    scale = tf.reshape(tf.linspace(0.0, 1.0, steps), [1, steps, 1, 1, 1])
    path = tf.reshape(batch[:, None] * scale, [-1, *batch.shape[1:]])
    seed = tf.repeat(seed, steps, axis=0)

    def score(inputs):
      return tf.reduce_sum(tap(inputs).logits * seed, -1, keepdims=True)

    with gradient_rules(STRAIGHT_THROUGH):
      gradients = average(path, score, 0, steps)
    return (tf.reduce_sum(tf.abs(gradients), axis=-1),)

  maps, = run_batches(explain, images, weights, batch_size=batch_size)
  return maps
