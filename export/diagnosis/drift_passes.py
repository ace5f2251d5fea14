"""The passes through a Keras model that tell a file's layers from its own."""

from collections.abc import Mapping

import numpy as np

from keras_attr_preserve import map_formulas
from keras_attr_preserve.compat import tf
from keras_attr_preserve.export.tensors.file_tensors import (
  FileTensor,
  FileTensors,
)
from keras_attr_preserve.models.gradient_rules import (
  SENSITIVITY_RULES,
  gradient_rules,
)
from keras_attr_preserve.models.layer_changes import changed, layers_by_name
from keras_attr_preserve.models.tap import Tap

__all__ = ["INPUT", "Passes", "cosines"]

INPUT = "(input)"


class Passes:
  """Runs model and file on batches and keeps what each layer comes to.

  Attributes:
    layers: what figures can be asked of: the layers, and the input where the
      file takes the images in the model's own range.
    maps: the model's own maps of what was looked at.
    sensitivity: the model's own, `[images, channels]`.
  """

  def __init__(
      self, tap: Tap, file: FileTensors, tensors: Mapping[str, FileTensor],
      method: str, same_range: bool):
    """Keeps what to compare.

    Args:
      tap: of the model, with the one layer whose map is held.
      file: the file.
      tensors: of the file, for each layer of the model to be compared.
      method: "swa" or "ewa".
      same_range: whether the file takes images in the model's own range, so
        that its rounding of them can be told.
    """
    known = layers_by_name(tap.model)
    self._tap, self._file, self._method = tap, file, method
    self._layers = {name: known[name] for name in tensors}
    self._tensors = tensors
    self.layers = [*([INPUT] if same_range else []), *tensors]
    self._found = {name: [] for name in self.layers}
    self._maps, self._sensitivity = [], []

  @property
  def maps(self) -> np.ndarray:
    return np.concatenate(self._maps)

  @property
  def sensitivity(self) -> np.ndarray:
    return np.concatenate(self._sensitivity)

  def look(self, images: np.ndarray, weights: np.ndarray) -> None:
    """Compares on a batch.

    Args:
      images: `[batch, height, width, channels]`.
      weights: of the logits, `[batch, classes]`.
    """
    seen = images
    if INPUT in self.layers:
      seen = self._file.input.decode(self._file.input.encode(images))
    ours, gradients, reference = self._float(images, weights)
    theirs = self._read(images, ours)
    added, alone = self._own_errors(seen, theirs)
    for name in self._layers:
      sensitivity, maps = self._as_in_the_file(
          name, images, weights, theirs[name], ours[name], gradients[name])
      self._found[name].append({
          **_off(ours[name], theirs[name]),
          **_off(alone[name], theirs[name], "own_"),
          "sensitivity": sensitivity, "map": maps,
          # What is behind the scores has no part in the map.
          "harm": _agree(reference, reference) if gradients[name] is None
                  else self._harm(images, weights, reference,
                                  {self._layers[name]: _plus(added[name])})})
    if INPUT in self.layers:
      nothing = np.full(len(images), np.nan)
      self._found[INPUT].append({
          **_off(images, seen), **_off(images, seen, "own_"),
          "sensitivity": nothing, "map": nothing,
          "harm": self._harm(seen, weights, reference, {})})

  def figures(self, layer: str) -> dict[str, float]:
    """Sums up a layer, as `LayerDrift` names it."""
    parts = self._found[layer]
    of = {name: np.concatenate([part[name] for part in parts])
          for name in parts[0]}
    error = _ratio(of["difference"], of["energy"])
    return {
        "error": error, "cosine": float(np.mean(of["cosine"])),
        "snr": -20 * float(np.log10(error)) if error else np.inf,
        "added": _ratio(of["own_difference"], of["own_energy"]),
        # Rounding would make a harmless layer better than none.
        "harm": _mean(np.maximum(1 - of["harm"], 0)),
        "sensitivity": _median(of["sensitivity"]), "map": _median(of["map"]),
    }

  def _read(
      self, images: np.ndarray, ours: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Reads each layer's tensor, in the shape and type of its output."""
    values = self._file.read(
        images, {tensor.index for tensor in self._tensors.values()})
    return {name: values[tensor.index].reshape(ours[name].shape).astype(
        ours[name].dtype) for name, tensor in self._tensors.items()}

  def _float(self, images, weights):
    """The model's features, gradients and map, nothing changed."""
    ours = {}
    def keep(name):
      def change(output):
        ours[name] = output
        return output
      return change
    with changed({layer: keep(name) for name, layer in self._layers.items()}):
      maps, sensitivity, gradients = self._explain(images, weights, ours)
    self._maps.append(maps)
    self._sensitivity.append(sensitivity)
    return ({name: value.numpy() for name, value in ours.items()},
            dict(zip(ours, gradients)), maps)

  def _own_errors(self, seen, theirs):
    """Runs every layer on the file's own inputs of it, in one pass.

    Returns:
      What the file added to each layer's output, and what the Keras layer gives
      for the file's inputs.
    """
    alone = {}
    def instead(name):
      def change(output):
        alone[name] = output.numpy()
        return tf.constant(theirs[name])
      return change
    with changed(
        {layer: instead(name) for name, layer in self._layers.items()}):
      self._tap.model(tf.constant(seen), training=False)
    return {name: theirs[name] - alone[name] for name in alone}, alone

  def _as_in_the_file(self, name, images, weights, theirs, ours, gradient):
    """Compares sensitivities and maps at a layer that gives the file's values.

    Returns:
      The cosine of the sensitivities and that of the maps, for each image.
    """
    spatial = theirs.ndim == 4 and theirs.shape[1:3] != (1, 1)
    nothing = np.full(len(images), np.nan)
    if self._method == "ewa" and spatial:
      return nothing, _agree(*(
          map_formulas.equal_weighted_map(one).numpy()
          for one in (ours, theirs)))
    if gradient is None or self._method == "ewa":
      return nothing, nothing
    given = {}
    def change(output):
      # The file's values, on the path that gradients take.
      given[name] = output + tf.stop_gradient(theirs - output)
      return given[name]
    with changed({self._layers[name]: change}):
      _, _, (new,) = self._explain(images, weights, given)
    if not spatial:
      return cosines(gradient.numpy(), new.numpy()), nothing
    sums = [tf.reduce_sum(one, [1, 2], keepdims=True)
            for one in (gradient, new)]
    maps = [map_formulas.sensitivity_weighted_map(*pair).numpy()
            for pair in zip((ours, theirs), sums)]
    return cosines(*(one.numpy() for one in sums)), _agree(*maps)

  def _harm(self, images, weights, reference, changes):
    """Compares the map that is held, after some change, with the model's."""
    with changed(changes):
      maps, _, _ = self._explain(images, weights, {})
    return _agree(reference, maps)

  def _explain(self, images, weights, more: Mapping[str, tf.Tensor]):
    """Runs the model and differentiates.

    Returns:
      The map that is held, its sensitivity, `[batch, channels]`, and the
      gradients of the tensors that the run put into `more`, None for those
      behind the scores.
    """
    images = tf.constant(images)
    with tf.GradientTape() as tape:
      tape.watch(images)
      tapped = self._tap(images)
    features, = tapped.features
    with gradient_rules(SENSITIVITY_RULES):
      own, *gradients = tape.gradient(
          tapped.logits, [features, *more.values()],
          output_gradients=tf.cast(weights, tapped.logits.dtype))
    sensitivity = tf.reduce_sum(own, [1, 2], keepdims=True)
    maps = (map_formulas.equal_weighted_map(features)
            if self._method == "ewa" else
            map_formulas.sensitivity_weighted_map(features, sensitivity))
    return maps.numpy(), sensitivity[:, 0, 0].numpy(), gradients


def _plus(added: np.ndarray):
  return lambda output: output + added


def _off(ours: np.ndarray, theirs: np.ndarray, prefix: str = ""):
  """Squared sums and cosine of each image's values."""
  ours, theirs = (one.reshape(len(one), -1).astype(np.float64)
                  for one in (ours, theirs))
  found = {"difference": ((theirs - ours) ** 2).sum(1),
           "energy": (ours ** 2).sum(1), "cosine": cosines(ours, theirs)}
  return {f"{prefix}{name}": value for name, value in found.items()}


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """The cosine of each pair of arrays; 0 where one of the two is all zero."""
  one, other = (values.reshape(len(values), -1).astype(np.float64)
                for values in (one, other))
  norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
  return (one * other).sum(1) / np.where(norms > 0, norms, 1)


def _agree(reference: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """The cosine of each pair of maps; NaN where the reference is all zero."""
  found = cosines(reference, maps)
  found[~np.any(reference, axis=(1, 2))] = np.nan
  return found


def _ratio(difference: np.ndarray, energy: np.ndarray) -> float:
  return float(np.sqrt(difference.sum() / energy.sum())) if (
      energy.sum()) else float("nan")


def _mean(values: np.ndarray) -> float:
  return float(np.nanmean(values)) if (~np.isnan(values)).any() else np.nan


def _median(values: np.ndarray) -> float:
  return float(np.nanmedian(values)) if (~np.isnan(values)).any() else np.nan
