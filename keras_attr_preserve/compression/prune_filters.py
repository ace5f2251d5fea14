"""Removing whole filters: a smaller dense model out of a larger one."""

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

  The result is an ordinary smaller model with the layer names of the old one.
  It computes what the old one would if the removed channels were zero wherever
  a layer reads them. With `reconstruct` the layers that read them are refitted
  besides, so that far less is lost. Train it on, with the old one as its
  teacher:

      shares = filter_sparsities(teacher, 0.5, x_train[:512])
      student = prune_filters(teacher, shares, criterion="obs",
                              reconstruct=True, images=x_train[:512])
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam)])

  Channels that a residual sum, a product or a depthwise convolution ties go
  together, and are ranked among each other: layer by layer, in one shot. What
  stays whole: the channels of the model's input and output, convolutions in
  groups, and whatever reaches a layer that may mix channels in ways not known
  here (Lambda, custom layers, nested models, LayerNormalization). Where one
  share is asked of all, layers with kernels that stay so are named in a
  warning, a `kap.LayersLeftWhole`, unless excluded.

  Args:
    model: a built `tf_keras` model, channels last; stripped of tfmot's
      wrappers. It is left as it came.
    sparsity: share of filters to remove, 0 or more and below 1: one for every
      convolution, or by layer name, where the others stay; see
      `filter_sparsities`. The name of a hidden Dense layer removes its neurons.
      The number removed is rounded.
    criterion: what a filter is worth. "l1": the sum of its absolute weights. Of
      tied filters these norms add up, each divided by the mean norm of its
      layer, so that a 3x3 kernel does not outvote the 1x1 shortcut beside it.
      "taylor": how far the score of the class explained moves when the channel
      goes, to first order. "map": how far the attribution map turns, to second
      order (see `channel_gates`). "obs": how far the layers that read the
      channel move when all else they read makes up for it (see
      `rank_channels`); of those, Conv2D of one group and Dense count, and
      where none reads a channel, "l1" says.
    reconstruct: whether to refit these layers in least squares to what they
      computed before, from the pictures on, one after another, each from what
      those before it now give. Without labels; biases and other layers stay.
    images: for "taylor", "map", "obs" and `reconstruct`, `[images, height,
      width, colours]`, some hundred, from the training data.
    targets: for "taylor" and "map", the class explained, as for
      `attribution.grad_cam`; None for each image's top class.
    layer: for "map", the map's layer; None for the last with a spatial map.
    exclude: names of layers that keep all channels of their output.
    min_filters: how many stay at least, of those tied to the same layers.
    batch_size: images a batch.
    return_channels: whether to say what is left, too.
    progress: of `reconstruct`. True for a line on stderr, False for none; None
      for one on a terminal where it takes long; or a function of layers done
      and to be done.

  Returns:
    A new, uncompiled model. With `return_channels` a pair of it and, by name of
    each layer that has lost some, the numbers of the channels of `model`'s that
    its output still has, in order: for `Hints(channels=...)`.

  Raises:
    TypeError, ValueError: an argument is not as above, the model has NaN
      weights, or no filter of it is free to go.

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
    # Layers may be called in other models, too, as those of a stripped one.
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
  """Shares a sparsity out among convolutions: most where most are spared.

  As much of every layer starves the narrow ones and leaves the wide ones more
  than they need. Here, of the filters of all layers together, those go that
  the layers behind them make up for best: of least cost by the criterion "obs",
  a share of what the layer that reads a filter gives, which is comparable
  between layers. A filter that goes after others costs at least what they did.

  Early layers have few filters, which are seldom spared and multiply most. Say
  what is to become small: where that is not the number of filters, those go
  that cost least for what they save, counted anew after each.

      shares = filter_sparsities(teacher, 0.5, x_train[:512])
      student = prune_filters(teacher, shares, criterion="obs",
                              reconstruct=True, images=x_train[:512])

  Args:
    model: as for `prune_filters`; left as it came.
    sparsity: the share to remove in all, above 0 and below 1, as nearly as
      whole filters and `min_filters` allow.
    of: what it is a share of. "filters": those that are free to go. Those of
      layers that a residual sum, a product or a depthwise convolution ties
      count once; those that no Conv2D of one group, nor Dense, reads stay, and
      do not count. "weights": all those of the kernels of convolutions and
      Dense layers. "macs": all that these layers multiply for one picture. Of
      the last two those of nested models, which are left whole, do not count.
    images: `[count, height, width, channels]`, some hundred, from the training
      data, in the range the model takes.
    exclude: names of layers that keep all channels of their output. Others
      that keep them are named in a warning, a `kap.LayersLeftWhole`.
    min_filters: how many stay at least, of those tied to the same layers.
    batch_size: images a batch.

  Returns:
    Each convolution's own share by name, one for all that are tied.

  Raises:
    TypeError, ValueError: an argument is not as above, no filter is free to
      go, or for "macs" the size of the pictures is not fixed.
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
  parts: list[tuple[set[str], list[int], list[float]]] = []
  for group, _ in _shares(
      model, graph, sparsity, _excluded(model, graph, exclude)):
    found = rank_channels(
        model, graph, group.channels, _most(group, min_filters), moments)
    if found is None:
      continue
    names, channels = set(group.layers), group.channels.tolist()
    prices = np.maximum.accumulate(found[1]).tolist()
    # A layer has one share, also where some of its filters are tied to another.
    for part in [one for one in parts if one[0] & names]:
      parts.remove(part)
      names, channels, prices = (
          names | part[0], channels + part[1], sorted(prices + part[2]))
    parts.append((names, channels, prices))
  if not parts:
    raise ValueError(
        f"model {model.name!r} has no filter that a Conv2D of one group, or a "
        "Dense layer, reads.")
  names, channels, prices = zip(*parts, strict=True)
  gone = _cheapest(
      prices, ChannelCosts(model, graph, [*map(np.array, channels)], of),
      sparsity)
  return {name: float(count) / len(part)
          for layers, part, count in zip(names, channels, gone, strict=True)
          for name in sorted(layers)}


def _cheapest(
    prices: Sequence[Sequence[float]], costs: ChannelCosts, share: float
) -> np.ndarray:
  """Counts the filters of each part that go, cheapest first for a saving.

  Args:
    prices: of each part, of its filters in their order.
    costs: of the parts.
    share: of the cost, to save.
  """
  gone = np.zeros(len(prices), int)
  whole = costs.left(gone)
  # Half of one below, for floats that count.
  wanted = round(share * whole) - 0.5
  end = max(map(len, prices))
  table = np.array([[*part, *[np.inf] * (end + 1 - len(part))]
                    for part in prices])
  while whole - costs.left(gone) < wanted:
    # Of those that cost nothing first the one that saves most.
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
  """How many filters may go."""
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
  """Warns of kernels whose channels stay, but for the model's own border."""
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
