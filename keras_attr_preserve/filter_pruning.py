"""Removing whole filters: a smaller dense model out of a larger one."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from keras_attr_preserve.channel_gates import (
  map_contributions,
  score_contributions,
)
from keras_attr_preserve.channel_graph import MIXERS, ChannelGraph, Group
from keras_attr_preserve.channel_slicing import slice_model, slice_weights
from keras_attr_preserve.compat import keras

__all__ = ["prune_filters"]

_layers = keras.layers
_CRITERIA = ("l1", "taylor", "map")


def prune_filters(
    model: keras.Model,
    sparsity: float | Mapping[str, float],
    *,
    criterion: str = "l1",
    images: np.ndarray | None = None,
    targets: Any = None,
    layer: str | None = None,
    exclude: str | Sequence[str] = (),
    min_filters: int = 1,
    batch_size: int = 32,
) -> keras.Model:
  """Removes the least important filters of each convolution.

  The result is an ordinary smaller model with the layer names of the old one.
  It computes what the old one would if the removed channels were zero wherever
  a layer reads them; train it on, with the old one as its teacher:

      student = prune_filters(teacher, 0.5)
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam)])

  Channels that a residual sum, a product or a depthwise convolution ties go
  together, and are ranked among each other: layer by layer, in one shot. What
  stays whole: the channels of the model's input and output, convolutions in
  groups, and whatever reaches a layer that may mix channels in ways not known
  here (Lambda, custom layers, nested models, LayerNormalization).

  Args:
    model: a built `tf_keras` model, channels last; stripped of tfmot's
      wrappers. It is left as it came.
    sparsity: share of filters to remove, 0 or more and below 1: one for every
      convolution, or by layer name, where the others stay. The name of a hidden
      Dense layer removes its neurons. The number removed is rounded.
    criterion: what a filter is worth. "l1": the sum of its absolute weights. Of
      tied filters these norms add up, each divided by the mean norm of its
      layer, so that a 3x3 kernel does not outvote the 1x1 shortcut beside it.
      "taylor": how far the score of the class explained moves when the channel
      goes, to first order. "map": how far the attribution map turns, to second
      order (see `channel_gates`).
    images: for "taylor" and "map", `[images, height, width, colours]`, some
      hundred, from the training data.
    targets: for these, the class explained, as for `attribution.grad_cam`; None
      for each image's top class.
    layer: for "map", the map's layer; None for the last with a spatial map.
    exclude: names of layers that keep all channels of their output.
    min_filters: how many stay at least, of those tied to the same layers.
    batch_size: images a batch.

  Returns:
    A new, uncompiled model.

  Raises:
    TypeError, ValueError: an argument is not as above, the model has NaN
      weights, or no filter of it is free to go.

  References:
    Li et al. 2017, "Pruning Filters for Efficient ConvNets",
    https://arxiv.org/abs/1608.08710, section 3; for "taylor" Molchanov et al.
    2017, https://arxiv.org/abs/1611.06440; for "map" see `map_contributions`.
  """
  if criterion not in _CRITERIA:
    raise ValueError(
        f"criterion must be one of {_CRITERIA}; got {criterion!r}.")
  if not isinstance(min_filters, int) or min_filters < 1:
    raise ValueError(
        f"min_filters must be an integer of 1 or more; got {min_filters!r}.")
  graph = ChannelGraph(model)
  shares = _shares(model, graph, sparsity, _excluded(model, graph, exclude))
  if criterion == "l1":
    scores = _norms(model, graph)
  elif images is None:
    raise ValueError(
        f"images must be given for the criterion {criterion!r}.")
  elif criterion == "taylor":
    scores = score_contributions(
        model, graph, images, targets, batch_size=batch_size)
  else:
    scores = map_contributions(
        model, graph, images, targets, layer, batch_size=batch_size)

  removed = np.zeros(graph.count, bool)
  for group, share in shares:
    most = max(len(group.channels) - min_filters, 0)
    count = min(round(share * len(group.channels)), most)
    order = np.argsort(scores[group.channels], kind="stable")
    removed[group.channels[order[:count]]] = True
  pruned = slice_model(model, graph, removed)
  slice_weights(model, graph, removed, pruned)
  return pruned


def _norms(model: keras.Model, graph: ChannelGraph) -> np.ndarray:
  """Sums each channel's filters, relative to the mean of their layer."""
  scores = np.zeros(graph.count)
  for layer in model.layers:
    kind = type(layer)
    if layer.name not in graph.uses or kind not in (
        *MIXERS, _layers.DepthwiseConv2D):
      continue
    kernel = layer.get_weights()[kind is _layers.SeparableConv2D]
    if kind is _layers.Conv2DTranspose:
      kernel = np.swapaxes(kernel, -1, -2)
    outputs = graph.uses[layer.name].outputs
    norms = np.abs(kernel, dtype=np.float64).reshape(-1, len(outputs)).sum(0)
    if not np.isfinite(norms).all():
      raise ValueError(f"layer {layer.name!r} has weights that are not finite.")
    np.add.at(scores, outputs, norms / (norms.mean() or 1.0))
  return scores


def _excluded(
    model: keras.Model, graph: ChannelGraph, exclude: str | Sequence[str]
) -> set[int]:
  """Numbers the channels that shall stay."""
  names = (exclude,) if isinstance(exclude, str) else tuple(exclude)
  known = {layer.name for layer in model.layers}
  for name in names:
    if name not in known:
      raise ValueError(
          f"exclude must name layers of model {model.name!r}; it has no "
          f"{name!r}.")
  return {channel for name in names if name in graph.uses
          for channel in graph.uses[name].outputs.tolist()}


def _shares(
    model: keras.Model, graph: ChannelGraph,
    sparsity: float | Mapping[str, float], excluded: set[int]
) -> list[tuple[Group, float]]:
  """Says of which groups which share goes."""
  groups = [group for group in graph.groups
            if not excluded & set(group.channels.tolist())]
  if isinstance(sparsity, Mapping):
    return _shares_by_name(model, graph, sparsity, groups)
  share = _share(sparsity)
  shares = [(group, share) for group in groups if any(
      type(model.get_layer(name)) is not _layers.Dense
      for name in group.layers)]
  if not shares:
    raise ValueError(
        f"model {model.name!r} has no filter that is free to go"
        + "".join(f"; those of {name!r} {why}"
                  for name, why in list(graph.held.items())[:5])
        + ". Nested models are left whole.")
  return shares


def _shares_by_name(
    model: keras.Model, graph: ChannelGraph, sparsity: Mapping[str, float],
    groups: list[Group]) -> list[tuple[Group, float]]:
  free = {name for group in groups for name in group.layers}
  for name in sparsity:
    if name not in free:
      why = graph.held.get(name, "are none, or are excluded")
      raise ValueError(
          f"sparsity: model {model.name!r} has no filters free to go in layer "
          f"{name!r} (those there {why}); choose from {sorted(free)}.")
  shares = []
  for group in groups:
    asked = {name: _share(sparsity[name]) for name in group.layers
             if name in sparsity}
    if len(set(asked.values())) > 1:
      raise ValueError(
          "sparsity must be equal for layers whose filters are tied; got "
          f"{asked}.")
    shares += [(group, share) for share in set(asked.values())]
  return shares


def _share(value: Any) -> float:
  if (not isinstance(value, Real) or isinstance(value, bool)
      or not 0 <= value < 1):
    raise ValueError(
        "sparsity must be a number of 0 or more, below 1, or a dict of layer "
        f"names to such numbers; got {value!r}.")
  return float(value)
