"""Finds a model's class scores before their softmax or sigmoid.

The score of a class is its logit. The logits are the input of a layer without
weights that computes softmax, sigmoid, hard sigmoid or log-softmax, whatever
its name. They may also be the input of an activation function. Later layers
that do not change values (Reshape, a linear Activation, Dropout) are skipped. A
layer that computes something from probabilities is an error.
"""

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import has_graph, keras, tf
from keras_attr_preserve.models.layer_calls import calls
from keras_attr_preserve.models.layer_override import CallSwap

__all__ = ["Head", "find_head", "output_names"]

_SQUASHES = {
    "softmax": tf.nn.softmax,
    "sigmoid": tf.nn.sigmoid,
    "log_softmax": tf.nn.log_softmax,
    "hard_sigmoid": keras.activations.hard_sigmoid,
}
# These functions keep the logits as an attribute of their output.
_KEEPING = (keras.activations.softmax, keras.activations.sigmoid)

_ROWS = 8  # Rows of random numbers, to tell functions apart.
_OPERATIONS = ("Softmax", "Sigmoid", "LogSoftmax")
_OF_SHAPE_AND_TYPE = (
    "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "StopGradient")


class Head(NamedTuple):
  """The last step of a model.

  Attributes:
    graph: the graph of layers that holds the head: the model or a nested model.
    tensor: the Keras tensor to read: the logits, or the layer output behind the
      activation that takes the logits.
    hidden: whether the logits are inside that layer, before its activation.
    squash: the function from logits to the model's output: "softmax",
      "sigmoid", "log_softmax" or "hard_sigmoid"; "" if the output is logits.
    classes: the number of scores.
    swap: must be on while the model runs, so that the layer keeps the logits
      readable; None where no swap is needed.
    fault: why the logits cannot be read; "" if they can.
  """

  graph: keras.Model
  tensor: Any
  hidden: bool
  squash: str
  classes: int
  swap: CallSwap | None = None
  fault: str = ""

  @property
  def is_output(self) -> bool:
    """Whether the model's output is the logits themselves."""
    return not self.squash

  def logits(self, value: tf.Tensor) -> tf.Tensor:
    """Turns the tensor's value into logits, `[batch, classes]`."""
    logits = _before_activation(value) if self.hidden else value
    return logits if logits.shape.rank == 2 else tf.reshape(
        logits, [-1, self.classes])


def find_head(model: keras.Model, output: str | None = None) -> Head:
  """Finds the class scores of a model.

  Args:
    model: a graph of layers.
    output: the name of the output with the scores; None for the only output.

  Returns:
    The model's head.

  Raises:
    ValueError: there is no such output, there are several and no name, or it
      is not `[batch, classes]`. Or the logits before its softmax cannot be
      read, or it computes something from probabilities.
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
  head = _Graph(model).head(tensor)
  if head.fault:
    raise ValueError(f"model {model.name!r} {head.fault}")
  return head


def output_names(model: keras.Model) -> list[str]:
  """Names a graph's outputs as `fit` knows them, in the order of `outputs`."""
  if isinstance(model.output, dict):
    return sorted(model.output)  # As tf.nest flattens it.
  return list(model.output_names)


class _Graph:
  """A graph of layers, with the layer call behind each tensor."""

  def __init__(
      self, model: keras.Model, outside: Callable[[int], Head] | None = None):
    """Lists the calls.

    Args:
      model: the model or a nested model.
      outside: for a nested model, gives the head of the input of a number.
    """
    self._model, self._outside = model, outside
    self._makers = {
        id(tensor): (layer, node, place) for layer, node in calls(model)
        for place, tensor in enumerate(tf.nest.flatten(node.outputs))}

  def head(self, output: Any) -> Head:
    """Follows a tensor back to the scores before a softmax or sigmoid."""
    classes = _size(output)
    scores = Head(self._model, output, False, "", classes)
    if id(output) not in self._makers:  # An input.
      place = [tensor is output for tensor in self._model.inputs].index(True)
      return self._outside(place) if self._outside else scores
    layer, node, place = self._makers[id(output)]
    if isinstance(layer, keras.Model) and has_graph(layer):
      return self._nested(layer, node).head(layer.outputs[place])
    squash = self._squash(layer, node, output, classes)
    behind = self._behind(layer, node, classes)
    mixed = not behind or any(head.is_output for head in behind)
    if mixed:
      return squash or scores
    if squash is None and len(behind) == 1 and _gives(
        layer, node, {"": tf.identity}) is not None:
      return behind[0]._replace(classes=classes)
    return scores._replace(squash="probabilities", fault=(
        "computes something from the probabilities of its softmax or sigmoid, "
        f"in layer {layer.name!r}, so that its scores are no logits; end it in "
        "the softmax or sigmoid."))

  def _nested(self, layer: keras.Model, node: Any) -> "_Graph":
    return _Graph(layer, lambda place: self.head(node.keras_inputs[place]))

  def _behind(
      self, layer: keras.layers.Layer, node: Any, classes: int) -> list[Head]:
    """Returns the heads of a layer's inputs that may be scores."""
    if layer.count_params():
      return []
    return [self.head(tensor) for tensor in node.keras_inputs
            if len(tensor.shape) == 2 or _size(tensor) == classes]

  def _squash(
      self, layer: keras.layers.Layer, node: Any, output: Any, classes: int
  ) -> Head | None:
    """Returns the head of a layer from logits to probabilities, or None."""
    plain = _unwrap(layer)
    activation = getattr(plain, "activation", None)
    # Quantization-aware training wraps the function in an object.
    function = getattr(activation, "activation", activation)
    name = "softmax" if isinstance(plain, keras.layers.Softmax) else (
        None if layer.count_params() else _gives(layer, node, _SQUASHES))
    if name:
      return Head(self._model, node.keras_inputs[0], False, name, classes)
    if function in _KEEPING:
      return Head(self._model, output, True, function.__name__, classes)
    if callable(function) and function is activation:
      name = _same(function, [_ROWS, classes], output.dtype, _SQUASHES)
      if name:
        return Head(self._model, output, True, name, classes, CallSwap(
            plain, _KeepingLogits(plain).call))
    if not hasattr(keras.activations, getattr(function, "__name__", "-")) and (
        _last_operation(layer, node) in _OPERATIONS):
      return Head(
          self._model, output, True, "probabilities", classes, fault=(
              "ends in a softmax or sigmoid whose logits cannot be read, in "
              f"layer {layer.name!r}; end it in Dense(classes) followed by a "
              "Softmax layer."))
    return None


class _KeepingLogits:
  """A layer's `call` that keeps the logits as an attribute of its output.

  The output is the same. Keras's own softmax and sigmoid keep logits anyway.
  """

  def __init__(self, layer: keras.layers.Layer):
    self._layer = layer
    self._lock = threading.RLock()

  def call(self, own_call: Any, *args: Any, **settings: Any) -> Any:
    with self._lock:
      activation = self._layer.activation
      def keeping(logits):
        output = activation(logits)
        output._keras_logits = logits
        return output
      self._layer.activation = keeping
      try:
        return own_call(*args, **settings)
      finally:
        self._layer.activation = activation


def _size(tensor: Any) -> int | None:
  """Counts a tensor's numbers per image; None where the shape is not known."""
  return tensor.shape[1:].num_elements()


def _unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
  while isinstance(layer, keras.layers.Wrapper):
    layer = layer.layer
  return layer


def _called(layer: keras.layers.Layer, node: Any, values: Sequence[Any]) -> Any:
  """Calls a layer as the graph does, but on other tensors."""
  places = {id(tensor): new for tensor, new in zip(node.keras_inputs, values)}
  args, settings = tf.nest.map_structure(
      lambda value: places.get(id(value), value),
      (node.call_args, node.call_kwargs))
  if "training" in inspect.signature(layer.call).parameters:
    settings = {**settings, "training": False}
  return layer(*args, **settings)


def _gives(
    layer: keras.layers.Layer, node: Any, functions: Mapping[str, Any]
) -> str | None:
  """Names the function that a layer of one tensor computes, or None."""
  if len(node.keras_inputs) != 1:
    return None
  taken, = node.keras_inputs
  return _same(lambda value: _called(layer, node, [value]),
               [taken.shape[0] or _ROWS, *taken.shape[1:]], taken.dtype,
               functions)


def _same(
    function: Callable[[tf.Tensor], Any], shape: Sequence[int | None],
    dtype: tf.DType, functions: Mapping[str, Any]) -> str | None:
  """Names the function with the same outputs on random numbers, or None."""
  if None in shape or not dtype.is_floating:
    return None
  with tf.init_scope():  # Runs eagerly, even while a graph is traced.
    numbers = tf.random.stateless_normal(shape, (0, 0), stddev=3.0)
    given = tf.cast(numbers, dtype)
    try:
      got = tf.cast(function(given), tf.float32)
    except (TypeError, ValueError, tf.errors.OpError):
      return None
    flat = tf.reshape(tf.cast(given, tf.float32), [shape[0], -1])
    # Half precision of the inputs limits the accuracy.
    slack = 1e-5 if dtype.size > 2 else 2e-2
    for name, candidate in functions.items():
      want = candidate(flat)
      if got.shape.num_elements() == want.shape.num_elements() and np.allclose(
          tf.reshape(got, want.shape), want, atol=slack, rtol=slack):
        return name
  return None


def _last_operation(layer: keras.layers.Layer, node: Any) -> str:
  """Names a layer's last operation that changes values."""
  graph = tf.function(
      lambda *values: _called(layer, node, values), autograph=False,
  ).get_concrete_function(*(
      tf.TensorSpec(tensor.shape, tensor.dtype)
      for tensor in node.keras_inputs)).graph
  operation = graph.outputs[0].op
  while operation.type in _OF_SHAPE_AND_TYPE:
    operation = operation.inputs[0].op
  return operation.type


def _before_activation(output: tf.Tensor) -> tf.Tensor:
  """Returns the logits that Keras's softmax and sigmoid keep on their output.

  Keras needs them for accurate cross-entropies. The attribute `_keras_logits`
  is private (checked on tf_keras 2.21, tested by logits_test.py).
  """
  logits = getattr(output, "_keras_logits", None)
  if logits is None:
    raise ValueError(
        "model: its head ends in a softmax or sigmoid whose logits cannot be "
        "read; end it in Dense(classes) followed by a Softmax layer.")
  return logits
