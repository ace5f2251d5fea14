"""Removing whole filters: a smaller dense model from a larger one."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from keras_attr_preserve.compat import clone_model, keras
from keras_attr_preserve.compression.channel_graph import (
  BORDER,
  MIXERS,
  ChannelGraph,
  Group,
)
from keras_attr_preserve.compression.channel_slicing import (
  slice_model,
  slice_weights,
)
from keras_attr_preserve.compression.filter_importance import (
  map_contributions,
  score_contributions,
)
from keras_attr_preserve.compression.filter_refitting import (
  rank_channels,
  reader_moments,
  refit_readers,
)
from keras_attr_preserve.compression.filter_sparsities import (
  COSTS,
  ChannelCosts,
)
from keras_attr_preserve.models.inputs import check_calibration
from keras_attr_preserve.utils.left_whole import tell_left_whole
from keras_attr_preserve.utils.progress import Progress

__all__ = ["filter_sparsities", "prune_filters"]

_layers = keras.layers
_CRITERIA = ("l1", "taylor", "map", "obs")


def prune_filters(
    model: keras.Model,
    sparsity: float | Mapping[str, float],
    *,
    criterion: str = "l1",
    reconstruct: bool = False,
    images: np.ndarray | None = None,
    targets: Any = None,
    layer: str | None = None,
    exclude: str | Sequence[str] = (),
    min_filters: int = 1,
    batch_size: int = 32,
    return_channels: bool = False,
    progress: Progress = None,
) -> keras.Model | tuple[keras.Model, dict[str, np.ndarray]]:
  """Removes the least important filters of each convolution.

  The result is an ordinary smaller model with the old layer names. Its outputs
  are the old model's with the removed channels set to zero wherever a layer
  reads them. `reconstruct` also refits the layers that read them, so that far
  less is lost. Train it further, with the old model as teacher:

      shares = filter_sparsities(teacher, 0.5, x_train[:512])
      student = prune_filters(teacher, shares, criterion="obs",
                              reconstruct=True, images=x_train[:512])
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam)])

  A residual sum, a product or a depthwise convolution ties channels. Tied
  channels are ranked and removed together, layer by layer, in one shot.

  Some channels stay: the model's input and output, and convolutions in groups.
  Channels that reach a layer that may mix them stay as well (Lambda, custom
  layers, nested models, LayerNormalization). If `sparsity` is one number, a
  warning, `kap.LayersLeftWhole`, names such layers with kernels unless
  excluded.

  Args:
    model: a built `tf_keras` model, channels last; stripped of tfmot's
      wrappers. It is not changed.
    sparsity: share of filters to remove, 0 or more and below 1. One number for
      every convolution, or numbers by layer name, where other layers stay; see
      `filter_sparsities`. For a hidden Dense layer it removes units. The number
      removed is rounded.
    criterion: how important a filter is.
      "l1": the sum of its absolute weights. The norms of tied filters add up,
      each divided by its layer's mean norm. A 3x3 kernel therefore does not
      outvote the 1x1 shortcut beside it.
      "taylor": how far the explained class's score moves without the channel,
      to first order.
      "map": how far the attribution map turns, to second order (see
      `map_contributions`).
      "obs": how far the outputs of the channel's readers move after least
      squares on their other inputs (see `rank_channels`). Readers are Conv2D of
      one group and Dense; a channel without one is ranked by "l1".
    reconstruct: whether to refit these readers by least squares to their old
      outputs, from input to output. Each is fitted on the outputs of the
      refitted layers before it. No labels are used; biases and other layers
      stay.
    images: for "taylor", "map", "obs" and `reconstruct`, `[images, height,
      width, colours]`, some hundred, from the training data.
    targets: for "taylor" and "map", the explained class, as for
      `attribution.grad_cam`; None for each image's top class.
    layer: for "map", the map's layer; None for the last with a spatial map.
    exclude: names of layers that keep all channels of their output.
    min_filters: how many filters of a tied group stay at least.
    batch_size: images a batch.
    return_channels: whether to return the remaining channels, too.
    progress: of `reconstruct`. True for a line on stderr, False for none; None
      for a line on a terminal if it takes long; or a function of layers done
      and to be done.

  Returns:
    A new, uncompiled model. With `return_channels`, a pair of it and a dict for
    `Hints(channels=...)`. The dict gives, by name of each layer that lost
    channels, the numbers of its remaining output channels in `model`, in order.

  Raises:
    TypeError, ValueError: an argument is not as above, the model has NaN
      weights, or none of its filters can be removed.

  References:
    Li et al. 2017, "Pruning Filters for Efficient ConvNets",
    https://arxiv.org/abs/1608.08710, section 3; for "taylor" Molchanov et al.
    2017, https://arxiv.org/abs/1611.06440; for "map" see `map_contributions`;
    for "obs" and `reconstruct` Hassibi and Stork 1992, "Optimal Brain Surgeon",
    and He et al. 2017, https://arxiv.org/abs/1707.06168.
  """
  if criterion not in _CRITERIA:
    raise ValueError(
        f"criterion must be one of {_CRITERIA}; got {criterion!r}.")
  _check_min_filters(min_filters)
  if images is None and (criterion != "l1" or reconstruct):
    raise ValueError(
        f"images must be given for criterion={criterion!r}, "
        f"reconstruct={reconstruct!r}.")
  if criterion == "obs" or reconstruct:
    # Layers may be called in other models, too, as in a stripped model.
    model = clone_model(model)
    images = check_calibration(model, images, batch_size)
  graph = ChannelGraph(model)
  shares = _shares(model, graph, sparsity, _excluded(model, graph, exclude))
  if not isinstance(sparsity, Mapping):
    _tell_held("prune_filters", model, graph, exclude)
  if criterion == "taylor":
    scores = score_contributions(
        model, graph, images, targets, batch_size=batch_size)
  elif criterion == "map":
    scores = map_contributions(
        model, graph, images, targets, layer, batch_size=batch_size)
  else:
    scores = _norms(model, graph)
  if criterion == "obs":
    moments = reader_moments(model, graph, images, batch_size)

  removed = np.zeros(graph.count, bool)
  for group, share in shares:
    count = min(round(share * len(group.channels)), _most(group, min_filters))
    ranked = None if criterion != "obs" else rank_channels(
        model, graph, group.channels, count, moments)
    if ranked is None:
      order = np.argsort(scores[group.channels], kind="stable")
      ranked = group.channels[order[:count]], None
    removed[ranked[0]] = True
  pruned = slice_model(model, graph, removed)
  slice_weights(model, graph, removed, pruned)
  if reconstruct:
    refit_readers(
        model, graph, removed, pruned, images, batch_size, progress)
  if not return_channels:
    return pruned
  return pruned, {
      name: np.flatnonzero(~removed[use.outputs])
      for name, use in graph.uses.items() if removed[use.outputs].any()}


def filter_sparsities(
    model: keras.Model,
    sparsity: float,
    images: np.ndarray,
    *,
    of: str = "filters",
    exclude: str | Sequence[str] = (),
    min_filters: int = 1,
    batch_size: int = 32,
) -> dict[str, float]:
  """Divides a sparsity among convolutions: layers with spare filters lose most.

  An equal share for every layer starves narrow layers and leaves wide layers
  more than they need. Here the filters of all layers are compared. Filters of
  least cost by the criterion "obs" are removed. This cost is a share of the
  reader's output, which is comparable between layers. A filter costs at least
  as much as the filters removed before it.

  Early layers have few filters; these are seldom spare and multiply most. `of`
  names the quantity to reduce. For "weights" and "macs", filters of least cost
  per saving go first; savings are counted again after each.

      shares = filter_sparsities(teacher, 0.5, x_train[:512])
      student = prune_filters(teacher, shares, criterion="obs",
                              reconstruct=True, images=x_train[:512])

  Args:
    model: as for `prune_filters`; not changed.
    sparsity: the share to remove in all, above 0 and below 1, as nearly as
      whole filters and `min_filters` allow.
    of: the quantity that `sparsity` is a share of.
      "filters": the removable filters. Filters tied by a residual sum, a
      product or a depthwise convolution count once. Filters that no Conv2D of
      one group and no Dense reads stay, and do not count.
      "weights": all weights in kernels of convolutions and Dense layers.
      "macs": all multiplications of these layers for one image.
      The last two do not count nested models, which stay whole.
    images: `[count, height, width, channels]`, some hundred, from the training
      data, in the range the model takes.
    exclude: names of layers that keep all channels of their output. A warning,
      `kap.LayersLeftWhole`, names other layers that keep them.
    min_filters: how many filters of a tied group stay at least.
    batch_size: images a batch.

  Returns:
    Each convolution's share by name. Tied convolutions have the same share.

  Raises:
    TypeError, ValueError: an argument is not as above, no filter can be
      removed, or for "macs" the size of the images is not fixed.
  """
  if of not in COSTS:
    raise ValueError(f"of must be one of {COSTS}; got {of!r}.")
  if isinstance(sparsity, Mapping) or not _share(sparsity):
    raise ValueError(
        f"sparsity must be a number above 0, below 1; got {sparsity!r}.")
  _check_min_filters(min_filters)
  model = clone_model(model)
  images = check_calibration(model, images, batch_size)
  graph = ChannelGraph(model)
  _tell_held("filter_sparsities", model, graph, exclude)
  moments = reader_moments(model, graph, images, batch_size)
  priced: list[tuple[set[str], list[int], list[float]]] = []
  for group, _ in _shares(
      model, graph, sparsity, _excluded(model, graph, exclude)):
    ranked = rank_channels(
        model, graph, group.channels, _most(group, min_filters), moments)
    if ranked is None:
      continue
    names, channels = set(group.layers), group.channels.tolist()
    prices = np.maximum.accumulate(ranked[1]).tolist()
    # A layer has one share, also if only some of its filters are tied.
    for tied in [entry for entry in priced if entry[0] & names]:
      priced.remove(tied)
      names, channels, prices = (
          names | tied[0], channels + tied[1], sorted(prices + tied[2]))
    priced.append((names, channels, prices))
  if not priced:
    raise ValueError(
        f"model {model.name!r} has no filter that a Conv2D of one group, or a "
        "Dense layer, reads.")
  names, channels, prices = zip(*priced, strict=True)
  gone = _cheapest(
      prices, ChannelCosts(model, graph, [*map(np.array, channels)], of),
      sparsity)
  return {name: float(count) / len(tied)
          for layers, tied, count in zip(names, channels, gone, strict=True)
          for name in sorted(layers)}


def _cheapest(
    prices: Sequence[Sequence[float]], costs: ChannelCosts, share: float
) -> np.ndarray:
  """Counts the filters to remove of each part, cheapest first for a saving.

  Args:
    prices: for each part, the prices of its filters in order.
    costs: of the parts.
    share: of the cost, to save.
  """
  gone = np.zeros(len(prices), int)
  whole = costs.left(gone)
  # Half a unit less, since the costs are floats.
  target = round(share * whole) - 0.5
  end = max(map(len, prices))
  table = np.array([[*row, *[np.inf] * (end + 1 - len(row))]
                    for row in prices])
  while whole - costs.left(gone) < target:
    # Among filters of price 0 the largest saving goes first.
    price = np.maximum(
        table[np.arange(len(gone)), gone], np.finfo(float).tiny ** 0.5)
    best = np.argmin(price / costs.savings(gone))
    if np.isinf(price[best]):
      break
    gone[best] += 1
  return gone


def _check_min_filters(count: int) -> None:
  if isinstance(count, bool) or not isinstance(count, int) or count < 1:
    raise ValueError(
        f"min_filters must be an integer of 1 or more; got {count!r}.")


def _most(group: Group, min_filters: int) -> int:
  """Returns how many filters may be removed."""
  return max(len(group.channels) - min_filters, 0)


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


def _tell_held(
    function: str, model: keras.Model, graph: ChannelGraph,
    exclude: str | Sequence[str]) -> None:
  """Warns of kernels whose channels stay, except at the model's border."""
  def why(layer: keras.layers.Layer) -> str | None:
    if layer.name not in graph.uses:
      return "its channels are not followed" + (
          "; kap.unnest puts its layers in its place"
          if isinstance(layer, keras.Model) else "")
    held = graph.held.get(layer.name)
    return None if held is None or held in BORDER else f"channels {held}"
  tell_left_whole(
      function, model, why,
      known=(exclude,) if isinstance(exclude, str) else exclude)


def _excluded(
    model: keras.Model, graph: ChannelGraph, exclude: str | Sequence[str]
) -> set[int]:
  """Returns the numbers of the channels that must stay."""
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
  """Returns the groups to prune, with the share of each."""
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
        + ". Nested models are left whole; kap.unnest takes them apart.")
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
