"""What a model costs, and what each of its channels takes of that."""

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

  A convolution costs in proportion to the channels that it reads times those
  that it makes, so that what a channel takes goes down as others leave.
  """

  def __init__(
      self, model: keras.Model, graph: ChannelGraph,
      parts: Sequence[np.ndarray], of: str):
    """Counts what the layers cost.

    Args:
      model: as for `ChannelGraph`.
      graph: its channels.
      parts: numbers of channels that cost the same.
      of: "filters": the channels of the parts. "weights": those of the kernels
        of convolutions and Dense layers. "macs": what these multiply for one
        picture. Layers of nested models are not counted.

    Raises:
      ValueError: for "macs", the size of the pictures is not fixed.
    """
    products = ([(len(part), part, ()) for part in parts] if of == "filters"
                else list(_products(model, graph, of == "macs")))
    self._whole = np.array([cost for cost, _, _ in products], float)
    self._read, self._made = (
        np.array([_shares(channels, parts) for channels in side])
        for side in list(zip(*products, strict=True))[1:])

  def left(self, gone: np.ndarray) -> float:
    """Counts what is left.

    Args:
      gone: how many channels have left each part, `[parts]`.
    """
    return float(
        self._whole @ ((1 - self._read @ gone) * (1 - self._made @ gone)))

  def savings(self, gone: np.ndarray) -> np.ndarray:
    """Counts what the next channel of each part would take along, `[parts]`.

    Args:
      gone: as for `left`.
    """
    read = (1 - self._read @ gone)[:, None]
    made = (1 - self._made @ gone)[:, None]
    after = (read - self._read) * (made - self._made)
    return self._whole @ (read * made - after)


def _products(
    model: keras.Model, graph: ChannelGraph, macs: bool
) -> Iterator[tuple[int, Sequence[int], Sequence[int]]]:
  """Yields a cost with the channels to whose numbers it is in proportion."""
  counted = set()
  for layer, node in calls(model):
    use, kind = graph.uses.get(layer.name), type(layer)
    if use is None or kind not in (*MIXERS, _layers.DepthwiseConv2D):
      continue
    # A layer that is called twice has its weights once.
    if not macs and layer.name in counted:
      continue
    counted.add(layer.name)
    times = _positions(model, layer, node) if macs else 1
    sizes = [times * math.prod(one.shape) for one in layer.get_weights()]
    if kind is _layers.SeparableConv2D:
      yield sizes[0], use.inputs, ()
      yield sizes[1], use.inputs, use.outputs
    elif kind is _layers.DepthwiseConv2D:
      yield sizes[0], use.inputs, ()
    else:
      yield sizes[0], use.inputs, use.outputs


def _positions(model: keras.Model, layer: keras.layers.Layer, node: Any) -> int:
  """At how many positions a call uses its kernel."""
  # In a transposed convolution every position read meets the whole kernel.
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
    channels: Sequence[int], parts: Sequence[np.ndarray]) -> list[float]:
  """By what share these become fewer with one channel of each part."""
  return [np.isin(channels, part).sum() / (len(part) * max(len(channels), 1))
          for part in parts]
