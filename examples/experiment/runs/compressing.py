"""All compressions of the experiments, from a teacher to a student.

A strength is the share of removed weights, filters or multiply-accumulates, the
divisor of the widths, or the bits.
"""

import functools
import math
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_model_optimization as tfmot

import keras_attr_preserve as kap
from keras_attr_preserve.compat import keras
from keras_attr_preserve.compression.layer_sparsities import is_prunable

__all__ = ["CLUSTERS", "COMPRESSIONS", "Starts", "check_strength", "compress",
           "kinds", "parse", "starts_fresh"]

_quantization = tfmot.quantization.keras
_combine = tfmot.experimental.combine

ROUND_SHARE = 0.2
"""The share of the remaining weights that a round prunes (Park et al. 2020)."""
CLUSTERS = 16

_FLOAT = (
    "prune", "lamp", "smallest", "obs", "obs+refine", "filters", "obs_filters",
    "obs_filters+refine", "obs_macs", "obs_macs+refine", "narrow", "obs_narrow",
    "obs_narrow+refine")
COMPRESSIONS = (
    "none", *_FLOAT, "ptq", "qat", "calibrated_qat", "cluster",
    *(f"{name}+{way}" for name in _FLOAT for way in ("qat", "calibrated_qat")),
    "cluster+qat", "prune+cluster+qat")
_STRENGTHS = {
    "none": "0", "ptq": "8", "qat": "8", "calibrated_qat": "8",
    "cluster": str(CLUSTERS), "cluster+qat": str(CLUSTERS)}

Fit = Callable[..., Any]
Pictures = Callable[[], np.ndarray]
Starts = MutableMapping[
    tuple[str, float], tuple[keras.Model, dict[str, np.ndarray]]]


def parse(text: str) -> list[tuple[str, float]]:
  """Reads a grid such as "prune:0.8,0.9;narrow:4;qat".

  Args:
    text: compressions and their strengths. A compression with a single
      strength, such as "qat", needs none.

  Returns:
    Pairs of compression and strength, in order.

  Raises:
    ValueError: an unknown compression, or a strength it cannot have.
  """
  pairs = []
  for entry in filter(None, (entry.strip() for entry in text.split(";"))):
    name, _, strengths = entry.partition(":")
    if name not in COMPRESSIONS:
      raise ValueError(
          f"the compression must be one of {[*COMPRESSIONS]}; got {name!r}.")
    strengths = strengths or _STRENGTHS.get(name)
    if not strengths:
      raise ValueError(f"{name!r} needs a strength, as in '{name}:0.5'.")
    pairs += [(name, check_strength(name, strength))
              for strength in strengths.split(",")]
  if not pairs:
    raise ValueError("the grid must name a compression; got nothing.")
  return pairs


def check_strength(name: str, strength: str | float) -> float:
  """Returns a compression's strength as a number.

  Raises:
    ValueError: it is no number, or the compression cannot have it.
  """
  try:
    value = float(strength)
  except ValueError:
    raise ValueError(
        f"{name}'s strength must be a number; got {strength!r}.") from None
  if name in _STRENGTHS:
    if value != float(_STRENGTHS[name]):
      raise ValueError(
          f"{name}'s strength must be {_STRENGTHS[name]}; got {strength}.")
  elif "narrow" in name:
    if not value >= 1:
      raise ValueError(
          f"{name}'s divisor must be 1 or more; got {strength}.")
  elif not 0 < value < 1:
    raise ValueError(
        f"{name}'s share must be between 0 and 1; got {strength}.")
  return value


class _Task(NamedTuple):
  """The inputs of each step of a compression; see `compress`."""

  name: str
  strength: float
  fit: Fit
  pictures: Pictures
  channels: dict[str, np.ndarray]


