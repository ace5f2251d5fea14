"""Keeps the zeros and clusters of a compressed model's weights.

tfmot's wrappers hold masks and centroids, and apply them in a forward pass.
Later changes of the weights undo this: an optimizer's step, its averages,
weights restored or set by hand. So every function here that ends a training or
saves a model uses this module first.

It uses private parts of tfmot, checked on 0.8.1: a pruning wrapper's
`pruning_vars` and `pruning_obj`, a quantization wrapper's `_weight_vars`, and a
clustering wrapper's dicts by weight name. `held_weights_test.py` fails where
these change.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.layers import unwrapped_name
from keras_attr_preserve.models.preserving_quantizers import last_name
from keras_attr_preserve.utils.notices import notice

__all__ = ["Lost", "hold", "hold_aloud", "mask_step", "masks_of",
           "restore_sparse_clusters", "say_lost", "strip"]


class Lost(NamedTuple):
  """A kernel that had lost zeros or clusters.

  Attributes:
    layer: its layer's name, without a wrapper's prefix.
    what: the unit of `before` and `after`. "zeros": the share of weights that
      are zero, 0..1. "values": the number of different values. "average": the
      same number, of a kernel that an average had left out.
    before: the figure before the repair.
    after: the figure after the repair.
  """

  layer: str
  what: str
  before: float
  after: float

  def __str__(self) -> str:
    if self.what == "zeros":
      return f"{self.layer} {self.before:.3f} -> {self.after:.3f}"
    if self.what == "average":
      return f"{self.layer} (left out of the optimizer's average)"
    return f"{self.layer} {self.before:.0f} -> {self.after:.0f} values"


def hold(
    model: keras.Model, masks: Mapping[int, np.ndarray] | None = None
) -> list[Lost]:
  """Restores the zeros and clusters of a model's weights, in place.

  The outputs of a model wrapped by pruning stay the same, because each call
  sets the pruned weights to zero itself.

  Args:
    model: any built `tf_keras` model; without wrappers nothing changes.
    masks: an earlier result of `masks_of`. Weights that were pruned then are
      pruned again, even if their masks were reset since.

  Returns:
    The kernels that had lost something.
  """
  lost = []
  for layer in model.submodules:
    for weight, mask, _ in getattr(layer, "pruning_vars", ()):
      earlier = (masks or {}).get(id(mask))
      if earlier is not None and (mask.numpy()[~earlier] != 0).any():
        mask.assign(np.where(earlier, mask.numpy(), 0))
      several = len(layer.pruning_vars) > 1
      lost += _masked(layer, weight, mask.numpy() != 0, several)
    for weight, quantizer, settings in _quantized(layer):
      lost += _held(layer, weight, quantizer, settings, _averages(model))
    for name, mask in _sparse_clusters(layer):
      # tfmot masks the clustered weights, and not these original weights.
      weight = layer.original_clusterable_weights[name]
      weight.assign(np.where(mask.numpy() != 0, weight.numpy(), 0))
      layer.update_clustered_weights_associations()
  return lost


def hold_aloud(model: keras.Model, where: str) -> None:
  """Calls `hold`, and warns once if something was lost.

  Args:
    model: as for `hold`.
    where: the name of the calling function.
  """
  say_lost(where, model, hold(model))


def say_lost(where: str, model: keras.Model, lost: Sequence[Lost]) -> None:
  """Warns of lost zeros and clusters, if any, with their figures.

  Args:
    where: the name of the calling function.
    model: the model of the kernels.
    lost: the kernels; if a layer appears twice, its first `before` counts.
  """
  first: dict[tuple[str, str], Lost] = {}
  for each in lost:
    known = first.get(each[:2], each)
    first[each[:2]] = each._replace(before=known.before)
  if not first:
    return
  zeros = all(each.what == "zeros" for each in first.values())
  notice(
      f"{where}: kernels of model {model.name!r} had lost "
      f"{'zeros' if zeros else 'the few values'} that compression made, to an "
      "optimizer's last step or to weights that were restored, averaged or set "
      f"by hand. They are set again, {'share of zeros ' if zeros else ''}"
      f"before -> after: {', '.join(str(first[key]) for key in sorted(first))}."
      " Weights of a time before the last masks may need training: let what "
      "restores them begin where pruning ends, as EarlyStopping does by "
      "start_from_epoch.")


def strip(model: keras.Model) -> keras.Model:
  """Removes tfmot's pruning and clustering wrappers and keeps their weights.

  tfmot's `strip_pruning` and `strip_clustering` keep the weights as they are,
  even if an optimizer's step, an average or restored weights have undone zeros.
  This function first restores the zeros, in the model as well, and warns of
  their number. As in tfmot, the result shares layers with the model.

  Args:
    model: a Functional or Sequential `tf_keras` model.

  Returns:
    A model without these wrappers, in nested models too; the model itself if it
    has none. Wrappers of quantization-aware training stay.

  Raises:
    TypeError: the model is no `tf_keras` model.
  """
  hold_aloud(check_keras(model), "strip")
  wrappers = {type(module).__name__ for module in model.submodules}
  if "PruneLowMagnitude" in wrappers:
    model = tfmot.sparsity.keras.strip_pruning(model)
  if any(name.startswith("ClusterWeights") for name in wrappers):
    model = tfmot.clustering.keras.strip_clustering(model)
  return model


def masks_of(model: keras.Model) -> dict[int, np.ndarray]:
  """Reads the pruning masks for `hold`: bool, True where a weight stays."""
  return {id(mask): mask.numpy() != 0 for layer in model.submodules
          for _, mask, _ in getattr(layer, "pruning_vars", ())}


def mask_step(model: keras.Model) -> None:
  """Sets pruned weights to zero, in the graph of a train step.

  tfmot does so only when the next step begins and when an epoch ends. Callbacks
  that save or compare weights in between would see no zeros.
  """
  for layer in model.submodules:
    if getattr(layer, "pruning_vars", ()):
      layer.pruning_obj.weight_mask_op()


def restore_sparse_clusters(model: keras.Model) -> None:
  """Makes a loaded model keep the zeros of its clusters, in place.

  tfmot makes the masks from a layer's initial weights, which the file replaces
  later.
  """
  for layer in model.submodules:
    for name, _ in [*_sparse_clusters(layer)]:
      centroids = layer.cluster_centroids[name]
      zero = tf.argmin(tf.abs(centroids), axis=-1)
      layer.zero_idx[name] = zero
      if len(zero.shape):  # Clusters of each channel.
        zero = tf.reshape(zero, [-1, 1, 1] if (
            layer.data_format == "channels_first") else [-1])
      layer.sparsity_masks[name] = tf.cast(
          layer.pulling_indices[name] != zero, tf.float32)


def _masked(
    layer: keras.layers.Layer, weight: tf.Variable, stays: np.ndarray,
    several: bool = False) -> list[Lost]:
  """Sets masked weights to zero; `several` adds the kernel's name."""
  value = weight.numpy()
  if not (value[~stays] != 0).any():
    return []
  masked = np.where(stays, value, 0)
  weight.assign(masked)
  name = unwrapped_name(layer.name) + (
      f"/{last_name(weight.name)}" if several else "")
  return [Lost(name, "zeros",
               float((value == 0).mean()), float((masked == 0).mean()))]


