"""Quantizing a model to int8 layer by layer, some of them left in floats.

Uses TensorFlow's public debugger of quantization
(`tf.lite.experimental.QuantizationDebugger`), which measures the ranges once
and then quantizes with any list of exceptions; that takes fractions of a
second.
"""

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np

from keras_attr_preserve.compat import tf
from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_model,
    write_model,
)

__all__ = ["LayerQuantizer", "Step"]

@dataclasses.dataclass(frozen=True)
class Step:
  """One operator of the file, which may hold several layers, fused.

  Attributes:
    node: the name of its output tensor.
    layer: the name of the last layer in it, such as "conv_pw_3_relu"; of an
      output of the file the output's name, such as "features".
    operator: its kind, such as "CONV_2D".
    inputs: the nodes that it takes; none for constants and the images.
    weights: how many bytes its weights have in floats.
  """

  node: str
  layer: str
  operator: str
  inputs: tuple[str, ...]
  weights: int


class LayerQuantizer:
  """A calibrated model, to be quantized again and again.

  Attributes:
    steps: its operators, in the order of computing.
  """

  def __init__(self, converter: tf.lite.TFLiteConverter):
    """Measures the ranges.

    Args:
      converter: of a SavedModel with one signature, set up with optimizations
        and a representative dataset.
    """
    self._debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_options=_options(()))
    self.steps = _steps(bytes(self._debugger.calibrated_model))

  def content(self, kept: Collection[str] = ()) -> bytes:
    """Quantizes all but some operators.

    Args:
      kept: nodes of `steps` that compute in floats, with weights in floats.

    Returns:
      A file of integers that has floats there. Its input is an integer unless
      all that take it are kept, and so is each output unless a kept operator
      computes it.

    Raises:
      ValueError: no such node, or nothing is left to quantize.
    """
    known = {one.node for one in self.steps}
    if not set(kept) < known:
      raise ValueError(
          f"kept must be some of the nodes {sorted(known)}, but not all; got "
          f"{sorted(kept)}.")
    self._debugger.options = _options(kept)
    content = bytes(self._debugger.get_nondebug_quantized_model())
    return _with_float_ends(content) if kept else content


def _options(kept: Iterable[str]):
  return tf.lite.experimental.QuantizationDebugOptions(
      denylisted_nodes=sorted(kept), fully_quantize=True)


def _steps(content: bytes) -> list[Step]:
  model = read_model(content)
  graph = model.subgraphs[0]
  names = [tensor.name.decode() for tensor in graph.tensors]
  outputs = {one.tensorIndex: one.name.decode()
             for entry in model.signatureDefs for one in entry.outputs}
  found, nodes = [], set()
  for operator in graph.operators:
    output, inputs = int(operator.outputs[0]), [
        int(index) for index in operator.inputs if index >= 0]
    parts = names[output].split(";")[0].split("/")
    nodes.add(output)
    found.append(Step(
        names[output], outputs.get(output, parts[-2:][0]),
        operator_name(model, operator),
        tuple(names[index] for index in inputs if index in nodes),
        sum(_size(model, graph.tensors[index]) for index in inputs)))
  return found


def _size(model, tensor) -> int:
  data = model.buffers[tensor.buffer].data
  return 0 if data is None else len(data)


def _with_float_ends(content: bytes) -> bytes:
  """Takes and hands out floats where only a change of type stands between."""
  model = read_model(content)
  graph = model.subgraphs[0]
  users = {}
  for operator in graph.operators:
    for index in map(int, operator.inputs):
      users.setdefault(index, []).append(operator)
  made = {int(one.outputs[0]): one for one in graph.operators}
  instead, spare = {}, []
  for index in map(int, graph.inputs):
    taking = users.get(index, [])
    if len(taking) == 1 and operator_name(model, taking[0]) == "DEQUANTIZE":
      instead[index] = int(taking[0].outputs[0])
      spare.append(taking[0])
  for index in map(int, graph.outputs):
    operator = made.get(index)
    if operator is None or operator_name(model, operator) != "QUANTIZE":
      continue
    instead[index] = int(operator.inputs[0])
    if index not in users:
      spare.append(operator)
  graph.inputs, graph.outputs = (
      np.array([instead.get(int(index), int(index)) for index in numbers],
               np.int32) for numbers in (graph.inputs, graph.outputs))
  for entry in model.signatureDefs:
    for one in (*entry.inputs, *entry.outputs):
      one.tensorIndex = instead.get(one.tensorIndex, one.tensorIndex)
  graph.operators = [one for one in graph.operators
                     if not any(one is other for other in spare)]
  return write_model(model)
