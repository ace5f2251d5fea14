"""Confidence intervals of a mean, and the scores of chance."""

from collections.abc import Callable

import numpy as np

from keras_attr_preserve.evaluation.agreement import agreement

__all__ = ["confidence_interval", "random_floor"]


def confidence_interval(
    values: np.ndarray,
    *,
    statistic: Callable[..., np.ndarray] = np.mean,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
  """Bootstraps an interval for a statistic of one value per image.

  Args:
    values: `[images]`, not infinite; NaN is left out. With a single value the
      interval is that value, and says nothing about its uncertainty.
    statistic: a function of an array that takes `axis`.
    level: share of the resampled statistics inside, between 0 and 1.
    draws: number of resamplings, 100 or more.
    seed: of the drawing.

  Returns:
    The percentiles (1 - level) / 2 and (1 + level) / 2 of the statistic over
    images drawn with replacement; NaN twice where no value is left.

  Raises:
    ValueError: an argument is not as above.

  References:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1:
    raise ValueError(f"values must be [images]; got {list(values.shape)}.")
  if np.isinf(values).any():
    raise ValueError("values must not be infinite.")
  if not 0 < level < 1:
    raise ValueError(f"level must be between 0 and 1; got {level}.")
  if draws < 100:
    raise ValueError(f"draws must be 100 or more; got {draws}.")
  values = values[~np.isnan(values)]
  if not len(values):
    return float("nan"), float("nan")
  rng = np.random.default_rng(seed)
  resampled = [
      statistic(values[rng.integers(0, len(values), len(values))], axis=0)
      for _ in range(draws)]
  low, high = np.percentile(
      resampled, [50 * (1 - level), 50 * (1 + level)])
  return float(low), float(high)


def random_floor(
    reference: np.ndarray, *, kind: str = "other_image", seed: int = 0,
    **settings,
) -> dict[str, np.ndarray]:
  """Scores unrelated maps, as a baseline for the scores of a method.

  Maps of late layers are smooth and peak in the middle. So the maps of two
  different images have a high cosine anyway.

  Args:
    reference: `[images, height, width]`.
    kind: "other_image" compares each map with another image's map; "noise" with
      uniform noise.
    seed: of the drawing.
    **settings: arguments of `agreement`.

  Returns:
    The result of `agreement`.

  Raises:
    ValueError: an argument is not as above, or one image alone.
  """
  reference = np.asarray(reference, np.float64)
  rng = np.random.default_rng(seed)
  if kind == "noise":
    return agreement(reference, rng.uniform(size=reference.shape), **settings)
  if kind != "other_image":
    raise ValueError(
        f"kind must be 'other_image' or 'noise'; got {kind!r}.")
  if len(reference) < 2:
    raise ValueError("reference must hold two images or more; got one.")
  order = rng.permutation(len(reference))
  others = np.empty(len(reference), int)
  others[order] = np.roll(order, 1)  # One cycle, so no image meets itself.
  return agreement(reference, reference[others], **settings)
