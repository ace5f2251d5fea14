"""Average ranks, for Spearman's rho and ROC-AUC, and Kendall's tau."""

import numpy as np

__all__ = ["average_ranks", "kendall"]


def average_ranks(values: np.ndarray) -> np.ndarray:
  """Ranks each row; equal values get the mean of their ranks.

  Args:
    values: `[rows, columns]`, finite.

  Returns:
    Ranks from 1, float64, same shape; as `scipy.stats.rankdata(axis=1)`.
  """
  order = np.argsort(values, axis=1, kind="stable")
  sorted_values = np.take_along_axis(values, order, axis=1)
  columns = np.arange(values.shape[1])
  starts = np.ones(values.shape, bool)
  starts[:, 1:] = sorted_values[:, 1:] != sorted_values[:, :-1]
  ends = np.ones(values.shape, bool)
  ends[:, :-1] = starts[:, 1:]
  first = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
  last = np.minimum.accumulate(
      np.where(ends, columns, values.shape[1])[:, ::-1], axis=1)[:, ::-1]
  ranks = np.empty(values.shape)
  np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=1)
  return ranks


def kendall(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """Correlates rows by the order of every pair of columns (tau-b).

  A merge sort counts the pairs out of order. So a row of n columns takes
  n log(n)^2 steps and not n^2.

  Args:
    ours: `[rows, columns]`, finite.
    theirs: the same shape.

  Returns:
    `[rows]`, -1..1; NaN where a row is constant. As `scipy.stats.kendalltau`.

  References:
    Knight 1966, https://doi.org/10.1080/01621459.1966.10480879.
  """
  # Integer ranks replace the values; equal values get equal ranks.
  ours, theirs = (2 * average_ranks(values) for values in (ours, theirs))
  columns = ours.shape[1]
  order = np.lexsort((theirs, ours), axis=1)
  ours, theirs = (np.take_along_axis(values, order, 1)
                  for values in (ours, theirs))
  pairs = columns * (columns - 1) / 2
  both = _tied_pairs(ours * (2 * columns + 1) + theirs)
  tied, other_tied = _tied_pairs(ours), _tied_pairs(np.sort(theirs, axis=1))
  out_of_order = _inversions(theirs)
  difference = pairs - tied - other_tied + both - 2 * out_of_order
  size = np.sqrt((pairs - tied) * (pairs - other_tied))
  return np.divide(difference, size, out=np.full(len(size), np.nan),
                   where=size > 0)


def _tied_pairs(ordered: np.ndarray) -> np.ndarray:
  """Counts the pairs of equal values in rows with equal values adjacent."""
  new = np.ones(ordered.shape, bool)
  new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  columns = np.arange(ordered.shape[1])
  first = np.maximum.accumulate(np.where(new, columns, 0), axis=1)
  return (columns - first).sum(1)  # 0 + 1 + ... within each run of equals.


def _inversions(rows: np.ndarray) -> np.ndarray:
  """Counts the pairs in each row whose first value is larger."""
  count, columns = rows.shape
  size = 1 << max(1, (columns - 1).bit_length())
  rows = np.pad(rows, [(0, 0), (0, size - columns)], constant_values=np.inf)
  total = np.zeros(count)
  width = 1
  while width < size:
    halves = rows.reshape(count, -1, 2 * width)
    order = np.argsort(halves, axis=-1, kind="stable")
    from_left = order < width
    passed = np.cumsum(from_left, axis=-1)
    total += np.where(from_left, 0, width - passed).sum((1, 2))
    rows = np.take_along_axis(halves, order, -1).reshape(count, size)
    width *= 2
  return total
