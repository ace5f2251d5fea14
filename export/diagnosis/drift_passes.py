"""Runs a Keras model to compare its layers with a file's tensors."""

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
  """Runs model and file on batches and collects each layer's figures.

  Attributes:
    layers: the compared layers, and the input where the file takes images in
      the model's range.
    maps: the model's maps of all images so far.
    sensitivity: the model's sensitivities, `[images, channels]`.
  """

  def __init__(
      self, tap: Tap, file: FileTensors, tensors: Mapping[str, FileTensor],
      method: str, same_range: bool):
    """Prepares the comparison.

    Args:
      tap: tap of the model, with the one layer whose map is compared.
      file: the file.
      tensors: the file's tensors by the names of the compared layers.
      method: "swa" or "ewa".
      same_range: whether the file takes images in the model's range, so that
        its rounding of them can be measured.
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
    """Compares model and file on a batch.

    Args:
      images: `[batch, height, width, channels]`.
      weights: weights of the logits, `[batch, classes]`.
    """
    seen = images
    if INPUT in self.layers:
      seen = self._file.input.decode(self._file.input.encode(images))
    outputs, gradients, reference = self._float(images, weights)
    file_values = self._read(images, outputs)
    added, expected = self._own_errors(seen, file_values)
    for name in self._layers:
      sensitivity, maps = self._as_in_the_file(
          name, images, weights, file_values[name], outputs[name],
          gradients[name])
      self._found[name].append({
          **_off(outputs[name], file_values[name]),
          **_off(expected[name], file_values[name], "own_"),
          "sensitivity": sensitivity, "map": maps,
          # Layers after the scores do not change the map.
          "harm": _agree(reference, reference) if gradients[name] is None
                  else self._harm(images, weights, reference,
                                  {self._layers[name]: _plus(added[name])})})
    if INPUT in self.layers:
      missing = np.full(len(images), np.nan)
      self._found[INPUT].append({
          **_off(images, seen), **_off(images, seen, "own_"),
          "sensitivity": missing, "map": missing,
          "harm": self._harm(seen, weights, reference, {})})

  def figures(self, layer: str) -> dict[str, float]:
    """Summarizes a layer by the names of `LayerDrift`."""
    batches = self._found[layer]
    values = {name: np.concatenate([batch[name] for batch in batches])
              for name in batches[0]}
    error = _ratio(values["difference"], values["energy"])
    return {
        "error": error, "cosine": float(np.mean(values["cosine"])),
        "snr": -20 * float(np.log10(error)) if error else np.inf,
        "added": _ratio(values["own_difference"], values["own_energy"]),
        # Rounding can raise a cosine above 1.
        "harm": _mean(np.maximum(1 - values["harm"], 0)),
        "sensitivity": _median(values["sensitivity"]),
        "map": _median(values["map"]),
    }

  def _read(
      self, images: np.ndarray, outputs: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Reads each layer's tensor, in shape and type of the layer output."""
    values = self._file.read(
        images, {tensor.index for tensor in self._tensors.values()})
    return {name: values[tensor.index].reshape(outputs[name].shape).astype(
        outputs[name].dtype) for name, tensor in self._tensors.items()}

  def _float(self, images, weights):
    """Returns layer outputs, gradients and maps of the unchanged model."""
    outputs = {}
    def keep(name):
      def change(output):
        outputs[name] = output
        return output
      return change
    with changed({layer: keep(name) for name, layer in self._layers.items()}):
      maps, sensitivity, gradients = self._explain(images, weights, outputs)
    self._maps.append(maps)
    self._sensitivity.append(sensitivity)
    return ({name: value.numpy() for name, value in outputs.items()},
            dict(zip(outputs, gradients)), maps)

  def _own_errors(self, seen, file_values):
    """Runs every layer on the file's inputs of that layer, in one pass.

    Returns:
      The errors that the file adds to each layer output, and the Keras layer
      outputs for the file's inputs.
    """
    expected = {}
    def instead(name):
      def change(output):
        expected[name] = output.numpy()
        return tf.constant(file_values[name])
      return change
    with changed(
        {layer: instead(name) for name, layer in self._layers.items()}):
      self._tap.model(tf.constant(seen), training=False)
    return {name: file_values[name] - expected[name]
            for name in expected}, expected

  def _as_in_the_file(
      self, name, images, weights, file_values, features, gradient):
    """Compares sensitivities and maps at a layer that gives the file's values.

    Returns:
      Each image's cosine of the sensitivities, and its cosine of the maps.
    """
    spatial = file_values.ndim == 4 and file_values.shape[1:3] != (1, 1)
    missing = np.full(len(images), np.nan)
    if self._method == "ewa" and spatial:
      return missing, _agree(*(
          map_formulas.equal_weighted_map(values).numpy()
          for values in (features, file_values)))
    if gradient is None or self._method == "ewa":
      return missing, missing
    given = {}
    def change(output):
      # The sum has the file's values and still passes gradients.
      given[name] = output + tf.stop_gradient(file_values - output)
      return given[name]
    with changed({self._layers[name]: change}):
      _, _, (new,) = self._explain(images, weights, given)
    if not spatial:
      return cosines(gradient.numpy(), new.numpy()), missing
    sums = [tf.reduce_sum(tensor, [1, 2], keepdims=True)
            for tensor in (gradient, new)]
    maps = [map_formulas.sensitivity_weighted_map(*pair).numpy()
            for pair in zip((features, file_values), sums)]
    return cosines(*(tensor.numpy() for tensor in sums)), _agree(*maps)

  def _harm(self, images, weights, reference, changes):
    """Compares the map after some changes with the model's map."""
    with changed(changes):
      maps, _, _ = self._explain(images, weights, {})
    return _agree(reference, maps)

  def _explain(self, images, weights, tensors: Mapping[str, tf.Tensor]):
    """Runs the model and differentiates.

    The run may add layer outputs to `tensors`.

    Returns:
      The compared layer's map, its sensitivity, `[batch, channels]`, and the
      gradients of `tensors`, None for tensors after the scores.
    """
    images = tf.constant(images)
    with tf.GradientTape() as tape:
      tape.watch(images)
      tapped = self._tap(images)
    features, = tapped.features
    with gradient_rules(SENSITIVITY_RULES):
      gradient, *gradients = tape.gradient(
          tapped.logits, [features, *tensors.values()],
          output_gradients=tf.cast(weights, tapped.logits.dtype))
    sensitivity = tf.reduce_sum(gradient, [1, 2], keepdims=True)
    maps = (map_formulas.equal_weighted_map(features)
            if self._method == "ewa" else
            map_formulas.sensitivity_weighted_map(features, sensitivity))
    return maps.numpy(), sensitivity[:, 0, 0].numpy(), gradients


