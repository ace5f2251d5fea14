"""Stores the constants of a float piece in few bytes, and once.

A phone's `explain` computes its map in floats, but need not store its weights
in 32 bits. An operator DEQUANTIZE makes floats of half-precision or 8-bit
weights; runtimes run it once, when they load the file. Weights that the forward
file already has are shared. An integer file's map is then the map of its own
integer weights.

Uses LiteRT's own schema (`ai_edge_litert.schema_py_generated`).
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.schema import constant, operator_name

__all__ = ["KINDS", "store_weights"]

KINDS = ("float32", "float16", "int8")
_LEAST = 128  # Numbers. With fewer, an operator adds more than it saves.
_CHANNELS = {"CONV_2D": 0, "TRANSPOSE_CONV": 0, "FULLY_CONNECTED": 0,
             "DEPTHWISE_CONV_2D": 3}
_TYPES = schema.TensorType


def store_weights(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    operators: Sequence[schema.OperatorT],
    kind: str,
) -> None:
  """Stores the constants that operators read; changes the model.

  Args:
    model: the file.
    graph: one of its subgraphs, which ends in the operators.
    operators: their float constants are stored. Constants of earlier operators
      are shared.
    kind: "float32"; "float16", half precision; or "int8": weights of linear
      operators in 255 steps for each output channel, other constants in half
      precision.

  Raises:
    ValueError: no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"weights must be one of {KINDS}; got {kind!r}.")
  store = _Store(model, graph, operators)
  for operator in operators:
    if operator_name(model, operator) == "QUANTIZE":
      store.fold(operator)
  for tensor, axis in list(store.float_constants()):
    if np.prod(graph.tensors[tensor].shape) >= _LEAST:
      store.store(tensor, kind, axis)


