"""Copies nested models into one graph of layers."""

import inspect
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_model, has_graph, keras, tf
from keras_attr_preserve.models.augmentation import only_augments
from keras_attr_preserve.models.layer_calls import calls, refuse_wrapped

__all__ = ["unnest"]

# Scale and offset of a Rescaling equal to an operator with one number.
_RESCALINGS = {
    "math.truediv": lambda number: (1 / number, 0.0),
    "math.multiply": lambda number: (number, 0.0),
    "math.subtract": lambda number: (1.0, -number),
    "math.add": lambda number: (1.0, number),
    "__operators__.add": lambda number: (1.0, number),
}
_EITHER_WAY = ("math.add", "__operators__.add", "math.multiply")
_MERGES = {
    "math.add": keras.layers.Add, "__operators__.add": keras.layers.Add,
    "math.subtract": keras.layers.Subtract,
    "math.multiply": keras.layers.Multiply}


def unnest(
    model: keras.Model,
    *,
    start: str | None = None,
    keep_augmentation: bool = True,
    keep_inference_mode: bool = True,
) -> keras.Model:
  """Copies a model into one graph, with the layers of its nested models.

      teacher = kap.unnest(model, keep_augmentation=False)

  Transfer learning puts a pretrained base into a model as one layer. tfmot's
  pruning does not prune inside it, and its quantization-aware training takes no
  such model. `layer_sparsities`, `prune_with_reconstruction` and
  `prune_filters` leave the base unchanged. The copy computes the same, and all
  of them take it.

  Args:
    model: a built Functional or Sequential `tf_keras` model, stripped of
      tfmot's wrappers; it stays unchanged.
    start: the name of the copy's first layer, for example the base's first;
      None begins with the model's inputs. The copy leaves out the layers before
      it, such as preprocessing that quantization-aware training does not take.
    keep_augmentation: False leaves out layers that change images at random in
      training and keep their size (`RandomFlip` and others). tfmot's
      quantization-aware training does not take them.
    keep_inference_mode: False removes `training=False` from the call of a base.
      Its batch normalizations then learn in training, as a student needs. Call
      `recalibrate_batch_norm` first, to measure their statistics again.

  Returns:
    A new, uncompiled model. Layers keep their names. If a name is taken, the
    name of the nested model and "_" come before it. An operator with a number,
    as in `preprocess_input`, becomes a `Rescaling`. An operator on two tensors,
    as in `x + y`, becomes an `Add`, `Subtract` or `Multiply`.

  Raises:
    TypeError, ValueError: an argument is not as above. Or the model holds a
      model that is no graph of layers, has losses of its own (`add_loss`), or
      has a path that bypasses `start`.
  """
  check_model(model)
  refuse_wrapped(model)
  copy = _copied(model, _Copier(keep_augmentation, keep_inference_mode))
  return copy if start is None else _begun(copy, start)


def _copied(model: keras.Model, copier: "_Copier") -> keras.Model:
  inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype,
                        name=tensor.node.layer.name) for tensor in model.inputs]
  output, = copier.run(model, inputs, model.name, {})
  copy = keras.Model(inputs, output, name=model.name)
  copier.carry_weights()
  return copy


def _begun(copy: keras.Model, start: str) -> keras.Model:
  """Makes a model of the copy's layers from `start` on."""
  names = [layer.name for layer in copy.layers]
  if start not in names:
    raise ValueError(
        f"start must name a layer of the copy, one of {names}; got {start!r}.")
  first = copy.get_layer(start).input
  try:
    tail = keras.Model(first, copy.output, name=copy.name)
  except ValueError as error:  # Keras: "Graph disconnected".
    raise ValueError(
        f"start must be a layer that all of model {copy.name!r} goes through; "
        f"something leads past {start!r}.") from error
  inputs = keras.Input(batch_shape=first.shape, dtype=first.dtype)
  return _copied(keras.Model(inputs, tail(inputs), name=copy.name),
                 _Copier(keep_augmentation=True, keep_inference_mode=True))


