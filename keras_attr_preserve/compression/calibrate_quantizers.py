"""Ranges for quantization-aware training to start from."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import check_model, keras
from keras_attr_preserve.models.inputs import check_calibration
from keras_attr_preserve.utils.left_whole import tell_left_whole

__all__ = ["calibrate_quantizers"]

_quantizers = tfmot.quantization.keras.quantizers
# tfmot 0.8.1 quantizes activations and images with these. Both are called as
# `quantizer(inputs, training, weights)`, its documented interface.
_KINDS = (_quantizers.MovingAverageQuantizer, _quantizers.AllValuesQuantizer)


def calibrate_quantizers(
    model: keras.Model, images: np.ndarray, *, batch_size: int = 32) -> None:
  """Sets a quantize-aware model's ranges to the values it computes, in place.

      student = tfmot.quantization.keras.quantize_model(start)
      calibrate_quantizers(student, x_train[:512])
      student.compile(...)

  `quantize_model` starts the range of every activation at -6..6. Training moves
  it by a thousandth of the way a step: after 300 steps three quarters of the
  way are left. Until then outputs in 0..0.5 use some ten steps of 256. An
  output of 20 is clipped. The model learns to live with both.

  This function sets each range to the value that training would reach. It is
  the mean over batches of the least and of the greatest value, and includes 0.
  Activations are not quantized meanwhile. Ranges of kernels become those of the
  kernels.

  Training still moves the ranges afterwards.

  Args:
    model: a built quantize-aware `tf_keras` model, of any of tfmot's schemes.
      Only its ranges change. Activation quantizers that are per channel or
      symmetric keep theirs; tfmot's schemes have none. A warning,
      `kap.LayersLeftWhole`, names layers whose kernels are not quantize-aware.
    images: `[count, height, width, channels]`, some hundred training images, in
      the range the model takes.
    batch_size: images a batch; best as in training. Meanwhile no other thread
      may run quantize-aware models.

  Raises:
    TypeError, ValueError: an argument is not as above, the model has no range
      of activations, or a value is not finite. The model is then unchanged.

  References:
    Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1: ranges as
    moving averages, and activations left unquantized until they have settled.
  """
  images = check_calibration(check_model(model), images, batch_size)
  batches = [images[start:start + batch_size]
             for start in range(0, len(images), batch_size)]
  before = [weight.numpy() for weight in model.weights]
  try:
    # A model updates the ranges of kernels only in training.
    model(batches[0], training=True)
    for weight, value in zip(model.weights, before, strict=True):
      if not _is_range(weight):
        weight.assign(value)
    seen: dict[int, _Range] = {}
    with _observing(seen):
      for batch in batches:
        model(batch, training=False)
    if not seen:
      raise ValueError(
          f"model {model.name!r} has no quantizer of activations: it must be "
          "quantize-aware, made by tfmot.quantization.keras.quantize_model or "
          "another scheme.")
    for value_range in seen.values():
      value_range.settle(model)
  except BaseException:
    for weight, value in zip(model.weights, before, strict=True):
      weight.assign(value)
    raise
  tell_left_whole("calibrate_quantizers", model, lambda layer: (
      None if hasattr(layer, "quantize_config") else
      "it is not quantize-aware"))


def _is_range(weight: Any) -> bool:
  return not weight.trainable and weight.name.split(":")[0].endswith(
      ("_min", "_max"))


class _Range:
  """The least and greatest inputs of one quantizer, batch by batch."""

  def __init__(self, quantizer: Any, weights: dict[str, Any]):
    self._weights = weights
    self._all = isinstance(quantizer, _quantizers.AllValuesQuantizer)
    self._least: list[float] = []
    self._most: list[float] = []

  def add(self, values: np.ndarray) -> None:
    self._least.append(float(np.min(values)))
    self._most.append(float(np.max(values)))

  def settle(self, model: keras.Model) -> None:
    """Writes the range to the model's variables."""
    low, high = ((min(self._least), max(self._most)) if self._all
                 else (np.mean(self._least), np.mean(self._most)))
    name = self._weights["min_var"].name
    if not np.isfinite([low, high]).all():
      raise ValueError(
          f"model {model.name!r}: on these images values arrive at {name!r} "
          "that are not finite.")
    self._weights["min_var"].assign(min(low, 0.0))
    self._weights["max_var"].assign(max(high, 0.0))


@contextlib.contextmanager
def _observing(seen: dict[int, _Range]) -> Iterator[None]:
  """Makes quantizers record their inputs, by variable, and return them."""
  plain = {kind: kind.__call__ for kind in _KINDS}
  try:
    for kind in _KINDS:
      kind.__call__ = _observer(plain[kind], seen)
    yield
  finally:
    for kind in _KINDS:
      kind.__call__ = plain[kind]


def _observer(plain: Callable, seen: dict[int, _Range]) -> Callable:
  def observe(quantizer, inputs, training, weights, **settings):
    if quantizer.per_axis or quantizer.symmetric:
      return plain(quantizer, inputs, training, weights, **settings)
    seen.setdefault(
        id(weights["min_var"]), _Range(quantizer, weights)).add(
            np.asarray(inputs))
    return inputs
  return observe
