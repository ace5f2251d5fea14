"""Which channels the layers that read them do without, and how they do it.

Optimal Brain Surgeon a channel at a time: what a layer reads of a channel goes,
and the rest of its kernel takes over in least squares.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.compression.channel_graph import ChannelGraph
from keras_attr_preserve.compression.least_squares.layer_by_layer import (
  StagedInputs,
)
from keras_attr_preserve.compression.least_squares.layer_inputs import (
  input_moments,
  is_fittable,
  own_moments,
)
from keras_attr_preserve.compression.least_squares.moments import (
  Inverse,
  Moments,
)
from keras_attr_preserve.compression.least_squares.sparse_fit import ROUND_SHARE
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["rank_channels", "reader_moments", "refit_readers"]


class _Reader(NamedTuple):
  """What a layer that reads channels loses without some of them.

  Attributes:
    channels: the number of the channel of each row of its kernel, `[rows]`.
    inverse: of the sums over its inputs.
    weights: its kernel, in units of what it gives, `[rows, outputs]`.
  """

  channels: np.ndarray
  inverse: Inverse
  weights: np.ndarray

  def costs(self, channels: Sequence[int]) -> np.ndarray:
    """The part of what it gives that no other row makes up for, of each."""
    found = np.zeros(len(channels))
    for number, channel in enumerate(channels):
      mine = np.flatnonzero(self.channels == channel)
      if len(mine):
        own = self.weights[mine]
        found[number] = np.sum(
            own * np.linalg.solve(self.inverse.block(mine), own))
    return found

  def without(self, channels: Iterable[int]) -> "_Reader":
    """The reader when they are gone and the others have taken over."""
    gone = np.isin(self.channels, [*channels])
    if not gone.any():
      return self
    return _Reader(
        self.channels[~gone], *self.inverse.without(gone, self.weights))


def rank_channels(
    model: keras.Model,
    graph: ChannelGraph,
    channels: np.ndarray,
    count: int,
    moments: Mapping[str, Moments],
) -> tuple[np.ndarray, np.ndarray] | None:
  """Ranks channels by how well the layers that read them make up for them.

  In rounds, of a tenth of what is left each, those go that cost least,

      cost_c = sum over readers of tr(W_c^T ((H^-1)_cc)^-1 W_c) / tr(W^T H W)

  with `H` the sum of the products of what the reader takes, over positions of
  the images, `W` its kernel, and `c` the rows of both that read the channel:
  the share of what it gives that least squares does not bring back. Then the
  other rows take over, and costs are counted again.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    channels: the numbers of those to rank.
    count: how many go; the others have no rank.
    moments: by layer name, as `reader_moments` gives.

  Returns:
    The numbers of those that go, `[count]`, first ones first, and the cost of
    each when its turn comes. None if no Conv2D of one group, nor Dense, reads
    any.

  References:
    Hassibi and Stork 1992, "Optimal Brain Surgeon"; Frantar and Alistarh 2022,
    https://arxiv.org/abs/2208.11580, section 5, for a block of weights instead
    of one.
  """
  readers = [_reader(graph, layer, moments[layer.name])
             for layer in _readers(model, graph, channels)]
  if not readers:
    return None
  left, gone, paid = np.array(channels), [], []
  while len(gone) < count:
    costs = np.sum([one.costs(left) for one in readers], axis=0)
    now = np.argsort(costs, kind="stable")[
        :min(count - len(gone), max(1, round(ROUND_SHARE * len(left))))]
    gone, paid = [*gone, *left[now]], [*paid, *costs[now]]
    readers = [one.without(left[now]) for one in readers]
    left = np.delete(left, now)
  return np.array(gone, int), np.array(paid)


def refit_readers(
    model: keras.Model,
    graph: ChannelGraph,
    removed: np.ndarray,
    pruned: keras.Model,
    images: np.ndarray,
    batch_size: int,
    progress: Progress = None,
) -> None:
  """Refits the layers that read removed channels to what they computed.

  One after another, from the pictures on, from what those before it now give.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.
    pruned: the model without them; its Conv2D layers of one group, and Dense,
      are changed in place, but for biases.
    images: checked, in the range the model takes.
    batch_size: how many to run at a time.
    progress: see `Progress`; in layers.

  References:
    He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
    Networks", https://arxiv.org/abs/1707.06168, section 3.
  """
  wanted, taken = (
      StagedInputs(one, images, batch_size) for one in (model, pruned))
  layers = [*_readers(model, graph, np.flatnonzero(removed))]
  report = reporter(progress, "prune_filters", len(layers), "layers refitted")
  for done, layer in enumerate(layers, 1):
    other = pruned.get_layer(layer.name)
    moments = input_moments(
        taken.batches(layer.name), wanted.batches(layer.name), other)
    kernel, *rest = other.get_weights()
    stays = ~removed[graph.uses[layer.name].outputs]
    fitted = moments.refitted(_matrix(layer)[:, stays], _matrix(other))
    weights = [fitted.reshape(kernel.shape), *rest]
    other.set_weights(weights)
    taken.set_weights(layer.name, weights)
    report(done)


def reader_moments(
    model: keras.Model,
    graph: ChannelGraph,
    images: np.ndarray,
    batch_size: int,
) -> dict[str, Moments]:
  """Sums the products of what the layers take that read free channels.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    images: checked, in the range the model takes.
    batch_size: how many to run at a time.

  Returns:
    By name of each Conv2D of one group, and Dense.
  """
  free = np.concatenate(
      [np.array([], int), *(group.channels for group in graph.groups)])
  layers = [*_readers(model, graph, free)]
  if not layers:
    return {}
  return dict(zip(
      (layer.name for layer in layers),
      own_moments(model, layers, images, batch_size), strict=True))


def _reader(graph: ChannelGraph, layer: keras.layers.Layer,
            moments: Moments) -> _Reader:
  weights = _matrix(layer)
  power = np.sum(weights * moments.left(weights)) or 1.0
  return _Reader(_rows(layer, graph), moments.inverse(),
                 weights / math.sqrt(power))


def _readers(
    model: keras.Model, graph: ChannelGraph, channels: np.ndarray
) -> Iterator[keras.layers.Layer]:
  """Yields the layers that read any of them and can be refitted, in order."""
  for layer in model.layers:
    use = graph.uses.get(layer.name)
    if (use is not None and is_fittable(layer)
        and np.isin(use.inputs, channels).any()):
      yield layer


def _rows(layer: keras.layers.Layer, graph: ChannelGraph) -> np.ndarray:
  """The channel that each row of the layer's matrix reads."""
  inputs = graph.uses[layer.name].inputs
  return np.tile(inputs, len(_matrix(layer)) // len(inputs))


def _matrix(layer: keras.layers.Layer) -> np.ndarray:
  """The kernel, `[rows, outputs]`, channels moving fastest down the rows."""
  kernel = layer.get_weights()[0]
  return kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
