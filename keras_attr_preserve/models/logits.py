"""Where a model's class scores stand before their softmax or sigmoid.

The score of a class is its logit. A layer without weights that gives softmax,
sigmoid, hard sigmoid or log-softmax of what it takes, whatever it is called,
takes the logits; so does an activation function. Layers behind it that hand on
what they take (Reshape, a linear Activation, Dropout) are looked through; a
layer that computes something from probabilities is refused.
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
# Those that leave their logits on what they give.
_KEEPING = (keras.activations.softmax, keras.activations.sigmoid)

_ROWS = 8  # Of numbers by which functions are told apart.
_OPERATIONS = ("Softmax", "Sigmoid", "LogSoftmax")
_OF_SHAPE_AND_TYPE = (
    "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "StopGradient")


class Head(NamedTuple):
  """The last step of a model.

  Attributes:
    graph: the graph of layers it stands in: the model, or one nested in it.
    tensor: the Keras tensor to read: the logits, or the output that hides them.
    hidden: whether the tensor hides them, inside its layer's activation.
    squash: what makes the model's output of the logits: "softmax", "sigmoid",
      "log_softmax" or "hard_sigmoid"; "" where it is the logits.
    classes: the number of scores.
    swap: what must be on while the model runs, so that its layer leaves the
      logits where they can be read; None for nothing.
    fault: why there are no logits to read; "" where there are.
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
  """A graph of layers, and the call that each of its tensors comes from."""

  def __init__(
      self, model: keras.Model, outside: Callable[[int], Head] | None = None):
    """Lists the calls.

    Args:
      model: the model, or one nested in it.
      outside: the head behind the input of a number, of a nested model.
    """
    self._model, self._outside = model, outside
    self._makers = {
        id(one): (layer, node, place) for layer, node in calls(model)
        for place, one in enumerate(tf.nest.flatten(node.outputs))}

  def head(self, output: Any) -> Head:
    """Follows a tensor back to the scores before its softmax or sigmoid."""
    classes = _size(output)
    scores = Head(self._model, output, False, "", classes)
    if id(output) not in self._makers:  # An input.
      place = [one is output for one in self._model.inputs].index(True)
      return self._outside(place) if self._outside else scores
    layer, node, place = self._makers[id(output)]
    if isinstance(layer, keras.Model) and has_graph(layer):
      return self._nested(layer, node).head(layer.outputs[place])
    squash = self._squash(layer, node, output, classes)
    behind = self._behind(layer, node, classes)
    mixed = not behind or any(one.is_output for one in behind)
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
    """The heads of what a layer takes that may be scores, too."""
    if layer.count_params():
      return []
    return [self.head(one) for one in node.keras_inputs
            if len(one.shape) == 2 or _size(one) == classes]

  def _squash(
      self, layer: keras.layers.Layer, node: Any, output: Any, classes: int
  ) -> Head | None:
    """The head of a layer that makes probabilities of logits, or None."""
    plain = _unwrap(layer)
    activation = getattr(plain, "activation", None)
    # Quantization-aware training wraps the function in an object of its own.
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
  """A layer's `call` with an activation that leaves the logits on its output.

  It computes the same; Keras's own softmax and sigmoid do so by themselves.
  """

  def __init__(self, layer: keras.layers.Layer):
    self._layer = layer
    self._lock = threading.RLock()

  def call(self, own_call: Any, *args: Any, **settings: Any) -> Any:
    with self._lock:
      own = self._layer.activation
      def keeping(logits):
        output = own(logits)
        output._keras_logits = logits
        return output
      self._layer.activation = keeping
      try:
        return own_call(*args, **settings)
      finally:
        self._layer.activation = own


def _size(tensor: Any) -> int | None:
  """The numbers of an image; None where they are not known."""
  return tensor.shape[1:].num_elements()


def _unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
  while isinstance(layer, keras.layers.Wrapper):
    layer = layer.layer
  return layer


def _called(layer: keras.layers.Layer, node: Any, values: Sequence[Any]) -> Any:
  """Calls a layer as the graph does, on other tensors."""
  places = {id(one): new for one, new in zip(node.keras_inputs, values)}
  args, settings = tf.nest.map_structure(
      lambda one: places.get(id(one), one), (node.call_args, node.call_kwargs))
  if "training" in inspect.signature(layer.call).parameters:
    settings = {**settings, "training": False}
  return layer(*args, **settings)


def _gives(
    layer: keras.layers.Layer, node: Any, functions: Mapping[str, Any]
) -> str | None:
  """Names the function that a layer of one tensor computes, if any does."""
  if len(node.keras_inputs) != 1:
    return None
  taken, = node.keras_inputs
  return _same(lambda value: _called(layer, node, [value]),
               [taken.shape[0] or _ROWS, *taken.shape[1:]], taken.dtype,
               functions)


def _same(
    function: Callable[[tf.Tensor], Any], shape: Sequence[int | None],
    dtype: tf.DType, functions: Mapping[str, Any]) -> str | None:
  """Names the function that gives the same of some numbers, if any does."""
  if None in shape or not dtype.is_floating:
    return None
  with tf.init_scope():  # Numbers, even where a graph is being traced.
    numbers = tf.random.stateless_normal(shape, (0, 0), stddev=3.0)
    given = tf.cast(numbers, dtype)
    try:
      got = tf.cast(function(given), tf.float32)
    except (TypeError, ValueError, tf.errors.OpError):
      return None
    flat = tf.reshape(tf.cast(given, tf.float32), [shape[0], -1])
    # As exact as the coarser of the numbers that went in and came out.
    slack = 1e-5 if dtype.size > 2 else 2e-2
    for name, one in functions.items():
      want = one(flat)
      if got.shape.num_elements() == want.shape.num_elements() and np.allclose(
          tf.reshape(got, want.shape), want, atol=slack, rtol=slack):
        return name
  return None


def _last_operation(layer: keras.layers.Layer, node: Any) -> str:
  """Names the last operation in a layer that changes values."""
  graph = tf.function(
      lambda *values: _called(layer, node, values), autograph=False,
  ).get_concrete_function(*(
      tf.TensorSpec(one.shape, one.dtype) for one in node.keras_inputs)).graph
  operation = graph.outputs[0].op
  while operation.type in _OF_SHAPE_AND_TYPE:
    operation = operation.inputs[0].op
  return operation.type


def _before_activation(output: tf.Tensor) -> tf.Tensor:
  """Returns the logits that Keras's softmax and sigmoid leave on their output.

  Keras keeps them so that its cross-entropies stay accurate; the attribute is
  private (`_keras_logits`, checked on tf_keras 2.21, held by logits_test.py).
  """
  logits = getattr(output, "_keras_logits", None)
  if logits is None:
    raise ValueError(
        "model: its head ends in a softmax or sigmoid whose logits cannot be "
        "read; end it in Dense(classes) followed by a Softmax layer.")
  return logits
