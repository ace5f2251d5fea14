"""What the black-box methods share: a callable's scores, and progress."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import class_weights

__all__ = ["Predict", "Progress", "Scorer", "reporter"]

Predict = Callable[[np.ndarray], Any]
"""Float32 images `[n, height, width, channels]` to scores `[n, classes]`."""

Progress = bool | Callable[[int, int], None] | None
"""True for a line on stderr; or a function of pictures run and to be run."""


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
    self._predict = predict
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


def reporter(
    progress: Progress, name: str, total: int
) -> Callable[[int], None]:
  """Returns what is to be called with the number of pictures run so far.

  Args:
    progress: see `Progress`.
    name: what the line begins with.
    total: pictures to be run.

  Raises:
    TypeError: neither a function nor a truth value.
  """
  if callable(progress):
    return lambda done: progress(done, total)
  if progress not in (None, True, False):
    raise TypeError(
        "progress must be None, True, False or a function of (done, total); "
        f"got {progress!r}.")
  if not progress:
    return lambda done: None

  def line(done: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{name}: {done} of {total} pictures run", end=end,
          file=sys.stderr, flush=True)
  return line
