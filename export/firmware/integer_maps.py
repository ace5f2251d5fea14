"""Computes the maps of a microcontroller in NumPy, bit for bit.

NumPy uses the same integers in the same order as the C of `c_sources`. So the
device's right answers are known in advance.
"""

from typing import NamedTuple

import numpy as np

from keras_attr_preserve.export.firmware.integer_head import IntegerHead
from keras_attr_preserve.models.scores import class_weights, top_classes

__all__ = ["IntegerMap", "ask_weighted", "explain_features",
           "explain_sensitivity", "explain_squares", "target_weights",
           "top_class"]


class IntegerMap(NamedTuple):
  """The output of the C functions.

  Attributes:
    status: 0 alive, 1 dead.
    map: uint8 `[height, width]`, 255 the largest.
    raw: uint32 `[height, width]`, before the division by the largest.
    exponent: the number of times that sensitivities were halved to fit.
  """

  status: int
  map: np.ndarray
  raw: np.ndarray
  exponent: int = 0


def top_class(logits: np.ndarray, zero_point: int) -> int:
  """Returns a device's top class.

  Args:
    logits: int8 `[logits]`.
    zero_point: zero point of the logits.

  Returns:
    The first class with the largest logit. For a single logit: 1 where it is
    not negative, else 0.
  """
  return int(top_classes(logits[None].astype(np.int64) - zero_point, True)[0])


def target_weights(target: int, logits: int) -> np.ndarray:
  """Returns int8 weights of the logits, `[logits]`, that explain one class."""
  return class_weights(target, 1, logits)[0].astype(np.int8)


def ask_weighted(
    class_weights: np.ndarray, zero_point: int, one: int) -> np.ndarray:
  """Encodes weights of the logits for a file that differentiates.

  Args:
    class_weights: int8 `[logits]`; only their ratios count.
    zero_point: zero point of the file's input `class_weights`.
    one: the number of the input's steps in 1.

  Returns:
    The input, int8 `[logits]`.
  """
  weights = class_weights.astype(np.int64)
  largest = max(int(np.abs(weights).max()), 1)
  sizes = (2 * np.abs(weights) * one + largest) // (2 * largest)
  return np.clip(
      zero_point + np.sign(weights) * sizes, -128, 127).astype(np.int8)


def explain_features(
    head: IntegerHead, zero_point: int, features: np.ndarray,
    class_weights: np.ndarray) -> IntegerMap:
  """Maps a score by the file's own head.

  Args:
    head: the result of `integer_head`.
    zero_point: zero point of the features.
    features: int8 `[height, width, channels]`.
    class_weights: int8 `[logits]`.

  Returns:
    The map.
  """
  values = features.astype(np.int64) - zero_point
  if head.hidden is None:
    seed = class_weights.astype(np.int64) * head.last.scales
    kernel, before = head.last.kernel, 0
  else:
    seed, before = _hidden_seed(head, values, class_weights)
    kernel = head.hidden.kernel
  sums = seed @ kernel.sum(1, dtype=np.int64)
  sensitivity, shift = _fitted(sums, head.limit)
  return _normalized(np.maximum(values @ sensitivity, 0), before + shift)


def explain_sensitivity(
    zero_points: tuple[int, int], features: np.ndarray,
    sensitivity: np.ndarray) -> IntegerMap:
  """Maps a score by the sensitivity that the file computes.

  Args:
    zero_points: zero points of the features and of the sensitivity.
    features: int8 `[height, width, channels]`.
    sensitivity: int8 `[channels]`.

  Returns:
    The map.
  """
  values = features.astype(np.int64) - zero_points[0]
  weights = sensitivity.astype(np.int64) - zero_points[1]
  return _normalized(np.maximum(values @ weights, 0))


def explain_squares(zero_point: int, features: np.ndarray) -> IntegerMap:
  """Makes one map for all classes, by the mean of squares.

  Args:
    zero_point: zero point of the features.
    features: int8 `[height, width, channels]`.

  Returns:
    The map.
  """
  return _normalized(((features.astype(np.int64) - zero_point)**2).sum(-1))


def _hidden_seed(head, values, class_weights) -> tuple[np.ndarray, int]:
  """Returns the score's slopes by hidden units, and the number of halvings."""
  kernel = head.hidden.kernel.astype(np.int64)
  units = kernel.reshape(len(kernel), -1) @ head.pool.sums(
      values[None]).reshape(-1) + head.bias
  is_on = units > 0
  if head.ceiling is not None:
    is_on &= units < head.ceiling
  scores = (class_weights.astype(np.int64) * head.last.scales) @ (
      head.last.kernel[:, 0].astype(np.int64))
  reaction, shift = _fitted(np.where(is_on, scores, 0), 2**15 - 1)
  return reaction * head.hidden.scales, shift


def _fitted(values: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
  """Halves integers until they fit, rounded away from zero at one half."""
  sizes, shift = np.abs(values), 0
  while _halved(int(sizes.max()), shift) > limit:
    shift += 1
  return np.sign(values) * _halved(sizes, shift), shift


def _halved(value, shift: int):
  return (value + (1 << (shift - 1))) >> shift if shift else value


def _normalized(raw: np.ndarray, exponent: int = 0) -> IntegerMap:
  largest, shift = int(raw.max()), 0
  while largest >> shift >= 1 << 24:
    shift += 1
  most = largest >> shift
  scaled = ((raw >> shift) * 255 + most // 2) // max(most, 1)
  return IntegerMap(0 if largest else 1, scaled.astype(np.uint8),
                    raw.astype(np.uint32), exponent)
