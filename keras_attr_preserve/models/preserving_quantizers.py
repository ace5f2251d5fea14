"""Quantizers that keep zeros and clusters, made anew for a loaded model.

tfmot 0.8.1 sets them on a model as it is made, by reading its weights, and
writes them into a file as plain quantizers. A model built again from its config
would train on without them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import keras, tf

__all__ = ["PruningWrapper", "Wrapper", "by_name", "last_name", "patterns",
           "preserved_kind"]

_KERNELS = ("kernel", "depthwise_kernel")


def preserved_kind(model: keras.Model) -> str | None:
  """Says what a model's quantization-aware training keeps.

  Args:
    model: any built model.

  Returns:
    "PQAT" for zeros, "CQAT" for clusters, "PCQAT" for both, else None.
  """
  kinds = set()
  for layer in model.submodules:
    config = getattr(layer, "quantize_config", None)
    if config is None:
      continue
    for _, quantizer in config.get_weights_and_quantizers(layer.layer):
      name = type(quantizer).__name__
      if name.startswith("PrunePreserve"):
        kinds.add("PQAT")
      elif name.startswith("ClusterPreserve"):
        kinds.add("PCQAT" if quantizer.preserve_sparsity else "CQAT")
  if len(kinds) > 1 and kinds != {"CQAT", "PCQAT"}:
    raise ValueError(
        f"model {model.name!r} mixes schemes: {', '.join(sorted(kinds))}.")
  return max(kinds, key=len) if kinds else None


def last_name(name: str) -> str:
  """Returns `kernel` for `quant_conv/kernel:0`."""
  return name.split("/")[-1].split(":")[0]


def by_name(weights: list[tf.Variable]) -> dict[str, tf.Variable]:
  """Sorts one layer's weights by the last parts of their names."""
  return {last_name(one.name): one for one in weights}


def _scheme(kind: str) -> Any:
  combine = tfmot.experimental.combine
  if kind == "PQAT":
    return combine.Default8BitPrunePreserveQuantizeScheme()
  if kind in ("CQAT", "PCQAT"):
    return combine.Default8BitClusterPreserveQuantizeScheme(kind == "PCQAT")
  raise ValueError(f"kind must be PQAT, CQAT or PCQAT; got {kind!r}.")


class Wrapper:
  """Stands for tfmot's QuantizeWrapperV2 where Keras makes one from a config.

  What it makes is the wrapper itself, with the quantizer of the scheme, around
  a layer that has its weights already, as when the scheme was applied. To load
  a model, name it as the custom object "QuantizeWrapperV2".
  """

  def __init__(
      self, kind: str, weights: Callable[[str], dict[str, np.ndarray]]):
    """Notes what the wrappers are made from.

    Args:
      kind: as `preserved_kind` says.
      weights: gives the saved weights of a wrapper, by the wrapper's name: a
        dict by the last part of the weights' names.
    """
    self._registry = _scheme(kind).get_quantize_registry()
    self._weights = weights
    with tfmot.quantization.keras.quantize_scope():
      self._make = keras.utils.get_registered_object("QuantizeWrapperV2")

  def from_config(self, config: dict[str, Any]) -> keras.layers.Layer:
    """Makes the wrapper, its layer built and filled as far as tfmot reads."""
    wrapper = self._make.from_config(config)
    layer = wrapper.layer
    saved = self._weights(wrapper.name)
    found = [name for name in _KERNELS if name in saved
             and hasattr(wrapper.quantize_config, "weight_quantizer")]
    if not found:
      return wrapper
    kernel = saved[found[0]]
    if not layer.built:
      with tf.name_scope(layer.name):
        layer.build(_input_shape(layer, kernel))
    getattr(layer, found[0]).assign(_as_first_read(kernel, saved))
    wrapper.quantize_config.weight_quantizer = (
        self._registry.get_quantize_config(layer).weight_quantizer)
    return wrapper


