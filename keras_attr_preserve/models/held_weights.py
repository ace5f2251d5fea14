"""What must stay zero, or have few values, in a compressed model.

tfmot knows it, in the masks and centroids of its wrappers, and brings weights
back to it in a forward pass. What sets weights after the last one undoes it: an
optimizer's step, its averages, weights restored or set by hand. Everything here
that ends a training, or writes a model down, asks this module first.

Checked on tfmot 0.8.1: a pruning wrapper's `pruning_vars` and `pruning_obj`, a
quantization wrapper's `_weight_vars`, and what a clustering wrapper keeps by
the name of a weight. `held_weights_test.py` fails where these change.
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
  """A kernel that was not as it must be.

  Attributes:
    layer: its layer's name, without a wrapper's prefix.
    what: "zeros": `before` and `after` are the share of its weights that are
      zero, 0..1. "values": they are numbers of different values. "average": it
      was left out of an average, and they are both that number.
    before: as it came.
    after: as it was left.
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
  """Brings weights back to what pruning and clustering made of them, in place.

  What the model computes as wrapped by pruning stays the same: each of its
  calls sets those weights to zero itself.

  Args:
    model: any built `tf_keras` model; one without wrappers holds nothing.
    masks: as `masks_of` gave them: what was pruned then is pruned, although
      masks were set back since.

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
      # tfmot masks what it makes of these weights, and not them.
      weight = layer.original_clusterable_weights[name]
      weight.assign(np.where(mask.numpy() != 0, weight.numpy(), 0))
      layer.update_clustered_weights_associations()
  return lost


def hold_aloud(model: keras.Model, where: str) -> None:
  """Does `hold`, with one warning where something was lost.

  Args:
    model: as for `hold`.
    where: the name of the function that asks.
  """
  say_lost(where, model, hold(model))


def say_lost(where: str, model: keras.Model, lost: Sequence[Lost]) -> None:
  """Warns of what was lost, if anything, with its figures.

  Args:
    where: the name of the function that asks.
    model: whose kernels they are.
    lost: them; of a layer named twice the first `before` counts.
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
  """Takes tfmot's pruning and clustering wrappers off, with what they made.

  As tfmot's `strip_pruning` and `strip_clustering` do, whose result shares
  layers with the model too; those write down the weights as they stand, also
  where an optimizer's step, an average or restored weights have undone zeros.
  Here these are set first, in the model as well, and a warning says how many.

  Args:
    model: a Functional or Sequential `tf_keras` model.

  Returns:
    A model without the wrappers, also in models that it holds; the model itself
    where it has none. Those of quantization-aware training stay.

  Raises:
    TypeError: it is no `tf_keras` model.
  """
  hold_aloud(check_keras(model), "strip")
  wrappers = {type(part).__name__ for part in model.submodules}
  if "PruneLowMagnitude" in wrappers:
    model = tfmot.sparsity.keras.strip_pruning(model)
  if any(name.startswith("ClusterWeights") for name in wrappers):
    model = tfmot.clustering.keras.strip_clustering(model)
  return model


def masks_of(model: keras.Model) -> dict[int, np.ndarray]:
  """Reads pruning's masks: bool, which weights stay, for `hold`."""
  return {id(mask): mask.numpy() != 0 for layer in model.submodules
          for _, mask, _ in getattr(layer, "pruning_vars", ())}


def mask_step(model: keras.Model) -> None:
  """Sets what is pruned to zero, in the graph of a train step.

  tfmot does so as the next step begins, and when an epoch ends; what other
  callbacks save or compare in between has none of the zeros.
  """
  for layer in model.submodules:
    if getattr(layer, "pruning_vars", ()):
      layer.pruning_obj.weight_mask_op()


def restore_sparse_clusters(model: keras.Model) -> None:
  """Has a loaded model keep the zeros of its clusters, in place.

  tfmot makes their masks of the weights that a layer is built with, which a
  file replaces afterwards.
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
  """Sets what does not stay to zero; of several kernels each has a name."""
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
  """The weights of a quantization wrapper, with what quantizes each."""
  return (list(getattr(layer, "_weight_vars", ()))
          if hasattr(layer, "quantize_config") else [])


def _held(
    layer: keras.layers.Layer, weight: tf.Variable, quantizer: Any,
    settings: dict[str, Any], averages: list[tf.Variable]) -> list[Lost]:
  """Holds what a quantizer that keeps zeros or clusters was made to keep."""
  mask = settings.get("sparsity_mask")
  stays = None if mask is None else mask.numpy() != 0
  centroids = settings.get("cluster_centroids_tf")
  if centroids is None:
    return [] if stays is None else _masked(layer, weight, stays)
  before = weight.numpy()
  count, most = _values(before, centroids), centroids.shape[-1]
  woken = stays is not None and (before[~stays] != 0).any()
  # The average of a kernel without a gradient is what it started with, and
  # takes its place as a fit ends.
  averaged = any(one.shape == weight.shape and np.array_equal(one, before)
                 for one in averages)
  if count <= most and not woken and not averaged:
    return []
  # Its training mode clusters the kernel, and takes its range.
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
  """Counts a kernel's values, or the most of any of its channels."""
  if len(centroids.shape) == 1:
    return len(np.unique(kernel))
  axis = next(axis for axis in (-1, 1)
              if kernel.shape[axis] == centroids.shape[0])
  return max(len(np.unique(one)) for one in np.moveaxis(kernel, axis, 0))


def _averages(model: keras.Model) -> list[tf.Variable]:
  """The averages that the model's optimizer ends a fit with."""
  optimizer = getattr(model, "optimizer", None)
  optimizer = getattr(optimizer, "inner_optimizer", optimizer)
  return [one for one in optimizer.variables if "average" in one.name] if (
      getattr(optimizer, "use_ema", False)) else []


def _sparse_clusters(layer: Any) -> Iterator[tuple[str, tf.Tensor]]:
  """Yields the weights of a wrapper of sparse clusters, and their masks."""
  if hasattr(layer, "original_clusterable_weights"):
    yield from getattr(layer, "sparsity_masks", {}).items()
