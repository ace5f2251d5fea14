"""Finds layers by name in a model: wrapped by tfmot, nested, or plain."""

import math
from collections.abc import Iterator
from typing import Any

from keras_attr_preserve.compat import has_graph, keras

__all__ = [
    "core_of",
    "find_layer",
    "graphs_in",
    "is_quantize_aware",
    "last_spatial_layer",
    "layer_output",
    "locate",
    "spatial_layers",
    "stage_ends",
    "unwrapped_name",
]

_RESHAPING = (
    keras.layers.ZeroPadding2D, keras.layers.Cropping2D,
    keras.layers.UpSampling2D)
_WRAPPER_PREFIXES = ("prune_low_magnitude_", "quant_", "cluster_")


def unwrapped_name(name: str) -> str:
  """Returns a layer's name without the prefixes that tfmot's wrappers add."""
  for prefix in _WRAPPER_PREFIXES:
    if name.startswith(prefix):
      return unwrapped_name(name[len(prefix):])
  return name


def graphs_in(model: keras.Model) -> Iterator[keras.Model]:
  """Yields the graphs of layers in a model, the outermost first.

  Args:
    model: any `tf_keras` model.

  Yields:
    The model itself where it is Functional or Sequential, and such models
    inside it at any depth.
  """
  if has_graph(model):
    yield model
  for layer in model.layers:
    if isinstance(layer, keras.Model):
      yield from graphs_in(layer)


def spatial_layers(model: keras.Model) -> list[str]:
  """Names the layers whose output is `[batch, height, width, channels]`.

  Args:
    model: a built `tf_keras` model.

  Returns:
    Names without wrapper prefixes, input side first. The layers of a nested
    model stand in its place. Outputs of 1x1 are left out.
  """
  names = []
  for layer in model.layers:
    if isinstance(layer, keras.Model):
      names += spatial_layers(layer)
    elif (has_graph(model) and not isinstance(layer, keras.layers.InputLayer)
          and _is_spatial(layer.get_output_at(0))):
      names.append(unwrapped_name(layer.name))
  return names


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
    raise ValueError(_no_spatial_layer(model))
  return names[-1]


def stage_ends(model: keras.Model, count: int = 4) -> tuple[str, ...]:
  """Names the last layer of each of the smallest map sizes.

  These layers end the model's stages, and hold a stage's complete features.
  Layers that only pad, crop or repeat pixels are skipped.

  Args:
    model: a built `tf_keras` model.
    count: the largest number of sizes.

  Returns:
    Names without wrapper prefixes, input side first.

  Raises:
    ValueError: the model has no layer with a spatial map.
  """
  ends: dict[tuple[int | None, ...], str] = {}
  for name in spatial_layers(model):
    graph, layer = locate(model, name)
    if not isinstance(layer, _RESHAPING):
      size = tuple(layer_output(graph, layer).shape[1:3])
      ends.pop(size, None)  # Moves the size to the end of the dict.
      ends[size] = name
  if not ends:
    raise ValueError(_no_spatial_layer(model))
  smallest = sorted(ends, key=_area)[:count]
  return tuple(name for size, name in ends.items() if size in smallest)


def find_layer(model: keras.Model, name: str) -> keras.layers.Layer:
  """Finds a layer by name, also behind tfmot's wrappers and in nested models.

  `relu5` finds `relu5`, `prune_low_magnitude_relu5`, `quant_relu5` and
  `cluster_relu5`; a wrapped name finds the plain layer too. The output of a
  wrapped convolution comes before the following batch normalization and
  activation.

  Args:
    model: a built `tf_keras` model.
    name: the layer's name in the teacher.

  Returns:
    The layer, or its wrapper if it is wrapped.

  Raises:
    ValueError: no layer has that name, or several do, or its output has no
      height and width, or its model computes channels first.
  """
  return locate(model, name)[1]


