"""Makes a file for phones; measured maps decide how it computes its map."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_attr_preserve.export.conversion.converter import run_converter
from keras_attr_preserve.export.conversion.first_run import FirstRun
from keras_attr_preserve.export.conversion.map_accuracy import (
  BARS,
  MapAccuracy,
  representative_range,
)
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from keras_attr_preserve.export.tflite.merge import BypassError, merge
from keras_attr_preserve.export.tflite.schema import annotate
from keras_attr_preserve.models.model_files import shortened
from keras_attr_preserve.utils.notices import notice

__all__ = ["ROADS", "phone_file"]

ROADS = ("tail", "whole")

# Roads in the order of their cost, with the storage type of the float weights.
# Most int8 weights are shared with the file's `predict`.
_TRIES = {
    "float32": (("tail", "float32"), ("whole", "float32")),
    "float16": (("tail", "float16"), ("whole", "float16"),
                ("whole", "float32")),
    "dynamic": (("tail", "int8"), ("tail", "float16"), ("whole", "int8"),
                ("whole", "float16"), ("whole", "float32")),
    "int8": (("tail", "int8"), ("whole", "int8"), ("whole", "float16"),
             ("whole", "float32")),
    "int16x8": (("tail", "int8"), ("whole", "int8"), ("whole", "float16"),
                ("whole", "float32")),
}


def phone_file(
    forward: bytes,
    explained: ExplainedModel,
    facts: dict[str, Any],
    images: np.ndarray | None,
    first_run: FirstRun,
    road: str = "auto",
) -> bytes:
  """Adds a map to a file.

  Args:
    forward: the file converted from `explain_features`.
    explained: the model.
    facts: "layer", "method" and "mode", for the metadata.
    images: the maps are measured on them; None takes the first possible road.
    first_run: runs each file that is tried.
    road: "tail", "whole", or "auto": the first of the two whose maps are close
      enough to the Keras model's.

  Returns:
    The file. Its metadata say the road, the reason, and the median cosine.

  Raises:
    ValueError: TFLite cannot express the backward pass, the road does not lead
      to the map, or the file does not run.
  """
  try:
    piece = run_converter(explained.explain_map(facts["method"]), "float32")
  except ValueError as error:
    raise ValueError(
        f"layer {facts['layer']!r}: TFLite cannot express the backward pass of "
        "what follows the layer; a later layer, or method 'ewa', needs less. "
        f"{shortened(error)}") from error
  accuracy = None if images is None else MapAccuracy(
      explained.model, facts["layer"], facts["method"], images)

  def build(way, weights):
    return merge(forward, piece, from_features=way == "tail", weights=weights)

  def measure(content, way):
    trial = annotate(content, {**facts, "road": way}, {})
    first_run.check(trial)
    return np.nan if accuracy is None else accuracy.median_cosine(trial)

  # A file that only just reaches the bar here misses it on every second set of
  # other images. The bar is a third of the way from the promised value to 1.
  promised = BARS[facts["mode"]]
  bar = promised + (1 - promised) / 3
  tries = [attempt for attempt in _TRIES[facts["mode"]]
           if road in ("auto", attempt[0])]
  try:
    content, way, weights, cosine, before = _choose(build, measure, tries, bar)
  except BypassError as error:
    raise ValueError(
        f"road 'tail' does not lead to the map of layer {facts['layer']!r}: "
        f"{error} Pass road='whole' or road='auto'.") from error
  measured = {
      "road": way,
      "weights": weights,
      "median_cosine": None if np.isnan(cosine) else round(cosine, 6),
      "measured_on": 0 if accuracy is None else accuracy.count,
      **representative_range(images),
      "reason": "; ".join([
          _reason(cosine, promised, images is not None),
          *([] if road == "auto" else [f"road={road!r} was asked for"]),
          *before,
          *(["the map is that of the same weights in floats"]
            if way == "whole" and facts["mode"].startswith("int") else [])]),
  }
  if cosine < promised:
    notice(
        f"The maps in the file reach a median cosine of {cosine:.4f} to the "
        f"Keras model's; {promised} is wanted.")
  return annotate(content, {**facts, **measured}, {})


def _choose(
    build: Callable[[str, str], bytes],
    measure: Callable[[bytes, str], float],
    tries: list[tuple[str, str]],
    bar: float,
) -> tuple[bytes, str, str, float, list[str]]:
  """Builds files until one reaches the bar, or all are built.

  Returns:
    The first file whose cosine is not below the bar, or else the best. Then its
    road, its weights, its cosine, and notes on the files before it.

  Raises:
    BypassError: no file can be built.
  """
  best, others = None, []
  for way, weights in tries:
    try:
      content = build(way, weights)
    except BypassError:
      if all(road == "tail" for road, _ in tries):
        raise
      others.append(f"{way} with {weights} weights: something reaches the "
                    "logits past the layer")
      continue
    candidate = (content, way, weights, measure(content, way))
    if not candidate[3] < bar:  # Reached, or not measured.
      return (*candidate, others)
    if best is None or candidate[3] > best[3]:
      best = candidate
    others.append(f"{way} with {weights} weights: {candidate[3]:.4f}")
  return (*best, others)


def _reason(cosine: float, bar: float, images: bool) -> str:
  if not images:
    return "not measured: no representative_images"
  if np.isnan(cosine):
    return "not measured: the model's maps are all zero"
  if cosine < bar:
    return f"the best, short of the median cosine {bar}"
  return f"reaches the median cosine {bar}"
