"""What the black-box methods share: a callable's scores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import (
  class_weights,
  graph_of,
  has_tanh,
)
from keras_attr_preserve.compat import has_graph, keras, tf

__all__ = ["Predict", "Scorer"]

Predict = Callable[[np.ndarray], Any]
"""Float32 images `[n, height, width, channels]` to scores `[n, classes]`."""


class Scorer:
  """Runs a callable and gives each image's explained score.

  Attributes:
    plain: the scores of the images as they are, float64 `[images]`.
  """

  def __init__(
      self, predict: Predict, images: np.ndarray, targets: Any, batch_size: int
  ):
    """Runs the images as they are, once.

    Args:
      predict: see `Predict`.
      images: checked ones.
      targets: None for the top class of each image (of one score, whether it is
        at least 0, as of a logit); or as `class_weights` takes them.
      batch_size: images a call.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    if not callable(predict):
      raise TypeError(
          "predict must be a function of images that returns scores; got "
          f"{type(predict).__name__}.")
    if isinstance(batch_size, bool) or not (
        isinstance(batch_size, int | np.integer) and batch_size >= 1):
      raise ValueError(f"batch_size must be 1 or more; got {batch_size!r}.")
    self._predict = _as_graph(predict, images)
    scores = np.concatenate([
        self._scores(images[i:i + batch_size])
        for i in range(0, len(images), batch_size)])
    if targets is None:
      targets = (scores.argmax(1) if scores.shape[1] > 1
                 else (scores[:, 0] >= 0).astype(int))
    self._weights = class_weights(targets, *scores.shape)
    self.plain = (scores * self._weights).sum(1)

  def __call__(self, batch: np.ndarray, which: np.ndarray | int) -> np.ndarray:
    """Scores changed images.

    Args:
      batch: `[n, height, width, channels]`.
      which: the image that each was made from, `[n]`, or one for all.

    Returns:
      The explained scores, float64 `[n]`.
    """
    scores = self._scores(batch)
    if scores.shape[1] != self._weights.shape[1]:
      raise ValueError(
          f"predict must always return {self._weights.shape[1]} scores; got "
          f"{scores.shape[1]}.")
    return (scores * self._weights[which]).sum(1)

  def _scores(self, batch: np.ndarray) -> np.ndarray:
    scores = np.asarray(self._predict(batch))
    if scores.ndim != 2 or len(scores) != len(batch) or not scores.size:
      raise ValueError(
          f"predict must return scores [{len(batch)}, classes] for images "
          f"{list(batch.shape)}; got {list(scores.shape)}.")
    if scores.dtype.kind not in "fiub":
      raise TypeError(
          f"predict must return numbers; got an array of {scores.dtype}.")
    if not np.isfinite(scores).all():
      raise ValueError("predict must return finite scores; got NaN or inf.")
    return scores.astype(np.float64)


def _as_graph(predict: Predict, images: np.ndarray) -> Predict:
  """Runs a model as a graph, which takes small nets a part of the time."""
  if not isinstance(predict, keras.Model) or not has_graph(predict):
    return predict
  graph = graph_of(predict, "scores",
                   lambda batch: predict(batch, training=False), images)
  if has_tanh(graph.graph):
    return predict
  return lambda batch: graph(tf.convert_to_tensor(batch))
