"""Fills in missing pixels from their neighbours."""

import numpy as np

__all__ = ["impute"]

# Neighbours across an edge count twice as much as neighbours across a corner.
_NEIGHBOURS = tuple(((down, right), 1 / 6 if 0 in (down, right) else 1 / 12)
                    for down in (-1, 0, 1) for right in (-1, 0, 1)
                    if (down, right) != (0, 0))


def impute(
    image: np.ndarray, missing: np.ndarray, *, tolerance: float = 1e-4
) -> np.ndarray:
  """Makes each missing pixel the weighted mean of its eight neighbours.

  Missing neighbours count with their filled values. So all missing pixels form
  one system of linear equations, symmetric and positive, which conjugate
  gradients solve. At the border the existing neighbours share the weight.

  Args:
    image: `[height, width, channels]`.
    missing: bool `[height, width]`, not True everywhere.
    tolerance: residual at which the solver stops, as a share of the right side.

  Returns:
    The filled image, float64.

  Raises:
    ValueError: all pixels are missing.

  References:
    Rong et al. 2022, https://arxiv.org/abs/2202.00449, equation 6.
  """
  if missing.all():
    raise ValueError("missing must leave a pixel to start from.")
  image = image.astype(np.float64)
  gaps = missing[..., None]
  degree = _summed(np.ones([*missing.shape, 1]))
  known = np.where(gaps, 0, image)
  right = np.where(gaps, _summed(known), 0)

  def apply(values):
    return np.where(gaps, degree * values - _summed(values), 0)

  filled = np.zeros_like(image)
  rest = right.copy()
  way = rest.copy()
  power = (rest**2).sum((0, 1))
  enough = (tolerance**2) * power
  for _ in range(4 * max(missing.shape) + int(missing.sum())):
    if (power <= enough).all():
      break
    moved = apply(way)
    slope = (way * moved).sum((0, 1))
    step = np.divide(power, slope, out=np.zeros_like(power), where=slope > 0)
    filled += step * way
    rest -= step * moved
    new = (rest**2).sum((0, 1))
    way = rest + np.divide(
        new, power, out=np.zeros_like(new), where=power > 0) * way
    power = new
  return np.where(gaps, filled, image)


def _summed(values: np.ndarray) -> np.ndarray:
  """Adds up each pixel's weighted neighbours inside the image."""
  height, width = values.shape[:2]
  padded = np.pad(values, [(1, 1), (1, 1), (0, 0)])
  return sum(weight * padded[1 + down:1 + down + height,
                             1 + right:1 + right + width]
             for (down, right), weight in _NEIGHBOURS)
