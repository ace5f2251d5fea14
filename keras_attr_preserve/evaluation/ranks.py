"""Ranks with ties averaged, which Spearman's rho and ROC-AUC both rest on."""

import numpy as np

__all__ = ["average_ranks"]


def average_ranks(values: np.ndarray) -> np.ndarray:
  """Ranks each row, giving equal values the mean of the ranks they share.

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
