"""Scaling kernels so that one quantization step suits all their channels."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from keras_attr_preserve.compat import (
  check_model,
  clone_model,
  has_graph,
  keras,
  tf,
)
from keras_attr_preserve.models.layer_calls import calls
from keras_attr_preserve.models.layers import graphs_in
from keras_attr_preserve.utils.left_whole import tell_left_whole

__all__ = ["equalize_kernels"]

_layers = keras.layers
# Layers whose kernel has a slice per output channel. The value counts the last
# axes of the kernel that number the channels.
_CHANNEL_AXES = {_layers.Conv2D: 1, _layers.Dense: 1,
                 _layers.DepthwiseConv2D: 2}
# A scaled kernel might violate these.
_CONSTRAINTS = ("kernel_constraint", "depthwise_constraint", "bias_constraint")
_UNPAIRED = "no batch normalization with a scale alone takes what it gives"
# The largest factor: nearly zero channels may stay small.
_MOST = 1e4


def equalize_kernels(model: keras.Model) -> keras.Model:
  """Scales all channels of a kernel to the same size; outputs do not change.

      student = tfmot.quantization.keras.quantize_model(
          equalize_kernels(teacher))

  `quantize_model` quantizes a kernel without the batch normalization after it.
  In a depthwise convolution or a Dense layer one step serves all channels. One
  channel's weights may be a hundred times another's, as in many a depthwise
  convolution. Then the smaller channel is left two or three values. Here each
  output channel `c` of a kernel `W`, and its bias, is multiplied by

      s_c = max |W| / max |W_c|

  The batch normalization divides by it. Its moving mean `m` and variance `v`
  become `s m` and `s^2 v`. Its scale `g` becomes

      g sqrt((s^2 v + epsilon) / (v + epsilon)) / s

  The model's outputs stay the same: in inference for any input, and in training
  where batches have the moving variance. In the file the two layers are one
  kernel, the same as before.

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers, before
      `quantize_model`; not changed. Conv2D, DepthwiseConv2D and Dense layers
      are scaled if they have no activation and no constraint. Their output must
      go only to one batch normalization, of the last axis and with a scale.
      Other layers stay. A warning, `kap.LayersLeftWhole`, names them, except
      the layer of the scores.

  Returns:
    A new, uncompiled model of the same layers.

  Raises:
    TypeError, ValueError: it is not such a model, or a weight is not finite.

  References:
    Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1. They scale
    a layer against the next layer; here the normalization compensates.
  """
  copy = clone_model(check_model(model))
  scaled = set()
  for graph in graphs_in(copy):
    for layer, norm in _pairs(graph):
      _equalize(layer, norm)
      scaled.add(layer)
  outputs = {id(tensor) for tensor in copy.outputs}
  for graph in graphs_in(copy):
    tell_left_whole("equalize_kernels", graph, lambda layer: (
        _why_not_scaled(layer) if layer not in scaled else None), known=[
            layer.name for layer, node in calls(graph)
            if outputs & {
                id(tensor) for tensor in tf.nest.flatten(node.outputs)}])
  return copy


def _why_not_scaled(layer: keras.layers.Layer) -> str | None:
  """Says why a layer was not scaled; None for a nested model with a graph."""
  if isinstance(layer, keras.Model) and has_graph(layer):
    return None
  if type(layer) not in _CHANNEL_AXES:
    return "no Conv2D, DepthwiseConv2D or Dense"
  if layer.activation is not keras.activations.linear:
    return "an activation stands in it"
  if getattr(layer, "data_format", None) == "channels_first":
    return "channels stand first"
  if any(getattr(layer, name, None) is not None for name in _CONSTRAINTS):
    return "it has a constraint"
  return _UNPAIRED


def _pairs(
    graph: keras.Model
) -> Iterator[tuple[keras.layers.Layer, keras.layers.BatchNormalization]]:
  """Yields each layer with the normalization that alone reads its output."""
  layer_calls = [*calls(graph)]
  times = Counter(id(layer) for layer, _ in layer_calls)
  taken = Counter(id(tensor) for tensor in graph.outputs)
  takes = {}
  for layer, node in layer_calls:
    for tensor in node.keras_inputs:
      taken[id(tensor)] += 1
      takes[id(tensor)] = layer
  for layer, node in layer_calls:
    if _why_not_scaled(layer) != _UNPAIRED:
      continue
    output = tf.nest.flatten(node.outputs)[0]
    norm = takes.get(id(output))
    if (taken[id(output)] == 1 and times[id(layer)] == times[id(norm)] == 1
        and _takes_up(norm, len(output.shape))):
      yield layer, norm


def _takes_up(layer: keras.layers.Layer, rank: int) -> bool:
  return (type(layer) is _layers.BatchNormalization and layer.scale
          and layer.gamma_constraint is None
          and [axis % rank for axis in np.ravel(layer.axis)] == [rank - 1])


def _equalize(
    layer: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> None:
  kernel, *bias = (weight.astype(np.float64) for weight in layer.get_weights())
  channels = kernel.reshape(
      -1, np.prod(kernel.shape[-_CHANNEL_AXES[type(layer)]:]))
  sizes = np.abs(channels).max(axis=0)
  if not np.isfinite(sizes).all():
    raise ValueError(f"layer {layer.name!r} has weights that are not finite.")
  largest = sizes.max()
  by = np.where(
      sizes > 0, largest / np.maximum(sizes, largest / _MOST or 1.0), 1.0)
  layer.set_weights([(channels * by).reshape(kernel.shape),
                     *(weight * by for weight in bias)])
  scale, *offset, mean, variance = (
      weight.astype(np.float64) for weight in norm.get_weights())
  wider = np.square(by) * variance
  norm.set_weights([
      scale * np.sqrt((wider + norm.epsilon) / (variance + norm.epsilon)) / by,
      *offset, by * mean, wider])
