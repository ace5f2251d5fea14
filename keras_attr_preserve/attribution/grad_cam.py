"""Grad-CAM, as float maps, batched, for a class of its own for each image."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import class_weights, run_model
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.images import check_images
from keras_attr_preserve.layers import last_spatial_layer
from keras_attr_preserve.tap import Tap, sensitivities, top_class_seed
from keras_attr_preserve.wcam import sensitivity_weighted_map

__all__ = ["grad_cam"]


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 64,
) -> np.ndarray:
  """Explains a score by the features of one layer.

      M = ReLU(sum_c w_c A_c),   w_c = mean_{h,w} d score / dA_c

  The score is the logit, also where the head ends in a softmax or sigmoid.
  Quantizers of a quantization-aware model are transparent to the gradient, so a
  clipped score does not blank its map.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: None for each image's top class, a class number, class numbers
      `[images]`, or float weights of the logits `[images, classes]`.
    layer: a layer's name; None for the last one with a spatial map.
    batch_size: images a batch.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative, in units
    of the score; not resized to the images.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2.
  """
  check_keras(model)
  layer = layer or last_spatial_layer(model)
  tap = Tap(model, [layer])
  images = check_images(images, tap.picture_shape)

  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def explain(batch, *seed):
    with tf.GradientTape() as tape:
      tape.watch(batch)
      tapped = tap(batch)
    seed, = seed or (top_class_seed(tapped.logits),)
    sensitivity, = sensitivities(tape, tapped, seed)
    features, = tapped.features
    positions = tf.cast(tf.reduce_prod(tf.shape(features)[1:3]), tf.float32)
    return (sensitivity_weighted_map(
        tf.cast(features, tf.float32),
        tf.cast(sensitivity, tf.float32) / positions),)

  maps, = run_model(model, ("grad_cam", layer), explain, images, *weights,
                      batch_size=batch_size)
  return maps
