"""Least squares for one layer: removing weights and refitting the others."""

import math

import numpy as np

from keras_attr_preserve.compression.least_squares.moments import Moments

__all__ = ["ROUND_SHARE", "prune_linear"]

ROUND_SHARE = 0.1
"""Share of the remaining weights that one round removes; OBS itself removes one
weight at a time."""

ITERATIONS = 40
"""The most steps of conjugate gradients to refit a round's weights."""

ROUND_TOLERANCE = 1e-2
"""The share of the residual at which a round's refit ends. The last round's
goes on to `TOLERANCE`."""

TOLERANCE = 1e-9
"""The share of the residual at which the last refit ends."""


def prune_linear(
    weights: np.ndarray, moments: Moments, *, kept: int
) -> np.ndarray:
  """Prunes a linear layer and refits the remaining weights, in rounds.

  Minimizes the sum of `|x V - z W|^2` over the rows `x` of a student's inputs
  and `z` of a teacher's. `V` has `kept` nonzeros. A weight's cost is
  `V_i^2 / (H^-1)_ii` with `H = sum x^T x`: the loss after the others of its
  column are refitted. Each round removes the weights of least cost, then refits
  the others.

  Args:
    weights: `W`, `[inputs, outputs]`.
    moments: of the rows.
    kept: how many weights stay, 1 or more.

  Returns:
    `V`, of `W`'s shape and dtype. Weights of inputs that are always zero stay
    as they are, and go first.

  References:
    Hassibi and Stork 1992, equation 5. Here one inverse, of all inputs, serves
    all columns, also after a column has lost some.
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
  """Solves `moments.left(V) = target` for the remaining weights.

  Conjugate gradients, preconditioned by the diagonal, solve all columns at
  once.
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
  """Divides; gives 0 for a solved column, where both are 0."""
  return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
