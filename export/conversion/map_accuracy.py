"""Compares a file's maps with the maps of its Keras model."""

import numpy as np

from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.compat import keras
from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.models.running import run_batches
from keras_attr_preserve.models.scores import top_class_seed
from keras_attr_preserve.models.tap import Tap

__all__ = ["BARS", "MapAccuracy", "representative_range"]

BARS = {"float32": 0.999, "float16": 0.999, "dynamic": 0.999,
        "int8": 0.99, "int16x8": 0.99}
"""The median cosine that a file's maps are to reach, for each mode."""

def representative_range(images: np.ndarray | None) -> dict[str, list[float]]:
  """Returns the metadata of the representative images: least, largest pixel."""
  return {} if images is None else {
      "representative_range": [float(images.min()), float(images.max())]}


_MOST = 100  # Images. A median needs no more.


class MapAccuracy:
  """Measures files against the maps of one Keras model.

  Attributes:
    count: the number of images whose Keras map is not all zero.
  """

  def __init__(
      self, model: keras.Model, layer: str, method: str, images: np.ndarray):
    """Computes the maps to reach: of the model's top class, in floats.

    Args:
      model: the model that is converted.
      layer: the layer that is explained.
      method: "swa" or "ewa".
      images: `[images, height, width, channels]`; at most a hundred are used,
        evenly spaced.
    """
    steps = np.linspace(0, len(images) - 1, min(len(images), _MOST))
    self._images = images[steps.round().astype(int)]
    tap = Tap(model)
    self._targets, = run_batches(
        lambda batch: (top_class_seed(tap(batch).logits),), self._images,
        batch_size=32)
    maps = {"swa": grad_cam, "ewa": equal_weighted}[method]
    self._maps = maps(model, self._images, self._targets, layer)
    self.count = int(np.any(self._maps, axis=(1, 2)).sum())

  def median_cosine(self, tflite_model: bytes) -> float:
    """Returns the median cosine of a file's maps; NaN where all are zero.

    A zero map counts as 0 if the model's map is not zero.
    """
    maps = Interpreter(tflite_model).explain(self._images, self._targets).maps
    cosines = agreement(self._maps, maps)["cosine"]
    return float(np.nanmedian(cosines)) if self.count else float("nan")