class PruningWrapper:
  """Stands for tfmot's PruneLowMagnitude where Keras makes one from a config.

  What it makes is the wrapper itself, with the pattern that tfmot does not note
  there. To load a model, name it as the custom object "PruneLowMagnitude".
  """

  def __init__(self, noted: Mapping[str, list[int]]):
    """Notes what `patterns` said of the model when it was saved."""
    self._patterns = noted
    with tfmot.sparsity.keras.prune_scope():
      self._make = keras.utils.get_registered_object("PruneLowMagnitude")

  def from_config(self, config: dict[str, Any]) -> keras.layers.Layer:
    """Makes the wrapper."""
    pattern = self._patterns.get(config["name"])
    return self._make.from_config(config if pattern is None else {
        **config, "sparsity_m_by_n": tuple(pattern)})


def patterns(model: keras.Model) -> dict[str, list[int]]:
  """Says how many of how many weights pruning takes, by wrapper's name.

  Args:
    model: any built model.

  Returns:
    `[2, 4]` for two of four; nothing of wrappers without a pattern.
  """
  return {layer.name: list(layer.sparsity_m_by_n) for layer in model.submodules
          if getattr(layer, "sparsity_m_by_n", None)}


def _input_shape(layer: keras.layers.Layer, kernel: np.ndarray) -> list[Any]:
  """Gives an input shape that the layer builds such a kernel for."""
  if kernel.ndim == 2:
    return [None, kernel.shape[0]]
  channels = kernel.shape[2] * getattr(layer, "groups", 1)
  if layer.data_format == "channels_first":
    return [None, channels, None, None]
  return [None, None, None, channels]


def _as_first_read(
    kernel: np.ndarray, saved: dict[str, np.ndarray]) -> np.ndarray:
  """Gives a kernel with the zeros of the saved one and all of its clusters.

  Only its zeros and the number and places of its clusters are read; the saved
  values come afterwards. The saved kernel itself may use fewer clusters than
  it was given, when training left some of them empty.
  """
  centroids = saved.get("cluster_centroids_tf")
  if centroids is None:
    return kernel
  columns = kernel.reshape(-1, kernel.shape[-1])
  if centroids.ndim == 1:
    return _whole(columns, centroids).reshape(kernel.shape)
  return np.stack([
      _column(column, one) for column, one in zip(columns.T, centroids)
  ], axis=1).reshape(kernel.shape)


def _whole(columns: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Places clusters that all channels share.

  tfmot shares them where the channels of a convolution have unequal numbers of
  clusters, so the first channels get as many as they can.
  """
  count = len(centroids)
  if not (columns == 0).any():
    made = np.full_like(columns, count).flatten("F")
    made[:count] = np.arange(1, count + 1)
    return made.reshape(columns.shape, order="F")
  values, first = np.unique(columns, return_index=True)
  order = values[np.argsort(first)]
  if len(order) == count and order[np.argmin(np.abs(centroids))] == 0:
    return columns
  return _column(columns.reshape(-1), centroids).reshape(columns.shape)


def _column(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Places clusters so that they first appear in the order of the centroids."""
  count, nearest = len(centroids), int(np.argmin(np.abs(centroids)))
  ranks = np.arange(1, count + 1, dtype=values.dtype)
  zeros = values == 0
  made = np.full_like(values, ranks[-1])
  if not zeros.any():
    ranks[nearest] = 0.5
    made[:count] = ranks
    made[count:] = ranks[-1]
    return made
  first = int(np.argmax(zeros))
  before, after = np.arange(first), first + np.flatnonzero(~zeros[first:])
  ahead, behind = ranks[:nearest], ranks[nearest + 1:]
  if (len(before) < len(ahead) or len(after) < len(behind)
      or (len(before) and not len(ahead))):
    raise ValueError(
        f"path: a layer of {len(values)} weights with {zeros.sum()} zeros "
        f"cannot be given its {count} clusters again.")
  made[zeros] = 0
  made[before[:len(ahead)]] = ahead
  made[before[len(ahead):]] = ahead[-1] if len(ahead) else 0
  made[after[:len(behind)]] = behind
  made[after[len(behind):]] = (behind if len(behind) else ahead)[-1]
  return made
