"""Keeps in floats the few layers that break an int8 file's map."""

import dataclasses
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_model, keras
from keras_attr_preserve.evaluation.report import ShortfallError
from keras_attr_preserve.export.conversion.converter import run_converter
from keras_attr_preserve.export.conversion.feature_maps import FeatureMaps
from keras_attr_preserve.export.conversion.layer_quantizer import LayerQuantizer
from keras_attr_preserve.export.conversion.selective_file import finished
from keras_attr_preserve.export.conversion.selective_search import Search, Trial
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from keras_attr_preserve.models.held_weights import strip
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layers import is_quantize_aware
from keras_attr_preserve.training.wcam import WCAM, check_wcam

__all__ = ["SelectiveResult", "selective"]

_STATISTICS = {"median": np.nanmedian, "mean": np.nanmean}
_TARGETS = ("phone", "microcontroller")


@dataclasses.dataclass(frozen=True)
class SelectiveResult:
  """A file with some layers in floats, and their cost.

  Attributes:
    content: the bytes of the .tflite file.
    kept: the layers in floats, in the order they run. Fused layers go by the
      last of them, the features and other outputs by their names. Empty where
      int8 throughout suffices.
    agreement: the `statistic` of the cosines of the file's maps to the Keras
      model's, on images used neither for the ranges nor for the choice.
    statistic: "median" or "mean".
    require: the agreement that was required.
    bytes: the file's size.
    bytes_added: how many bytes more than the smallest file with nothing kept.
      Includes a backward pass in floats, where one was needed.
    trials: the choices that were tried, the cheapest first.
    harms: for each layer `1 - cosine`, mean over images, of the map with this
      layer alone quantized; the most harmful first. Empty if nothing is kept.
  """

  content: bytes
  kept: tuple[str, ...]
  agreement: float
  statistic: str
  require: float
  bytes: int
  bytes_added: int
  trials: tuple[Trial, ...]
  harms: dict[str, float]

  def __str__(self) -> str:
    """Lists kept layers, their cost, and the best results of cheaper trials."""
    lines = [
        f"{self.statistic} cosine  {self.agreement:.4f}, {self.require:g} "
        "required, on images held out",
        f"bytes          {self.bytes}, {self.bytes_added} of them for floats",
        f"in floats      {', '.join(self.kept) or 'nothing'}", "",
        f"{'kept':>5}{'bytes added':>13}{'agreement':>11}{'held out':>10}"]
    best = -np.inf
    for trial in self.trials:  # Only trials worth their bytes.
      if min(trial.agreement, trial.held_out) > best:
        best = min(trial.agreement, trial.held_out)
        lines.append(f"{len(trial.kept):>5}{trial.bytes:>13}"
                     f"{trial.agreement:>11.4f}{trial.held_out:>10.4f}")
    if self.harms:
      lines += ["", f"{'layer':<28}{'harm alone':>11}"]
      lines += [f"{name:<28}{distance:>11.2g}" + (
          "  kept" if name in self.kept else "")
                for name, distance in self.harms.items()]
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values, without the content."""
    return {
        "kept": list(self.kept), "agreement": self.agreement,
        "statistic": self.statistic, "require": self.require,
        "bytes": self.bytes, "bytes_added": self.bytes_added,
        "harms": dict(self.harms),
        "trials": [{"kept": list(trial.kept), "agreement": trial.agreement,
                    "held_out": trial.held_out, "bytes": trial.bytes}
                   for trial in self.trials]}


def selective(
    model: keras.Model,
    wcam: WCAM,
    representative_images: np.ndarray,
    *,
    require: float = 0.99,
    statistic: str = "median",
    target: str = "phone",
    max_bytes: int | None = None,
) -> SelectiveResult:
  """Converts to int8 with as few layers in floats as the map allows.

  The choice is of operators, in the order of the harm that each does to the map
  when it alone is quantized (see `Search`). A tensor is in floats where all
  operators that make or take it are kept. Every other image serves to measure
  the ranges and to choose; the rest is held out to judge the choice. Nothing is
  required of `predict`, but its outputs gain where the features gain.

  Args:
    model: a `tf_keras` model that is not quantize-aware; not changed.
    wcam: its first student layer and method are used.
    representative_images: `[images, height, width, channels]`, four at least,
      better two hundred, from the training data, in the range the model takes.
    require: the agreement to reach, above 0 and below 1.
    statistic: the "median" or "mean", over images, of the cosine of the file's
      map to the Keras model's. This value must reach `require`.
    target: "phone", as for `convert`, with the map in the file by the road
      "tail"; or "microcontroller", by the road "features".
    max_bytes: the most bytes that the floats may add; None for no limit.

  Returns:
    The file, as `convert` makes it, the kept layers, and their cost. The file's
    metadata repeat these under "selective".

  Raises:
    ShortfallError: the agreement cannot be reached, or not within `max_bytes`;
      the message says the best possible.
    TypeError, ValueError: an argument is not as above, the tail allows no such
      road, or TFLite cannot express the model.

  References:
    "Selective quantization" in TensorFlow's guide to its quantization debugger,
    https://www.tensorflow.org/lite/performance/quantization_debugger
  """
  images = _checked(model, wcam, representative_images, require, statistic,
                    target, max_bytes)
  model, layer, method = strip(model), wcam.student_layers[0], wcam.method
  choosing, held_out = (
      FeatureMaps(model, layer, method, half)
      for half in (images[::2], images[1::2]))
  for half in (choosing, held_out):
    if not half.alive:
      raise ValueError(
          f"representative_images: the maps of layer {layer!r} are all zero on "
          f"all {len(half.images)} of a half of them, so nothing can be "
          "compared.")
  explained = ExplainedModel(model, layer, choosing.images)
  quantizer = _calibrated(explained, choosing.images)
  judge = _STATISTICS[statistic]
  search = Search(quantizer, choosing, held_out, judge)
  facts = {"layer": layer, "method": method, "mode": "int8", "target": target,
           "selective": {"require": require, "statistic": statistic}}
  result = finished(search, quantizer, explained, held_out, facts, judge)
  if max_bytes is not None and result.bytes_added > max_bytes:
    raise ShortfallError(
        f"selective: {statistic} cosine {require:g} takes {result.bytes_added} "
        f"bytes, max_bytes are {max_bytes}. Within these "
        f"{search.best(max_bytes)}.")
  harms = sorted(search.harms.items(), key=lambda item: -item[1])
  return SelectiveResult(
      result.content, tuple(_named(step, layer) for step in result.trial.kept),
      result.agreement, statistic, require, len(result.content),
      result.bytes_added,
      tuple(sorted(search.trials, key=lambda trial: trial.bytes)),
      {_named(step.layer, layer): distance for step, distance in harms})


def _named(step: str, layer: str) -> str:
  return layer if step == "features" else step


def _checked(
    model, wcam, images, require, statistic, target, max_bytes) -> np.ndarray:
  check_model(model)
  check_wcam(wcam)
  for value, allowed, name in ((statistic, tuple(_STATISTICS), "statistic"),
                               (target, _TARGETS, "target")):
    if value not in allowed:
      raise ValueError(f"{name} must be one of {allowed}; got {value!r}.")
  if isinstance(require, bool) or not isinstance(
      require, int | float) or not 0 < require < 1:
    raise ValueError(
        f"require must be a number above 0 and below 1; got {require!r}.")
  if max_bytes is not None and (
      isinstance(max_bytes, bool) or not isinstance(max_bytes, int)
      or max_bytes < 0):
    raise ValueError(
        f"max_bytes must be a whole number, 0 or more; got {max_bytes!r}.")
  if is_quantize_aware(model):
    raise ValueError(
        f"model {model.name!r} is quantize-aware: its ranges are learned, and "
        "which layers are quantized is chosen before training "
        "(tfmot.quantization.keras.quantize_annotate_layer). Give the model "
        "it was made from.")
  images = model_input(model).check(images, "representative_images")
  if len(images) < 4:
    raise ValueError(
        "representative_images must be four or more, of which every other one "
        f"is held out; got {len(images)}.")
  return images


def _calibrated(
    explained: ExplainedModel, images: np.ndarray) -> LayerQuantizer:
  quantizers = []
  def calibrate(converter):
    quantizers.append(LayerQuantizer(converter))
    return b""
  run_converter(explained.explain_features(), "int8",
                lambda: ({"images": image[None]} for image in images),
                calibrate)
  return quantizers[0]
