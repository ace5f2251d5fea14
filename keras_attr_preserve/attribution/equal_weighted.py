"""The equal-weighted collapsed map (attention transfer's), as float maps."""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.map_formulas import equal_weighted_map
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.layers import last_spatial_layer
from keras_attr_preserve.models.running import run_model

__all__ = ["equal_weighted"]


def equal_weighted(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Shows where a layer's features are strong, whatever the class.

      M = mean_c A_c^2

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: not used, as the map has no class; every method takes them.
    layer: a layer's name; None for the last layer with a spatial map.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Maps, float32 `[images, layer height, layer width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Park et al. 2020, https://arxiv.org/abs/2010.15054, section 3 (EWA).
  """
  del targets
  check_keras(model)
  layer = layer or last_spatial_layer(model)
  tap = KnownTap(model, [layer])
  images = tap.images(images)

  def explain(batch):
    features, = tap(batch).features
    return (equal_weighted_map(tf.cast(features, tf.float32)),)

  maps, = run_model(model, ("equal_weighted", layer), explain, images,
                      batch_size=batch_size)
  return maps
