"""Watching the ranges of quantization-aware training, before export.

A quantizer of `tfmot.quantization.keras.quantize_model` holds a range that
training moves. What arrives outside is clipped, in the file too; what the range
covers in vain makes every step coarser. Clipped scores have no gradient, so the
maps of tools that differentiate them die, and clipped features are another map.
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
  """Holds every quantizer's range against what arrives there.

  Args:
    model: a quantize-aware `tf_keras` model, of any of tfmot's schemes; run as
      in inference and not changed.
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
    moving averages; TensorFlow's `fake_quant_with_min_max_vars` for how a range
    is moved so that it holds 0.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  return QuantizerWatch(model, wcam).look(images, batch_size)


class RangeMonitor(keras.callbacks.Callback):
  """Logs after each epoch of quantization-aware training what is clipped.

      model.fit(train, callbacks=[RangeMonitor(images, wcam)])

  The logs gain `range_scores`, the share of scores that are clipped;
  `range_top`, the share of images whose top score is; `range_features`, of the
  WCAM's layers; and `range_worst`, of any quantizer: all in 0..1, NaN where
  there is none or the training broke.

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
      images: pictures to look at, a few dozen.
      wcam: as for `quantizer_ranges`.
      name: what the logs' names begin with.
      batch_size: images a batch.

    Raises:
      TypeError, ValueError: an argument is not as above; what does not fit the
        model is said when `fit` starts.
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
    """Finds the quantizers; called where `fit` starts."""
    watch = QuantizerWatch(model, self._wcam)
    self._images = watch.tap.input.check(self._images)
    self._watch = watch
    super().set_model(model)

  def on_epoch_end(
      self, epoch: int, logs: dict[str, Any] | None = None) -> None:
    """Looks, and adds the figures to the logs."""
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
