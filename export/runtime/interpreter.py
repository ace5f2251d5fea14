"""Reads scores and maps from a .tflite file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.export.runtime import tflm_process
from keras_attr_preserve.export.runtime.runtimes import RUNTIMES, start
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tflite.head import Head, read_head
from keras_attr_preserve.export.tflite.schema import (
  Signature,
  read_metadata,
  signatures,
)
from keras_attr_preserve.models.inputs import ImageInput, shape_input
from keras_attr_preserve.models.scores import class_weights, top_classes

__all__ = ["RUNTIMES", "Explanation", "Interpreter", "tflm_installed"]

_MAP_IN_FILE = ("tail", "whole")
_ROADS = ("features", "gradient", *_MAP_IN_FILE)
_NOT_OURS = ("tflite_model carries no attribution: it was not made by "
             "kap.export.convert.")


class Explanation(NamedTuple):
  """The result of `Interpreter.explain`.

  Attributes:
    maps: float32 `[images, height, width]`, not negative; for method "swa" in
      the units of Grad-CAM.
    logits: float32 `[images, classes]`.
  """

  maps: np.ndarray
  logits: np.ndarray


def tflm_installed() -> bool:
  """Says whether the TFLite Micro interpreter (`tflite-micro`) is installed."""
  return tflm_process.installed()


class Interpreter:
  """Runs a .tflite file with floats as input and output, for all types.

      maps, logits = Interpreter(tflite_model).explain(images)

  Attributes:
    metadata: the metadata of `convert`: layer, method, mode and road. None in
      other files, which can `predict` but not `explain`.
    signatures: the file's signatures, by name.

  Several threads may call it; their calls wait for each other.
  """

  def __init__(
      self, tflite_model: bytes | str | os.PathLike, *,
      runtime: str = "xnnpack"):
    """Loads a file.

    Args:
      tflite_model: its bytes, or its path.
      runtime: "xnnpack", LiteRT as phones run it; "builtin", LiteRT without
        XNNPACK; "reference", LiteRT's reference kernels; "tflm", the real
        TFLite Micro interpreter, in a separate process.

    Raises:
      OSError: the path cannot be read.
      TypeError, ValueError: not a .tflite file, a damaged one, no such runtime,
        or the runtime refuses the file.
      ImportError: "tflm" without the package tflite-micro.
    """
    if runtime not in RUNTIMES:
      raise ValueError(f"runtime must be one of {RUNTIMES}; got {runtime!r}.")
    if isinstance(tflite_model, (str, os.PathLike)):
      tflite_model = Path(tflite_model).read_bytes()
    self._content = bytes(tflite_model) if isinstance(
        tflite_model, bytearray) else tflite_model
    model = checked_model(self._content, runtime)
    self.metadata = read_metadata(model)
    self.signatures = signatures(model)
    if self.metadata is not None:
      _check_explain(self.metadata, self.signatures)
    self._head = self._read_head(model)
    self._runtime = start(self._content, runtime, len(model.subgraphs))

  @property
  def runtime(self) -> str:
    """The runtime in use: the chosen one, or "builtin" and the reason.

    LiteRT's reference kernels lack some operators, such as ELU.
    """
    return self._runtime.kernels

  @property
  def gives_logits(self) -> bool | None:
    """Whether `predict` gives logits; None in files not made by `convert`."""
    if self.metadata is None:
      return None
    return "predictions" not in self.signatures["predict"].outputs

  @property
  def input(self) -> ImageInput:
    """The file's image input; channels last if its shape does not tell."""
    return shape_input(
        self.input_shape, "tflite_model", default="channels_last")

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one image: `(height, width, channels)`, or the model's."""
    return self._signature("predict").inputs[self._image_name].shape[1:]

  def predict(self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Runs the model.

    Args:
      images: `[images, height, width, channels]`, in the range that the Keras
        model takes; this method quantizes them.
      logits: whether to return the scores before a softmax or sigmoid.

    Returns:
      The Keras model's output, float32 `[images, classes]`.

    Raises:
      TypeError, ValueError: images of another shape or range, or with NaN; a
        file with several outputs and no signature; or `logits` is True for a
        file that `convert` did not make.
    """
    if logits and self.metadata is None:
      raise ValueError(
          "logits must be False: where a file that kap.export.convert has not "
          "made has its logits, only kap.export.explainer finds out; got True.")
    images = self._checked(images)
    signature = self._signature("predict")
    outputs = self._run("predict", {self._image_name: images})
    if "predict" not in self.signatures:
      if len(signature.outputs) != 1:
        raise ValueError(
            f"tflite_model has {len(signature.outputs)} outputs and no "
            "'predict' signature, so its scores are not known.")
      return next(iter(outputs.values()))
    return outputs["logits" if logits else (
        "predictions" if "predictions" in outputs else "logits")]

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Explains each image's score from the file's own features.

    Args:
      images: as for `predict`.
      targets: None for the file's top class, a class number, class numbers
        `[images]`, or float weights of the logits `[images, classes]`. Weights
        1 and -1 explain one class rather than another; all zero give a zero
        map.

    Returns:
      Maps and logits. Files for phones compute the map themselves. For others
      it is computed here from the file's features and its sensitivity or head
      weights.

    Raises:
      TypeError, ValueError: an argument is not as above, or the file carries no
        attribution.
    """
    if self.metadata is None:
      raise ValueError(_NOT_OURS)
    images = self._checked(images)
    classes = self._signature("explain").outputs["logits"].shape[-1]
    weights = None if targets is None else class_weights(
        targets, len(images), classes)
    if self.metadata["road"] in _MAP_IN_FILE:
      maps, logits = self._map_of_the_file(images, weights)
    else:
      maps, logits = self._map_put_together(images, weights)
    return Explanation(maps.astype(np.float32), logits)

  def features(self, images: np.ndarray) -> np.ndarray:
    """Reads the features that the map is computed from.

    Args:
      images: as for `predict`.

    Returns:
      The explained layer's output, float32 `[images, height, width, channels]`.

    Raises:
      TypeError, ValueError: as for `explain`.
    """
    if self.metadata is None:
      raise ValueError(_NOT_OURS)
    return self._run("explain", {"images": self._checked(images)})["features"]

  def _map_of_the_file(self, images, weights):
    """Returns the file's own maps; it takes zeros for its top class."""
    feeds = {"images": images}
    if self.metadata["method"] == "ewa" or weights is None:
      # An input that is not fed is all zero.
      outputs = self._run("explain", feeds)
      return outputs["map"], outputs["logits"]
    outputs = self._run("explain", {**feeds, "class_weights": weights})
    # Weights of all zero must give a zero map, not the top class's.
    asked = np.any(weights, axis=1)[:, None, None]
    return np.where(asked, outputs["map"], 0), outputs["logits"]

  def _map_put_together(self, images, weights):
    """Returns maps from features and sensitivity, for files without a map."""
    feeds = {"images": images}
    sensitivity = 0
    if self.metadata["road"] == "gradient":
      if weights is None:
        weights = _top_class(self.predict(images, logits=True))
      # The ranges of the backward pass were measured on weights up to 1.
      size = np.abs(weights).max(1, keepdims=True)
      size[size == 0] = 1
      outputs = self._run("explain", {**feeds, "class_weights": weights / size})
      sensitivity = outputs["sensitivity"] * size[:, None, None]
    else:
      outputs = self._run("explain", feeds)
      if self._head is not None:
        if weights is None:
          weights = _top_class(outputs["logits"])
        positions = np.prod(outputs["features"].shape[1:3])
        sensitivity = (self._head.sensitivity(
            outputs["features"], weights) / positions)[:, None, None]
    features = outputs["features"]
    if self.metadata["method"] == "ewa":
      return np.mean(features**2, axis=-1), outputs["logits"]
    maps = np.maximum(np.sum(features * sensitivity, axis=-1), 0)
    return maps, outputs["logits"]

  def numbers(
      self, name: str, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Runs a signature on the file's own numbers, such as int8.

    Args:
      name: the name of the signature.
      feeds: an array for each of its inputs; the first axis is the images.

    Returns:
      Its outputs by name, in the file's numbers.
    """
    return self._runtime.run(name, self.signatures[name], feeds)

  @property
  def _image_name(self) -> str:
    return next(name for name in self._signature("predict").inputs
                if name != "class_weights")

  def _signature(self, name: str) -> Signature:
    if name in self.signatures:
      return self.signatures[name]
    return next(iter(self.signatures.values()))

  def _checked(self, images: np.ndarray) -> np.ndarray:
    images = self.input.check(images)
    spec = self._signature("predict").inputs[self._image_name]
    low, high = spec.range
    step, slack = spec.scale, (high - low) / 2
    if not step:
      # Floats do not clip, so only a very different range is an error.
      low, high = (self.metadata or {}).get(
          "representative_range", (-np.inf, np.inf))
      step, slack = (high - low) / 255, 10 * (high - low)
    least, most = float(images.min()), float(images.max())
    outside = least < low - slack or most > high + slack
    if high > low and (outside or 0 < most - least < 2 * step < np.inf):
      raise ValueError(
          f"images must be in the range the model was trained on; the file "
          f"takes {low:.4g}..{high:.4g} in steps of {step:.4g}, got "
          f"{least:.4g}..{most:.4g}.")
    return images

  def _run(
      self, name: str, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Runs a signature on floats, image by image, and joins the outputs."""
    key = name if name in self.signatures else next(iter(self.signatures))
    signature = self.signatures[key]
    count = len(next(iter(feeds.values())))
    # Missing inputs are zeros: in a file with one subgraph `predict` has the
    # inputs of `explain`, too.
    encoded = {input_name: spec.encode(feeds.get(
        input_name, np.zeros([count, *spec.shape[1:]], np.float32)))
               for input_name, spec in signature.inputs.items()}
    numbers = self._runtime.run(key, signature, encoded)
    return {output_name: spec.decode(numbers[output_name])
            for output_name, spec in signature.outputs.items()}

  def _read_head(self, model: Any) -> Head | None:
    if not self.metadata or self.metadata["road"] != "features" or (
        self.metadata["method"] == "ewa"):
      return None
    explain = self.signatures["explain"]
    return read_head(
        model, explain.subgraph, explain.outputs["logits"].position,
        explain.outputs["features"].position)


def _top_class(logits: np.ndarray) -> np.ndarray:
  """Returns weights of the logits for the top class."""
  return class_weights(top_classes(logits, True), *logits.shape)


def _check_explain(
    metadata: Any, entries: Mapping[str, Signature]) -> None:
  """Raises ValueError if a file lacks tensors that its metadata promise."""
  known = isinstance(metadata, dict) and metadata.get("road") in _ROADS and (
      metadata.get("method") in ("swa", "ewa"))
  predict, explain = entries.get("predict"), entries.get("explain")
  if not known or predict is None or explain is None or (
      "logits" not in predict.outputs) or "images" not in explain.inputs or (
          not _ranks(metadata).items() <= {
              name: len(spec.shape) for name, spec in (
                  *explain.inputs.items(), *explain.outputs.items())}.items()):
    raise ValueError(
        "tflite_model is damaged: its signatures are not those that its "
        f"metadata promise; got {metadata} and {sorted(entries)}.")


def _ranks(metadata: Mapping[str, Any]) -> dict[str, int]:
  """Lists the tensors `explain` must have, with their numbers of dimensions.

  The input `images` is not listed: the model decides its dimensions.
  """
  ranks = {"logits": 2, "features": 4}
  if metadata["road"] in _MAP_IN_FILE:
    ranks["map"] = 3
  if metadata["method"] == "swa" and metadata["road"] != "features":
    ranks |= {"class_weights": 2, "sensitivity": 4}
  return ranks
