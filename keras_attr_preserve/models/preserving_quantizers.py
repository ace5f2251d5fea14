"""Makes quantizers that keep zeros and clusters again for a loaded model.

tfmot 0.8.1 makes them from the weights when it wraps a model, but saves them as
plain quantizers. A model built from its config would train without them.
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
  """Says whether quantization-aware training keeps zeros or clusters.

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
  """Maps the last part of each weight's name to the weight."""
  return {last_name(weight.name): weight for weight in weights}


def _scheme(kind: str) -> Any:
  combine = tfmot.experimental.combine
  if kind == "PQAT":
    return combine.Default8BitPrunePreserveQuantizeScheme()
  if kind in ("CQAT", "PCQAT"):
    return combine.Default8BitClusterPreserveQuantizeScheme(kind == "PCQAT")
  raise ValueError(f"kind must be PQAT, CQAT or PCQAT; got {kind!r}.")


class Wrapper:
  """Replaces tfmot's QuantizeWrapperV2 where Keras makes one from a config.

  It makes tfmot's wrapper with the quantizer of the scheme. The layer inside
  has its weights already, as when the scheme was applied. To load a model, give
  it as the custom object "QuantizeWrapperV2".
  """

  def __init__(
      self, kind: str, weights: Callable[[str], dict[str, np.ndarray]]):
    """Keeps the scheme and the weights for the wrappers.

    Args:
      kind: the result of `preserved_kind`.
      weights: takes a wrapper's name and returns its saved weights, a dict by
        the last part of the weights' names.
    """
    self._registry = _scheme(kind).get_quantize_registry()
    self._weights = weights
    with tfmot.quantization.keras.quantize_scope():
      self._make = keras.utils.get_registered_object("QuantizeWrapperV2")

  def from_config(self, config: dict[str, Any]) -> keras.layers.Layer:
    """Makes the wrapper, with the layer built and its kernel set for tfmot."""
    wrapper = self._make.from_config(config)
    layer = wrapper.layer
    saved = self._weights(wrapper.name)
    kernels = [name for name in _KERNELS if name in saved
             and hasattr(wrapper.quantize_config, "weight_quantizer")]
    if not kernels:
      return wrapper
    kernel = saved[kernels[0]]
    if not layer.built:
      with tf.name_scope(layer.name):
        layer.build(_input_shape(layer, kernel))
    getattr(layer, kernels[0]).assign(_as_first_read(kernel, saved))
    wrapper.quantize_config.weight_quantizer = (
        self._registry.get_quantize_config(layer).weight_quantizer)
    return wrapper


class PruningWrapper:
  """Replaces tfmot's PruneLowMagnitude where Keras makes one from a config.

  It makes tfmot's wrapper with the pattern, which tfmot leaves out of the
  config. To load a model, give it as the custom object "PruneLowMagnitude".
  """

  def __init__(self, noted: Mapping[str, list[int]]):
    """Keeps the result of `patterns` for the saved model."""
    self._patterns = noted
    with tfmot.sparsity.keras.prune_scope():
      self._make = keras.utils.get_registered_object("PruneLowMagnitude")

  def from_config(self, config: dict[str, Any]) -> keras.layers.Layer:
    """Makes the wrapper."""
    pattern = self._patterns.get(config["name"])
    return self._make.from_config(config if pattern is None else {
        **config, "sparsity_m_by_n": tuple(pattern)})


def patterns(model: keras.Model) -> dict[str, list[int]]:
  """Returns the patterns of pruning, by the wrapper's name.

  Args:
    model: any built model.

  Returns:
    `[2, 4]` for two of four; wrappers without a pattern are left out.
  """
  return {layer.name: list(layer.sparsity_m_by_n) for layer in model.submodules
          if getattr(layer, "sparsity_m_by_n", None)}


def _input_shape(layer: keras.layers.Layer, kernel: np.ndarray) -> list[Any]:
  """Returns an input shape for which the layer builds such a kernel."""
  if kernel.ndim == 2:
    return [None, kernel.shape[0]]
  channels = kernel.shape[2] * getattr(layer, "groups", 1)
  if layer.data_format == "channels_first":
    return [None, channels, None, None]
  return [None, None, None, channels]


def _as_first_read(
    kernel: np.ndarray, saved: dict[str, np.ndarray]) -> np.ndarray:
  """Returns a kernel with the saved kernel's zeros and all of its clusters.

  tfmot reads only the zeros, and the number and places of the clusters. The
  saved values are set later. The saved kernel may use fewer clusters than it
  has, because training may leave clusters empty.
  """
  centroids = saved.get("cluster_centroids_tf")
  if centroids is None:
    return kernel
  columns = kernel.reshape(-1, kernel.shape[-1])
  if centroids.ndim == 1:
    return _whole(columns, centroids).reshape(kernel.shape)
  return np.stack([
      _column(column, centres) for column, centres in zip(columns.T, centroids)
  ], axis=1).reshape(kernel.shape)


def _whole(columns: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Places clusters that all channels share.

  tfmot shares clusters where a convolution's channels have unequal numbers of
  them. So the first channels get as many clusters as possible.
  """
  count = len(centroids)
  if not (columns == 0).any():
    placed = np.full_like(columns, count).flatten("F")
    placed[:count] = np.arange(1, count + 1)
    return placed.reshape(columns.shape, order="F")
  values, first = np.unique(columns, return_index=True)
  order = values[np.argsort(first)]
  if len(order) == count and order[np.argmin(np.abs(centroids))] == 0:
    return columns
  return _column(columns.reshape(-1), centroids).reshape(columns.shape)


def _column(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Places clusters so that they appear in the order of the centroids."""
  count, nearest = len(centroids), int(np.argmin(np.abs(centroids)))
  ranks = np.arange(1, count + 1, dtype=values.dtype)
  zeros = values == 0
  placed = np.full_like(values, ranks[-1])
  if not zeros.any():
    ranks[nearest] = 0.5
    placed[:count] = ranks
    placed[count:] = ranks[-1]
    return placed
  first = int(np.argmax(zeros))
  before, after = np.arange(first), first + np.flatnonzero(~zeros[first:])
  ahead, behind = ranks[:nearest], ranks[nearest + 1:]
  if (len(before) < len(ahead) or len(after) < len(behind)
      or (len(before) and not len(ahead))):
    raise ValueError(
        f"path: a layer of {len(values)} weights with {zeros.sum()} zeros "
        f"cannot be given its {count} clusters again.")
  placed[zeros] = 0
  placed[before[:len(ahead)]] = ahead
  placed[before[len(ahead):]] = ahead[-1] if len(ahead) else 0
  placed[after[:len(behind)]] = behind
  placed[after[len(behind):]] = (behind if len(behind) else ahead)[-1]
  return placed
