"""Checks a model's sensitivities against measured changes of its scores."""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layer_override import CallSwap
from keras_attr_preserve.models.layers import locate
from keras_attr_preserve.models.scores import class_weights
from keras_attr_preserve.models.tap import Tap, sensitivities

__all__ = ["BAR", "check_sensitivities", "says_otherwise"]

BAR = 0.95
"""The least cosine of measured slopes and the slopes from sensitivities.

Right gradients reach .99 and more; curvature and the kinks of ReLU within a
step take the rest. Wrong gradients reached .4 to .9.
"""

IMAGES = 4
DIRECTIONS = 8
STEP = 1e-2
"""The change of features, in standard deviations of each image's features."""


def check_sensitivities(
    model: keras.Model, layer: str, images: np.ndarray, classes: np.ndarray
) -> dict[str, Any]:
  """Compares sensitivities with slopes of scores at slightly changed features.

  A sensitivity `a_c` is the growth of a score where channel `c` grows by one at
  every position. So for some directions `d` of the channels

      (y(A + h d) - y(A - h d)) / 2h    is compared with    sum_c a_c d_c

  with the same numbers `d` added everywhere. The measured slopes use scores
  alone, so a fault in the computation of gradients shows.

  Args:
    model: a built `tf_keras` model; not changed.
    layer: the explained layer.
    images: `[images, height, width, channels]`; the first `IMAGES` are used.
    classes: each image's class, `[images]`.

  Returns:
    `slopes`, the number of measured slopes, and `cosine`, the cosine of
    measured and expected slopes; 1 where both are all zero. Each image has its
    own step. Or `reason` alone: a quantize-aware model's scores move in steps,
    and nothing is measured.
  """
  if any(type(module).__name__.startswith("Quantize")
         for module in model.submodules):
    return {"reason": "the model is quantize-aware: its scores move in steps"}
  tap = Tap(model, [layer])
  images = tf.constant(images[:IMAGES])
  with tf.GradientTape() as tape:
    tape.watch(images)
    tapped = tap(images)
  weights = class_weights(
      np.asarray(classes)[:IMAGES], len(images), tap.classes)
  sensitivity, = sensitivities(tape, tapped, tf.constant(weights))
  features = tapped.features[0].numpy().astype(np.float64)
  channels = features.shape[-1]
  directions = np.random.default_rng(0).normal(
      size=[DIRECTIONS, len(images), 1, 1, channels])
  spread = features.std(axis=(1, 2, 3), keepdims=True)
  step = STEP * np.where(spread > 0, spread, 1.0)
  expected = (directions * sensitivity.numpy()).sum((2, 3, 4))
  measured = np.stack([
      _scores(tap, model, layer, images, step * direction, weights)
      - _scores(tap, model, layer, images, -step * direction, weights)
      for direction in directions]) / (2 * step[:, 0, 0, 0])
  return {"slopes": expected.size, "cosine": _cosine(expected, measured)}


def says_otherwise(check: dict[str, Any] | None) -> str | None:
  """Returns a warning where scores do not move as sensitivities say."""
  if not check or check.get("cosine", 1.0) >= BAR:
    return None
  return (
      "The teacher's scores do not move as its sensitivities say: the cosine "
      f"of {check['slopes']} measured slopes is {check['cosine']:.3f}; at "
      f"least {BAR} is expected. Its maps are not to be trusted.")


def _scores(tap, model, layer, images, added, weights) -> np.ndarray:
  """Returns the explained scores, float64 `[images]`, at changed features."""
  _, moved = locate(model, layer)
  added = tf.constant(added, moved.compute_dtype)

  def call(own_call, *args, **kwargs):
    return own_call(*args, **kwargs) + added

  with CallSwap(moved, call).on():
    logits = tap(images).logits
  return (logits.numpy().astype(np.float64) * weights).sum(1)


def _cosine(slopes: np.ndarray, other: np.ndarray) -> float:
  norms = np.linalg.norm(slopes) * np.linalg.norm(other)
  if not norms:
    return float(not np.any(slopes) and not np.any(other))
  return float((slopes * other).sum() / norms)
