"""Scores of a callable, for the black-box methods."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.compat import has_graph, keras, tf
from keras_attr_preserve.models.float_images import FloatImages
from keras_attr_preserve.models.inputs import (
  ImageInput,
  model_input,
  shape_input,
)
from keras_attr_preserve.models.running import graph_of, has_tanh, kept
from keras_attr_preserve.models.scores import (
  are_logits,
  class_weights,
  explained_scores,
  top_classes,
)
from keras_attr_preserve.models.tap import Tap
from keras_attr_preserve.utils.checks import check_images

__all__ = ["Predict", "Scorer", "probed"]

_OF_MODELS = ("__call__", "call", "predict", "predict_on_batch")

Predict = Callable[[np.ndarray], Any]
"""Maps float32 images, in the caller's layout, to scores `[n, classes]`."""


def probed(
    predict: Predict, images: Any, data_format: str | None
) -> tuple[ImageInput, np.ndarray]:
  """Finds the input layout of a function, and checks images for it.

  Args:
    predict: see `Predict`.
    images: `[images, height, width, channels]`, `[images, channels, height,
      width]` or `[images, height, width]`; for a model also a dict of such
      arrays.
    data_format: "channels_last" or "channels_first"; None to take it from a
      model's layers, or from the images' shape (see `shape_input`).

  Returns:
    The function's input layout, and the images in that layout, float32.

  Raises:
    TypeError, ValueError: `images` are not images, or their layout is unclear.
  """
  if isinstance(predict, keras.Model) and has_graph(predict):
    taken = model_input(predict)
    images = taken.check(images)
    if data_format is not None:
      taken = taken._replace(
          layout=shape_input(taken.shape, data_format=data_format).layout)
  elif isinstance(images, Mapping):
    raise TypeError(
        "images must be an array where predict is no model; got a dict of "
        f"{sorted(images)}.")
  else:
    images = check_images(images, [None] * (np.ndim(images) - 1))
    taken = shape_input(images.shape[1:], data_format=data_format)
  taken.maps_places()
  return taken, images


class Scorer:
  """Runs a callable and returns the explained score of each image.

  Attributes:
    plain: the explained scores of the unchanged images, float64 `[images]`.
  """

  def __init__(
      self, predict: Predict, images: np.ndarray, targets: Any, batch_size: int,
      taken: ImageInput, logits: bool | None = None,
  ):
    """Runs the unchanged images once.

    Args:
      predict: see `Predict`.
      images: checked images, channels last.
      targets: None for the top class of each image, or targets as for
        `class_weights`; see `scores.py` for scores of one column.
      batch_size: images per call.
      taken: the input layout of `predict`.
      logits: whether scores are logits; None if unknown. It matters only for
        scores of one column.

    Raises:
      TypeError, ValueError: an argument is not as above; or one column of
        scores could be logits or probabilities.
    """
    if not callable(predict):
      raise TypeError(
          "predict must be a function of images that returns scores; got "
          f"{type(predict).__name__}.")
    if isinstance(batch_size, bool) or not (
        isinstance(batch_size, int | np.integer) and batch_size >= 1):
      raise ValueError(f"batch_size must be 1 or more; got {batch_size!r}.")
    self._taken = taken
    self._predict = _as_graph(predict, taken.own(images[:1]))
    scores = np.concatenate([
        self._scores(images[i:i + batch_size])
        for i in range(0, len(images), batch_size)])
    if scores.shape[1] == 1:
      logits = _known(predict, logits)
    if targets is None:
      targets = top_classes(scores, logits)
    self._weights = class_weights(targets, *scores.shape)
    # For class 1 alone, logits and probabilities get the same explanation.
    self._logits = bool((self._weights >= 0).all()) or are_logits(
        scores, logits)
    self.plain = explained_scores(scores, self._weights, self._logits)

  def __call__(self, batch: np.ndarray, which: np.ndarray | int) -> np.ndarray:
    """Scores changed images.

    Args:
      batch: `[n, height, width, channels]`.
      which: for each changed image, the number of its original, `[n]`; or one
        number for all.

    Returns:
      The explained scores, float64 `[n]`.
    """
    scores = self._scores(batch)
    if scores.shape[1] != self._weights.shape[1]:
      raise ValueError(
          f"predict must always return {self._weights.shape[1]} scores; got "
          f"{scores.shape[1]}.")
    return explained_scores(scores, self._weights[which], self._logits)

  def _scores(self, batch: np.ndarray) -> np.ndarray:
    scores = np.asarray(self._predict(self._taken.own(batch)))
    if scores.ndim != 2 or len(scores) != len(batch) or not scores.size:
      raise ValueError(
          f"predict must return scores [{len(batch)}, classes] for images "
          f"{list(batch.shape)}; got {list(scores.shape)}.")
    if scores.dtype == tf.bfloat16.as_numpy_dtype:
      scores = scores.astype(np.float32)  # NumPy: not a number.
    if scores.dtype.kind not in "fiub":
      raise TypeError(
          f"predict must return numbers; got an array of {scores.dtype}.")
    if not np.isfinite(scores).all():
      raise ValueError("predict must return finite scores; got NaN or inf.")
    return scores.astype(np.float64)


def _known(predict: Predict, logits: bool | None) -> bool | None:
  """Returns whether a callable gives logits, if it or the caller knows."""
  known = _gives_logits(predict)
  if None not in (known, logits) and known != logits:
    raise ValueError(
        f"logits must be None or {known}: that is what predict gives; got "
        f"{logits!r}.")
  return logits if known is None else known


def _gives_logits(predict: Predict) -> bool | None:
  """Returns whether a model or file gives logits; None for other functions."""
  settings: dict[str, Any] = {}
  while isinstance(predict, functools.partial):
    predict, settings = predict.func, {**predict.keywords, **settings}
  owner = getattr(predict, "__self__", predict)
  if isinstance(owner, keras.Model):
    method = getattr(predict, "__name__", "call")
    if owner is predict or method in _OF_MODELS:
      try:
        return kept(owner, "gives logits", lambda: Tap(owner).gives_logits)
      except (TypeError, ValueError):  # The head is not in the graph.
        return None
    return None
  if settings.get("logits"):
    return True
  return getattr(owner, "gives_logits", None)


def _as_graph(predict: Predict, images: np.ndarray) -> Predict:
  """Returns a model as a graph, which runs small models faster."""
  if not isinstance(predict, keras.Model) or not has_graph(predict):
    return predict
  floats = FloatImages(predict)

  def run(batch):
    with floats.flowing(batch):
      return predict(batch, training=False)
  graph = graph_of(predict, "scores", run, images)
  if has_tanh(graph.graph):
    return run
  return lambda batch: graph(tf.convert_to_tensor(batch))
