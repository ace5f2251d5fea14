"""Reads and annotates .tflite files as flatbuffers.

Uses LiteRT's own schema and tools (`ai_edge_litert.schema_py_generated`,
`ai_edge_litert.tools.flatbuffer_utils`).
"""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from keras_attr_preserve.export.tflite.seal import METADATA_NAME, mark, stamped

__all__ = [
    "METADATA_NAME",
    "Signature",
    "TensorSpec",
    "annotate",
    "constant",
    "operator_name",
    "read_metadata",
    "read_model",
    "signatures",
    "tensor_spec",
    "type_name",
    "write_model",
]

_MOST_NUMBERS = 1 << 29
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.BOOL: np.bool_,
}
_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items()
    if not name.startswith("_")
}
_TYPES = {code: name for name, code in vars(schema.TensorType).items()
          if not name.startswith("_")}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
  """An input or output of a file, and how its numbers encode floats.

  Attributes:
    position: its place among the subgraph's inputs or outputs.
    shape: with the batch.
    dtype: NumPy's type.
    scale: real value of one step; 0 if the type is a float.
    zero_point: the integer that stands for 0.
  """

  position: int
  shape: tuple[int, ...]
  dtype: np.dtype
  scale: float
  zero_point: int

  @property
  def range(self) -> tuple[float, float]:
    """The smallest and the largest real value that the tensor can hold."""
    if not self.scale:
      return -np.inf, np.inf
    limits = np.iinfo(self.dtype)
    return ((limits.min - self.zero_point) * self.scale,
            (limits.max - self.zero_point) * self.scale)

  def encode(self, values: np.ndarray) -> np.ndarray:
    """Turns floats into the tensor's numbers, rounded and clipped."""
    if not self.scale:
      return values.astype(self.dtype)
    limits = np.iinfo(self.dtype)
    steps = np.round(values / self.scale) + self.zero_point
    return np.clip(steps, limits.min, limits.max).astype(self.dtype)

  def decode(self, numbers: np.ndarray) -> np.ndarray:
    """Turns the tensor's numbers into float32."""
    if not self.scale:
      return numbers.astype(np.float32)
    return (numbers.astype(np.float32) - self.zero_point) * np.float32(
        self.scale)


@dataclasses.dataclass(frozen=True)
class Signature:
  """A named way to call a file.

  Attributes:
    subgraph: the number of the subgraph it runs.
    inputs: the inputs, by name.
    outputs: the outputs, by name.
  """

  subgraph: int
  inputs: Mapping[str, TensorSpec]
  outputs: Mapping[str, TensorSpec]


def read_model(tflite_model: bytes) -> schema.ModelT:
  """Parses a file.

  Args:
    tflite_model: its bytes.

  Returns:
    The schema's object for the whole file.

  Raises:
    TypeError: not bytes.
    ValueError: not a .tflite file, or a damaged one.
  """
  if not isinstance(tflite_model, (bytes, bytearray)):
    raise TypeError(
        f"tflite_model must be the bytes of a .tflite file; got "
        f"{type(tflite_model).__name__}.")
  if tflite_model[4:8] != b"TFL3":
    raise ValueError(
        "tflite_model must be a .tflite file, whose bytes 4 to 7 are 'TFL3'; "
        f"got {len(tflite_model)} bytes with {bytes(tflite_model[4:8])!r}.")
  try:
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(tflite_model))
    _check_references(model)
  except (AttributeError, IndexError, KeyError, MemoryError, OverflowError,
          TypeError, UnicodeError, ValueError, SystemError,
          struct.error) as error:
    raise ValueError(
        f"tflite_model is damaged: {type(error).__name__}: {error}") from error
  return model


