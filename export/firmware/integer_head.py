"""A file's head in integers, as a microcontroller computes it.

Kernels stay the file's int8 numbers, where the device can read them in place.
Their scales, one for each output, become integers too, as large as possible
with every sum in 63 bits.
"""

import dataclasses
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.head import Head, Layer
from keras_attr_preserve.export.tflite.pooling import Pool
from keras_attr_preserve.export.tflite.schema import TensorSpec

__all__ = ["IntegerHead", "IntegerLayer", "integer_head", "sensitivity_limit"]

_WIDE = 2**63 - 1
_UNIT_SCALE_BITS = 15


@dataclasses.dataclass(frozen=True)
class IntegerLayer:
  """A linear layer in integers: `weight = unit * scales[output] * kernel`.

  Attributes:
    kernel: int8 `[outputs, cells, inputs]`.
    scales: int32 `[outputs]`, 1 .. 2**bits.
    bits: see `scales`.
    unit: float, the unit of `scales`.
    offset: position of the kernel in the file's bytes; None if absent.
  """

  kernel: np.ndarray
  scales: np.ndarray
  bits: int
  unit: float
  offset: int | None


@dataclasses.dataclass(frozen=True)
class IntegerHead:
  """A head in integers.

  Attributes:
    last: the layer that gives the logits.
    limit: the largest absolute value of a channel's sensitivity, so that its
      sum over all channels stays in 31 bits.
    hidden: the hidden layer; None for no hidden layer, and then `pool`, `bias`
      and `ceiling` are None, too.
    pool: the pooling before the hidden layer.
    bias: int64 `[units]`, in steps of `feature's scale * unit's scale /
      pool.count`. A unit is on where bias plus products is positive.
    ceiling: int64 `[units]`, in the same steps; a unit is on below it. None for
      ReLU.
  """

  last: IntegerLayer
  limit: int
  hidden: IntegerLayer | None = None
  pool: Pool | None = None
  bias: np.ndarray | None = None
  ceiling: np.ndarray | None = None

  @property
  def in_place(self) -> bool:
    """Whether the device reads a kernel in place, from the model."""
    return any(layer is not None and layer.offset is not None
               for layer in (self.last, self.hidden))

  @property
  def unit(self) -> float:
    """The unit of a sensitivity, times 2**exponent."""
    return self.last.unit * (self.hidden.unit if self.hidden else 1.0)


def sensitivity_limit(channels: int) -> int:
  """Returns the largest sensitivity whose sum over channels fits 31 bits.

  Args:
    channels: the number of channels of the features.

  Returns:
    32767, or less for more than 256 channels.

  Raises:
    ValueError: too many channels: less than 6 bits remain.
  """
  limit = min(2**15 - 1, (2**31 - 1) // (255 * channels))
  if limit < 63:
    raise ValueError(
        f"wcam: its layer must have at most {(2**31 - 1) // (255 * 63)} "
        f"channels for a map in 32-bit integers; got {channels}.")
  return limit


def integer_head(
    content: bytes,
    model: schema.ModelT,
    subgraph: int,
    head: Head,
    features: TensorSpec,
) -> IntegerHead:
  """Turns a head into integers.

  Args:
    content: the file's bytes.
    model: the file's model, from `read_model`.
    subgraph: the number of the subgraph.
    head: the result of `read_head`.
    features: spec of the file's features.

  Returns:
    The head.

  Raises:
    ValueError: too many channels for 32 bits.
  """
  limit = sensitivity_limit(features.shape[3])
  graph = model.subgraphs[subgraph]
  outputs, cells, _ = head.last.weights.shape
  bits = min(30, _bits(_WIDE // (128 * 128 * cells * outputs)))
  last = _integer_layer(content, model, graph, head.last, bits)
  if head.hidden is None:
    return IntegerHead(last, limit)
  hidden = _integer_layer(
      content, model, graph, head.hidden, _UNIT_SCALE_BITS)
  steps = features.scale * _scales(model, graph, head.hidden) / head.pool.count
  # Products never exceed `most`, so clipping changes no decision.
  most = 255 * 128 * hidden.kernel[0].size * head.pool.count + 1
  bias = np.clip(np.rint(head.hidden.bias / steps), -most, most)
  ceiling = None
  if math.isfinite(head.hidden.ceiling):
    ceiling = np.clip(np.rint(head.hidden.ceiling / steps), 1, 2 * most)
    ceiling = ceiling.astype(np.int64)
  return IntegerHead(
      last, limit, hidden, head.pool, bias.astype(np.int64), ceiling)


def _bits(value: int) -> int:
  """Returns the exponent of the largest power of two up to a value."""
  return value.bit_length() - 1


def _integer_layer(content, model, graph, layer: Layer, bits) -> IntegerLayer:
  scales = _scales(model, graph, layer)
  numbers = _stored(model, graph, layer)
  offset = None
  if numbers is None:
    numbers = np.rint(layer.weights / scales[:, None, None]).astype(np.int8)
  else:
    # Equal bytes serve at any position in the file.
    position = content.find(numbers.tobytes())
    offset = position if position >= 0 else None
  unit = scales.max() / 2**bits
  return IntegerLayer(
      numbers, np.maximum(np.rint(scales / unit), 1).astype(np.int32), bits,
      float(unit), offset)


def _stored(model, graph, layer: Layer) -> np.ndarray | None:
  """Returns the layer's int8 numbers if the file's zero points are 0."""
  if layer.tensor is None:
    return None
  tensor = graph.tensors[layer.tensor]
  points = tensor.quantization.zeroPoint if tensor.quantization else None
  if tensor.type != schema.TensorType.INT8 or points is None or np.any(points):
    return None
  data = bytes(model.buffers[tensor.buffer].data)
  return np.frombuffer(data, np.int8).reshape(layer.weights.shape)


def _scales(model, graph, layer: Layer) -> np.ndarray:
  """Returns the step of each output's weights, float64, never 0."""
  outputs = len(layer.weights)
  if _stored(model, graph, layer) is not None:
    scales = np.broadcast_to(np.asarray(
        graph.tensors[layer.tensor].quantization.scale, np.float64), outputs)
  else:
    scales = np.abs(layer.weights).max((1, 2)).astype(np.float64) / 127
  # A row of zeros may have scale 0.
  return np.where(scales > 0, scales, max(scales.max(), 1e-30))
