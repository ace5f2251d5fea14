"""Whether a model's scores move as its sensitivities say."""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layer_override import CallSwap
from keras_attr_preserve.models.layers import locate
from keras_attr_preserve.models.scores import class_weights
from keras_attr_preserve.models.tap import Tap, sensitivities

__all__ = ["BAR", "check_sensitivities", "says_otherwise"]

BAR = 0.95
"""The least cosine of measured slopes and those that sensitivities say.

Right gradients have .99 and more: what is missing is curvature and the kinks of
ReLU within a step. The faults that this is for had .4 to .9.
"""

IMAGES = 4
DIRECTIONS = 8
STEP = 1e-2
"""How far features are moved, in standard deviations of each image's own."""


def check_sensitivities(
    model: keras.Model, layer: str, images: np.ndarray, classes: np.ndarray
) -> dict[str, Any]:
  """Changes feature values a little and compares the scores with what is said.

  A sensitivity `a_c` says by how much a score grows where channel `c` grows by
  one at every position. So for some directions `d` of the channels

      (y(A + h d) - y(A - h d)) / 2h    is held against    sum_c a_c d_c

  with the same numbers `d` added everywhere. Nothing but the scores is asked:
  a fault in how gradients are computed shows.

  Args:
    model: a built `tf_keras` model; left as it came.
    layer: whose features are explained.
    images: `[images, height, width, channels]`; the first `IMAGES` are used.
    classes: each image's class, `[images]`.

  Returns:
    `slopes`, how many were measured, and `cosine`, that of the measured slopes
    and those said, each direction with its own step; 1 where both are all zero.
    Or `reason`, why nothing was measured: a quantize-aware model's scores move
    in steps.
  """
  if any(type(part).__name__.startswith("Quantize")
         for part in model.submodules):
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
  said = (directions * sensitivity.numpy()).sum((2, 3, 4))
  measured = np.stack([
      _scores(tap, model, layer, images, step * one, weights)
      - _scores(tap, model, layer, images, -step * one, weights)
      for one in directions]) / (2 * step[:, 0, 0, 0])
  return {"slopes": said.size, "cosine": _cosine(said, measured)}


def says_otherwise(check: dict[str, Any] | None) -> str | None:
  """Returns a sentence where scores do not move as sensitivities say."""
  if not check or check.get("cosine", 1.0) >= BAR:
    return None
  return (
      "The teacher's scores do not move as its sensitivities say: the cosine "
      f"of {check['slopes']} measured slopes is {check['cosine']:.3f}; at "
      f"least {BAR} is expected. Its maps are not to be trusted.")


def _scores(tap, model, layer, images, added, weights) -> np.ndarray:
  """The explained scores, float64 `[images]`, with changed features."""
  _, moved = locate(model, layer)
  added = tf.constant(added, moved.compute_dtype)

  def call(own_call, *args, **kwargs):
    return own_call(*args, **kwargs) + added

  with CallSwap(moved, call).on():
    logits = tap(images).logits
  return (logits.numpy().astype(np.float64) * weights).sum(1)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
  norms = np.linalg.norm(one) * np.linalg.norm(other)
  if not norms:
    return float(not np.any(one) and not np.any(other))
  return float((one * other).sum() / norms)
