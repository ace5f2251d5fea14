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
    model: a built `tf_keras` model; it is not changed.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.

  Returns:
    A new, uncompiled model with the old layer names.
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
  """Copies the weights of the channels that stay.

  Args:
    model: the source of the weights.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.
    target: the result of `slice_model` for these.
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
  """Writes the new number of channels to a layer's config."""
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
    return [kernel[..., outputs], *(weight[outputs] for weight in bias)]
  if kind is _layers.Conv2DTranspose:
    kernel, *bias = weights
    return [kernel[..., outputs, :][..., inputs],
            *(weight[outputs] for weight in bias)]
  if kind is _layers.DepthwiseConv2D:
    kernel, *bias = weights
    return [kernel[..., inputs, :], *(weight[outputs] for weight in bias)]
  if kind is _layers.SeparableConv2D:
    depthwise, pointwise, *bias = weights
    spread = np.repeat(inputs, layer.depth_multiplier)
    return [depthwise[..., inputs, :], pointwise[..., spread, :][..., outputs],
            *(weight[outputs] for weight in bias)]
  # Normalization, PReLU: one value per channel, or one for all channels.
  return [weight[..., outputs] if weight.shape[-1] == len(outputs) else weight
          for weight in weights]
