"""Ranking channels by how well their readers replace them, and refitting those.

This is Optimal Brain Surgeon for whole channels. A reader is a layer that takes
the channel as input. It loses the channel's kernel rows, and least squares fits
the other rows.
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
  """A layer that reads channels, and its loss without some of them.

  Attributes:
    channels: the channel number of each row of its kernel, `[rows]`.
    inverse: of the sums over its inputs.
    weights: its kernel, in units of its output, `[rows, outputs]`.
  """

  channels: np.ndarray
  inverse: Inverse
  weights: np.ndarray

  def costs(self, channels: Sequence[int]) -> np.ndarray:
    """Returns the share of the output that each channel alone provides."""
    losses = np.zeros(len(channels))
    for number, channel in enumerate(channels):
      rows = np.flatnonzero(self.channels == channel)
      if len(rows):
        weights = self.weights[rows]
        losses[number] = np.sum(
            weights * np.linalg.solve(self.inverse.block(rows), weights))
    return losses

  def without(self, channels: Iterable[int]) -> "_Reader":
    """Returns the reader without these channels, its other rows refitted."""
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
  """Ranks channels by how well their readers replace them.

  Each round removes a tenth of the remaining channels, at least cost:

      cost_c = sum over readers of tr(W_c^T ((H^-1)_cc)^-1 W_c) / tr(W^T H W)

  `H` sums the products of the reader's inputs over positions of the images. `W`
  is its kernel, and `c` the rows of both that read the channel. The cost is the
  share of the output that least squares cannot restore. After each round the
  other rows are refitted and costs are computed again.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    channels: the numbers of the channels to rank.
    count: how many to remove; the others have no rank.
    moments: by layer name, as `reader_moments` gives.

  Returns:
    The numbers of the removed channels in order, `[count]`, and the cost of
    each at its removal. None if no Conv2D of one group and no Dense reads any.

  References:
    Hassibi and Stork 1992, "Optimal Brain Surgeon"; Frantar and Alistarh 2022,
    https://arxiv.org/abs/2208.11580, section 5, for a block of weights.
  """
  readers = [_reader(graph, layer, moments[layer.name])
             for layer in _readers(model, graph, channels)]
  if not readers:
    return None
  left, gone, paid = np.array(channels), [], []
  while len(gone) < count:
    costs = np.sum([reader.costs(left) for reader in readers], axis=0)
    now = np.argsort(costs, kind="stable")[
        :min(count - len(gone), max(1, round(ROUND_SHARE * len(left))))]
    gone, paid = [*gone, *left[now]], [*paid, *costs[now]]
    readers = [reader.without(left[now]) for reader in readers]
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
  """Refits the readers of removed channels to their old outputs.

  Layers are refitted from input to output. Each is fitted on the outputs that
  the refitted layers before it give.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    removed: `[graph.count]`, bool, by channel number.
    pruned: the model without them. Kernels of its Conv2D layers of one group
      and of Dense layers change in place; biases stay.
    images: checked, in the range the model takes.
    batch_size: images a batch.
    progress: see `Progress`; in layers.

  References:
    He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural
    Networks", https://arxiv.org/abs/1707.06168, section 3.
  """
  teacher_inputs, student_inputs = (
      StagedInputs(network, images, batch_size) for network in (model, pruned))
  layers = [*_readers(model, graph, np.flatnonzero(removed))]
  report = reporter(progress, "prune_filters", len(layers), "layers refitted")
  for done, layer in enumerate(layers, 1):
    other = pruned.get_layer(layer.name)
    moments = input_moments(
        student_inputs.batches(layer.name), teacher_inputs.batches(layer.name),
        other)
    kernel, *rest = other.get_weights()
    stays = ~removed[graph.uses[layer.name].outputs]
    fitted = moments.refitted(_matrix(layer)[:, stays], _matrix(other))
    weights = [fitted.reshape(kernel.shape), *rest]
    other.set_weights(weights)
    student_inputs.set_weights(layer.name, weights)
    report(done)


def reader_moments(
    model: keras.Model,
    graph: ChannelGraph,
    images: np.ndarray,
    batch_size: int,
) -> dict[str, Moments]:
  """Sums the products of the inputs of layers that read free channels.

  Args:
    model: as for `ChannelGraph`.
    graph: its channels.
    images: checked, in the range the model takes.
    batch_size: images a batch.

  Returns:
    The sums by name of each Conv2D of one group and each Dense.
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
  """Yields the refittable layers that read any of the channels, in order."""
  for layer in model.layers:
    use = graph.uses.get(layer.name)
    if (use is not None and is_fittable(layer)
        and np.isin(use.inputs, channels).any()):
      yield layer


def _rows(layer: keras.layers.Layer, graph: ChannelGraph) -> np.ndarray:
  """Returns the channel that each row of the layer's matrix reads."""
  inputs = graph.uses[layer.name].inputs
  return np.tile(inputs, len(_matrix(layer)) // len(inputs))


def _matrix(layer: keras.layers.Layer) -> np.ndarray:
  """Returns the kernel, `[rows, outputs]`; channels vary fastest in rows."""
  kernel = layer.get_weights()[0]
  return kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
