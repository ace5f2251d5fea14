"""The cost of a model, and the share of each channel in it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.compression.channel_graph import MIXERS, ChannelGraph
from keras_attr_preserve.models.layer_calls import calls

__all__ = ["COSTS", "ChannelCosts"]

_layers = keras.layers
COSTS = ("filters", "weights", "macs")


class ChannelCosts:
  """Filters, weights or multiply-accumulates, as channels leave a model.

  A convolution's cost is in proportion to its input channels times its output
  channels. A channel's share therefore falls as others leave.
  """

  def __init__(
      self, model: keras.Model, graph: ChannelGraph,
      parts: Sequence[np.ndarray], of: str):
    """Counts the cost of the layers.

    Args:
      model: as for `ChannelGraph`.
      graph: its channels.
      parts: numbers of channels that cost the same.
      of: "filters": the channels of the parts. "weights": the weights in
        kernels of convolutions and Dense layers. "macs": the multiplications of
        these layers for one image. Layers of nested models are not counted.

    Raises:
      ValueError: for "macs", the size of the images is not fixed.
    """
    products = (
        [(len(channels), channels, ()) for channels in parts]
        if of == "filters" else list(_products(model, graph, of == "macs")))
    self._whole = np.array([cost for cost, _, _ in products], float)
    self._read, self._made = (
        np.array([_shares(channels, parts) for channels in side])
        for side in list(zip(*products, strict=True))[1:])

  def left(self, gone: np.ndarray) -> float:
    """Counts the remaining cost.

    Args:
      gone: how many channels have left each part, `[parts]`.
    """
    return float(
        self._whole @ ((1 - self._read @ gone) * (1 - self._made @ gone)))

  def savings(self, gone: np.ndarray) -> np.ndarray:
    """Counts the saving by the next channel of each part, `[parts]`.

    Args:
      gone: as for `left`.
    """
    read = (1 - self._read @ gone)[:, None]
    written = (1 - self._made @ gone)[:, None]
    after = (read - self._read) * (written - self._made)
    return self._whole @ (read * written - after)


def _products(
    model: keras.Model, graph: ChannelGraph, macs: bool
) -> Iterator[tuple[int, Sequence[int], Sequence[int]]]:
  """Yields a cost, and the input and output channels it is proportional to."""
  counted = set()
  for layer, node in calls(model):
    use, kind = graph.uses.get(layer.name), type(layer)
    if use is None or kind not in (*MIXERS, _layers.DepthwiseConv2D):
      continue
    # A layer that is called twice has one set of weights.
    if not macs and layer.name in counted:
      continue
    counted.add(layer.name)
    times = _positions(model, layer, node) if macs else 1
    sizes = [times * math.prod(weight.shape) for weight in layer.get_weights()]
    if kind is _layers.SeparableConv2D:
      yield sizes[0], use.inputs, ()
      yield sizes[1], use.inputs, use.outputs
    elif kind is _layers.DepthwiseConv2D:
      yield sizes[0], use.inputs, ()
    else:
      yield sizes[0], use.inputs, use.outputs


def _positions(model: keras.Model, layer: keras.layers.Layer, node: Any) -> int:
  """Counts the positions at which a call uses its kernel."""
  # A transposed convolution uses the whole kernel at every input position.
  tensor = (node.keras_inputs[0] if type(layer) is _layers.Conv2DTranspose
            else node.outputs)
  positions = tensor.shape[1:-1]
  if None in tuple(positions):
    raise ValueError(
        f"model {model.name!r} must have a fixed input size for its "
        f"multiply-accumulates to be counted; layer {layer.name!r} gives "
        f"{tuple(node.outputs.shape)}.")
  return math.prod(positions)


def _shares(
    channels: Sequence[int], groups: Sequence[np.ndarray]) -> list[float]:
  """Returns the share of the channels that one channel of each group takes."""
  return [
      np.isin(channels, group).sum() / (len(group) * max(len(channels), 1))
      for group in groups]
