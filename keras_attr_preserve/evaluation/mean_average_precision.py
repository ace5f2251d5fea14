"""The task metric of multi-label models."""

import numpy as np

__all__ = ["mean_average_precision"]


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
  """Returns the mean of the classes' average precisions.

  Args:
    labels: multi-hot `[images, classes]`.
    scores: `[images, classes]`, larger for more certain; any monotone scale.

  Returns:
    The mean over the classes with a positive image, 0..1. Images of equal score
    share a threshold, as in `sklearn.metrics.average_precision_score`.

  Raises:
    ValueError: the shapes differ, no class has a positive, or NaN.
  """
  labels, scores = np.asarray(labels) > 0.5, np.asarray(scores, np.float64)
  if labels.shape != scores.shape or labels.ndim != 2:
    raise ValueError(
        f"scores must have the labels' shape [images, classes] "
        f"{list(labels.shape)}; got {list(scores.shape)}.")
  if not np.isfinite(scores).all():
    raise ValueError("scores must be finite; got NaN or infinity.")
  if not labels.any():
    raise ValueError("labels must mark at least one image for some class.")
  # The number of images at or above each image's score.
  at_least = len(scores) + 1 - _lowest_ranks(scores.T)
  precisions = []
  for hits, rank in zip(labels.T, at_least):
    if hits.any():
      counts = (rank[hits][:, None] >= rank[hits][None]).sum(1)
      precisions.append(np.mean(counts / rank[hits]))
  return float(np.mean(precisions))


def _lowest_ranks(rows: np.ndarray) -> np.ndarray:
  """Ranks each row from 1; equal values get their lowest rank."""
  return np.stack([
      np.searchsorted(np.sort(row), row, side="left") + 1 for row in rows])
