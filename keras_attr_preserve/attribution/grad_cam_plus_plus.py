"""Grad-CAM++: positions weighted by higher derivatives."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_layer
from keras_attr_preserve.compat import keras, tf

__all__ = ["grad_cam_plus_plus"]


def grad_cam_plus_plus(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by features; several objects of a class count alike.

      M = ReLU(sum_c w_c A_c),   w_c = sum_{h,w} alpha_c ReLU(g_c)
      alpha_c = g_c^2 / (2 g_c^2 + sum_{h,w} A_c g_c^3),   g_c = d score / dA_c

  The score is the exponential of the logit, as in the paper. Its higher
  derivatives are therefore powers of the first. alpha is 0 where g_c is 0.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last layer with a spatial map.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Chattopadhyay et al. 2018, https://arxiv.org/abs/1710.11063, equations 10
    and 19.
  """
  def combine(features, gradients):
    square = gradients**2
    denominator = 2 * square + tf.reduce_sum(
        features, [1, 2], keepdims=True) * square * gradients
    alpha = tf.math.divide_no_nan(square, denominator)
    weights = tf.reduce_sum(
        alpha * tf.nn.relu(gradients), [1, 2], keepdims=True)
    return tf.nn.relu(tf.reduce_sum(features * weights, -1))
  return at_layer(model, images, targets, layer, "grad_cam_plus_plus", combine,
                  batch_size)