def _check_references(model: schema.ModelT) -> None:
  """Raises IndexError or TypeError for a reference to a missing part."""
  def check(numbers, parts, least=0):
    for number in numbers:
      if not least <= number < len(parts):
        raise IndexError(f"part {number} of {len(parts)}")

  if not model.subgraphs:
    raise ValueError("it has no subgraph")
  for graph in model.subgraphs:
    check([*graph.inputs, *graph.outputs], graph.tensors)
    check([tensor.buffer for tensor in graph.tensors], model.buffers)
    for tensor in graph.tensors:
      if tensor.shape is None:  # A single number may have no shape.
        tensor.shape = np.zeros(0, np.int32)
      shape = [int(size) for size in tensor.shape]
      # Runtimes count in 32 bits, and some wrap around.
      if min(shape, default=0) < 0 or math.prod(shape) >= _MOST_NUMBERS:
        raise ValueError(f"a tensor of shape {shape}")
      tensor.name.decode()
    for operator in graph.operators:
      check([operator.opcodeIndex], model.operatorCodes)
      check(operator.inputs, graph.tensors, least=-1)  # -1: an input left out.
      check(operator.outputs, graph.tensors)
  for entry in model.signatureDefs or []:
    check([entry.subgraphIndex], model.subgraphs)
    graph = model.subgraphs[entry.subgraphIndex]
    entry.signatureKey.decode()
    for named, order in ((entry.inputs, graph.inputs),
                         (entry.outputs, graph.outputs)):
      for pair in named:
        pair.name.decode()
        [*order].index(pair.tensorIndex)
  check([entry.buffer for entry in model.metadata or []], model.buffers)


def signatures(model: schema.ModelT) -> dict[str, Signature]:
  """Lists a file's signatures by name.

  Args:
    model: from `read_model`.

  Returns:
    Its signatures. A file without any gets one named "", which calls its first
    subgraph, with the tensors' own names.
  """
  if not model.signatureDefs:
    graph = model.subgraphs[0]
    names = lambda tensors: [  # noqa: E731
        (graph.tensors[i].name, i) for i in tensors]
    return {"": Signature(0, _specs(graph, names(graph.inputs), graph.inputs),
                          _specs(graph, names(graph.outputs), graph.outputs))}
  result = {}
  for entry in model.signatureDefs:
    graph = model.subgraphs[entry.subgraphIndex]
    pairs = lambda maps: [(pair.name, pair.tensorIndex) for pair in maps]  # noqa: E731
    result[entry.signatureKey.decode()] = Signature(
        entry.subgraphIndex,
        _specs(graph, pairs(entry.inputs), graph.inputs),
        _specs(graph, pairs(entry.outputs), graph.outputs))
  return result


def _specs(graph, named, order) -> dict[str, TensorSpec]:
  order = [int(i) for i in order]
  return {name.decode(): _spec(graph.tensors[i], order.index(i))
          for name, i in named}


def tensor_spec(tensor: schema.TensorT) -> TensorSpec | None:
  """Describes how a tensor is stored; its position is 0.

  Args:
    tensor: a tensor of one of a file's subgraphs.

  Returns:
    The spec. None if the tensor has no shape, or a type that holds no map or
    score.
  """
  if tensor.shape is None or tensor.type not in _DTYPES:
    return None
  return _spec(tensor, 0)


def _spec(tensor: schema.TensorT, position: int) -> TensorSpec:
  if tensor.type not in _DTYPES:
    raise ValueError(
        f"tflite_model: tensor {tensor.name.decode()!r} has type "
        f"{type_name(tensor)}, which no map or score has.")
  quantization = tensor.quantization
  scale, zero_point = 0.0, 0
  if quantization is not None and quantization.scale is not None and len(
      quantization.scale):
    scale = float(quantization.scale[0])
    zero_point = int(_zero_points(tensor)[0])
  shape = tuple(int(size) for size in tensor.shape)
  return TensorSpec(
      position, shape, np.dtype(_DTYPES[tensor.type]), scale, zero_point)


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
  """Returns an operator's name in the schema, such as "CONV_2D"."""
  code = model.operatorCodes[operator.opcodeIndex]
  # Files older than 2020 hold the code in the deprecated field.
  return _OPERATORS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")


def type_name(tensor: schema.TensorT) -> str:
  """Returns the schema's name of a tensor's number type, such as "INT8"."""
  return _TYPES.get(tensor.type, "?")


def constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
  """Reads a constant tensor as floats.

  Args:
    model: from `read_model`.
    tensor: a tensor of one of its subgraphs.

  Returns:
    Its values, dequantized, float32 of the tensor's shape. None if it is
    computed at run time or has a type that holds no weights.
  """
  data = model.buffers[tensor.buffer].data
  if data is None or not len(data) or tensor.type not in _DTYPES:
    return None
  dtype = np.dtype(_DTYPES[tensor.type])
  values = np.frombuffer(bytes(data), dtype).astype(np.float32)
  values = values.reshape([int(size) for size in tensor.shape])
  quantization = tensor.quantization
  if quantization is None or quantization.scale is None or not len(
      quantization.scale):
    return values
  shape = [1] * values.ndim
  if len(quantization.scale) > 1:
    axis = quantization.quantizedDimension
    if not 0 <= axis < values.ndim or (
        values.shape[axis] != len(quantization.scale)):
      raise ValueError(
          f"tflite_model is damaged: {len(quantization.scale)} scales along "
          f"axis {axis} of a tensor of shape {list(values.shape)}.")
    shape[axis] = -1
  scale = np.asarray(quantization.scale, np.float32).reshape(shape)
  zero_point = _zero_points(tensor).astype(np.float32)
  return (values - zero_point.reshape(shape if len(zero_point) > 1 else -1)
          ) * scale


