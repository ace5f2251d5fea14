"""Finding which channels of a model can only be removed together.

Removing a filter also removes everything that reads its channel: the
normalization after it and the columns of the next layer. Across a residual sum
it also removes the filters it is added to.

Each channel of each convolution and Dense layer gets a number. The numbers are
followed through the graph. Channels that a layer keeps together are tied.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.models.layer_calls import calls, refuse_wrapped

__all__ = ["BORDER", "MIXERS", "ChannelGraph", "Group", "Use"]

_layers, _act = keras.layers, keras.activations
# Layers that compute each output channel from all input channels.
MIXERS = (_layers.Conv2D, _layers.Conv2DTranspose, _layers.SeparableConv2D,
          _layers.Dense)
# Layers whose output channel c comes from input channel c alone.
_CHANNELWISE = (
    _layers.Activation, _layers.ActivityRegularization, _layers.AlphaDropout,
    _layers.AveragePooling2D, _layers.BatchNormalization, _layers.Cropping2D,
    _layers.Dropout, _layers.ELU, _layers.GaussianDropout,
    _layers.GaussianNoise, _layers.GlobalAveragePooling2D,
    _layers.GlobalMaxPooling2D, _layers.LeakyReLU, _layers.MaxPooling2D,
    _layers.PReLU, _layers.ReLU, _layers.Rescaling, _layers.Resizing,
    _layers.SpatialDropout2D, _layers.ThresholdedReLU, _layers.UpSampling2D,
    _layers.ZeroPadding2D)
_MERGES = (_layers.Add, _layers.Average, _layers.Maximum, _layers.Minimum,
           _layers.Multiply, _layers.Subtract)
_RESHAPES = (_layers.Flatten, _layers.Reshape)
# Activations of one value at a time; a softmax mixes channels.
_POINTWISE = (
    None, _act.elu, _act.exponential, _act.gelu, _act.hard_sigmoid,
    _act.linear, _act.mish, _act.relu, _act.selu, _act.sigmoid, _act.softplus,
    _act.softsign, _act.swish, _act.tanh, tf.nn.elu, tf.nn.gelu,
    tf.nn.leaky_relu, tf.nn.relu, tf.nn.relu6, tf.nn.selu, tf.nn.sigmoid,
    tf.nn.silu, tf.nn.softplus, tf.nn.softsign, tf.nn.tanh)
# Functions of tensors that Keras turned into layers (`x * 0.5`), by their names
# in the layer's config.
_POINTWISE_FUNCTIONS = (
    "__operators__.add", "math.add", "math.divide", "math.maximum",
    "math.minimum", "math.multiply", "math.sigmoid", "math.subtract",
    "math.tanh", "math.truediv", "nn.elu", "nn.gelu", "nn.leaky_relu",
    "nn.relu", "nn.relu6", "nn.silu", "nn.softplus")
# Why a channel of the model's input or output stays, for messages.
BORDER = ("are tied to the model's input", "reach the model's output")


class Use(NamedTuple):
  """The channels of a layer's input and output, on the last axis.

  Attributes:
    inputs: number of each input channel (of its first tensor).
    outputs: number of each output channel. A channel may occur several times,
      as after Flatten.
  """

  inputs: np.ndarray
  outputs: np.ndarray


class Group(NamedTuple):
  """Channels that the same layers compute.

  Attributes:
    layers: names of the convolutions and Dense layers that compute them.
    channels: their numbers, in the order of the first layer's filters.
  """

  layers: tuple[str, ...]
  channels: np.ndarray


class ChannelGraph:
  """The channels of a model, numbered and tied.

  An unknown layer (Lambda, a custom layer, a nested model, a convolution in
  groups) may mix channels. Channels that reach it are held: they stay.

  Attributes:
    uses: by layer name, for the layers known here.
    groups: the removable channels; each in one group.
    held: by name of a convolution or Dense layer, why its channels stay.
    count: how many channel numbers there are.
  """

  def __init__(self, model: keras.Model):
    """Follows the channels through the graph.

    Args:
      model: a built `tf_keras` model, channels last, without tfmot's wrappers.

    Raises:
      TypeError, ValueError: another model, or a wrapped one.
    """
    check_model(model)
    refuse_wrapped(model)
    self._parents: list[int] = []
    self._held: dict[int, str] = {}
    self._tensors: dict[int, np.ndarray] = {}
    uses: dict[str, Use] = {}
    makers = {}
    for layer, node in calls(model):
      inputs = [self._channels(tensor) for tensor in node.keras_inputs]
      outputs = self._follow(layer, node, inputs, uses)
      if outputs is None:
        why = (f"reach layer {layer.name!r} ({type(layer).__name__}), which "
               "may mix them")
        self._hold(inputs, why)
        for value in tf.nest.flatten(node.outputs):
          self._tensors[id(value)] = self._new(_width(value), why)
        continue
      self._tensors[id(node.outputs)] = outputs
      uses.setdefault(layer.name, Use(inputs[0], outputs))
      if type(layer) in MIXERS:
        makers[layer.name] = outputs
    for channel in np.concatenate(
        [self._channels(value) for value in model.outputs]):
      self._held[self._root(int(channel))] = BORDER[1]
    self.count = len(self._parents)
    self.uses = {name: Use(*map(self._roots, use))
                 for name, use in uses.items()}
    makers = {name: self._roots(value) for name, value in makers.items()}
    self.groups = _groups(makers, self._held)
    self.held = {
        name: next(
            self._held[value] for value in channels if value in self._held)
        for name, channels in makers.items()
        if any(value in self._held for value in channels)}

  def _follow(
      self, layer: keras.layers.Layer, node: Any, inputs: list[np.ndarray],
      uses: dict[str, Use]) -> np.ndarray | None:
    """Numbers the channels of a call's output; None for an unknown layer."""
    kind = type(layer)
    if (not inputs or isinstance(node.outputs, (list, tuple, dict))
        or getattr(layer, "data_format", None) == "channels_first"):
      return None
    if kind is _layers.Concatenate or kind in _MERGES:
      if (kind is _layers.Concatenate
          and layer.axis in (-1, len(node.outputs.shape) - 1)):
        return np.concatenate(inputs)
      return self._merge(inputs, _width(node.outputs))
    if kind.__name__ == "TFOpLambda" and _is_pointwise(layer, node):
      return self._merge(inputs, _width(node.outputs))
    if len(inputs) > 1:
      return None
    first = uses.get(layer.name)
    if first is not None and (layer.weights or kind is _layers.Reshape):
      # A second call uses the same weights.
      if len(first.inputs) != len(inputs[0]):
        self._hold([first.inputs], f"reach layer {layer.name!r}, which reads "
                   "tensors of several widths")
        return None
      self._tie([first.inputs, inputs[0]])
    if kind in MIXERS:
      return self._mix(layer, inputs[0], first)
    if kind is _layers.DepthwiseConv2D:
      if layer.activation not in _POINTWISE:
        return None
      return np.repeat(inputs[0], layer.depth_multiplier)
    if kind in _CHANNELWISE:
      if not _is_channelwise(layer, node):
        return None
      if getattr(layer, "activation", None) not in _POINTWISE:
        self._hold(inputs, f"pass layer {layer.name!r}, which may mix them")
      return inputs[0]
    if kind in _RESHAPES:
      return _reshape(inputs[0], node.keras_inputs[0].shape[1:],
                      node.outputs.shape[1:])
    return None

  def _mix(
      self, layer: keras.layers.Layer, inputs: np.ndarray, first: Use | None
  ) -> np.ndarray:
    """Returns new channels, or the channels of the layer's first call."""
    if first is not None:
      return first.outputs
    name = f"layer {layer.name!r}"
    width = layer.units if type(layer) is _layers.Dense else layer.filters
    outputs = self._new(width)
    if getattr(layer, "groups", 1) != 1:
      self._hold([inputs, outputs],
                 f"pass through {name}, a convolution in {layer.groups} groups")
    if layer.activation not in _POINTWISE:
      self._hold([outputs], f"pass the activation of {name}, which may mix "
                 "them")
    return outputs

  def _merge(self, inputs: list[np.ndarray], width: int) -> np.ndarray | None:
    """Ties the channels at the same place of several tensors."""
    whole = [channels for channels in inputs if len(channels) == width]
    # A single channel that is broadcast needs no tie: its layers have no other,
    # and a layer's last channel always stays.
    if not whole or any(
        len(channels) not in (1, width) for channels in inputs):
      return None
    self._tie(whole)
    return whole[0]

  def _channels(self, tensor: Any) -> np.ndarray:
    if id(tensor) not in self._tensors:
      self._tensors[id(tensor)] = self._new(_width(tensor), BORDER[0])
    return self._tensors[id(tensor)]

  def _new(self, count: int, held: str | None = None) -> np.ndarray:
    start = len(self._parents)
    self._parents += range(start, start + count)
    channels = np.arange(start, start + count)
    if held is not None:
      self._hold([channels], held)
    return channels

  def _root(self, channel: int) -> int:
    parents = self._parents
    while parents[channel] != channel:
      parents[channel] = parents[parents[channel]]
      channel = parents[channel]
    return channel

  def _roots(self, channels: np.ndarray) -> np.ndarray:
    return np.array([self._root(int(channel)) for channel in channels], int)

  def _hold(self, several: Sequence[np.ndarray], why: str) -> None:
    for channel in np.unique(np.concatenate([*several, np.array([], int)])):
      self._held.setdefault(self._root(int(channel)), why)

  def _tie(self, several: Sequence[np.ndarray]) -> None:
    for first, second in itertools.pairwise(several):
      for pair in zip(first.tolist(), second.tolist(), strict=True):
        root, gone = sorted(map(self._root, pair))
        if root == gone:
          continue
        self._parents[gone] = root
        if gone in self._held:
          self._held.setdefault(root, self._held.pop(gone))


