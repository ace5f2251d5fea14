"""CAM, for models that end in a global average and one linear layer."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_layer
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.layers import last_spatial_layer

__all__ = ["cam"]


def cam(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by features, weighted by the class's own weights.

      M = sum_c w_kc A_c,   score_k = mean_{h,w} M + bias

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last layer with a spatial map.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Signed maps, float32 `[images, layer height, layer width]`. A map's mean is
    the score without the bias.

  Raises:
    TypeError, ValueError: an argument is not as above; or more than a global
      average and one linear layer follows the features.

  References:
    Zhou et al. 2016, https://arxiv.org/abs/1512.04150, equations 1 and 2.
  """
  name = layer or last_spatial_layer(check_keras(model))
  _check_head(model, images, name)

  def combine(features, gradients):
    positions = tf.cast(tf.reduce_prod(tf.shape(features)[1:3]), tf.float32)
    return positions * tf.reduce_sum(features * gradients, -1)

  return at_layer(model, images, targets, name, "cam", combine,
                  batch_size)


def _check_head(model, images, layer) -> None:
  """Raises ValueError unless each channel has one gradient everywhere."""
  def spread(_, gradients):
    first = gradients[:1, :1, :1]
    return tf.reduce_max(tf.abs(gradients - first), -1) / (
        tf.reduce_max(tf.abs(gradients)) + 1e-20)
  tap = KnownTap(model)
  probes = tap.input.probes(3, tap.input.check(images))
  classes = tap.classes
  spreads = at_layer(model, probes, np.zeros(3, int) if classes > 1 else 1,
                     layer, "spread", spread, 3)
  if spreads.max() > 1e-4:
    raise ValueError(
        f"layer {layer!r}: CAM needs a global average and one linear layer "
        "after the features; here the score's gradient differs from place to "
        "place or from image to image. Use grad_cam.")
