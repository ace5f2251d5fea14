"""Finding which channels of a model live and die together.

A filter can leave a convolution only together with everything that reads its
channel: the normalization after it, the columns of the next layer, and, across
a residual sum, the filters it is added to. Here each channel of each
convolution and Dense layer gets a number, the numbers are followed through the
graph, and those that a layer forces to stay together are tied.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.models.layer_calls import calls, refuse_wrapped

__all__ = ["BORDER", "MIXERS", "ChannelGraph", "Group", "Use"]

_layers, _act = keras.layers, keras.activations
# Layers that make new channels, each out of all that they read.
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
# Activations that see one value at a time; a softmax sees its neighbours.
_POINTWISE = (
    None, _act.elu, _act.exponential, _act.gelu, _act.hard_sigmoid,
    _act.linear, _act.mish, _act.relu, _act.selu, _act.sigmoid, _act.softplus,
    _act.softsign, _act.swish, _act.tanh, tf.nn.elu, tf.nn.gelu,
    tf.nn.leaky_relu, tf.nn.relu, tf.nn.relu6, tf.nn.selu, tf.nn.sigmoid,
    tf.nn.silu, tf.nn.softplus, tf.nn.softsign, tf.nn.tanh)
# Functions of tensors that Keras turned into layers (`x * 0.5`), as it names
# them in the layer's config.
_POINTWISE_FUNCTIONS = (
    "__operators__.add", "math.add", "math.divide", "math.maximum",
    "math.minimum", "math.multiply", "math.sigmoid", "math.subtract",
    "math.tanh", "math.truediv", "nn.elu", "nn.gelu", "nn.leaky_relu",
    "nn.relu", "nn.relu6", "nn.silu", "nn.softplus")
# Why a channel of the model's input or output stays, in words for a reader.
BORDER = ("are tied to the model's input", "reach the model's output")


class Use(NamedTuple):
  """The channels that a layer meets on the last axis.

  Attributes:
    inputs: number of each channel it reads (of its first tensor).
    outputs: number of each channel it gives. A channel may stand there several
      times, as after Flatten.
  """

  inputs: np.ndarray
  outputs: np.ndarray


class Group(NamedTuple):
  """Channels that the same layers make.

  Attributes:
    layers: names of the convolutions and Dense layers that make them together.
    channels: their numbers, in the order of the first layer's filters.
  """

  layers: tuple[str, ...]
  channels: np.ndarray


class ChannelGraph:
  """The channels of a model, numbered and tied.

  Whatever a layer does that is not known here (Lambda, a custom layer, a nested
  model, a convolution in groups) may mix channels, so those that reach it are
  held: they stay.

  Attributes:
    uses: by layer name, for the layers known here.
    groups: the channels that are free to go; each in one group.
    held: by name of a convolution or Dense layer, why channels of it stay.
    count: how many numbers there are.
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
      inputs = [self._channels(one) for one in node.keras_inputs]
      outputs = self._follow(layer, node, inputs, uses)
      if outputs is None:
        why = (f"reach layer {layer.name!r} ({type(layer).__name__}), which "
               "may mix them")
        self._hold(inputs, why)
        for one in tf.nest.flatten(node.outputs):
          self._tensors[id(one)] = self._new(_width(one), why)
        continue
      self._tensors[id(node.outputs)] = outputs
      uses.setdefault(layer.name, Use(inputs[0], outputs))
      if type(layer) in MIXERS:
        makers[layer.name] = outputs
    for channel in np.concatenate(
        [self._channels(one) for one in model.outputs]):
      self._held[self._root(int(channel))] = BORDER[1]
    self.count = len(self._parents)
    self.uses = {name: Use(*map(self._roots, use))
                 for name, use in uses.items()}
    makers = {name: self._roots(one) for name, one in makers.items()}
    self.groups = _groups(makers, self._held)
    self.held = {
        name: next(self._held[one] for one in channels if one in self._held)
        for name, channels in makers.items()
        if any(one in self._held for one in channels)}

  def _follow(
      self, layer: keras.layers.Layer, node: Any, inputs: list[np.ndarray],
      uses: dict[str, Use]) -> np.ndarray | None:
    """Numbers a call's output; None if what it does is not known."""
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
      # Called again: it has one set of weights for both.
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
    """New channels, or those of the layer's first call."""
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
    """Ties the channels that meet at the same place."""
    whole = [one for one in inputs if len(one) == width]
    # A single channel that meets many needs no tie: it is the only one of its
    # layers, and of those one always stays.
    if not whole or any(len(one) not in (1, width) for one in inputs):
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
    return np.array([self._root(int(one)) for one in channels], int)

  def _hold(self, several: Sequence[np.ndarray], why: str) -> None:
    for channel in np.unique(np.concatenate([*several, np.array([], int)])):
      self._held.setdefault(self._root(int(channel)), why)

  def _tie(self, several: Sequence[np.ndarray]) -> None:
    for one, other in itertools.pairwise(several):
      for pair in zip(one.tolist(), other.tolist(), strict=True):
        root, gone = sorted(map(self._root, pair))
        if root == gone:
          continue
        self._parents[gone] = root
        if gone in self._held:
          self._held.setdefault(root, self._held.pop(gone))


def _groups(
    makers: dict[str, np.ndarray], held: dict[int, str]) -> list[Group]:
  """Sorts the free channels by the layers that make them."""
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
  """Looks at the settings that would make such a layer something else."""
  rank = len(node.keras_inputs[0].shape)
  if type(layer) is _layers.BatchNormalization:
    return [one % rank for one in np.ravel(layer.axis)] == [rank - 1]
  if type(layer) is _layers.Rescaling:
    return not np.ndim(layer.scale) and not np.ndim(layer.offset)
  noise_shape = getattr(layer, "noise_shape", None)
  return noise_shape is None or noise_shape[-1] in (None, 1)


def _is_pointwise(layer: keras.layers.Layer, node: Any) -> bool:
  """Says whether a function joins its tensors value by value."""
  tensors = node.keras_inputs
  others = [one for one in tf.nest.flatten([node.call_args, node.call_kwargs])
            if not any(one is tensor for tensor in tensors)]
  return (layer.get_config()["function"] in _POINTWISE_FUNCTIONS
          and all(np.ndim(one) == 0 for one in others)
          and len({len(one.shape) for one in tensors}) == 1)


def _reshape(
    channels: np.ndarray, old: Sequence[int | None], new: Sequence[int | None]
) -> np.ndarray | None:
  """Follows the channels where they stay, all of them, on the last axis."""
  if None in tuple(old) or None in tuple(new) or not len(new):
    return None
  rows = np.broadcast_to(channels, tuple(old)).reshape(-1, new[-1])
  return rows[0].copy() if (rows == rows[0]).all() else None