def _quantized(layer: Any) -> list[tuple[tf.Variable, Any, dict[str, Any]]]:
  """Lists a quantization wrapper's weights with their quantizers."""
  return (list(getattr(layer, "_weight_vars", ()))
          if hasattr(layer, "quantize_config") else [])


def _held(
    layer: keras.layers.Layer, weight: tf.Variable, quantizer: Any,
    settings: dict[str, Any], averages: list[tf.Variable]) -> list[Lost]:
  """Restores the zeros or clusters that a quantizer shall keep."""
  mask = settings.get("sparsity_mask")
  stays = None if mask is None else mask.numpy() != 0
  centroids = settings.get("cluster_centroids_tf")
  if centroids is None:
    return [] if stays is None else _masked(layer, weight, stays)
  before = weight.numpy()
  count, most = _values(before, centroids), centroids.shape[-1]
  woken = stays is not None and (before[~stays] != 0).any()
  # A kernel without a gradient has its initial value as average, which replaces
  # it when a fit ends.
  averaged = any(
      average.shape == weight.shape and np.array_equal(average, before)
      for average in averages)
  if count <= most and not woken and not averaged:
    return []
  # In training mode the quantizer clusters the kernel and takes its range.
  quantizer(weight, True, settings)
  after = weight.numpy()
  if np.array_equal(before, after):
    return []
  lost = [Lost(unwrapped_name(layer.name),
               "values" if count > most or woken else "average", count,
               _values(after, centroids))]
  if woken:
    lost.append(Lost(lost[0].layer, "zeros", float((before == 0).mean()),
                     float((after == 0).mean())))
  return lost


def _values(kernel: np.ndarray, centroids: tf.Variable) -> int:
  """Counts a kernel's values; with clusters per channel, the largest count."""
  if len(centroids.shape) == 1:
    return len(np.unique(kernel))
  axis = next(axis for axis in (-1, 1)
              if kernel.shape[axis] == centroids.shape[0])
  return max(len(np.unique(channel))
             for channel in np.moveaxis(kernel, axis, 0))


def _averages(model: keras.Model) -> list[tf.Variable]:
  """Lists the averages that replace the weights when a fit ends."""
  optimizer = getattr(model, "optimizer", None)
  optimizer = getattr(optimizer, "inner_optimizer", optimizer)
  return [variable for variable in optimizer.variables
          if "average" in variable.name] if (
              getattr(optimizer, "use_ema", False)) else []


def _sparse_clusters(layer: Any) -> Iterator[tuple[str, tf.Tensor]]:
  """Yields names and masks of a sparse clustering wrapper's weights."""
  if hasattr(layer, "original_clusterable_weights"):
    yield from getattr(layer, "sparsity_masks", {}).items()
