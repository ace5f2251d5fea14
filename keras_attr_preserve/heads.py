"""Where a model's class scores stand before their softmax or sigmoid.

The score of a class is its logit. Layers behind the softmax or sigmoid that
hand on what they take (Reshape, a linear Activation, Dropout) are looked
through; a layer that computes something from probabilities is refused.
"""

import inspect
import math
import threading
from typing import Any, NamedTuple

from keras_attr_preserve.call_swap import CallSwap
from keras_attr_preserve.compat import keras, tf

__all__ = ["Head", "find_head", "output_names"]

_TENSORFLOWS_OWN = {
    tf.nn.softmax: keras.activations.softmax,
    tf.nn.sigmoid: keras.activations.sigmoid}

_OF_SHAPE_AND_TYPE = (
    "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "StopGradient")


class Head(NamedTuple):
  """The last step of a model.

  Attributes:
    graph: the graph of layers it stands in: the model, or one nested in it.
    tensor: the Keras tensor to read: the logits, or the output that hides them.
    hidden: whether the tensor hides them, inside its layer's activation.
    is_output: whether the model's output is the logits themselves.
    classes: the number of scores.
    swap: what must be on while the model runs, so that its layer leaves the
      logits where they can be read; None for nothing.
  """

  graph: keras.Model
  tensor: Any
  hidden: bool
  is_output: bool
  classes: int
  swap: CallSwap | None = None

  def logits(self, value: tf.Tensor) -> tf.Tensor:
    """Turns the tensor's value into logits, `[batch, classes]`."""
    logits = _before_activation(value) if self.hidden else value
    return logits if logits.shape.rank == 2 else tf.reshape(
        logits, [-1, self.classes])


def find_head(model: keras.Model, output: str | None = None) -> Head:
  """Finds the class scores of a model.

  Args:
    model: a graph of layers.
    output: the name of the output with the scores; None where there is one.

  Returns:
    Its head.

  Raises:
    ValueError: there is no such output, several and no name, or it is not
      `[batch, classes]`; or it ends in a softmax that cannot be looked behind,
      or computes something from its probabilities.
  """
  names = output_names(model)
  if output is None and len(names) > 1:
    raise ValueError(
        f"model {model.name!r} must have one output, the class scores, or "
        f"`output` must say which of them it is; it has {names}.")
  if output is not None and output not in names:
    raise ValueError(
        f"output must be one of model {model.name!r}'s outputs, {names}; got "
        f"{output!r}.")
  tensor = model.outputs[names.index(output) if output else 0]
  if len(tensor.shape) != 2:
    raise ValueError(
        f"model {model.name!r} must give [batch, classes]; its output is "
        f"{tensor.shape}.")
  return _head(model, tensor)


def output_names(model: keras.Model) -> list[str]:
  """Names a graph's outputs as `fit` knows them, in the order of `outputs`."""
  if isinstance(model.output, dict):
    return sorted(model.output)  # As tf.nest flattens it.
  return list(model.output_names)


def _head(model: keras.Model, output: Any) -> Head:
  """Follows an output back to the scores before its softmax or sigmoid."""
  classes = output.shape[-1]
  layer, node, place = _producer(model, output)
  if isinstance(layer, keras.Model):
    return _head(layer, layer.outputs[place])
  plain = _unwrap(layer)
  if isinstance(plain, keras.layers.Softmax):
    return Head(model, layer.get_input_at(node), False, False, classes)
  if getattr(plain, "activation", None) in _TENSORFLOWS_OWN:
    return Head(model, output, True, False, classes, CallSwap(
        plain, _KerasActivation(
            plain, _TENSORFLOWS_OWN[plain.activation]).call))
  if _activation_name(plain) in ("softmax", "sigmoid"):
    return Head(model, output, True, False, classes)
  if not _is_plain(plain) and _squashes(layer, node):
    raise ValueError(
        f"model {model.name!r} ends in a softmax or sigmoid whose logits "
        f"cannot be read, in layer {layer.name!r}; end it in "
        "Dense(classes) followed by a Softmax layer.")
  scores = Head(model, output, False, True, classes)
  inputs = [] if isinstance(layer, keras.layers.InputLayer) or (
      layer.count_params()) else tf.nest.flatten(layer.get_input_at(node))
  behind = [_head(model, one) for one in inputs
            if math.prod(one.shape[1:]) == classes]
  if not behind or any(head.is_output for head in behind):
    return scores
  if len(inputs) == 1 and _hands_on(layer, node):
    return behind[0]._replace(classes=classes)
  raise ValueError(
      f"model {model.name!r} computes something from the probabilities of its "
      f"softmax or sigmoid, in layer {layer.name!r}, so that its scores are "
      "no logits; end it in the softmax or sigmoid.")


def _producer(
    model: keras.Model, output: Any) -> tuple[keras.layers.Layer, int, int]:
  """Finds the layer that makes a tensor, its node and which of its outputs."""
  for layer in model.layers:
    for node in range(len(layer.inbound_nodes)):
      for place, made in enumerate(
          tf.nest.flatten(layer.get_output_at(node))):
        if made is output:
          return layer, node, place
  raise ValueError(f"model {model.name!r} has no layer that makes its output.")


class _KerasActivation:
  """A layer's `call` with Keras's form of its activation.

  It computes the same and leaves the logits on its output, which TensorFlow's
  does not.
  """

  def __init__(self, layer: keras.layers.Layer, activation: Any):
    self._layer, self._activation = layer, activation
    self._lock = threading.RLock()

  def call(self, own_call: Any, *args: Any, **settings: Any) -> Any:
    with self._lock:
      own = self._layer.activation
      self._layer.activation = self._activation
      try:
        return own_call(*args, **settings)
      finally:
        self._layer.activation = own


def _unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
  while isinstance(layer, keras.layers.Wrapper):
    layer = layer.layer
  return layer


def _is_plain(layer: keras.layers.Layer) -> bool:
  """Says whether the activation, if any, is one of Keras's by its name."""
  name = _activation_name(layer)
  return bool(name) and hasattr(keras.activations, name)


def _squashes(layer: keras.layers.Layer, node: int) -> bool:
  """Traces a layer to see whether it ends in a softmax or sigmoid."""
  return _last_operation(layer, node).type in ("Softmax", "Sigmoid")


def _hands_on(layer: keras.layers.Layer, node: int) -> bool:
  """Traces a layer to see whether it gives the very values that it takes."""
  return _last_operation(layer, node).type == "Placeholder"


def _last_operation(layer: keras.layers.Layer, node: int) -> tf.Operation:
  """The last operation in a layer that changes values."""
  inputs = tf.nest.map_structure(
      lambda one: tf.TensorSpec(one.shape, one.dtype),
      layer.get_input_at(node))
  graph = tf.function(
      lambda one: layer(one, training=False)
      if "training" in inspect.signature(layer.call).parameters
      else layer(one), autograph=False).get_concrete_function(inputs).graph
  operation = graph.outputs[0].op
  while operation.type in _OF_SHAPE_AND_TYPE:
    operation = operation.inputs[0].op
  return operation


def _activation_name(layer: keras.layers.Layer) -> str:
  activation = getattr(layer, "activation", None)
  # Quantization-aware training wraps the function in an object of its own.
  activation = getattr(activation, "activation", activation)
  return getattr(activation, "__name__", "")


def _before_activation(output: tf.Tensor) -> tf.Tensor:
  """Returns the logits that Keras's softmax and sigmoid leave on their output.

  Keras keeps them so that its cross-entropies stay accurate; the attribute is
  private (`_keras_logits`, checked on tf_keras 2.21, held by heads_test.py).
  """
  logits = getattr(output, "_keras_logits", None)
  if logits is None:
    raise ValueError(
        "model: its head ends in a softmax or sigmoid whose logits cannot be "
        "read; end it in Dense(classes) followed by a Softmax layer.")
  return logits