class _Copier:
  """Calls copies of layers; copies each layer once."""

  def __init__(self, keep_augmentation: bool, keep_inference_mode: bool):
    self._keep_augmentation = keep_augmentation
    self._keep_inference_mode = keep_inference_mode
    self._copies: dict[int, tuple[keras.layers.Layer, keras.layers.Layer]] = {}
    self._names: set[str] = set()

  def run(
      self, graph: keras.Model, inputs: Sequence[Any], prefix: str,
      settings: dict[str, Any]) -> list[Any]:
    """Calls copies of a graph's layers on symbolic tensors.

    Args:
      graph: the model or a nested model.
      inputs: tensors that replace the graph's inputs.
      prefix: comes before layer names that are taken.
      settings: `training`, if the graph is called with it.

    Returns:
      The graph's outputs.
    """
    values = {id(tensor): new for tensor, new in zip(
        graph.inputs, inputs, strict=True)}
    for layer, node in calls(graph):
      if type(layer).__name__ in ("AddLoss", "AddMetric"):
        raise ValueError(
            f"model {graph.name!r} has a loss or metric of its own, which a "
            "copy would lose; add it to the copy instead.")
      args, kwargs = tf.nest.map_structure(
          lambda value: values.get(id(value), value),
          (node.call_args, node.call_kwargs))
      kwargs = self._with_training(layer, kwargs, settings)
      read = [values[id(tensor)] for tensor in node.keras_inputs]
      outputs = self._called(layer, read, args, kwargs, prefix)
      values.update(zip(map(id, tf.nest.flatten(node.outputs)),
                        tf.nest.flatten(outputs), strict=True))
    return [values[id(tensor)] for tensor in graph.outputs]

  def carry_weights(self) -> None:
    """Copies the weights of the layers to their copies."""
    for layer, copy in self._copies.values():
      copy.set_weights(layer.get_weights())

  def _called(
      self, layer: keras.layers.Layer, read: Sequence[Any],
      args: Sequence[Any], kwargs: dict[str, Any], prefix: str) -> Any:
    if not self._keep_augmentation and only_augments(layer):
      return args[0]
    if isinstance(layer, keras.Model):
      _check_held(layer)
      training = kwargs.get("training")
      return self.run(
          layer, tf.nest.flatten(args[0]), layer.name,
          {} if training is None else {"training": training})
    kind, config, args, kwargs = _as_layer(layer, read, args, kwargs)
    if id(layer) not in self._copies:
      if config["name"] in self._names:
        config["name"] = f"{prefix}_{config['name']}"
      self._names.add(config["name"])
      self._copies[id(layer)] = layer, kind.from_config(config)
    return self._copies[id(layer)][1](*args, **kwargs)

  def _with_training(
      self, layer: keras.layers.Layer, kwargs: dict[str, Any],
      settings: dict[str, Any]) -> dict[str, Any]:
    """Passes `training` on, as a call of the outer model does."""
    if not self._keep_inference_mode and kwargs.get("training") is False:
      kwargs = {**kwargs, "training": None}
    takes = "training" in inspect.signature(layer.call).parameters
    if takes and kwargs.get("training") is None:
      return {**kwargs, **settings}
    return kwargs


def _check_held(layer: keras.Model) -> None:
  if not has_graph(layer):
    raise ValueError(
        f"model holds {layer.name!r} ({type(layer).__name__}), which is no "
        "Functional or Sequential model, so that its layers cannot be told.")


def _as_layer(
    layer: keras.layers.Layer, read: Sequence[Any], args: Sequence[Any],
    kwargs: dict[str, Any]
) -> tuple[type, dict[str, Any], Sequence[Any], dict[str, Any]]:
  """Returns a layer's class and config, and the arguments of its call.

  An operator on float tensors becomes an equal layer, because tfmot takes no
  operators: arithmetic with a number, or between two tensors.

  Args:
    layer: any layer.
    read: the tensors among its arguments.
    args: the positional arguments of its call.
    kwargs: the keyword arguments of its call.
  """
  config = layer.get_config()
  kind, function = type(layer), config.get("function")
  name = {"name": layer.name.replace(".", "_")}
  first, second = [*args, kwargs.get("y"), None, None][:2]
  if function in _EITHER_WAY and _number(first) is not None:
    first, second = second, first
  if (kind.__name__ != "TFOpLambda" or first is not read[0]
      or any(tensor.dtype != tf.float32 for tensor in read)):
    return kind, config, args, kwargs
  if function in _RESCALINGS and _number(second) is not None:
    scale, offset = _RESCALINGS[function](_number(second))
    return (keras.layers.Rescaling,
            {**name, "scale": scale, "offset": offset}, [first], {})
  if (second is read[-1] and function in _MERGES
      and len(second.shape) == len(first.shape)):
    return _MERGES[function], name, [[first, second]], {}
  return kind, config, args, kwargs


def _number(value: Any) -> float | None:
  """Returns a scalar as a float, and None for any other value."""
  if isinstance(value, numbers.Real):
    return float(value)
  if isinstance(value, (np.ndarray, tf.Tensor)) and np.shape(value) == ():
    return float(value)
  return None