class _Store:
  """The constants of a subgraph, and the operators that dequantize them."""

  def __init__(self, model, graph, operators):
    self._model, self._graph = model, graph
    self._operators = list(operators)
    self._first = len(graph.operators) - len(self._operators)
    before = graph.operators[:self._first]
    # Each once, in the order of the file.
    self._forward = list(dict.fromkeys(
        int(i) for operator in before for i in operator.inputs
        if i >= 0 and self._data(int(i)) is not None))
    self._matrices: dict[int, int] = {}
    # The forward operators' DEQUANTIZE outputs are not shared. XNNPACK treats
    # weights as constants only if it runs all readers of their DEQUANTIZE.
    self._floats: dict[int, int] = {}

  def _data(self, tensor: int):
    data = self._model.buffers[self._graph.tensors[tensor].buffer].data
    return data if data is not None and len(data) else None

  def fold(self, operator) -> None:
    """Replaces a QUANTIZE of a constant, such as a weight, by its result."""
    source, target = int(operator.inputs[0]), int(operator.outputs[0])
    if self._data(source) is None:
      return
    tensor = self._graph.tensors[target]
    values = constant(self._model, self._graph.tensors[source])
    tensor.shape = np.int32(values.shape)  # The converter may leave it empty.
    if tensor.type == _TYPES.UINT8:  # A converter without a mode writes UINT8.
      tensor.type = _TYPES.INT8
      tensor.quantization.zeroPoint = np.asarray(
          tensor.quantization.zeroPoint) - 128
    scale, zero_point = _per_channel(tensor)
    steps = values / scale
    # The kernel rounds halves away from zero.
    steps = np.trunc(steps + np.copysign(0.5, steps)) + zero_point
    self._fill(tensor, np.clip(steps, -128, 127).astype(np.int8))
    self._graph.operators.remove(operator)
    self._operators.remove(operator)

  def float_constants(self) -> Iterator[tuple[int, int | None]]:
    """Yields float32 constants; for kernels also the axis of the channels."""
    seen = set()
    for operator in self._operators:
      name = operator_name(self._model, operator)
      for position, i in enumerate(map(int, operator.inputs)):
        if i < 0 or i in seen or self._data(i) is None or (
            self._graph.tensors[i].type != _TYPES.FLOAT32):
          continue
        seen.add(i)
        yield i, _CHANNELS.get(name) if position == 1 else None

  def store(self, tensor: int, kind: str, axis: int | None) -> None:
    """Shares a constant with the forward file, or stores it in few bytes."""
    values = constant(self._model, self._graph.tensors[tensor])
    stored = self._equal_one(values, kind)
    if stored is None and axis == 0 and (
        self._multiply_by_transposed(tensor, values, kind)):
      return
    if stored is None and kind != "float32":
      stored = self._stored(tensor, values, kind, axis)
    if stored is not None:
      self._replace(tensor, self._float(stored))

  def _float(self, stored: int) -> int:
    """Returns the tensor that holds a constant's values as floats."""
    old = self._graph.tensors[stored]
    if old.type == _TYPES.FLOAT32:
      return stored
    if stored not in self._floats:
      new = schema.TensorT()
      new.name, new.shape, new.hasRank = b"", old.shape, old.hasRank
      new.type = _TYPES.FLOAT32
      self._graph.tensors.append(new)
      self._floats[stored] = len(self._graph.tensors) - 1
      operator = schema.OperatorT()
      # Version 5 has a scale for each channel.
      operator.opcodeIndex = self._code(schema.BuiltinOperator.DEQUANTIZE, 5)
      operator.inputs = np.int32([stored])
      operator.outputs = np.int32([self._floats[stored]])
      self._graph.operators.insert(self._first, operator)
      self._first += 1
    return self._floats[stored]

  def _equal_one(self, values: np.ndarray, kind: str) -> int | None:
    """Finds a constant of the forward file that has these values."""
    number_type = {"int8": _TYPES.INT8, "float16": _TYPES.FLOAT16,
              "float32": _TYPES.FLOAT32}[kind]
    for other in self._forward:
      tensor = self._graph.tensors[other]
      if tensor.type != number_type or tuple(tensor.shape) != values.shape:
        continue
      slack = {"int8": lambda: 0.51 * _per_channel(tensor)[0],  # noqa: B023
               "float16": lambda: np.maximum(np.abs(values) / 2**11, 2**-24),
               "float32": lambda: 0}[kind]()
      if np.all(np.abs(constant(self._model, tensor) - values) <= slack):
        return other
    return None

  def _multiply_by_transposed(
      self, weights: int, values: np.ndarray, kind: str) -> bool:
    """Lets the backward pass of a linear layer read the layer's own weights.

    Such a pass is a linear layer or a transposed convolution by one pixel. The
    forward file has its weights transposed, so it becomes a matrix product.
    """
    readers = [reader for reader in self._operators if weights in reader.inputs]
    operator = readers[0]
    name = operator_name(self._model, operator)
    options = operator.builtinOptions
    place = {"FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 2}.get(name)
    rest = operator.inputs[2:] if place == 0 else operator.inputs[3:]
    if place is None or len(readers) > 1 or any(i >= 0 for i in rest) or (
        options.fusedActivationFunction) or (
            values.size != len(values) * values.shape[-1]) or (
                place == 2 and (options.strideH, options.strideW) != (1, 1)):
      return False
    matrix = values.reshape(len(values), -1).T
    stored = self._equal_one(matrix, kind)
    if stored is None:
      stored = self._equal_one(matrix[:, None, None], kind)
      if stored is None:
        return False
      stored = self._as_matrix(stored)
    operator.opcodeIndex = self._code(schema.BuiltinOperator.BATCH_MATMUL, 1)
    operator.inputs = np.int32([operator.inputs[place], self._float(stored)])
    operator.builtinOptionsType = schema.BuiltinOptions.BatchMatMulOptions
    operator.builtinOptions = schema.BatchMatMulOptionsT()
    return True

  def _as_matrix(self, kernel: int) -> int:
    """Returns a view of a one-pixel kernel as a matrix."""
    if kernel not in self._matrices:
      view = copy.copy(self._graph.tensors[kernel])
      view.shape = np.int32([view.shape[0], view.shape[-1]])
      self._graph.tensors.append(view)
      self._matrices[kernel] = len(self._graph.tensors) - 1
    return self._matrices[kernel]

  def _stored(self, tensor, values, kind, axis) -> int:
    """Adds a constant with these values; returns its number."""
    old = self._graph.tensors[tensor]
    new = schema.TensorT()
    new.name = bytes(old.name) + b"/stored"
    new.shape, new.hasRank = old.shape, old.hasRank
    if kind == "int8" and axis is not None:
      others = tuple(i for i in range(values.ndim) if i != axis)
      scale = np.abs(values).max(others, keepdims=True) / np.float32(127)
      scale[scale == 0] = 1
      quantization = schema.QuantizationParametersT()
      quantization.scale = np.float32(scale.ravel())
      quantization.zeroPoint = np.zeros(scale.size, np.int64)
      quantization.quantizedDimension = axis
      new.type, new.quantization = _TYPES.INT8, quantization
      self._fill(new, np.round(values / scale).astype(np.int8))
    else:
      new.type = _TYPES.FLOAT16
      self._fill(new, values.astype(np.float16))
    self._graph.tensors.append(new)
    return len(self._graph.tensors) - 1

  def _fill(self, tensor: schema.TensorT, values: np.ndarray) -> None:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    self._model.buffers.append(buffer)
    tensor.buffer = len(self._model.buffers) - 1

  def _replace(self, tensor: int, other: int) -> None:
    for operator in self._operators:
      operator.inputs = np.int32(
          [other if i == tensor else i for i in operator.inputs])

  def _code(self, builtin: int, version: int) -> int:
    for i, code in enumerate(self._model.operatorCodes):
      if (code.builtinCode, code.version) == (builtin, version):
        return i
    code = schema.OperatorCodeT()
    # The deprecated field ends at 127.
    code.builtinCode, code.version = builtin, version
    code.deprecatedBuiltinCode = min(builtin, 127)
    self._model.operatorCodes.append(code)
    return len(self._model.operatorCodes) - 1


def _per_channel(tensor: schema.TensorT) -> tuple[np.ndarray, np.ndarray]:
  """Returns scale and zero point, shaped to broadcast with the values."""
  shape = [1] * len(tensor.shape)
  quantization = tensor.quantization
  if len(quantization.scale) > 1:
    shape[quantization.quantizedDimension] = -1
  return tuple(np.asarray(values, np.float32).reshape(shape) for values in (
      quantization.scale, quantization.zeroPoint))
