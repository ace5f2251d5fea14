"""Watching the ranges of quantization-aware training, before export.

A quantizer of `tfmot.quantization.keras.quantize_model` holds a range that
training moves. Values outside are clipped, in the file too. A range that is too
wide makes every step coarser. Clipped scores have no gradient, so their
gradient-based attribution maps are zero. Clipped features change the map.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.training.quantizer_table import (
  QuantizerRange,
  RangeTable,
)
from keras_attr_preserve.training.quantizer_watch import QuantizerWatch
from keras_attr_preserve.training.wcam import WCAM, check_wcam

__all__ = ["QuantizerRange", "RangeMonitor", "RangeTable", "quantizer_ranges"]


def quantizer_ranges(
    model: keras.Model,
    images: np.ndarray,
    wcam: WCAM | None = None,
    *,
    batch_size: int = 32,
) -> RangeTable:
  """Compares every quantizer's range with its inputs.

  Args:
    model: a quantize-aware `tf_keras` model, of any of tfmot's schemes; run in
      inference and not changed.
    images: `[images, height, width, channels]`, in the range the model takes.
    wcam: names the layers whose features are marked; None marks none.
    batch_size: images a batch.

  Returns:
    The table; `str` prints it.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model has no
      quantizer.

  References:
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3: ranges as
    moving averages. TensorFlow's `fake_quant_with_min_max_vars`: moving a range
    so that 0 is one of its steps.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  return QuantizerWatch(model, wcam).look(images, batch_size)


class RangeMonitor(keras.callbacks.Callback):
  """Logs the clipped shares after each epoch of quantization-aware training.

      model.fit(train, callbacks=[RangeMonitor(images, wcam)])

  It adds four clipped shares to the logs: `range_scores`, of the scores;
  `range_top`, of the images' top scores; `range_features`, of the features of
  the WCAM's layers; and `range_worst`, of the worst quantizer. All are in 0..1,
  or NaN if there is none or a value is not finite.

  Attributes:
    table: the last epoch's `RangeTable`; None before the first.
  """

  def __init__(
      self,
      images: np.ndarray,
      wcam: WCAM | None = None,
      *,
      name: str = "range",
      batch_size: int = 32,
  ):
    """Keeps the settings.

    Args:
      images: images to run, a few dozen.
      wcam: as for `quantizer_ranges`.
      name: prefix of the names in the logs.
      batch_size: images a batch.

    Raises:
      TypeError, ValueError: an argument is not as above. Errors about the model
        are raised when `fit` starts.
    """
    super().__init__()
    if not isinstance(name, str) or not name:
      raise TypeError(f"name must be a name; got {name!r}.")
    if batch_size < 1:
      raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    if wcam is not None:
      check_wcam(wcam)
    self._images, self._wcam = images, wcam
    self._name, self._batch_size = name, batch_size
    self.table: RangeTable | None = None
    self._watch: QuantizerWatch | None = None

  def set_model(self, model: keras.Model) -> None:
    """Finds the quantizers; called when `fit` starts."""
    watch = QuantizerWatch(model, self._wcam)
    self._images = watch.tap.input.check(self._images)
    self._watch = watch
    super().set_model(model)

  def on_epoch_end(
      self, epoch: int, logs: dict[str, Any] | None = None) -> None:
    """Measures the ranges and adds the figures to the logs."""
    self.table = table = self._watch.look(self._images, self._batch_size)
    shares = {
        "scores": [row.clipped for row in table.of("scores")],
        "top": [table.top_clipped],
        "features": [row.clipped for row in table.of("features")],
        "worst": [row.clipped for row in table.rows],
    }
    for what, values in shares.items():
      if logs is not None:
        logs[f"{self._name}_{what}"] = float(
            np.max(values) if values else np.nan)