def _groups(
    makers: dict[str, np.ndarray], held: dict[int, str]) -> list[Group]:
  """Groups the free channels by the layers that compute them."""
  made_by: dict[int, list[str]] = {}
  for name, channels in makers.items():
    for channel in dict.fromkeys(channels.tolist()):
      if channel not in held:
        made_by.setdefault(channel, []).append(name)
  groups: dict[tuple[str, ...], list[int]] = {}
  for channel, names in made_by.items():
    groups.setdefault(tuple(names), []).append(channel)
  return [Group(names, np.array(channels))
          for names, channels in groups.items()]


def _width(tensor: Any) -> int:
  return (tensor.shape[-1] or 0) if len(tensor.shape) > 1 else 0


def _is_channelwise(layer: keras.layers.Layer, node: Any) -> bool:
  """Says whether a layer's settings keep its channels separate."""
  rank = len(node.keras_inputs[0].shape)
  if type(layer) is _layers.BatchNormalization:
    return [axis % rank for axis in np.ravel(layer.axis)] == [rank - 1]
  if type(layer) is _layers.Rescaling:
    return not np.ndim(layer.scale) and not np.ndim(layer.offset)
  noise_shape = getattr(layer, "noise_shape", None)
  return noise_shape is None or noise_shape[-1] in (None, 1)


def _is_pointwise(layer: keras.layers.Layer, node: Any) -> bool:
  """Says whether a function works value by value."""
  tensors = node.keras_inputs
  others = [value
            for value in tf.nest.flatten([node.call_args, node.call_kwargs])
            if not any(value is tensor for tensor in tensors)]
  return (layer.get_config()["function"] in _POINTWISE_FUNCTIONS
          and all(np.ndim(value) == 0 for value in others)
          and len({len(tensor.shape) for tensor in tensors}) == 1)


def _reshape(
    channels: np.ndarray, old: Sequence[int | None], new: Sequence[int | None]
) -> np.ndarray | None:
  """Follows the channels if all of them stay on the last axis."""
  if None in tuple(old) or None in tuple(new) or not len(new):
    return None
  rows = np.broadcast_to(channels, tuple(old)).reshape(-1, new[-1])
  return rows[0].copy() if (rows == rows[0]).all() else None
