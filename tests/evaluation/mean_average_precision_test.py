"""Tests of mean_average_precision.py against scikit-learn's."""

import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics

from keras_attr_preserve.evaluation import mean_average_precision


class MeanAveragePrecisionTest(parameterized.TestCase):

  def test_by_hand(self):
    labels = [[1, 0], [0, 1], [1, 0], [0, 0]]
    scores = [[0.9, 5], [0.8, 7], [0.7, 9], [0.1, 1]]
    # Class 0: hits at places 1 and 3, (1 + 2/3) / 2; class 1: at place 2, 1/2.
    self.assertAlmostEqual(
        mean_average_precision(labels, scores), (5 / 6 + 1 / 2) / 2)

  def test_ties_count_at_one_threshold(self):
    # Both at the top score: the precision there is a half, in either order.
    for labels in ([[1], [0], [0]], [[0], [1], [0]]):
      self.assertAlmostEqual(
          mean_average_precision(labels, [[2], [2], [1]]), 0.5)

  @parameterized.product(seed=[*range(4)], values=[2, 4, 10**6])
  def test_against_sklearn(self, seed, values):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (30, 5))
    scores = rng.integers(0, values, (30, 5)).astype(float)
    for each in (scores, -scores / 7, scores.astype(np.float32)):
      # Float64 sums in another order; of float32 scores only the order counts.
      self.assertAlmostEqual(
          mean_average_precision(labels, each),
          metrics.average_precision_score(labels, each, average="macro"),
          places=12)

  def test_no_monotone_scale_matters(self):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (20, 3)), rng.normal(size=(20, 3))
    self.assertEqual(
        mean_average_precision(labels, scores),
        mean_average_precision(labels, 1 / (1 + np.exp(-scores))))

  def test_a_class_without_a_positive_is_left_out(self):
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[1.0, 9], [2, 9], [3, 9]])
    self.assertAlmostEqual(
        mean_average_precision(labels, scores),
        metrics.average_precision_score(labels[:, 0], scores[:, 0]))

  def test_is_no_mean_over_images(self):
    """The official code's fault."""
    labels = np.array([[1, 0], [1, 0], [0, 1]])
    scores = np.array([[3.0, 1], [1, 2], [2, 3]])
    got = mean_average_precision(labels, scores)
    self.assertAlmostEqual(got, ((1 + 2 / 3) / 2 + 1) / 2)
    # The mean over images is .83 here, ours .92.
    self.assertNotAlmostEqual(got, metrics.average_precision_score(
        labels, scores, average="samples"), places=2)

  @parameterized.parameters(
      ([[1, 0]], [[1.0]], r"scores must have .*\[1, 2\]; got \[1, 1\]"),
      ([1, 0], [1.0, 0.5], r"scores must have the labels' shape \[images, cl"),
      ([[1], [0]], [[np.nan], [1]], "scores must be finite; got NaN or inf"),
      ([[1], [0]], [[np.inf], [1]], "scores must be finite; got NaN or inf"),
      ([[0], [0]], [[2], [1]], "labels must mark at least one image"))
  def test_errors(self, labels, scores, message):
    with self.assertRaisesRegex(ValueError, message):
      mean_average_precision(labels, scores)


if __name__ == "__main__":
  absltest.main()
