"""Quantizes a model to int8, with chosen layers left in floats.

Uses TensorFlow's public debugger of quantization
(`tf.lite.experimental.QuantizationDebugger`). The debugger measures the ranges
once and then quantizes with any list of exceptions, in fractions of a second.
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
  """One operator of the file, which may be several layers fused.

  Attributes:
    node: the name of its output tensor.
    layer: the name of the last layer in it, such as "conv_pw_3_relu". An output
      of the file goes by the output's name, such as "features".
    operator: its kind, such as "CONV_2D".
    inputs: the nodes whose outputs it takes; not constants or the images.
    weights: the bytes of its weights in floats.
  """

  node: str
  layer: str
  operator: str
  inputs: tuple[str, ...]
  weights: int


class LayerQuantizer:
  """A calibrated model that can be quantized many times.

  Attributes:
    steps: its operators, in the order they run.
  """

  def __init__(self, converter: tf.lite.TFLiteConverter):
    """Measures the ranges.

    Args:
      converter: a converter of a SavedModel with one signature, set up with
        optimizations and a representative dataset.
    """
    self._debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_options=_options(()))
    self.steps = _steps(bytes(self._debugger.calibrated_model))

  def content(self, kept: Collection[str] = ()) -> bytes:
    """Quantizes all operators except the kept ones.

    Args:
      kept: nodes of `steps` that compute in floats, with weights in floats.

    Returns:
      A file of integers, with floats in the kept operators. The input is an
      integer unless all operators that take it are kept. An output is an
      integer unless a kept operator computes it.

    Raises:
      ValueError: no such node, or nothing is left to quantize.
    """
    known = {step.node for step in self.steps}
    if not set(kept) < known:
      raise ValueError(
          f"kept must be some of the nodes {sorted(known)}, but not all; got "
          f"{sorted(kept)}.")
    self._debugger.options = _options(kept)
    content = bytes(self._debugger.get_nondebug_quantized_model())
    return _with_float_ends(content) if kept else content


def _options(nodes: Iterable[str]):
  return tf.lite.experimental.QuantizationDebugOptions(
      denylisted_nodes=sorted(nodes), fully_quantize=True)


def _steps(content: bytes) -> list[Step]:
  model = read_model(content)
  graph = model.subgraphs[0]
  names = [tensor.name.decode() for tensor in graph.tensors]
  outputs = {output.tensorIndex: output.name.decode()
             for entry in model.signatureDefs for output in entry.outputs}
  steps, nodes = [], set()
  for operator in graph.operators:
    output, inputs = int(operator.outputs[0]), [
        int(index) for index in operator.inputs if index >= 0]
    layers = names[output].split(";")[0].split("/")
    nodes.add(output)
    steps.append(Step(
        names[output], outputs.get(output, layers[-2:][0]),
        operator_name(model, operator),
        tuple(names[index] for index in inputs if index in nodes),
        sum(_size(model, graph.tensors[index]) for index in inputs)))
  return steps


def _size(model, tensor) -> int:
  data = model.buffers[tensor.buffer].data
  return 0 if data is None else len(data)


def _with_float_ends(content: bytes) -> bytes:
  """Drops DEQUANTIZE and QUANTIZE at the file's ends, which become floats."""
  model = read_model(content)
  graph = model.subgraphs[0]
  users = {}
  for operator in graph.operators:
    for index in map(int, operator.inputs):
      users.setdefault(index, []).append(operator)
  producers = {int(operator.outputs[0]): operator
               for operator in graph.operators}
  instead, spare = {}, []
  for index in map(int, graph.inputs):
    taking = users.get(index, [])
    if len(taking) == 1 and operator_name(model, taking[0]) == "DEQUANTIZE":
      instead[index] = int(taking[0].outputs[0])
      spare.append(taking[0])
  for index in map(int, graph.outputs):
    operator = producers.get(index)
    if operator is None or operator_name(model, operator) != "QUANTIZE":
      continue
    instead[index] = int(operator.inputs[0])
    if index not in users:
      spare.append(operator)
  graph.inputs, graph.outputs = (
      np.array([instead.get(int(index), int(index)) for index in numbers],
               np.int32) for numbers in (graph.inputs, graph.outputs))
  for entry in model.signatureDefs:
    for item in (*entry.inputs, *entry.outputs):
      item.tensorIndex = instead.get(item.tensorIndex, item.tensorIndex)
  graph.operators = [item for item in graph.operators
                     if not any(item is other for other in spare)]
  return write_model(model)
