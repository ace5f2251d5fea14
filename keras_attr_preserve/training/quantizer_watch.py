"""Counting the inputs of the quantizers of a quantize-aware model.

Quantizers are found as the FakeQuant operations of the model's graph, with
public TensorFlow alone. This finds the quantizers of all tfmot schemes.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layers import graphs_in, unwrapped_name
from keras_attr_preserve.models.tap import Tap, Tapped
from keras_attr_preserve.training.quantizer_table import (
  QuantizerRange,
  RangeTable,
  harm,
)
from keras_attr_preserve.training.wcam import WCAM, check_wcam

__all__ = ["QuantizerWatch"]

# The initial range of tfmot's quantizers is -6..6 (checked on 0.8.1;
# quantizer_ranges_test.py fails if it changes).
_BEGINNING = 6.0
_PASSING = ("Identity", "Reshape", "Squeeze", "Cast")
_WEIGHTED = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


class QuantizerWatch:
  """A model's quantizers, traced once and measured any number of times."""

  def __init__(self, model: keras.Model, wcam: WCAM | None):
    layers = () if wcam is None else check_wcam(wcam).student_layers
    self.tap = Tap(model, layers)
    self._places: list[dict[str, Any]] = []
    self._unquantized: tuple[str, ...] = ()
    shape = [None, *self.tap.input.shape]
    # A graph of its own, even if functions are set to run eagerly.
    self._run = tf.function(
        self._traced, input_signature=[tf.TensorSpec(shape, tf.float32)]
    ).get_concrete_function()
    if not self._places:
      raise ValueError(
          f"model {model.name!r} has no quantizer: it must be quantize-aware, "
          "made by tfmot.quantization.keras.quantize_model or another scheme.")

  def look(self, images: np.ndarray, batch_size: int) -> RangeTable:
    images = self.tap.input.check(images)
    counts, top = None, 0.0
    for start in range(0, len(images), batch_size):
      added, clipped = self._run(tf.constant(images[start:start + batch_size]))
      added = [{name: value.numpy().astype(np.float64)
                for name, value in count.items()} for count in added]
      counts = added if counts is None else [
          _joined(*pair) for pair in zip(counts, added)]
      top += float(clipped)
    rows = [_row(place, count) for place, count in zip(self._places, counts)]
    return RangeTable(
        tuple(sorted(rows, key=harm)), top / len(images), len(images),
        self._unquantized)

  def _traced(self, images):
    tapped = self.tap(images)
    operations = [
        op for op in tf.compat.v1.get_default_graph().get_operations()
        if op.type.startswith("FakeQuantWithMinMaxVars")
        and not op.type.endswith("Gradient")]
    roles = _roles(tapped)
    after = _after(images.op)
    names = {layer.name for graph in graphs_in(self.tap.model)
             for layer in graph.layers}
    self._places = [{
        "layer": _layer_name(op, names),
        "kind": _kind(op, after, images.op),
        "role": roles.get(op.name, ""),
        "levels": _last(op) - _first(op) + 1,
    } for op in operations]
    self._unquantized = tuple(
        _layer_name(op, names) for op in images.graph.get_operations()
        if op.type in _WEIGHTED and op.name in after
        and not _source(op.inputs[1]).type.startswith("FakeQuant"))
    top = tf.zeros([])
    for op in operations:
      if roles.get(op.name) == "scores":
        top = _top_clipped(op)
    return [_count(op) for op in operations], top


def _roles(tapped: Tapped) -> dict[str, str]:
  """Returns, by operation, the quantizers of the scores and the features."""
  roles = {op.name: "features" for tensor in tapped.features
           for op in _quantizers_of(tensor)}
  roles.update((op.name, "scores") for op in _quantizers_of(tapped.logits))
  return roles


def _quantizers_of(tensor: tf.Tensor) -> list[tf.Operation]:
  """Returns the quantizer that computed a tensor, or the next ones after it."""
  op = _source(tensor)
  if op.type.startswith("FakeQuant"):
    return [op]
  quantizers, seen, todo = [], set(), [op]
  while todo:
    op = todo.pop()
    for output in op.outputs:
      for user in output.consumers():
        if user.name in seen:
          continue
        seen.add(user.name)
        if user.type.startswith("FakeQuant"):
          quantizers.append(user)
        else:
          todo.append(user)
  return quantizers


def _after(op: tf.Operation) -> set[str]:
  """Returns the names of all operations that depend on an operation."""
  seen, todo = {op.name}, [op]
  while todo:
    for output in todo.pop().outputs:
      for user in output.consumers():
        if user.name not in seen:
          seen.add(user.name)
          todo.append(user)
  return seen