def compress(
    name: str,
    strength: float,
    teacher: keras.Model,
    fit: Fit,
    pictures: Pictures,
    starts: Starts | None = None,
) -> keras.Model:
  """Compresses a copy of the teacher, one step after another.

  Args:
    name: one of `COMPRESSIONS`.
    strength: see `parse`.
    teacher: the original model, which does not change.
    fit: `fit(kind, build, epochs=1, callbacks=(), channels=None)` makes a model
      by `build(steps_per_epoch)`, trains it and returns it. `kind` sets steps
      and learning rate: "prune", "refine", "tune", "scratch" or "quantize".
      `channels` names the teacher's channels that a pruned model has, by layer;
      see `Hints`.
    pictures: returns some training images in the teacher's range, to
      reconstruct by.
    starts: a cache of untrained students, for one teacher and the same images.
      Compressions with the same first step share it.

  Returns:
    The student, stripped; quantize-aware if the name ends in "qat". Without
    training it may be in `starts`, so do not change it.
  """
  starts = {} if starts is None else starts
  steps = name.split("+")
  start = steps[0], strength
  student, channels = starts.get(start, (teacher, {}))
  task = _Task(
      name, strength, functools.partial(fit, channels=channels), pictures,
      channels)
  for step in steps[1:] if start in starts else steps:
    student = _STEPS[step](student, task)
    if step == steps[0] and step not in _KINDS:
      starts[start] = student, channels
  return student


def _none(model, task):
  return task.fit("tune", lambda _: kap.clone_model(model))


def _ptq(model, task):
  del task
  return kap.clone_model(model)


def _prune(model, task):
  """Prunes by magnitude, the same share of each layer."""
  whole = _left_whole(model, task.name)
  return _pruned(model, task, {
      layer.name: task.strength for layer in model.layers
      if is_prunable(layer) and layer.name not in whole})


def _lamp(model, task):
  """Prunes by magnitude, more from layers that spare more; same total."""
  return _pruned(model, task, _by_layer(model, task))


def _pruned(model, task, sparsities):
  """Prunes in rounds, then trains for as many steps to recover."""
  rounds = max(1, round(
      math.log(1 - task.strength) / math.log(1 - ROUND_SHARE)))

  def build(each):
    return kap.prune_layers(
        model, sparsities, lambda share: kap.IterativePruning.reaching(
            share, rounds=rounds, steps_per_round=each))

  # Each round begins an epoch; half of the epochs follow the last round.
  student = task.fit("prune", build, epochs=2 * rounds, callbacks=[
      tfmot.sparsity.keras.UpdatePruningStep()])
  return kap.strip(student)


def _obs(model, task):
  """Prunes with reconstruction, without training."""
  return kap.prune_with_reconstruction(
      model, _by_layer(model, task), task.pictures())


def _smallest(model, task):
  """The control: the smallest weights go; nothing is refitted or trained."""
  student = kap.clone_model(model)
  for name, share in _by_layer(model, task).items():
    kernel = student.get_layer(name).kernel
    sizes = np.abs(kernel.numpy())
    kernel.assign(kernel * (sizes > np.quantile(sizes, share)))
  return student


def _refine(model, task):
  """Trains the pruned model, after it recalibrates its normalizations."""
  start = kap.recalibrate_batch_norm(model, task.pictures())
  if not _has_zeros(task.name):
    return task.fit("refine", lambda _: kap.clone_model(start))
  student = task.fit("refine", lambda _: kap.hold_zeros(start), callbacks=[
      tfmot.sparsity.keras.UpdatePruningStep()])
  return kap.strip(student)


def _filters(model, task):
  start = _without_filters(model, task, task.strength)
  return task.fit("tune", lambda _: start)


def _without_filters(model, task, sparsity, **settings):
  """Removes filters, and records the remaining channels for later steps."""
  student, channels = kap.prune_filters(
      model, sparsity, return_channels=True, **settings)
  task.channels.update(channels)
  return student


def _obs_filters(model, task, of="filters"):
  """Removes filters, more from layers that spare more, without training."""
  pictures = task.pictures()
  shares = kap.filter_sparsities(model, task.strength, pictures, of=of)
  return _without_filters(
      model, task, shares, criterion="obs", reconstruct=True, images=pictures)