def _zero_points(tensor: schema.TensorT) -> np.ndarray:
  points = np.atleast_1d(np.asarray(
      [] if tensor.quantization.zeroPoint is None
      else tensor.quantization.zeroPoint))
  if len(points) not in (1, len(tensor.quantization.scale)):
    raise ValueError(
        f"tflite_model is damaged: {len(tensor.quantization.scale)} scales "
        f"with {len(points)} zero points.")
  return points


def read_metadata(model: schema.ModelT) -> dict[str, Any] | None:
  """Reads the metadata that `annotate` wrote; None if there is none."""
  for entry in model.metadata or []:
    if entry.name == METADATA_NAME.encode():
      data = model.buffers[entry.buffer].data
      if data is None:
        raise ValueError("tflite_model is damaged: its metadata is empty.")
      return json.loads(bytes(data))
  return None


def annotate(
    tflite_model: bytes,
    metadata: Mapping[str, Any],
    aliases: Mapping[str, tuple[str, tuple[str, ...]]],
) -> bytes:
  """Adds metadata, signatures and a seal to a file; the graph stays as it is.

  Args:
    tflite_model: the file's bytes.
    metadata: plain values, stored as JSON.
    aliases: for each new signature, the name of an existing signature and the
      names of outputs. The new one has these outputs of the existing one, and
      shares its subgraph and inputs.

  Returns:
    The new file's bytes. Constants stay aligned to 16 bytes, as the schema
    demands and microcontrollers rely on.
  """
  model = read_model(tflite_model)
  buffer = schema.BufferT()
  buffer.data = np.frombuffer(
      json.dumps(dict(metadata), sort_keys=True).encode(), np.uint8)
  model.buffers.append(buffer)
  entry = schema.MetadataT()
  entry.name = METADATA_NAME
  entry.buffer = len(model.buffers) - 1
  model.metadata = [*(model.metadata or []), entry]
  existing = {signature.signatureKey.decode(): signature
              for signature in model.signatureDefs}
  for name, (source, outputs) in aliases.items():
    alias = schema.SignatureDefT()
    alias.signatureKey = name
    alias.subgraphIndex = existing[source].subgraphIndex
    alias.inputs = existing[source].inputs
    alias.outputs = [output for output in existing[source].outputs
                     if output.name.decode() in outputs]
    model.signatureDefs.append(alias)
  model.description = mark()
  return write_model(model)


def write_model(model: schema.ModelT) -> bytes:
  """Writes a file.

  Args:
    model: the schema's object for the file.

  Returns:
    The file's bytes, sealed if annotated. Constants are aligned to 16
    bytes, as the schema demands and microcontrollers rely on.
  """
  _share_quantization(model)
  builder = _AlignedBuilder(4096)
  builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
  return stamped(bytes(builder.Output()))


class _Shared(schema.QuantizationParametersT):
  """Quantization that is written once, however many tensors share it."""

  def Pack(self, builder):  # noqa: N802
    if getattr(self, "_builder", None) is not builder:
      self._builder, self._place = builder, super().Pack(builder)
    return self._place


def _share_quantization(model: schema.ModelT) -> None:
  """Lets tensors with equal scales share one table of them.

  Otherwise subgraphs that read the same weights would store the scales twice.
  """
  tables = {}
  for tensor in (
      member for graph in model.subgraphs for member in graph.tensors):
    old = tensor.quantization
    if old is not None and old.details is None:
      key = tuple(None if value is None else np.asarray(value).tobytes()
                  for value in vars(old).values())
      if key not in tables:
        tables[key] = _Shared()
        vars(tables[key]).update(vars(old))
      tensor.quantization = tables[key]


class _AlignedBuilder(flatbuffers.Builder):
  """Aligns byte vectors to 16: Python's builder ignores `force_align`."""

  def StartVector(self, elem_size, num_elems, alignment):  # noqa: N802
    return super().StartVector(
        elem_size, num_elems, 16 if elem_size == 1 else alignment)
