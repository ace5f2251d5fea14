"""Compares models and files, by methods and scores, in one table."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_attr_preserve import attribution
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.evaluation.localization import localization
from keras_attr_preserve.evaluation.report import summarize
from keras_attr_preserve.evaluation.statistics import confidence_interval
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.export.runtime.known_facts import check_layer
from keras_attr_preserve.map_formulas import same_size
from keras_attr_preserve.models.scores import top_classes
from keras_attr_preserve.models.tap import Tap

__all__ = ["compare_models"]

Model = keras.Model | bytes | str | os.PathLike
Method = Callable[[keras.Model, np.ndarray, np.ndarray], np.ndarray]

_BLACK_BOXES = ("occlusion", "rise")
_OF_FILES = {"grad_cam": "swa", "equal_weighted": "ewa"}
_LOCALIZATION = ("roc_auc", "pointing", "energy_inside", "average_precision",
                 "best_iou")


def compare_models(
    models: Mapping[str, Model],
    images: np.ndarray,
    methods: Sequence[str] | Mapping[str, Method] = ("grad_cam",),
    scores: Sequence[str] = ("cosine", "spearman"),
    *,
    targets: Any = None,
    layer: str | Mapping[str, str] | None = None,
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
  """Explains images by every model and method, and scores the maps.

      import pandas as pd
      rows = kap.compare_models(
          {"teacher": teacher, "student": student, "shipped": "model.tflite"},
          images, ("grad_cam", "lrp", "occlusion"), ("cosine", "roc_auc"),
          masks=masks)
      pd.DataFrame(rows).pivot_table("mean", "model", ["method", "score"])

  Args:
    models: a mapping of names to `tf_keras` models or .tflite files of
      `convert`, by bytes or path. The first is the reference, a model.
    images: `[images, height, width, channels]`, in the models' range.
    methods: names of `kap.attribution`; or a mapping of new names to functions,
      `(model, images, targets) -> maps`, called for no file. A file has the map
      of its conversion, "grad_cam" or "equal_weighted", and the black boxes,
      "occlusion" and "rise".
    scores: scores of `evaluation.agreement` compare with the reference's maps
      of the same method, in the smaller of both sizes. Scores of
      `evaluation.localization` need masks, and take magnitudes of signed maps.
    targets: as for `grad_cam`; None for the reference's top class, in all
      models.
    layer: the explained layer, or a mapping of models' names to layers. A file
      allows only the layer of its conversion. None takes that layer in all
      models; without files, the last layer with a spatial map.
    masks: bool `[images, height, width]`, one for each image, for scores of
      localization.

  Returns:
    A row for every possible model, method and score: "model", "method",
    "score", "mean", "low" and "high" (a 95 % bootstrap interval of the mean),
    "median", "p5", "worst", "images". Impossible pairs, such as a file's
    gradient of its input, have no row.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  reference, methods = _checked(models, methods, scores, masks)
  tap = Tap(models[reference])
  images = tap.input.check(images)
  if targets is None:
    targets = top_classes(_logits(tap, images), True)
  methods = {
      name: functools.partial(call, data_format=tap.input.data_format)
      if call in (attribution.occlusion, attribution.rise) else call
      for name, call in methods.items()}
  sides = _sides(models, layer)
  rows = []
  for method, function in methods.items():
    expected = sides[reference].maps(method, function, images, targets)
    for name, side in sides.items():
      maps = expected if name == reference else side.maps(
          method, function, images, targets)
      if maps is not None:
        rows += [_row(name, method, score, values) for score, values in
                 _scored(expected, maps, scores, masks).items()]
  return rows


