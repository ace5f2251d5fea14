"""Grad-CAM as float maps, in batches, with a class for each image."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_layer
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.map_formulas import sensitivity_weighted_map

__all__ = ["grad_cam"]


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by the features of one layer.

      M = ReLU(sum_c w_c A_c),   w_c = mean_{h,w} d score / dA_c

  The score is the logit, even where the head ends in a softmax or sigmoid.
  Quantizers of a quantization-aware model pass the gradient on unchanged, so a
  clipped score does not blank its map.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: None for each image's top class, a class number, class numbers
      `[images]`, or float weights of the logits `[images, classes]`.
    layer: a layer's name; None for the last layer with a spatial map.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative, in units
    of the score; not resized to the images.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2.
  """
  def combine(features, gradients):
    return sensitivity_weighted_map(
        features, tf.reduce_mean(gradients, [1, 2], keepdims=True))
  return at_layer(model, images, targets, layer, "grad_cam", combine,
                  batch_size)
