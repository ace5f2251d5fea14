"""Defines a class's score and the top class, in one place for all methods.

Scores `[images, classes]` are logits or probabilities. With two or more columns
the largest score is the top class. One column stands for two classes:

- a logit z: class 1 has the score z, class 0 has -z; 1 is on top from z = 0 on;
- the probability p of class 1: class 0 has 1 - p; 1 is on top from p = 0.5 on.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import tf

__all__ = ["are_logits", "class_weights", "explained_scores", "top_class_seed",
           "top_classes"]


def are_logits(scores: np.ndarray, logits: bool | None = None) -> bool:
  """Says whether scores are logits, where that makes a difference.

  Args:
    scores: `[images, classes]`.
    logits: whether the scores are logits; None if unknown.

  Returns:
    Whether the scores are logits. True for several columns, where the order is
    the same, and for one column outside 0..1.

  Raises:
    TypeError: logits is neither None nor a bool.
    ValueError: one column lies in 0..1 and logits is None; or it leaves 0..1
      and logits is False.
  """
  if logits is not None and not isinstance(logits, bool | np.bool_):
    raise TypeError(f"logits must be None, True or False; got {logits!r}.")
  if scores.shape[1] != 1:
    return True
  least, most = float(scores.min()), float(scores.max())
  inside = least >= -_SLACK and most <= 1 + _SLACK
  if logits is None and inside:
    raise ValueError(
        "logits must say what one column of scores in 0..1 is, False for the "
        "probability of class 1, True for a logit; got None, and scores "
        f"{least:.4g}..{most:.4g}.")
  if logits is not None and not logits and not inside:
    raise ValueError(
        "logits must be True where one column of scores leaves 0..1; got "
        f"False, and scores {least:.4g}..{most:.4g}.")
  return not inside if logits is None else bool(logits)


def top_classes(scores: np.ndarray, logits: bool | None = None) -> np.ndarray:
  """Returns each image's top class; among equal scores the first.

  Args:
    scores: `[images, classes]`.
    logits: whether the scores are logits; as for `are_logits`.

  Returns:
    Class numbers, int `[images]`; 0 or 1 for one column.

  Raises:
    TypeError, ValueError: as for `are_logits`.
  """
  are = are_logits(scores, logits)
  if scores.shape[1] > 1:
    return scores.argmax(1)
  return (scores[:, 0] >= (0 if are else 0.5)).astype(int)


def explained_scores(
    scores: np.ndarray, weights: np.ndarray, logits: bool) -> np.ndarray:
  """Returns the weighted score of each image.

  Args:
    scores: `[images, classes]`.
    weights: the result of `class_weights`, of the scores' shape.
    logits: whether the scores are logits. With one probability p, a negative
      weight means class 0, whose probability is 1 - p.

  Returns:
    `[images]`, in the scores' units.
  """
  if logits or scores.shape[1] > 1:
    return (scores * weights).sum(1)
  return (np.where(weights < 0, 1 - scores, scores) * np.abs(weights)).sum(1)


def class_weights(targets: Any, count: int, classes: int) -> np.ndarray:
  """Returns the explained score as weights of the logits.

  Args:
    targets: a class number for all images; class numbers `[count]`; or float
      weights of the logits `[count, classes]`. With one logit, class 1 is its
      positive side and class 0 its negative side.
    count: the number of images.
    classes: the number of logits.

  Returns:
    Weights, float32 `[count, classes]`.

  Raises:
    ValueError: the targets have another shape, name no class, or hold weights
      that are not finite.
  """
  targets = np.asarray(targets)
  if targets.shape == (count, classes) and targets.dtype.kind == "f":
    with np.errstate(over="ignore"):  # The check below finds an overflow.
      weights = targets.astype(np.float32)
    if not np.isfinite(weights).all():
      raise ValueError(
          "targets must be finite weights of the logits; got "
          f"{weights[~np.isfinite(weights)][0]}.")
    return weights
  if targets.shape not in ((), (count,)) or targets.dtype.kind not in "iub":
    raise ValueError(
        f"targets must be None, a class number, {count} class numbers, or "
        f"float weights [{count}, {classes}]; got {targets.dtype} of shape "
        f"{list(targets.shape)}.")
  targets = np.broadcast_to(targets.astype(int), count)
  if targets.min() < 0 or targets.max() >= max(classes, 2):
    raise ValueError(
        f"targets must be class numbers in 0..{max(classes, 2) - 1}; got "
        f"{targets.min()}..{targets.max()}.")
  if classes == 1:
    return np.where(targets, 1, -1).astype(np.float32)[:, None]
  return np.eye(classes, dtype=np.float32)[targets]


def top_class_seed(logits: tf.Tensor) -> tf.Tensor:
  """Returns each image's top class as weights of the logits.

  Args:
    logits: `[batch, classes]`.

  Returns:
    `[batch, classes]`, float32: one-hot, or the sign of a single logit.
  """
  classes = logits.shape[-1]
  if classes == 1:
    return tf.where(logits >= 0, 1.0, -1.0)
  return tf.one_hot(tf.argmax(logits, axis=-1), classes)


_SLACK = 1e-6  # A probability's float32 rounding.