def _kind(op: tf.Operation, after: set[str], images: tf.Operation) -> str:
  if op.name not in after:
    return "weights"
  return "input" if _source(op.inputs[0]).name == images.name else "activation"


def _source(tensor: tf.Tensor) -> tf.Operation:
  """Returns the operation that computed a tensor, before any reshape."""
  op = tensor.op
  while op.type in _PASSING:
    op = op.inputs[0].op
  return op


def _layer_name(op: tf.Operation, names: set[str]) -> str:
  """Returns the innermost layer of an operation's name (net/quant_conv/...)."""
  inside = [name for name in op.name.split("/") if name in names]
  return unwrapped_name(inside[-1]) if inside else op.name


def _first(op: tf.Operation) -> int:
  return 1 if op.get_attr("narrow_range") else 0


def _last(op: tf.Operation) -> int:
  return 2 ** op.get_attr("num_bits") - 1


def _range(op: tf.Operation) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns low, high and step, `[channels]`; as in TF, 0 is a step."""
  low, high = (tf.reshape(end, [-1]) for end in op.inputs[1:])
  step = (high - low) / (_last(op) - _first(op))
  zero = tf.clip_by_value(
      tf.round(_first(op) - tf.math.divide_no_nan(low, step)),
      _first(op), _last(op))
  return (_first(op) - zero) * step, (_last(op) - zero) * step, step


def _count(op: tf.Operation) -> dict[str, tf.Tensor]:
  """Counts a quantizer's inputs in the graph, `[channels]` each."""
  low, high, step = _range(op)
  channels = op.inputs[1].shape[0] if op.inputs[1].shape.rank else 1
  values = tf.reshape(op.inputs[0], [-1, channels])
  finite = tf.math.is_finite(values)
  inside = tf.where(finite, tf.clip_by_value(values, low, high), 0.0)
  levels = _last(op) + 1
  numbers = tf.cast(tf.round(
      tf.math.divide_no_nan(inside - low, step)), tf.int32)
  numbers = tf.clip_by_value(numbers, 0, levels - 1)
  hits = tf.math.bincount(
      tf.reshape(numbers + levels * tf.range(channels), [-1]),
      minlength=channels * levels)
  return {
      "low": low, "high": high,
      "began": tf.reduce_all(tf.abs(op.inputs[1]) == _BEGINNING)
               & tf.reduce_all(op.inputs[2] == _BEGINNING),
      "least": tf.reduce_min(values, 0), "most": tf.reduce_max(values, 0),
      "below": tf.math.count_nonzero(values < low - step / 2),
      "above": tf.math.count_nonzero(values > high + step / 2),
      "broken": tf.math.count_nonzero(~finite),
      "total": tf.size(values, tf.int64),
      "hits": tf.reshape(hits, [channels, levels]),
  }


def _top_clipped(op: tf.Operation) -> tf.Tensor:
  """Counts the images of the batch whose top score is outside the range."""
  low, high, step = _range(op)
  scores = op.inputs[0]
  if scores.shape[-1] == 1:
    outside = (scores < low - step / 2) | (scores > high + step / 2)
    return tf.reduce_sum(tf.cast(outside, tf.float32))
  top = tf.reduce_max(scores, axis=-1, keepdims=True)
  index = tf.cast(tf.equal(scores, top), tf.float32)
  outside = tf.cast((scores < low - step / 2) | (scores > high + step / 2),
                    tf.float32)
  return tf.reduce_sum(tf.reduce_max(index * outside, axis=-1))


_JOIN = {"least": np.minimum, "most": np.maximum, "below": np.add,
         "above": np.add, "broken": np.add, "total": np.add, "hits": np.add}


def _joined(first: dict, second: dict) -> dict:
  """Joins the counts of two batches."""
  return {name: _JOIN[name](value, second[name]) if name in _JOIN else value
          for name, value in first.items()}


def _row(place: dict[str, Any], count: dict[str, np.ndarray]) -> QuantizerRange:
  low, high = count["low"], count["high"]
  width = high - low
  fault = ""
  if count["broken"] or not np.isfinite(width).all():
    fault = "not finite"
  elif not width.any():
    fault = "empty"
  elif count["began"]:
    fault = "untrained"
  used = np.minimum(count["most"], high) - np.maximum(count["least"], low)
  share = np.maximum(used, 0) / np.where(width > 0, width, 1)
  broken = np.nan if fault == "not finite" else 1.0
  return QuantizerRange(
      **place, low=float(low.min()), high=float(high.max()),
      least=float(count["least"].min()), most=float(count["most"].max()),
      below=float(broken * count["below"] / count["total"]),
      above=float(broken * count["above"] / count["total"]),
      waste=float(broken * (1 - share).mean()) if width.any() else 0.0,
      steps=float(broken * (count["hits"] > 0).sum(1).mean()), fault=fault)
