"""The sums over a layer's inputs that determine its least squares.

A Conv2D or Dense layer multiplies its windows, row by row, with a matrix.
Fitting a student's layer to a teacher's takes two sums over all rows. One sums
the products of the student's inputs with themselves, the other with the
teacher's. With few rows and many inputs, as in a Dense after a Flatten, the
rows are smaller than their products. Then the rows are kept instead.
"""

import abc

import numpy as np

__all__ = ["DAMPING", "Inverse", "Moments", "MomentsOfRows"]

DAMPING = 1e-2
"""How strongly weights are held to their old values, in units of the inputs'
mean square. Weights that the images do not determine stay."""


class Inverse(abc.ABC):
  """`(H + d)^-1`, of the remaining inputs."""

  @abc.abstractmethod
  def block(self, inputs: np.ndarray) -> np.ndarray:
    """Returns the block of n inputs, `[n, n]`."""

  @abc.abstractmethod
  def without(
      self, gone: np.ndarray, weights: np.ndarray
  ) -> tuple["Inverse", np.ndarray]:
    """Removes inputs and refits the others' weights in least squares.

    Args:
      gone: which to remove, bool, `[inputs]`.
      weights: `[inputs, outputs]`.

    Returns:
      The inverse for the remaining inputs, and their weights.
    """