class _Side:
  """One model or file, and its methods."""

  def __init__(self, model: Model, layer: str | None):
    self._model = model if isinstance(model, keras.Model) else None
    self._file = None if self._model is not None else Interpreter(model)
    self.layer = layer

  @property
  def metadata(self) -> Mapping[str, Any] | None:
    """The metadata of a file made by `convert`; None for all others."""
    return None if self._file is None else self._file.metadata

  def maps(self, method, function, images, targets) -> np.ndarray | None:
    """Returns the maps of a method; None where the method is impossible."""
    if method in _BLACK_BOXES:
      return function(self._predict, images, targets, logits=True)
    if self._model is None:
      kind = (self._file.metadata or {}).get("method")
      if _OF_FILES.get(method) != kind:
        return None
      return self._file.explain(images, targets).maps
    try:
      return function(self._model, images, targets, self.layer)
    except ValueError as error:
      if not str(error).startswith("layer must be None"):
        raise
      return function(self._model, images, targets)

  def _predict(self, images):
    if self._file is not None:
      return self._file.predict(images, logits=True)
    if not hasattr(self, "_tap"):
      self._tap = Tap(self._model)
    return _logits(self._tap, images)


def _sides(models: Mapping[str, Model], layer: Any) -> dict[str, _Side]:
  """Opens models and files, and chooses each one's explained layer."""
  sides = {name: _Side(
      model, layer.get(name) if isinstance(layer, Mapping) else layer)
           for name, model in models.items()}
  known = {name: side.metadata["layer"] for name, side in sides.items()
           if side.metadata is not None}
  for name, file_layer in known.items():
    if sides[name].layer is not None:
      check_layer({"layer": file_layer}, sides[name].layer,
                  f"the file {name!r}", "layer is")
  missing = [name for name, side in sides.items() if side.layer is None]
  if known and missing:
    if len(set(known.values())) > 1 and set(missing) - set(known):
      raise ValueError(
          "layer must name the layer of each model, since the files were "
          f"converted for different ones: {known}; it names none for "
          f"{sorted(set(missing) - set(known))}.")
    for name in missing:
      sides[name].layer = known.get(name, next(iter(known.values())))
  return sides


def _checked(models, methods, scores, masks):
  if not isinstance(models, Mapping) or not models:
    raise TypeError(
        "models must be a mapping of names to models or files; got "
        f"{type(models).__name__}.")
  reference = next(iter(models))
  if not isinstance(models[reference], keras.Model):
    raise TypeError(
        "models must begin with the reference, a tf_keras model; "
        f"{reference!r} is {type(models[reference]).__name__}.")
  local = [score for score in scores if score in _LOCALIZATION]
  if local and masks is None:
    raise ValueError(f"masks must be given for the scores {local}.")
  if isinstance(methods, Mapping):
    return reference, {name: _wrapped(call) for name, call in methods.items()}
  unknown = [name for name in methods if name not in _method_names()]
  if unknown:
    raise ValueError(
        f"methods must be out of {_method_names()}; got {unknown}.")
  return reference, {name: getattr(attribution, name) for name in methods}


def _method_names() -> list[str]:
  return [name for name in attribution.__all__
          if name[0].islower() and name not in (
              "linearize", "select_pathway", "lrp_conservation",
              "integrated_gradients_completeness")]


def _wrapped(function: Method) -> Callable[..., np.ndarray]:
  def call(model, images, targets, layer=None):
    del layer
    return function(model, images, targets)
  return call


def _logits(tap: Tap, images: np.ndarray) -> np.ndarray:
  return np.concatenate([tap(tf.convert_to_tensor(images[i:i + 64])).logits
                         for i in range(0, len(images), 64)])


def _scored(expected, maps, scores, masks) -> dict[str, np.ndarray]:
  values = {}
  names = [name for name in scores if name not in _LOCALIZATION]
  if names:
    pair = same_size(
        tf.convert_to_tensor(expected), tf.convert_to_tensor(maps))
    values |= agreement(*(tensor.numpy() for tensor in pair), scores=names)
  local = [name for name in scores if name in _LOCALIZATION]
  if local:
    judged = localization(np.abs(maps), np.asarray(masks))
    values |= {name: judged[name] for name in local}
  return {name: values[name] for name in scores}


def _row(model, method, score, values) -> dict[str, Any]:
  low, high = confidence_interval(values)
  figures = summarize(values, score)
  return {"model": model, "method": method, "score": score, **{
      name: figures[name] for name in ("mean", "median", "p5", "worst")},
          "low": low, "high": high, "images": int((~np.isnan(values)).sum())}
