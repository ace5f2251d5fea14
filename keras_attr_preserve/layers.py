"""Reading features and scores out of a model, wrapped or not.

A `Tap` runs a model once and hands back the features of the layers asked for,
the logits (before the softmax or sigmoid of the head) and the model's own
output. `sensitivities` says how the logits react to those features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.gradient_rules import SENSITIVITY_RULES, gradient_rules

__all__ = [
    "Tap",
    "Tapped",
    "feature_gradients",
    "find_layer",
    "last_spatial_layer",
    "sensitivities",
    "spatial_layers",
    "top_class_seed",
    "unwrapped_name",
]

_WRAPPER_PREFIXES = ("prune_low_magnitude_", "quant_", "cluster_")


def unwrapped_name(name: str) -> str:
  """Returns a layer's name without the prefixes that tfmot's wrappers add."""
  for prefix in _WRAPPER_PREFIXES:
    if name.startswith(prefix):
      return unwrapped_name(name[len(prefix):])
  return name


def spatial_layers(model: keras.Model) -> list[str]:
  """Names the layers whose output is `[batch, height, width, channels]`.

  Args:
    model: a built `tf_keras` model.

  Returns:
    Names without wrapper prefixes, input side first; a map of 1x1 is left out.
  """
  return [unwrapped_name(layer.name) for layer in model.layers
          if not isinstance(layer, keras.layers.InputLayer)
          and _is_spatial(layer.get_output_at(0))]


def last_spatial_layer(model: keras.Model) -> str:
  """Names the last layer with a spatial map, Grad-CAM's usual choice.

  Args:
    model: a built `tf_keras` model.

  Returns:
    The layer's name without wrapper prefixes.

  Raises:
    ValueError: the model has no such layer.
  """
  names = spatial_layers(model)
  if not names:
    raise ValueError(f"model {model.name!r} has no layer with a spatial map.")
  return names[-1]


def find_layer(model: keras.Model, name: str) -> keras.layers.Layer:
  """Finds a layer by name, also behind tfmot's wrappers.

  `relu5` finds `relu5`, `prune_low_magnitude_relu5`, `quant_relu5` and
  `cluster_relu5`; a wrapped name finds the plain layer too. A wrapped
  convolution is still the convolution: its output comes before the batch
  normalization and the activation that follow it.

  Args:
    model: a built `tf_keras` model.
    name: the layer's name in the teacher.

  Returns:
    The layer, or its wrapper where it has one.

  Raises:
    ValueError: no layer has that name, or several do, or its output has no
      height and width.
  """
  exact = [layer for layer in model.layers if layer.name == name]
  found = exact or [layer for layer in model.layers
                    if unwrapped_name(layer.name) == unwrapped_name(name)]
  if len(found) != 1:
    what = "no layer" if not found else f"{len(found)} layers"
    raise ValueError(
        f"layer {name!r}: model {model.name!r} has {what} of that name; its "
        f"layers with a spatial map are {_shorten(spatial_layers(model))}.")
  output = _output(model, found[0])
  if not _is_spatial(output):
    raise ValueError(
        f"layer {name!r} of model {model.name!r} has no spatial map: a map "
        "needs an output [batch, height, width, channels] of more than one "
        f"position, got {getattr(output, 'shape', output)}; choose from "
        f"{_shorten(spatial_layers(model))}.")
  return found[0]


class Tapped(NamedTuple):
  """What one forward pass gives.

  Attributes:
    features: one `[batch, height, width, channels]` per layer asked for.
    logits: `[batch, classes]`, float, before the head's softmax or sigmoid.
    output: the model's own output, for its losses and metrics.
  """

  features: list[tf.Tensor]
  logits: tf.Tensor
  output: tf.Tensor


class Tap:
  """Runs a model and reads features and logits on the way.

  The layers of the model are used where they are: nothing is copied, patched or
  added, and one call is one forward pass, as the wrappers of pruning need.

  Attributes:
    model: the model.
    layers: the names asked for.
    gives_logits: whether the model's output is the logits, no softmax between.
  """

  def __init__(self, model: keras.Model, layers: Sequence[str] = ()):
    """Finds what to read.

    Args:
      model: a built `tf_keras` model with one output, `[batch, classes]`.
      layers: names of layers with a spatial map, as in the unwrapped model.

    Raises:
      TypeError, ValueError: see `check_model` and `find_layer`.
    """
    check_model(model)
    self.model = model
    self.layers = tuple(layers)
    features = [_output(model, find_layer(model, name)) for name in layers]
    if len(model.outputs[0].shape) != 2:
      raise ValueError(
          f"model {model.name!r} must give [batch, classes]; its output is "
          f"{model.outputs[0].shape}.")
    self._hidden_logits, logits = _logits(model)
    # What `add_loss` on a model's own tensors made is a layer without a
    # successor; it runs along, so that its loss is there.
    self._added = [layer.get_output_at(0) for layer in model.layers
                   if type(layer).__name__ in ("AddLoss", "AddMetric")]
    self._graph = keras.Model(
        model.inputs, [*features, logits, model.outputs[0], *self._added])
    self.gives_logits = (
        not self._hidden_logits and logits is model.outputs[0])

  @property
  def classes(self) -> int:
    """The number of scores the model gives."""
    return self.model.outputs[0].shape[-1]

  def __call__(self, images: Any, training: bool = False) -> Tapped:
    """Runs the model once.

    Args:
      images: what the model takes.
      training: as in Keras.

    Returns:
      The features, logits and output.
    """
    outputs = self._graph(images, training=training)
    *features, logits, output = outputs[:len(outputs) - len(self._added)]
    if self._hidden_logits:
      logits = _before_activation(logits)
    return Tapped(features, logits, output)


def sensitivities(
    tape: tf.GradientTape, tapped: Tapped, seed: tf.Tensor) -> list[tf.Tensor]:
  """Sums the gradient of a score over each feature map.

      a_c = sum_{h,w} d(seed . logits) / dA_c

  Args:
    tape: as for `feature_gradients`.
    tapped: as for `feature_gradients`.
    seed: as for `feature_gradients`.

  Returns:
    For each layer `[batch, 1, 1, channels]`, in the dtype of its features.

  Raises:
    ValueError: the logits do not depend on some layer.
  """
  return [tf.reduce_sum(gradient, axis=[1, 2], keepdims=True)
          for gradient in feature_gradients(tape, tapped, seed)]


def feature_gradients(
    tape: tf.GradientTape, tapped: Tapped, seed: tf.Tensor) -> list[tf.Tensor]:
  """Differentiates a score by each feature map.

  Quantizers are transparent to it: it is alive where one clips a score, and an
  outer tape can differentiate it (see `SENSITIVITY_RULES`).

  Args:
    tape: the tape that recorded the tap's call; persistent to ask it again.
    tapped: what that call gave.
    seed: `[batch, classes]`, the score as a weighted sum of logits: one-hot for
      one class.

  Returns:
    For each layer a gradient of its features' shape and dtype.

  Raises:
    ValueError: the logits do not depend on some layer.
  """
  with gradient_rules(SENSITIVITY_RULES):
    gradients = tape.gradient(
        tapped.logits, tapped.features,
        output_gradients=tf.cast(seed, tapped.logits.dtype))
  if any(gradient is None for gradient in gradients):
    raise ValueError(
        "layer: the class scores do not depend on one of the chosen layers "
        "through differentiable operations.")
  return gradients


def top_class_seed(logits: tf.Tensor) -> tf.Tensor:
  """Returns each image's top class as weights of the logits.

  Args:
    logits: `[batch, classes]`. One logit stands for two classes: 1 where it is
      not negative, and 0, whose score is its negative.

  Returns:
    `[batch, classes]`, float32: one-hot, or the sign of a single logit.
  """
  classes = logits.shape[-1]
  if classes == 1:
    return tf.where(logits >= 0, 1.0, -1.0)
  return tf.one_hot(tf.argmax(logits, axis=-1), classes)


def _shorten(names: list[str], keep: int = 12) -> str:
  if len(names) <= keep:
    return ", ".join(names) or "none"
  return "..., " + ", ".join(names[-keep:])


def _is_spatial(output: Any) -> bool:
  shape = getattr(output, "shape", ())
  return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _output(model: keras.Model, layer: keras.layers.Layer) -> Any:
  """Returns the layer's output in this model's graph.

  A layer that several models share (strip_pruning makes such ones) has one
  output for each of them; only this model's is reached from its inputs.
  """
  if len(layer.inbound_nodes) == 1:
    return layer.get_output_at(0)
  found = []
  for node in range(len(layer.inbound_nodes)):
    output = layer.get_output_at(node)
    try:
      keras.Model(model.inputs, output)
    except ValueError:  # "Graph disconnected": another model's.
      continue
    found.append(output)
  if len(found) != 1:
    raise ValueError(
        f"layer {layer.name!r} has {len(found)} outputs in model "
        f"{model.name!r}, which calls it as often; it must have one.")
  return found[0]


def _unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
  while isinstance(layer, keras.layers.Wrapper):
    layer = layer.layer
  return layer


def _logits(model: keras.Model) -> tuple[bool, Any]:
  """Finds where the scores stand before the last activation.

  Returns:
    Whether they are hidden inside the last layer, and the tensor to read:
    the logits themselves, or else the output that hides them.
  """
  output = model.outputs[0]
  for layer in model.layers:
    for node in range(len(layer.inbound_nodes)):
      if layer.get_output_at(node) is output:
        head = _unwrap(layer)
        if isinstance(head, keras.layers.Softmax):
          return False, layer.get_input_at(node)
        if _activation_name(head) in ("softmax", "sigmoid"):
          return True, output
        if not _is_plain(head) and _squashes(layer, node):
          raise ValueError(
              f"model {model.name!r} ends in a softmax or sigmoid whose logits "
              f"cannot be read, in layer {layer.name!r}; end it in "
              "Dense(classes) followed by a Softmax layer.")
        return False, output
  raise ValueError(f"model {model.name!r} has no layer that makes its output.")


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
  private (`_keras_logits`, checked on tf_keras 2.21, held by layers_test.py).
  """
  logits = getattr(output, "_keras_logits", None)
  if logits is None:
    raise ValueError(
        "model: its head ends in a softmax or sigmoid whose logits cannot be "
        "read; end it in Dense(classes) followed by a Softmax layer.")
  return logits
