"""Integrated gradients, with a baseline and a check of completeness."""

from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import at_pictures, no_layer
from keras_attr_preserve.attribution.perturbed_copies import over_copies
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.utils.progress import Progress

__all__ = ["Completeness", "integrated_gradients",
           "integrated_gradients_completeness"]


class Completeness(NamedTuple):
  """How well maps add up to the scores they explain.

  Attributes:
    difference: `[images]`, the image's score minus the baseline's score.
    total: `[images]`, the sum of the map.
  """

  difference: np.ndarray
  total: np.ndarray

  @property
  def residual(self) -> np.ndarray:
    """Difference minus total, `[images]`, in units of the score."""
    return self.difference - self.total


def integrated_gradients(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    baseline: float | np.ndarray = 0.0,
    steps: int = 50,
    batch_size: int | None = None,
    progress: Progress = None,
) -> np.ndarray:
  """Explains a score by its gradient along the path from a baseline.

      M = sum_c (x_c - b_c) int_0^1 d score(b + t (x - b)) / dx_c dt

  The trapezoid rule approximates the integral over `steps` intervals.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`; the top class is the unchanged image's.
    layer: must be None, as the input is explained; every method takes it.
    baseline: an image that shows nothing: a number, or an array that broadcasts
      to `[images, height, width, channels]`.
    steps: intervals, 1 or more; each image runs `steps + 1` times.
    batch_size: points of the paths that run at once, which bounds memory; if
      there are fewer images, several points of each. None for 64, or more for
      images under 96x96.
    progress: True for a line on stderr, False for none; None for a line if it
      runs long on a terminal; or a function, called with the number of runs
      done and the number of all runs.

  Returns:
    Signed maps, float32 `[images, height, width]`, in units of the score. A
    map's sum is the score minus the baseline's score, up to the rule's error.
    `integrated_gradients_completeness` reports that error.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, equations 1, 3.
  """
  no_layer(layer)
  images, baseline = _with_baseline(model, images, baseline)
  if steps < 1:
    raise ValueError(f"steps must be 1 or more; got {steps}.")

  def change(pictures, numbers, start):
    shares = tf.cast(numbers, tf.float32) / steps
    shares = tf.reshape(shares, [-1, *[1] * pictures.shape.rank])
    return start + shares * (pictures - start)

  def add(gradients, numbers, total):
    ends = tf.logical_or(tf.equal(numbers, 0), tf.equal(numbers, steps))
    return [total + tf.tensordot(tf.where(ends, 0.5, 1.0), gradients, 1)]

  def finish(pictures, total, start):
    return tf.reduce_sum((pictures - start) * total / steps, -1)

  return over_copies(
      model, images, targets, ("integrated_gradients", steps), baseline,
      name="integrated_gradients", count=steps + 1, sums=1, change=change,
      add=add, finish=finish, batch_size=batch_size, progress=progress)


def integrated_gradients_completeness(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    *,
    baseline: float | np.ndarray = 0.0,
    steps: int = 50,
    batch_size: int | None = None,
    progress: Progress = None,
) -> Completeness:
  """Compares sums of `integrated_gradients` maps with the scores' differences.

  Args:
    model: see `integrated_gradients`.
    images: see `integrated_gradients`.
    targets: see `integrated_gradients`.
    baseline: see `integrated_gradients`.
    steps: see `integrated_gradients`.
    batch_size: see `integrated_gradients`.
    progress: see `integrated_gradients`.

  Returns:
    The score's difference and the map's sum, for each image.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  maps = integrated_gradients(
      model, images, targets, baseline=baseline, steps=steps,
      batch_size=batch_size, progress=progress)
  images, baseline = _with_baseline(model, images, baseline)

  def explain(tap, pictures, seed, start):
    change = tap(pictures).logits - tap(start).logits
    return tf.reduce_sum(change * tf.cast(seed, change.dtype), -1)

  difference = at_pictures(
      model, images, targets, "difference", explain, batch_size, baseline)
  return Completeness(difference, maps.reshape(len(maps), -1).sum(1))


def _with_baseline(model, images, baseline):
  """Returns checked images, and their baselines with channels last."""
  taken = KnownTap(model).input
  images = taken.check(images)
  baseline = np.asarray(baseline, np.float32)
  try:
    return images, taken.pixels(np.broadcast_to(baseline, images.shape))
  except ValueError as error:
    raise ValueError(
        f"baseline must be a number or broadcast to {list(images.shape)}; got "
        f"an array of shape {list(baseline.shape)}.") from error
