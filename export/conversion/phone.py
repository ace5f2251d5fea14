"""A file for phones: which road leads to its map, chosen by measuring."""

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

# In the order of what they cost, and with how the weights of the floats are
# stored; those in int8 are, for the most part, the file's own.
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
  """Puts a map into a file.

  Args:
    forward: what `explain_features` converted to.
    explained: the model.
    facts: "layer", "method" and "mode", for the metadata.
    images: what the maps are measured on; None takes the first road there is.
    first_run: runs each file that is tried.
    road: "tail", "whole", or "auto": the first of these whose maps come near
      enough to the Keras model's.

  Returns:
    The file. Its metadata say which road, why, and what was measured.

  Raises:
    ValueError: TFLite cannot express the backward pass; there is no such road;
      or the file does not run.
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

  # Of a file that only just reaches it on these images, half would not on
  # others: a third of what may be missing is kept to spare.
  promised = BARS[facts["mode"]]
  bar = promised + (1 - promised) / 3
  tries = [one for one in _TRIES[facts["mode"]] if road in ("auto", one[0])]
  try:
    content, way, weights, cosine, before = _choose(build, measure, tries, bar)
  except BypassError as error:
    raise ValueError(
        f"road 'tail' does not lead to the map of layer {facts['layer']!r}: "
        f"{error} Pass road='whole' or road='auto'.") from error
  found = {
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
  return annotate(content, {**facts, **found}, {})


def _choose(
    build: Callable[[str, str], bytes],
    measure: Callable[[bytes, str], float],
    tries: list[tuple[str, str]],
    bar: float,
) -> tuple[bytes, str, str, float, list[str]]:
  """Builds one file after the other until one is near enough, or all are.

  Returns:
    The first whose cosine is not below the bar, or else the best; its road, its
    weights, its cosine; and what became of the others.

  Raises:
    BypassError: there is none.
  """
  best, others = None, []
  for way, weights in tries:
    try:
      content = build(way, weights)
    except BypassError:
      if all(one == "tail" for one, _ in tries):
        raise
      others.append(f"{way} with {weights} weights: something reaches the "
                    "logits past the layer")
      continue
    one = (content, way, weights, measure(content, way))
    if not one[3] < bar:  # Reached, or not measured.
      return (*one, others)
    if best is None or one[3] > best[3]:
      best = one
    others.append(f"{way} with {weights} weights: {one[3]:.4f}")
  return (*best, others)


def _reason(cosine: float, bar: float, images: bool) -> str:
  if not images:
    return "not measured: no representative_images"
  if np.isnan(cosine):
    return "not measured: the model's maps are all zero"
  if cosine < bar:
    return f"the best, short of the median cosine {bar}"
  return f"reaches the median cosine {bar}"
