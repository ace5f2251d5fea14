"""Reads the head of a file: the layers from the features to the logits.

Suppose only pooling, reshaping and one linear layer follow the features. Then
the gradient of a score, summed over the positions, is a sum of that layer's
weights. With a hidden layer before it, the gradient also depends on which
hidden units are on, and the features tell this. Such a map needs no backward
pass, only features and weights that are in the file anyway.
"""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.pooling import Pool
from keras_attr_preserve.export.tflite.schema import constant, operator_name

__all__ = ["Head", "Layer", "head_weights", "read_head"]

# The weights of a pool's window sum to 1 for each output. So the sum of a
# gradient over the positions passes through unchanged, whatever the window.
_POOLS = frozenset({
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "REDUCE_MAX"})
_PASS = frozenset({"RESHAPE", "SQUEEZE", "QUANTIZE", "DEQUANTIZE"})
_ACTIVATIONS = {
    schema.ActivationFunctionType.RELU: np.inf,
    schema.ActivationFunctionType.RELU6: 6.0,
}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A linear layer, perhaps with a ReLU behind it.

  Attributes:
    weights: float32 `[outputs, cells, inputs]`, the file's weights dequantized.
      A cell is a position of the flattened features, or the only cell.
    bias: float32 `[outputs]`.
    ceiling: None without an activation; infinity for ReLU, 6 for ReLU6.
    tensor: the number of the weights' tensor in the subgraph; None if several
      linear layers were multiplied into one.
  """

  weights: np.ndarray
  bias: np.ndarray
  ceiling: float | None = None
  tensor: int | None = None


@dataclasses.dataclass(frozen=True)
class Head:
  """The layers from the features to the logits.

  Attributes:
    last: the layer that gives the logits.
    hidden: the layer before it, with a ReLU; None if there is none.
    pool: the pool between the features and the hidden layer. None without a
      hidden layer: the pool does not change a linear head's sensitivity.
  """

  last: Layer
  hidden: Layer | None = None
  pool: Pool | None = None

  def sensitivity(
      self, features: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """Differentiates scores by the features, summed over the positions.

    Args:
      features: `[images, height, width, channels]`.
      class_weights: `[images, classes]`, each image's score as a sum of logits.

    Returns:
      `[images, channels]`: `sum_{h,w} d score / d features_c`.
    """
    if self.hidden is None:
      return class_weights @ self.last.weights.sum(1)
    units = self.hidden.weights
    before = self.pool.apply(features).reshape(len(features), -1) @ (
        units.reshape(len(units), -1).T) + self.hidden.bias
    is_on = (before > 0) & (before < self.hidden.ceiling)
    return (class_weights @ self.last.weights[:, 0] * is_on) @ units.sum(1)


def head_weights(
    model: schema.ModelT, subgraph: int, logits: int, features: int
) -> np.ndarray | None:
  """Reads the sensitivity of every score off a file with a linear head.

  Args:
    model: as for `read_head`.
    subgraph: as for `read_head`.
    logits: as for `read_head`.
    features: as for `read_head`.

  Returns:
    `[classes, channels]`, float32: `sum_{h,w} d logit_k / d features_c`, from
    the file's weights, dequantized. None if more than pooling and linear layers
    stands between features and logits.
  """
  head = read_head(model, subgraph, logits, features)
  if head is None or head.hidden is not None:
    return None
  return head.last.weights.sum(1)


def read_head(
    model: schema.ModelT, subgraph: int, logits: int, features: int
) -> Head | None:
  """Reads the head off a file.

  Args:
    model: from `read_model`.
    subgraph: the number of the subgraph.
    logits: the position of the logits among its outputs.
    features: the position of the features, `[1, height, width, channels]`.

  Returns:
    The head. None if other operators than pooling and linear layers stand
    between features and logits. One linear layer may have a ReLU, if at most
    one pool stands between it and the features. An average pool must then have
    no padding.
  """
  graph = model.subgraphs[subgraph]
  producers = {int(output): operator for operator in graph.operators
               for output in operator.outputs}
  source = _unconverted(model, producers, int(graph.outputs[features]))
  tensor = _unconverted(model, producers, int(graph.outputs[logits]))
  shape = [int(size) for size in graph.tensors[source].shape]
  layers, pools = [], []
  while tensor != source:
    if tensor not in producers:
      return None
    operator = producers[tensor]
    name = operator_name(model, operator)
    if name in ("FULLY_CONNECTED", "CONV_2D"):
      layer = _layer(model, graph, producers, operator)
      if layer is None or (layer.ceiling is not None and (
          len(layers) != 1 or pools)):
        return None  # A second ReLU, or a pool between ReLU and last layer.
      if layers and layer.ceiling is None:
        after = layers.pop()
        if after.ceiling is not None and pools:
          return None  # A maximum does not pass through a linear layer.
        layer = _product(after, layer)
      if layer is None:
        return None
      layers.append(layer)
    elif name in _POOLS:
      pools.append(operator)
    elif name not in _PASS:
      return None
    tensor = _unconverted(model, producers, int(operator.inputs[0]))
  return _head(model, graph, layers, pools, shape)


def _head(model, graph, layers, pools, shape) -> Head | None:
  """Builds the head from its layers and pools, given last to first."""
  if not layers or len(shape) != 4:
    return None
  first = layers[-1]
  count = first.weights.shape[1] * first.weights.shape[2]
  if count % shape[3]:
    return None
  first = dataclasses.replace(first, weights=first.weights.reshape(
      len(first.weights), -1, shape[3]))
  if len(layers) == 1:
    return Head(first)
  pool = Pool.of(model, graph, pools, shape)
  last = layers[0]
  if pool is None or np.prod(pool.output) * shape[3] != count or (
      last.weights.shape[1:] != (1, len(first.weights))):
    return None
  return Head(last, first, pool)


def _unconverted(model, producers, tensor: int) -> int:
  """Follows a tensor back through changes of its number type."""
  while tensor in producers and operator_name(model, producers[tensor]) in (
      "QUANTIZE", "DEQUANTIZE"):
    tensor = int(producers[tensor].inputs[0])
  return tensor


def _layer(model, graph, producers, operator) -> Layer | None:
  """Returns a linear layer, with its ReLU if it has one."""
  activation = operator.builtinOptions.fusedActivationFunction
  if activation not in (
      schema.ActivationFunctionType.NONE, *_ACTIVATIONS):
    return None
  ceiling = _ACTIVATIONS.get(activation)
  number = _unconverted(model, producers, int(operator.inputs[1]))
  weights = constant(model, graph.tensors[number])
  if weights is None or (weights.ndim == 4 and weights.shape[1:3] != (1, 1)):
    return None
  # A hidden unit at every position would have a mask at every position.
  if ceiling is not None and weights.ndim == 4 and np.prod(
      graph.tensors[int(operator.outputs[0])].shape[1:3]) != 1:
    return None
  bias = np.zeros(len(weights), np.float32)
  if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
    bias = constant(model, graph.tensors[_unconverted(
        model, producers, int(operator.inputs[2]))])
  if bias is None:
    return None
  return Layer(weights.reshape(len(weights), 1, -1), bias, ceiling, number)


def _product(after: Layer, before: Layer) -> Layer | None:
  """Multiplies two linear layers into one; the first may run at every cell."""
  outputs, _, inputs = after.weights.shape
  if inputs % len(before.weights):
    return None
  kernel = after.weights.reshape(outputs, -1, len(before.weights))
  return Layer(kernel @ before.weights[:, 0],
               kernel.sum(1) @ before.bias + after.bias, after.ceiling)
