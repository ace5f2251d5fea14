"""Bytes of tensors, and of the scratch that TFLite Micro's kernels need.

Source: the `Prepare` functions in tensorflow/lite/micro/kernels of
tflite-micro, compared with the interpreter in its package
(0.dev20261023182759). Kernels tuned for a processor ask for more.
"""

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.schema import type_name

__all__ = ["scratch_bytes", "tensor_bytes"]

_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT64": 64, "INT4": 4,
    "INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32,
    "INT64": 64, "UINT64": 64, "BOOL": 8, "COMPLEX64": 64, "COMPLEX128": 128,
    "RESOURCE": 32,
}


def _count(tensor: schema.TensorT) -> int:
  return math.prod(int(size) for size in np.atleast_1d(
      [] if tensor.shape is None else tensor.shape))


def tensor_bytes(tensor: schema.TensorT) -> int:
  """Returns the bytes of a tensor's numbers.

  Args:
    tensor: a tensor of a file from `read_model`.

  Returns:
    Bytes, not rounded up to any alignment.

  Raises:
    ValueError: the tensor has no fixed size.
  """
  name = type_name(tensor)
  if name not in _BITS or _count(tensor) < 0:
    raise ValueError(
        f"tflite_model: tensor {(tensor.name or b'').decode()!r} has no fixed "
        f"size: type {name}, shape {[int(size) for size in tensor.shape]}.")
  return -(-_count(tensor) * _BITS[name] // 8)


def scratch_bytes(
    name: str, graph: schema.SubGraphT, operator: schema.OperatorT
) -> list[int]:
  """Returns the bytes of each scratch buffer that a reference kernel needs.

  Args:
    name: the operator's name.
    graph: the operator's subgraph.
    operator: the operator.

  Returns:
    Bytes in the order of the kernel's requests; empty if it has none.
  """
  inputs = [graph.tensors[i] if i >= 0 else None for i in operator.inputs]
  output = graph.tensors[operator.outputs[0]] if len(operator.outputs) else None
  kinds = [type_name(tensor) if tensor else "" for tensor in inputs]
  if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
    return [_count(inputs[1])] if kinds[1] == "INT4" else []
  if name == "TRANSPOSE_CONV":
    sums = {"INT8": [4 * _count(output)], "INT16": [8 * _count(output)]}
    bias = [8 * _count(inputs[3])] if (
        kinds[2:4] == ["INT16", "INT16"]) else []
    return sums.get(kinds[2], []) + bias
  if name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
    sums = [4 * _count(output)] if name in ("MEAN", "SUM") and (
        kinds[0] in ("INT8", "INT16")) else []
    return [*sums, 4 * len(inputs[0].shape), 4 * _count(inputs[1])]
  if name == "MIRROR_PAD":
    return 2 * [4 * len(inputs[0].shape)]
  if name == "ADD_N":
    return [8 * len(inputs)]  # Pointers.
  if name == "SVDF":
    batch, filters = int(inputs[0].shape[0]), int(inputs[1].shape[0])
    units = filters // operator.builtinOptions.rank
    return [4 * batch * filters, *(
        [4 * batch * units] if kinds[0] == "INT8" else [])]
  if name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
    state = inputs[19]
    return 4 * [tensor_bytes(state)]
  return []
