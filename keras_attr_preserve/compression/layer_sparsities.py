"""Choosing a sparsity for each layer, and pruning each layer to it.

The same sparsity in every layer starves small layers. A MobileNet's first
pointwise convolution has 128 weights; 90 % sparsity leaves 13 of them. The last
convolution is 500 times as large and could spare far more.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import check_keras, clone_model, keras
from keras_attr_preserve.utils.left_whole import tell_left_whole

__all__ = ["NESTED", "check_sparsities", "is_prunable", "lamp_scores",
           "layer_sparsities", "prune_layers"]

_KINDS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense)
_OTHERS = (keras.layers.Conv1DTranspose, keras.layers.DepthwiseConv2D)
# The layers with kernels that tfmot 0.8.1 prunes. It refuses others, or wraps
# them without pruning.
_PRUNED = tuple(getattr(keras.layers, name) for name in (
    "Conv1D", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Dense",
    "Embedding", "GRU", "LSTM", "LocallyConnected1D", "LocallyConnected2D",
    "MultiHeadAttention", "RNN", "SeparableConv1D", "SeparableConv2D",
    "SimpleRNN"))
NESTED = "a model; kap.unnest puts its layers in its place"
"""Why the layers of a nested model are not pruned."""


def is_prunable(layer: keras.layers.Layer) -> bool:
  """Says whether a layer is a Conv1D, Conv2D, Conv2DTranspose or Dense.

  tfmot prunes the kernel of these, which is their first weight.
  """
  return isinstance(layer, _KINDS) and not isinstance(layer, _OTHERS)


def _why_not_counted(layer: keras.layers.Layer) -> str | None:
  """Says why `layer_sparsities` does not count a layer; None if it does."""
  if isinstance(layer, keras.Model):
    return NESTED
  return None if is_prunable(layer) else (
      "no Conv1D, Conv2D, Conv2DTranspose or Dense")


def lamp_scores(kernel: np.ndarray) -> np.ndarray:
  """Scores weights by the layer's cost of removing them and all smaller ones.

      score_i = w_i^2 / sum of w_j^2 over the weights left at w_i's turn

  Small magnitudes take their turn first. Scores are comparable between layers,
  whatever the scale of their weights.

  Args:
    kernel: of any shape.

  Returns:
    Scores of the same shape, 0..1; a layer's largest weight has 1. A kernel of
    zeros has zeros.

  References:
    Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning",
    https://arxiv.org/abs/2010.07611, equation 4.
  """
  squares = np.square(np.ravel(kernel).astype(np.float64))
  order = np.argsort(-squares, kind="stable")
  left = np.cumsum(squares[order])
  scores = np.empty_like(squares)
  scores[order] = squares[order] / np.where(left > 0, left, 1.0)
  return scores.reshape(np.shape(kernel))


def layer_sparsities(
    model: keras.Model,
    sparsity: float,
    *,
    exclude: str | Sequence[str] = (),
) -> dict[str, float]:
  """Divides a sparsity among layers, by layer-adaptive magnitudes (LAMP).

  Over all kernels together, the weights of least `lamp_scores` are removed.

      shares = layer_sparsities(teacher, 0.9, exclude=["conv1", "logits"])
      student = prune_layers(teacher, shares, lambda share: PolynomialDecay(
          0.0, share, begin_step=0, end_step=400))

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers; not changed.
      Kernels of Conv1D, Conv2D, Conv2DTranspose and Dense layers are counted.
      Other layers (depthwise, separable, recurrent) and nested models (see
      `unnest`) are not counted. Unless excluded, a warning, `LayersLeftWhole`,
      names them in its `layers`.
    sparsity: share of the counted weights to remove, above 0 and below 1.
    exclude: names of layers to leave whole; their weights are not counted.

  Returns:
    Each layer's sparsity by name. At least one weight of each layer stays.

  Raises:
    TypeError, ValueError: an argument is not as above, or no layer is left.
  """
  if (isinstance(sparsity, bool) or not isinstance(sparsity, Real)
      or not 0 < sparsity < 1):
    raise ValueError(
        f"sparsity must be a number between 0 and 1; got {sparsity!r}.")
  exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
  names = [layer.name for layer in check_keras(model).layers]
  unknown = [name for name in exclude if name not in names]
  if unknown:
    raise ValueError(
        f"exclude must name layers of model {model.name!r}; it has no "
        f"{unknown[0]!r}.")
  kernels = {layer.name: layer.get_weights()[0] for layer in model.layers
             if is_prunable(layer) and layer.name not in exclude}
  if not kernels:
    raise ValueError(
        f"model {model.name!r} has no Conv1D, Conv2D, Conv2DTranspose or Dense "
        "layer left to prune.")
  tell_left_whole(
      "layer_sparsities", model, _why_not_counted, known=exclude)
  wrong = [name for name, kernel in kernels.items()
           if not np.isfinite(kernel).all()]
  if wrong:
    raise ValueError(
        f"model {model.name!r}: layer {wrong[0]!r} has weights that are not "
        "finite.")
  scores = {name: lamp_scores(kernel) for name, kernel in kernels.items()}
  every = np.sort(
      np.concatenate([np.ravel(values) for values in scores.values()]))
  threshold = every[min(round(sparsity * len(every)), len(every) - 1)]
  return {
      name: min(int(np.sum(values < threshold)), values.size - 1) / values.size
      for name, values in scores.items()}


def check_sparsities(
    model: keras.Model, sparsities: Mapping[str, float]) -> None:
  """Raises a TypeError or ValueError unless they fit; see `prune_layers`."""
  names = [layer.name for layer in check_keras(model).layers]
  for name, share in sparsities.items():
    if name not in names:
      raise ValueError(
          f"sparsities must name layers of model {model.name!r}; it has no "
          f"{name!r}.")
    if isinstance(share, bool) or not isinstance(share, Real) or not (
        0 <= share < 1):
      raise ValueError(
          f"sparsities[{name!r}] must be 0 or more, below 1; got {share!r}.")


def prune_layers(
    model: keras.Model,
    sparsities: Mapping[str, float],
    schedule: Callable[[float], Any],
) -> keras.Model:
  """Wraps a copy of a model for pruning, each layer to its own sparsity.

  Args:
    model: a built `tf_keras` model; not changed.
    sparsities: by layer name, 0 or more and below 1. Layers without a name here
      or with 0 stay whole. A warning, as by `layer_sparsities`, names kernels
      that tfmot cannot prune and nested models, unless they are given 0.
    schedule: makes tfmot's pruning schedule for a sparsity.

  Returns:
    A new, uncompiled model. Train it with
    `tfmot.sparsity.keras.UpdatePruningStep`, then strip it.

  Raises:
    TypeError, ValueError: an argument is not as above, or tfmot prunes nothing
      of a named layer.
  """
  check_sparsities(model, sparsities)
  for layer in model.layers:
    if sparsities.get(layer.name) and not _pruned_by_tfmot(layer):
      raise ValueError(
          f"sparsities[{layer.name!r}] must be 0 or left out: tfmot prunes no "
          f"kernel of a {type(layer).__name__}.")
  tell_left_whole(
      "prune_layers", model, _why_not_pruned, known=[*sparsities])

  def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
    share = sparsities.get(layer.name, 0.0)
    return layer if not share else tfmot.sparsity.keras.prune_low_magnitude(
        layer, schedule(share))

  return keras.models.clone_model(clone_model(model), clone_function=wrap)


def _why_not_pruned(layer: keras.layers.Layer) -> str | None:
  """Says why tfmot cannot prune a layer; None if it can."""
  if isinstance(layer, keras.Model):
    return NESTED
  return None if _pruned_by_tfmot(layer) else "tfmot prunes no kernel of it"


def _pruned_by_tfmot(layer: keras.layers.Layer) -> bool:
  """Says whether tfmot prunes a kernel of such a layer."""
  # tfmot's interface for custom layers; its own layers have it too.
  prunable = getattr(layer, "get_prunable_weights", None)
  return bool(prunable()) if prunable else type(layer) in _PRUNED