def _narrow(model, task):
  return task.fit("scratch", lambda _: kap.narrow(model, 1 / task.strength))


def _obs_narrow(model, task):
  """Narrows every convolution by the divisor, without training."""
  return _without_filters(
      model, task, 1 - 1 / task.strength, criterion="obs", reconstruct=True,
      images=task.pictures())


def _cluster(model, task):
  clustering = tfmot.clustering.keras
  whole = _left_whole(model, task.name)

  def wrap(layer):
    if not is_prunable(layer) or layer.name in whole:
      return layer
    # A small layer may have too few values for so many clusters.
    values = len(np.unique(layer.get_weights()[0])) // 2
    return clustering.cluster_weights(
        layer, max(3, min(CLUSTERS, values)),
        clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity="prune" in task.name)

  student = task.fit("quantize", lambda _: keras.models.clone_model(
      kap.clone_model(model), clone_function=wrap))
  return kap.strip(student)


def _qat(model, task, calibrated=False):
  def build(_):
    if not calibrated:
      return _aware(kap.clone_model(model), task.name)
    # Equalized kernels and calibrated ranges fit 8 bits. After an earlier step
    # the moving statistics lag behind the weights. The variant decides about
    # the teacher's statistics.
    pictures, start = task.pictures(), model
    if "+" in task.name:
      start = kap.recalibrate_batch_norm(model, pictures)
    student = _aware(kap.equalize_kernels(start), task.name)
    kap.calibrate_quantizers(student, pictures)
    return student

  return task.fit("quantize", build)


def _aware(model: keras.Model, name: str) -> keras.Model:
  """Wraps a model by the scheme that preserves earlier compressions."""
  if "cluster" in name:
    scheme = _combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity="prune" in name)
  elif _has_zeros(name):
    scheme = _combine.Default8BitPrunePreserveQuantizeScheme()
  else:
    return _quantization.quantize_model(model)
  return _quantization.quantize_apply(
      _quantization.quantize_annotate_model(model), scheme)


def kinds(name: str) -> tuple[str, ...]:
  """Names the kinds of fit that a compression needs."""
  return tuple(dict.fromkeys(
      kind for kind in map(_KINDS.get, name.split("+")) if kind))


def starts_fresh(name: str) -> bool:
  """Checks whether a compression starts from fresh weights."""
  return name.split("+")[0] == "narrow"


_KINDS = {
    "none": "tune", "prune": "prune", "lamp": "prune", "refine": "refine",
    "filters": "tune", "narrow": "scratch", "cluster": "quantize",
    "qat": "quantize", "calibrated_qat": "quantize"}
_STEPS = {
    "none": _none, "ptq": _ptq, "prune": _prune, "lamp": _lamp,
    "smallest": _smallest, "obs": _obs, "refine": _refine,
    "filters": _filters, "obs_filters": _obs_filters,
    "obs_macs": functools.partial(_obs_filters, of="macs"),
    "narrow": _narrow, "obs_narrow": _obs_narrow, "cluster": _cluster,
    "qat": _qat,
    "calibrated_qat": functools.partial(_qat, calibrated=True)}


def _has_zeros(name: str) -> bool:
  """Checks whether single weights are pruned, so their zeros must stay."""
  return not {"prune", "lamp", "smallest", "obs"}.isdisjoint(name.split("+"))


def _by_layer(model, task):
  """Returns the layers' shares, larger for layers that spare more."""
  return kap.layer_sparsities(
      model, task.strength, exclude=_left_whole(model, task.name))


def _left_whole(model: keras.Model, name: str) -> set[str]:
  """Names the first and the last layer with a kernel, which are small.

  Returns no layer if zeros must survive clustering and quantization. tfmot
  0.8.1 uses one quantizer for all convolutions. It stops preserving zeros in
  all of them after the first layer without a zero.
  """
  if name.startswith("prune+cluster"):
    return set()
  names = [layer.name for layer in model.layers if is_prunable(layer)]
  return {names[0], names[-1]}
