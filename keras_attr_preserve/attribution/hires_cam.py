"""HiRes-CAM: Grad-CAM without averaging the gradient."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_layer
from keras_attr_preserve.compat import keras, tf

__all__ = ["hires_cam"]


def hires_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by each position's own features and gradients.

      M = ReLU(sum_c d score / dA_c * A_c)

  The map is Grad-CAM's where a global average and a linear layer follow.
  Elsewhere it shows the positions that the score itself depends on.

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
    Draelos and Carin 2020, https://arxiv.org/abs/2011.08891, equation 7.
  """
  def combine(features, gradients):
    return tf.nn.relu(tf.reduce_sum(features * gradients, -1))
  return at_layer(model, images, targets, layer, "hires_cam", combine,
                  batch_size)
