"""Tests of ranks.py against scipy's."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from keras_attr_preserve.evaluation.ranks import average_ranks, kendall


class AverageRanksTest(parameterized.TestCase):

  def test_by_hand(self):
    np.testing.assert_array_equal(
        average_ranks(np.array([[30, 10, 20, 10], [5, 5, 5, 5]])),
        [[4, 1.5, 3, 1.5], [2.5, 2.5, 2.5, 2.5]])

  @parameterized.product(
      seed=[*range(5)], values=[2, 5, 10**6], columns=[1, 2, 37])
  def test_against_scipy(self, seed, values, columns):
    """Of 2 values nearly all tie, of 10^6 nearly none."""
    rows = np.random.default_rng(seed).integers(0, values, (4, columns))
    for array in (rows, rows / 7, -rows, rows.astype(np.float32)):
      np.testing.assert_array_equal(
          average_ranks(array), stats.rankdata(array, axis=1))

  def test_leaves_its_argument(self):
    values = np.array([[3.0, 1.0]])
    average_ranks(values)
    np.testing.assert_array_equal(values, [[3, 1]])


class KendallTest(parameterized.TestCase):

  def test_by_hand(self):
    # Pairs of (1, 3), (2, 1), (3, 2): two out of order, one in order.
    np.testing.assert_allclose(
        kendall(np.array([[1, 2, 3]]), np.array([[3, 1, 2]])), [-1 / 3])

  @parameterized.product(
      seed=[*range(4)], values=[2, 5, 10**6], columns=[2, 3, 37, 64, 65])
  def test_against_scipy(self, seed, values, columns):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, values, (2, 4, columns)) / 7
    want = [stats.kendalltau(a, b).statistic for a, b in zip(first, second)]
    # Pairs are counted exactly; roots and quotients round in float64.
    np.testing.assert_allclose(kendall(first, second), want, atol=1e-12)


if __name__ == "__main__":
  absltest.main()
