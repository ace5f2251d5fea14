"""Where a model's class scores stand before their softmax or sigmoid."""

from typing import Any, NamedTuple

from keras_attr_preserve.compat import keras, tf

__all__ = ["Head", "find_head", "output_names"]


class Head(NamedTuple):
  """The last step of a model.

  Attributes:
    graph: the graph of layers it stands in: the model, or one nested in it.
    tensor: the Keras tensor to read: the logits, or the output that hides them.
    hidden: whether the tensor hides them, inside its layer's activation.
    is_output: whether the model's output is the logits themselves.
    classes: the number of scores.
  """

  graph: keras.Model
  tensor: Any
  hidden: bool
  is_output: bool
  classes: int

  def logits(self, value: tf.Tensor) -> tf.Tensor:
    """Turns the tensor's value into logits, `[batch, classes]`."""
    return _before_activation(value) if self.hidden else value


def find_head(model: keras.Model, output: str | None = None) -> Head:
  """Finds the class scores of a model.

  Args:
    model: a graph of layers.
    output: the name of the output with the scores; None where there is one.

  Returns:
    Its head.

  Raises:
    ValueError: there is no such output, several and no name, or it is not
      `[batch, classes]`; or it ends in a softmax that cannot be looked behind.
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
  classes = output.shape[-1]
  for layer in model.layers:
    for node in range(len(layer.inbound_nodes)):
      outputs = tf.nest.flatten(layer.get_output_at(node))
      place = [i for i, one in enumerate(outputs) if one is output]
      if not place:
        continue
      if isinstance(layer, keras.Model):
        return _head(layer, layer.outputs[place[0]])
      plain = _unwrap(layer)
      if isinstance(plain, keras.layers.Softmax):
        return Head(model, layer.get_input_at(node), False, False, classes)
      if _activation_name(plain) in ("softmax", "sigmoid"):
        return Head(model, output, True, False, classes)
      if not _is_plain(plain) and _squashes(layer, node):
        raise ValueError(
            f"model {model.name!r} ends in a softmax or sigmoid whose logits "
            f"cannot be read, in layer {layer.name!r}; end it in "
            "Dense(classes) followed by a Softmax layer.")
      return Head(model, output, False, True, classes)
  raise ValueError(f"model {model.name!r} has no layer that makes its output.")


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
  inputs = tf.nest.map_structure(
      lambda one: tf.TensorSpec(one.shape, one.dtype),
      layer.get_input_at(node))
  graph = tf.function(
      lambda one: layer(one), autograph=False).get_concrete_function(
          inputs).graph
  op = graph.outputs[0].op
  while op.type in ("Identity", "Cast", "Reshape"):
    op = op.inputs[0].op
  return op.type in ("Softmax", "Sigmoid")


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