def locate(
    model: keras.Model, name: str) -> tuple[keras.Model, keras.layers.Layer]:
  """Finds a layer as `find_layer` does, and the graph that holds it.

  Args:
    model: a `tf_keras` model.
    name: the layer's name.

  Returns:
    The model itself or a nested model, and the layer.

  Raises:
    ValueError: as for `find_layer`.
  """
  layers = [(graph, layer) for graph in graphs_in(model)
            for layer in graph.layers]
  matches = ([pair for pair in layers if pair[1].name == name]
             or [pair for pair in layers
                 if unwrapped_name(pair[1].name) == unwrapped_name(name)])
  if len(matches) != 1:
    what = "no layer" if not matches else f"{len(matches)} layers"
    raise ValueError(
        f"layer {name!r}: model {model.name!r} has {what} of that name; its "
        f"layers with a spatial map are {_shorten(spatial_layers(model))}."
        + ("" if matches else _split_sentence([layer for _, layer in layers])))
  output = layer_output(*matches[0])
  if not _is_spatial(output):
    raise ValueError(
        f"layer {name!r} of model {model.name!r} has no spatial map: a map "
        "needs an output [batch, height, width, channels] of more than one "
        f"position, got {getattr(output, 'shape', output)}; choose from "
        f"{_shorten(spatial_layers(model))}.")
  first = [layer.name for layer in matches[0][0].layers if getattr(
      layer, "data_format", "") == "channels_first" and not isinstance(
          layer, keras.layers.Flatten)]
  if first:
    raise ValueError(
        f"layer {name!r} of model {model.name!r} must have its channels last; "
        f"the layers {first} have theirs first. Build the model with "
        "data_format='channels_last', which takes the same weights, behind "
        "keras.layers.Permute((2, 3, 1)) where the images have them first.")
  return matches[0]


def layer_output(model: keras.Model, layer: keras.layers.Layer) -> Any:
  """Returns the layer's output in this model's graph.

  Several models may share a layer, for example after strip_pruning. The layer
  then has one output for each model. Only one of them depends on this model's
  inputs.

  Args:
    model: a graph of layers.
    layer: a layer of the model.

  Returns:
    A Keras tensor.

  Raises:
    ValueError: the model calls the layer more than once.
  """
  if len(layer.inbound_nodes) == 1:
    return layer.get_output_at(0)
  outputs = []
  for node in range(len(layer.inbound_nodes)):
    output = layer.get_output_at(node)
    try:
      keras.Model(model.input, output)
    except ValueError:  # "Graph disconnected": the output of another model.
      continue
    outputs.append(output)
  if len(outputs) != 1:
    raise ValueError(
        f"layer {layer.name!r} has {len(outputs)} outputs in model "
        f"{model.name!r}, which calls it as often; it must have one.")
  return outputs[0]


def core_of(model: keras.Model) -> keras.Model:
  """Returns the graph of layers that makes the model's output.

  Args:
    model: a graph of layers, or a subclass that holds one and returns its
      output.

  Raises:
    ValueError: the model is neither.
  """
  if has_graph(model):
    return model
  inner = [graph for graph in graphs_in(model)]
  outermost = [graph for graph in inner if not any(
      graph is other for outer in inner if outer is not graph
      for other in graphs_in(outer))]
  if len(outermost) != 1:
    what = ", ".join(repr(graph.name) for graph in outermost) or "none"
    raise ValueError(
        f"model {model.name!r} ({type(model).__name__}) must be Functional or "
        "Sequential with a known input shape, or hold one such model and give "
        f"its output; it holds {what}.")
  return outermost[0]


def _split_sentence(layers: list[keras.layers.Layer]) -> str:
  """Names the separable convolutions that tfmot split; "" for none."""
  wrapped = [(layer, layer.layer) for layer in layers
             if layer.name.startswith("quant_") and hasattr(layer, "layer")]
  between = {id(layer.get_output_at(0)) for layer, inner in wrapped
             if isinstance(inner, keras.layers.DepthwiseConv2D)}
  names = [unwrapped_name(layer.name) for layer, inner in wrapped
           if getattr(inner, "kernel_size", None) == (1, 1)
           and id(layer.get_input_at(0)) in between]
  if not names:
    return ""
  return (
      " Quantization-aware training splits a SeparableConv2D in two of other "
      f"names; if it was one, give its second part, {_shorten(names)}, as "
      "layer, or as the student's, WCAM(layer, student_layer=...).")


def _no_spatial_layer(model: keras.Model) -> str:
  return (f"model {model.name!r} has no layer with a spatial map, an output "
          "[batch, height, width, channels] of more than one position; explain "
          "its input, by saliency or integrated_gradients.")


def _area(size: tuple[int | None, ...]) -> float:
  """Counts a map's positions; infinite where a side has no fixed length."""
  return math.prod(math.inf if side is None else side for side in size)


def _shorten(names: list[str], keep: int = 12) -> str:
  if len(names) <= keep:
    return ", ".join(names) or "none"
  return "..., " + ", ".join(names[-keep:])


def _is_spatial(output: Any) -> bool:
  shape = getattr(output, "shape", ())
  return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def is_quantize_aware(model: keras.Model) -> bool:
  """Says whether the model has quantizers of quantization-aware training."""
  return any(type(layer).__name__.startswith("QuantizeWrapper")
             for layer in model.layers)
