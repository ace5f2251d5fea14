"""Rebuilding a model with fewer channels."""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.compression.channel_graph import ChannelGraph, Use

__all__ = ["slice_model", "slice_weights"]

_layers = keras.layers


def slice_model(
    model: keras.Model, graph: ChannelGraph, removed: np.ndarray
) -> keras.Model:
  """Builds the architecture without some channels, with fresh weights.

  Args:
    model: a built `tf_keras` model; it is left as it came.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.

  Returns:
    A new, uncompiled model; its layers have the names of the old ones.
  """
  def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    if layer.name in graph.uses:
      _narrow(layer, config, graph.uses[layer.name], removed)
    return type(layer).from_config(config)

  copy = keras.models.clone_model(model, clone_function=clone)
  if not copy.built:  # A Sequential model that learned its input shape late.
    copy.build(model.input_shape)
  return copy


def slice_weights(
    model: keras.Model, graph: ChannelGraph, removed: np.ndarray,
    target: keras.Model) -> None:
  """Carries over the weights of the channels that stay.

  Args:
    model: where they come from.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.
    target: what `slice_model` made of these.
  """
  for layer in model.layers:
    if not layer.weights:
      continue
    weights = layer.get_weights()
    if layer.name in graph.uses:
      use = graph.uses[layer.name]
      weights = _cut(layer, weights, ~removed[use.inputs],
                     ~removed[use.outputs])
    target.get_layer(layer.name).set_weights(weights)


def _narrow(
    layer: keras.layers.Layer, config: dict[str, Any], use: Use,
    removed: np.ndarray) -> None:
  """Writes the new number of channels where a config holds the old one."""
  width = int((~removed[use.outputs]).sum())
  if type(layer) is _layers.Dense:
    config["units"] = width
  elif "filters" in config:
    config["filters"] = width
  elif type(layer) is _layers.Reshape and width < len(use.outputs):
    config["target_shape"] = (*layer.target_shape[:-1], width)


def _cut(
    layer: keras.layers.Layer, weights: list[np.ndarray], inputs: np.ndarray,
    outputs: np.ndarray) -> list[np.ndarray]:
  """Cuts a layer's weights by the masks of its channels."""
  kind = type(layer)
  if kind in (_layers.Conv2D, _layers.Dense):
    kernel, *bias = weights
    if getattr(layer, "groups", 1) == 1:
      kernel = kernel[..., inputs, :]
    return [kernel[..., outputs], *(one[outputs] for one in bias)]
  if kind is _layers.Conv2DTranspose:
    kernel, *bias = weights
    return [kernel[..., outputs, :][..., inputs],
            *(one[outputs] for one in bias)]
  if kind is _layers.DepthwiseConv2D:
    kernel, *bias = weights
    return [kernel[..., inputs, :], *(one[outputs] for one in bias)]
  if kind is _layers.SeparableConv2D:
    depthwise, pointwise, *bias = weights
    spread = np.repeat(inputs, layer.depth_multiplier)
    return [depthwise[..., inputs, :], pointwise[..., spread, :][..., outputs],
            *(one[outputs] for one in bias)]
  # Normalization, PReLU: a value a channel, or one for all of them.
  return [one[..., outputs] if one.shape[-1] == len(outputs) else one
          for one in weights]
