"""The sensitivities that a file's own head weights hold.

Where nothing but pooling, reshaping and one linear layer follows the features,
the gradient of a score does not depend on the image: summed over the positions
it is a sum of that layer's weights. The map then needs no backward pass, only
the features and weights that are in the file anyway, as integers.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.flatbuffer import constant, operator_name

__all__ = ["head_weights"]

# Each output of a pool draws a total weight of 1 from its window: the sum of a
# gradient over the positions passes through unchanged, whatever the window.
_PASS = frozenset({
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "REDUCE_MAX", "RESHAPE",
    "SQUEEZE", "QUANTIZE", "DEQUANTIZE",
})


def head_weights(
    model: schema.ModelT, subgraph: int, logits: int, features: int
) -> np.ndarray | None:
  """Reads the sensitivity of every score off a file.

  Args:
    model: from `read_model`.
    subgraph: the number of the subgraph.
    logits: the position of the logits among its outputs.
    features: the position of the features, `[1, height, width, channels]`.

  Returns:
    `[classes, channels]`, float32: `sum_{h,w} d logit_k / d features_c`, with
    the weights as the file has them, dequantized. None where more than pooling
    and linear layers stands between the two.
  """
  graph = model.subgraphs[subgraph]
  producers = {int(output): operator for operator in graph.operators
               for output in operator.outputs}
  source = _unconverted(model, producers, int(graph.outputs[features]))
  tensor = _unconverted(model, producers, int(graph.outputs[logits]))
  channels = int(graph.tensors[source].shape[-1])
  kernel = None
  while tensor != source:
    if tensor not in producers:
      return None
    operator = producers[tensor]
    name = operator_name(model, operator)
    if name in ("FULLY_CONNECTED", "CONV_2D"):
      weights = _linear(model, graph, producers, operator)
      if weights is None:
        return None
      kernel = weights if kernel is None else kernel @ weights
    elif name not in _PASS:
      return None
    tensor = _unconverted(model, producers, int(operator.inputs[0]))
  if kernel is None or kernel.shape[1] % channels:
    return None
  return kernel.reshape(len(kernel), -1, channels).sum(1)


def _unconverted(model, producers, tensor: int) -> int:
  """Follows a tensor back through changes of its number type."""
  while tensor in producers and operator_name(model, producers[tensor]) in (
      "QUANTIZE", "DEQUANTIZE"):
    tensor = int(producers[tensor].inputs[0])
  return tensor


def _linear(model, graph, producers, operator) -> np.ndarray | None:
  """Returns the weights, `[outputs, inputs]`, of a layer that is linear."""
  options = operator.builtinOptions
  if options.fusedActivationFunction != schema.ActivationFunctionType.NONE:
    return None
  tensor = graph.tensors[_unconverted(
      model, producers, int(operator.inputs[1]))]
  weights = constant(model, tensor)
  if weights is None or (weights.ndim == 4 and weights.shape[1:3] != (1, 1)):
    return None
  return weights.reshape(len(weights), -1)
