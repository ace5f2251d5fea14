"""Keeping in floats the few layers that break an int8 file's map."""

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
  """A file with some layers in floats, and what they cost.

  Attributes:
    content: the bytes of the .tflite file.
    kept: the layers in floats, in the order of computing; a layer that was
      fused goes by the last of its chain, the features and other outputs by
      their names. Empty where int8 throughout suffices.
    agreement: of the file's own maps to the Keras model's, on images that
      neither ranges nor choice have seen: the `statistic` of the cosines.
    statistic: "median" or "mean".
    require: what was to be reached.
    bytes: the file's size.
    bytes_added: how many more than the smallest file with nothing kept; those
      of a backward pass in floats, where one was needed, among them.
    trials: what was tried, the cheapest first.
    harms: for each layer `1 - cosine`, mean over images, of the map where it
      alone is quantized; the most harmful first. Empty where nothing is kept.
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
    """What is kept, what it costs, and the best that less would have given."""
    lines = [
        f"{self.statistic} cosine  {self.agreement:.4f}, {self.require:g} "
        "required, on images held out",
        f"bytes          {self.bytes}, {self.bytes_added} of them for floats",
        f"in floats      {', '.join(self.kept) or 'nothing'}", "",
        f"{'kept':>5}{'bytes added':>13}{'agreement':>11}{'held out':>10}"]
    best = -np.inf
    for one in self.trials:  # Only those worth their bytes.
      if min(one.agreement, one.held_out) > best:
        best = min(one.agreement, one.held_out)
        lines.append(f"{len(one.kept):>5}{one.bytes:>13}{one.agreement:>11.4f}"
                     f"{one.held_out:>10.4f}")
    if self.harms:
      lines += ["", f"{'layer':<28}{'harm alone':>11}"]
      lines += [f"{name:<28}{harm:>11.2g}" + (
          "  kept" if name in self.kept else "")
                for name, harm in self.harms.items()]
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Plain values, without the content."""
    return {
        "kept": list(self.kept), "agreement": self.agreement,
        "statistic": self.statistic, "require": self.require,
        "bytes": self.bytes, "bytes_added": self.bytes_added,
        "harms": dict(self.harms),
        "trials": [{"kept": list(one.kept), "agreement": one.agreement,
                    "held_out": one.held_out, "bytes": one.bytes}
                   for one in self.trials]}


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

  A tensor is in floats where the operator that makes it and all that take it
  are kept; the choice is of operators, in the order of what each does to the
  map when it alone is quantized (see `Search`). Every other image measures the
  ranges and makes the choice; the others are held out to judge it. What
  `predict` gives is no part of the bargain, but gains where features do.

  Args:
    model: a `tf_keras` model that is not quantize-aware; left as it came.
    wcam: what was matched; its first student layer and method are used.
    representative_images: `[images, height, width, channels]`, four at least,
      better two hundred, from the training data, in the range the model takes.
    require: the agreement to reach, above 0 and below 1.
    statistic: what must reach it: the "median" or "mean" over images of the
      cosine of the file's map to the Keras model's.
    target: "phone", as for `convert`, with the map in the file by the road
      "tail"; or "microcontroller", by the road "features".
    max_bytes: the most that the floats may cost; None for any number.

  Returns:
    The file, as `convert` makes it, what is kept, and what it costs. The file's
    metadata have it under "selective".

  Raises:
    ShortfallError: it cannot be reached, or not for so many bytes; the message
      says what can.
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
  found = finished(search, quantizer, explained, held_out, facts, judge)
  if max_bytes is not None and found.bytes_added > max_bytes:
    raise ShortfallError(
        f"selective: {statistic} cosine {require:g} takes {found.bytes_added} "
        f"bytes, max_bytes are {max_bytes}. Within these "
        f"{search.best(max_bytes)}.")
  harms = sorted(search.harms.items(), key=lambda one: -one[1])
  return SelectiveResult(
      found.content, tuple(_named(one, layer) for one in found.trial.kept),
      found.agreement, statistic, require, len(found.content),
      found.bytes_added,
      tuple(sorted(search.trials, key=lambda one: one.bytes)),
      {_named(step.layer, layer): harm for step, harm in harms})


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
  made = []
  def calibrate(converter):
    made.append(LayerQuantizer(converter))
    return b""
  run_converter(explained.explain_features(), "int8",
                lambda: ({"images": one[None]} for one in images), calibrate)
  return made[0]
