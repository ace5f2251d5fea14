"""Layer-CAM: positive gradients, position by position."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_layer
from keras_attr_preserve.compat import keras, tf

__all__ = ["layer_cam"]


def layer_cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by features where they raise it.

      M = ReLU(sum_c ReLU(d score / dA_c) * A_c)

  It also suits early layers, whose gradients differ from place to place.

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
    Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943, equations 6-8.
  """
  def combine(features, gradients):
    return tf.nn.relu(tf.reduce_sum(
        features * tf.nn.relu(gradients), -1))
  return at_layer(model, images, targets, layer, "layer_cam", combine,
                  batch_size)