def _plus(added: np.ndarray):
  return lambda output: output + added


def _off(expected: np.ndarray, actual: np.ndarray, prefix: str = ""):
  """Returns squared sums and cosine of each image's values."""
  expected, actual = (values.reshape(len(values), -1).astype(np.float64)
                      for values in (expected, actual))
  sums = {"difference": ((actual - expected) ** 2).sum(1),
          "energy": (expected ** 2).sum(1),
          "cosine": cosines(expected, actual)}
  return {f"{prefix}{name}": value for name, value in sums.items()}


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Returns each pair's cosine; 0 where an array of the pair is all zero."""
  one, other = (values.reshape(len(values), -1).astype(np.float64)
                for values in (one, other))
  norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
  return (one * other).sum(1) / np.where(norms > 0, norms, 1)


def _agree(reference: np.ndarray, maps: np.ndarray) -> np.ndarray:
  """Returns each pair of maps' cosine; NaN where the reference is all zero."""
  values = cosines(reference, maps)
  values[~np.any(reference, axis=(1, 2))] = np.nan
  return values


def _ratio(difference: np.ndarray, energy: np.ndarray) -> float:
  return float(np.sqrt(difference.sum() / energy.sum())) if (
      energy.sum()) else float("nan")


def _mean(values: np.ndarray) -> float:
  return float(np.nanmean(values)) if (~np.isnan(values)).any() else np.nan


def _median(values: np.ndarray) -> float:
  return float(np.nanmedian(values)) if (~np.isnan(values)).any() else np.nan
