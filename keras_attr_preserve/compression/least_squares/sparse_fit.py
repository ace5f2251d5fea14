"""Least squares for one layer: which weights go, and what the others become."""

import math

import numpy as np

from keras_attr_preserve.compression.least_squares.moments import Moments

__all__ = ["ROUND_SHARE", "prune_linear"]

ROUND_SHARE = 0.1
"""Share of what is left that one round removes; OBS itself removes one weight
at a time."""

ITERATIONS = 40
"""Of conjugate gradients, at most, to refit what a round leaves."""

ROUND_TOLERANCE = 1e-2
"""What is left of the residual where a round's refit ends; the next round opens
another. The last round's goes on to `TOLERANCE`."""

TOLERANCE = 1e-9
"""What is left of it in the end."""


def prune_linear(
    weights: np.ndarray, moments: Moments, *, kept: int
) -> np.ndarray:
  """Prunes a linear layer and refits what is left, in rounds.

  Minimizes the sum over the rows `x` of a student's inputs and `z` of a
  teacher's, of `|x V - z W|^2`, over matrices `V` with so many nonzeros. In
  each round those weights go that cost least when all others of their column
  make up for them, `V_i^2 / (H^-1)_ii` with `H = sum x^T x`; then the others
  are refitted.

  Args:
    weights: `W`, `[inputs, outputs]`.
    moments: of the rows.
    kept: how many weights stay, 1 or more.

  Returns:
    `V`, of `W`'s shape and dtype. Weights of inputs that are always zero stay
    as they are, and go first.

  References:
    Hassibi and Stork 1992, equation 5, with the inverse of all inputs also
    where some have gone from a column: one inverse serves all columns.
  """
  start = weights.astype(np.float64)
  target = moments.right(start, start)
  spread = moments.inverse_diagonal()[:, None]
  left = np.ones(weights.shape, bool)
  rounds = max(1, math.ceil(
      math.log(kept / left.size) / math.log(1 - ROUND_SHARE)))
  fitted = _refitted(start, moments, target, left, ROUND_TOLERANCE)
  for number in range(1, rounds + 1):
    losses = np.where(left, np.square(fitted) / spread, np.inf)
    stay = round(left.size * (kept / left.size) ** (number / rounds))
    gone = np.argsort(losses, axis=None, kind="stable")[:left.sum() - stay]
    left.flat[gone] = False
    fitted = _refitted(
        fitted, moments, target, left,
        ROUND_TOLERANCE if number < rounds else TOLERANCE)
  return fitted.astype(weights.dtype)


def _refitted(
    weights: np.ndarray, moments: Moments, target: np.ndarray,
    left: np.ndarray, tolerance: float) -> np.ndarray:
  """Has `moments.left` give what is wanted, by weights in the places left.

  By conjugate gradients, preconditioned by the diagonal, all columns at once.
  """
  scale = moments.diagonal[:, None]
  fitted = weights * left
  residual = (target - moments.left(fitted)) * left
  enough = max(tolerance * np.linalg.norm(residual),
               TOLERANCE * np.linalg.norm(target))
  step, last = 0.0, np.ones(weights.shape[1])
  for _ in range(ITERATIONS):
    if np.linalg.norm(residual) <= enough:
      break
    slope = residual / scale
    now = np.sum(residual * slope, axis=0)
    step = slope + step * _ratio(now, last)
    image = moments.left(step) * left
    length = _ratio(now, np.sum(step * image, axis=0))
    fitted, residual = fitted + length * step, residual - length * image
    last = now
  return fitted


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  """Divides; 0 where a column is solved and both are."""
  return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