class Moments(abc.ABC):
  """`H = sum x^T x` and `C = sum x^T z`, over the input rows of two layers.

  A student's layer takes `x` and its teacher's takes `z`. The loss

      sum |x V - z W|^2 + d |V - S|^2

  is least for `(H + d) V = C W + d S`. The weights `V` are held to `S`. The
  damping `d` is `DAMPING` times the mean of `H`'s diagonal, or 1 if that is 0.

  Attributes:
    diagonal: of `H + d`, `[inputs]`.
    damping: `d`.
  """

  def __init__(self, squares: np.ndarray):
    """Takes the diagonal of `H`."""
    self.damping = float(
        DAMPING * np.sum(squares) / len(squares)) or 1.0
    self.diagonal = squares + self.damping

  @abc.abstractmethod
  def finite(self) -> bool:
    """Says whether all sums are finite."""

  @abc.abstractmethod
  def left(self, weights: np.ndarray) -> np.ndarray:
    """Returns `(H + d) V`, of `V`'s shape, `[inputs, outputs]`."""

  @abc.abstractmethod
  def right(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns `C W + d S`, of `S`'s shape."""

  @abc.abstractmethod
  def refitted(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns `V`, of `S`'s shape: `left(V)` is `right(weights, start)`."""

  @abc.abstractmethod
  def inverse(self) -> Inverse:
    """Returns `(H + d)^-1`."""

  @abc.abstractmethod
  def inverse_diagonal(self) -> np.ndarray:
    """Returns the diagonal of `(H + d)^-1`, `[inputs]`."""


class MomentsOfRows:
  """Collects rows, and sums their products once they are too many."""

  def __init__(self) -> None:
    self.count = 0
    self._rows: list[tuple[np.ndarray, np.ndarray]] = []
    self._own = self._cross = 0.0

  def add(self, own: np.ndarray, other: np.ndarray | None = None) -> None:
    """Adds rows.

    Args:
      own: inputs of the student's layer, `[rows, inputs]`, float64.
      other: inputs of the teacher's, `[rows, all]`; the same by default.
    """
    self.count += len(own)
    self._rows.append((own, own if other is None else other))
    if self.count < own.shape[1]:
      return
    for student, teacher in self._rows:
      self._own = self._own + student.T @ student
      if teacher is not student:
        self._cross = self._cross + student.T @ teacher
    self._rows.clear()

  def moments(self) -> Moments:
    """Returns the sums; there must be one row or more."""
    if not self._rows:
      return _Summed(
          self._own, None if np.isscalar(self._cross) else self._cross)
    return _Listed(*map(np.concatenate, zip(*self._rows, strict=True)))


class _Summed(Moments):
  """The sums as matrices, `[inputs, inputs]` and `[inputs, all]`.

  If student and teacher are the same layer, the second matrix equals the first
  and is not kept: `C W + d S = (H + d) W + d (S - W)`.
  """

  def __init__(self, own: np.ndarray, cross: np.ndarray | None):
    super().__init__(np.diag(own))
    self._own = own + self.damping * np.eye(len(own))
    self._cross = cross

  def finite(self) -> bool:
    return all(np.isfinite(matrix).all()
               for matrix in (self._own, self._cross) if matrix is not None)

  def left(self, weights: np.ndarray) -> np.ndarray:
    return self._own @ weights

  def right(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    if self._cross is None:
      return self._own @ weights + self.damping * (start - weights)
    return self._cross @ weights + self.damping * start

  def refitted(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    return np.linalg.solve(self._own, self.right(weights, start))

  def inverse(self) -> Inverse:
    return _InverseMatrix(np.linalg.inv(self._own))

  def inverse_diagonal(self) -> np.ndarray:
    return np.diag(np.linalg.inv(self._own))


class _InverseMatrix(Inverse):
  """The inverse as a matrix, `[inputs, inputs]`."""

  def __init__(self, matrix: np.ndarray):
    self._matrix = matrix

  def block(self, inputs: np.ndarray) -> np.ndarray:
    return self._matrix[np.ix_(inputs, inputs)]

  def without(
      self, gone: np.ndarray, weights: np.ndarray
  ) -> tuple[Inverse, np.ndarray]:
    matrix = self._matrix[~gone]
    across = np.linalg.solve(
        self._matrix[np.ix_(gone, gone)], matrix[:, gone].T).T
    return (_InverseMatrix(
        matrix[:, ~gone] - across @ self._matrix[np.ix_(gone, ~gone)]),
            weights[~gone] - across @ weights[gone])


class _Listed(Moments):
  """The sums as rows, `X` and `Z`: `H` is `X^T X`.

  By Woodbury, `(X^T X + d)^-1 = (1 - X^T K^-1 X) / d` with `K = X X^T + d`, of
  shape `[rows, rows]`.
  """

  def __init__(self, own: np.ndarray, other: np.ndarray):
    super().__init__(np.sum(np.square(own), axis=0))
    self._own, self._other = own, other

  def finite(self) -> bool:
    return bool(np.isfinite(self._own).all() and np.isfinite(self._other).all())

  def left(self, weights: np.ndarray) -> np.ndarray:
    return self._own.T @ (self._own @ weights) + self.damping * weights

  def right(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    return self._own.T @ (self._other @ weights) + self.damping * start

  def refitted(self, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    missing = self._other @ weights - self._own @ start
    return start + self._own.T @ np.linalg.solve(
        _kernel(self._own, self.damping), missing)

  def inverse(self) -> Inverse:
    return _InverseRows(self._own, self.damping)

  def inverse_diagonal(self) -> np.ndarray:
    told = np.linalg.solve(_kernel(self._own, self.damping), self._own)
    return (1 - np.sum(self._own * told, axis=0)) / self.damping


class _InverseRows(Inverse):
  """The inverse by the rows `X` of the remaining inputs."""

  def __init__(self, rows: np.ndarray, damping: float):
    self._rows, self._damping = rows, damping
    self._told = np.linalg.solve(_kernel(rows, damping), rows)

  def block(self, inputs: np.ndarray) -> np.ndarray:
    return (np.eye(len(inputs)) - self._rows[:, inputs].T
            @ self._told[:, inputs]) / self._damping

  def without(
      self, gone: np.ndarray, weights: np.ndarray
  ) -> tuple[Inverse, np.ndarray]:
    left = _InverseRows(self._rows[:, ~gone], self._damping)
    return left, weights[~gone] + left._told.T @ (
        self._rows[:, gone] @ weights[gone])


def _kernel(rows: np.ndarray, damping: float) -> np.ndarray:
  """`X X^T + d`."""
  return rows @ rows.T + damping * np.eye(len(rows))
