"""Makes the final file of a model with some layers left in floats."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.evaluation.report import ShortfallError
from keras_attr_preserve.export.conversion.converter import run_converter
from keras_attr_preserve.export.conversion.feature_maps import FeatureMaps
from keras_attr_preserve.export.conversion.first_run import FirstRun
from keras_attr_preserve.export.conversion.layer_quantizer import LayerQuantizer
from keras_attr_preserve.export.conversion.linear_tail import head_is_found
from keras_attr_preserve.export.conversion.map_accuracy import (
  representative_range,
)
from keras_attr_preserve.export.conversion.selective_search import Search, Trial
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.export.tflite.merge import merge
from keras_attr_preserve.export.tflite.schema import annotate

__all__ = ["Finished", "finished"]

_ALIASES = {"predict": ("explain", ("logits", "predictions"))}
_RAISES = 3
_Build = Callable[[bytes, dict[str, Any]], bytes]


class Finished(NamedTuple):
  """A file that reaches the required agreement.

  Attributes:
    content: its bytes.
    trial: the choice of layers in floats.
    agreement: the agreement of its own maps, on the images held out.
    bytes_added: how many bytes more than the smallest file with nothing kept.
  """

  content: bytes
  trial: Trial
  agreement: float
  bytes_added: int


def finished(
    search: Search,
    quantizer: LayerQuantizer,
    explained: ExplainedModel,
    held_out: FeatureMaps,
    facts: dict[str, Any],
    statistic: Callable[[np.ndarray], float],
) -> Finished:
  """Makes the smallest file whose own maps reach the required agreement.

  A file may round the weights of the backward pass too, to save bytes. Where
  this costs too much agreement, either more layers are kept or these weights
  are stored in floats. The smaller file wins.

  Args:
    search: the search for the layers to keep.
    quantizer: the model's quantizer.
    explained: the model.
    held_out: the images to judge by.
    facts: the metadata: layer, method, mode, target, and "selective" with the
      requirement.
    statistic: reduces the cosines of all images to one number.

  Returns:
    The smallest file.

  Raises:
    ShortfallError: no file reaches the agreement.
    ValueError: no road leads to the map, or the file does not run.
  """
  require = facts["selective"]["require"]
  make = _phone_files if facts["target"] == "phone" else _plain_files
  first_run = FirstRun(
      explained.model, facts["layer"], "int8", held_out.images)
  candidates, size, best = [], None, -np.inf
  for build in make(quantizer.content(), explained, facts):
    size = size or len(build(quantizer.content(), {}))
    bar = require
    for _ in range(_RAISES):
      trial = search.run(bar)
      if trial is None:
        break
      forward = quantizer.content(trial.nodes)
      content = build(forward, {})
      first_run.check(content)
      maps = Interpreter(content).explain(
          held_out.images, held_out.targets).maps
      cosines = agreement(held_out.reference, maps)["cosine"]
      reached = float(statistic(cosines))
      best = max(best, reached)
      if reached >= require:
        added = len(content) - size
        layers = [facts["layer"] if name == "features" else name
                  for name in trial.kept]
        candidates.append(Finished(build(forward, {
            "median_cosine": round(float(np.nanmedian(cosines)), 6),
            "measured_on": held_out.alive,
            **representative_range(held_out.images),
            "selective": {
                **facts["selective"], "kept": layers, "bytes_added": added,
                "agreement": round(reached, 6)}}), trial, reached, added))
        break
      # The next features must make up for the file's loss behind them.
      bar = min(trial.agreement, trial.held_out) + require - reached
    if candidates and bar == require:
      break  # Weights of more bytes could not make a smaller one.
  if candidates:
    return min(candidates, key=lambda candidate: len(candidate.content))
  raise ShortfallError(
      f"selective: a file's maps reach {best:.4f}, {require:g} is required; "
      f"{search.best()}.")


def _phone_files(
    content: bytes, explained: ExplainedModel, facts: dict[str, Any]
) -> Iterator[_Build]:
  """Yields functions that add the map to a file, the smallest file first."""
  del content
  piece = run_converter(explained.explain_map(facts["method"]), "float32")
  for weights in ("int8", "float16", "float32"):
    def build(forward, more, weights=weights):
      merged = merge(forward, piece, from_features=True, weights=weights)
      return annotate(merged, {
          **facts, "road": "tail", "weights": weights,
          "reason": "selective", **more}, {})
    yield build


def _plain_files(
    content: bytes, explained: ExplainedModel, facts: dict[str, Any]
) -> Iterator[_Build]:
  """Yields a function that makes a file without a map in it."""
  if facts["method"] != "ewa" and not head_is_found(
      content, explained.model, facts["layer"]):
    raise ValueError(
        f"target 'microcontroller': what follows layer {facts['layer']!r} is "
        "more than pooling and a linear layer; selective precision has the "
        "road 'features' alone there. Choose a later layer, method 'ewa', or "
        "target='phone'.")
  yield lambda forward, more: annotate(
      forward, {**facts, "road": "features", **more}, _ALIASES)
