"""tf-explain's methods, as float maps.

tf-explain's `explain` returns one drawing for the whole batch, with one class
for all images. Its static methods return numbers, so this module calls them. It
is the project's outside judge: no loss here has used these methods, and the
code is not the project's. Its Grad-CAM and SmoothGrad are left out, because
they need the installed `tf.keras`, which does not take a `tf_keras` model. Its
occlusion is left out, because it needs square images of one class.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_pictures, no_layer
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.gradient_rules import (
    STRAIGHT_THROUGH,
    gradient_rules,
)

__all__ = ["integrated_gradients", "tf_explain"]

_METHODS = ("gradients_inputs", "integrated_gradients", "vanilla_gradients")


def tf_explain(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    method: str = "integrated_gradients",
    steps: int = 10,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by tf-explain's code, with a class for each image.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    method: "integrated_gradients", "vanilla_gradients" or "gradients_inputs",
      the names of tf-explain's modules.
    steps: steps of "integrated_gradients".
    batch_size: images per batch.

  Returns:
    Maps, float32 `[images, height, width]`, not negative: the sum of magnitudes
    over the colours, as in tf-explain's own drawings.

  Raises:
    ImportError: tf-explain or OpenCV is missing.
    TypeError, ValueError: an argument is not as above.

  References:
    https://github.com/sicara/tf-explain, version 0.3.1.
  """
  if method not in _METHODS:
    raise ValueError(f"method must be one of {_METHODS}; got {method!r}.")
  if method == "integrated_gradients":
    return integrated_gradients(model, images, targets, layer, steps=steps,
                                batch_size=batch_size)
  # Imported here because it needs OpenCV, and nothing else does.
  from tf_explain.core.gradients_inputs import GradientsInputs
  from tf_explain.core.vanilla_gradients import VanillaGradients

  no_layer(layer)
  explainer = {"vanilla_gradients": VanillaGradients,
               "gradients_inputs": GradientsInputs}[method]
  gradients = explainer.compute_gradients.python_function

  def explain(tap, pictures, seed):
    with gradient_rules(STRAIGHT_THROUGH):
      input_gradients = gradients(pictures, _column(tap, seed), 0)
    return tf.reduce_sum(tf.abs(input_gradients), -1)

  return at_pictures(model, images, targets, ("tf_explain", method), explain,
                     batch_size, flat=True)


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

  The numbers are tf-explain's: the mean gradient over `steps` scalings of the
  image, from 0 to 1. The original method's factor (image - baseline) is absent.
  A map is the sum of the mean's magnitudes over the colours, as in tf-explain's
  own drawing.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`; 0 is taken for "nothing there".
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    steps: scalings of each image, 2 or more.
    batch_size: images per batch; `batch_size * steps` run at once.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    ImportError: tf-explain or OpenCV is missing.
    TypeError, ValueError: an argument is not as above.

  References:
    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365; tf-explain
    0.3.1, `IntegratedGradients.get_integrated_gradients`.
  """
  # Imported here because it needs OpenCV, and nothing else does.
  from tf_explain.core.integrated_gradients import IntegratedGradients

  no_layer(layer)
  if steps < 2:
    raise ValueError(f"steps must be 2 or more; got {steps}.")
  # tf-explain's own trace would hold the model forever; this makes none.
  average = IntegratedGradients.get_integrated_gradients.python_function

  def explain(tap, batch, seed):
    scale = tf.reshape(tf.linspace(0.0, 1.0, steps), [1, steps, 1, 1, 1])
    path = tf.reshape(batch[:, None] * scale, [-1, *batch.shape[1:]])
    with gradient_rules(STRAIGHT_THROUGH):
      gradients = average(
          path, _column(tap, tf.repeat(seed, steps, axis=0)), 0, steps)
    return tf.reduce_sum(tf.abs(gradients), axis=-1)

  return at_pictures(
      model, images, targets, ("tf_explain integrated_gradients", steps),
      explain, batch_size, flat=True)


def _column(tap, seed):
  """Returns a function in place of a model, with one weighted score per image.

  tf-explain takes one column of a model's scores, the same for all images.
  """
  return lambda pictures: tf.reduce_sum(
      tap(pictures).logits * seed, -1, keepdims=True)
