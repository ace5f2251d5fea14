"""Tests of faithfulness.py and imputation.py."""

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve.evaluation.faithfulness import (
  deletion,
  insertion,
  road,
  sensitivity_n,
)
from keras_attr_preserve.evaluation.imputation import impute

WEIGHTS = np.array([[4.0, 3.0], [2.0, 1.0]])


def _linear(images):
  """A score that adds up weighted pixels, and its negative."""
  score = (images[..., 0] * WEIGHTS).sum((1, 2))
  return np.stack([score, -score], 1)


class CurvesTest(parameterized.TestCase):

  def test_deletion_by_hand(self):
    images = np.ones([1, 2, 2, 1])
    curves = deletion(_linear, images, WEIGHTS[None], 0, steps=4)
    np.testing.assert_allclose(curves.shares, [0, .25, .5, .75, 1])
    np.testing.assert_allclose(curves.scores, [[10, 6, 3, 1, 0]])
    # Trapezoids: (8 + 4.5 + 2 + .5) / 4.
    np.testing.assert_allclose(curves.area, [3.75])
    worse = deletion(_linear, images, -WEIGHTS[None], 0, steps=4)
    np.testing.assert_allclose(worse.scores, [[10, 9, 7, 4, 0]])

  def test_insertion_by_hand(self):
    curves = insertion(_linear, np.ones([1, 2, 2, 1]), WEIGHTS[None], None,
                       steps=2, baseline=0.5)
    np.testing.assert_allclose(curves.scores, [[5, 8.5, 10]])

  def test_insertion_starts_from_a_blur(self):
    image = np.zeros([1, 16, 16, 1])
    image[0, 8, 8] = 1
    curves = insertion(lambda batch: batch.max((1, 2)), image,
                       image[..., 0], 1, steps=1)
    # A Gaussian of deviation 2 leaves (.3989 / 2)^2 = .0398 of a lone pixel,
    # and a little more where it is cut off at both ends; rounding is below it.
    self.assertAlmostEqual(curves.scores[0, 0], 0.0399, delta=2e-4)
    self.assertEqual(curves.scores[0, 1], 1)
    flat = insertion(lambda batch: batch.mean((1, 2)), np.full(
        [1, 9, 7, 1], 3.0), np.ones([1, 9, 7]), 1)
    # The Gaussian's weights sum to 1 but for float32 rounding.
    np.testing.assert_allclose(flat.scores, 3, rtol=1e-5)

  def test_maps_are_enlarged_and_classes_are_each_images_own(self):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[3, 8, 8, 2])
    def predict(batch):
      return np.stack([batch[:, :4].sum((1, 2, 3)),
                       batch[:, 4:].sum((1, 2, 3))], 1)
    upper = np.repeat([[[1.0, 1.0], [0.0, 0.0]]], 3, 0)
    curves = deletion(predict, images, upper, [0, 1, 0], steps=2, batch_size=2)
    # Zeros sum up to 0; pixels that were left in the half would add tenths.
    np.testing.assert_allclose(curves.scores[[0, 2], 1], 0, atol=1e-6)
    # Float32 sums of the same 64 values; a pixel less would be a hundredth.
    np.testing.assert_allclose(
        curves.scores[1, 1], curves.scores[1, 0], rtol=1e-5)

  def test_road_fills_in(self):
    # A score of differences between neighbours sees the outline of zeros, and
    # little of the filled pixels.
    image = np.linspace(1, 2, 64).reshape(1, 8, 8, 1)
    def rough(batch):
      return np.abs(np.diff(batch, axis=2)).sum((1, 2, 3))[:, None]
    maps = np.zeros([1, 8, 8])
    maps[0, 3:5, 3:5] = 1
    share = 4 / 64
    steps = round(1 / share)
    zeros = deletion(rough, image, maps, 1, steps=steps).scores[0, :2]
    filled = road(rough, image, maps, 1, steps=steps, noise=0.0).scores[0, :2]
    self.assertGreater(zeros[1], 2 * zeros[0])
    # A ramp is its neighbours' mean and comes back, but for float32; zeros
    # multiply the score.
    np.testing.assert_allclose(filled[1], filled[0], rtol=1e-4)

  def test_bad_arguments(self):
    images, maps = np.ones([1, 2, 2, 1]), WEIGHTS[None]
    for change, message in (
        ({"maps": maps[0]}, r"maps must be \[1, height, width\]"),
        ({"maps": maps * np.nan}, "maps must be finite"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"baseline": np.ones(3)}, "baseline must be a number")):
      with self.assertRaisesRegex(ValueError, message):
        deletion(**{"predict": _linear, "images": images, "maps": maps,
                    **change})
    with self.assertRaisesRegex(ValueError, "noise must be 0"):
      road(_linear, images, maps, noise=-1.0)


class SensitivityTest(absltest.TestCase):

  def test_a_linear_net_by_its_weights(self):
    rng = np.random.default_rng(0)
    images = rng.uniform(1, 2, [2, 2, 2, 1])
    maps = images[..., 0] * WEIGHTS
    got = sensitivity_n(_linear, images, maps, 0, shares=(0.25, 0.5))
    # The score sees float32 images, the maps were made of float64 ones.
    np.testing.assert_allclose(got, 1, atol=1e-6)
    np.testing.assert_allclose(
        sensitivity_n(_linear, images, -maps, 0, shares=(0.25,)), -1, atol=1e-6)
    np.testing.assert_allclose(
        sensitivity_n(_linear, images, maps, 1, shares=(0.5,)), -1, atol=1e-6)
    self.assertTrue(np.isnan(sensitivity_n(
        _linear, images, np.ones_like(maps), 0, shares=(0.5,))).all())


class ImputeTest(absltest.TestCase):

  def test_by_hand(self):
    # One missing pixel in the middle: sides 2, corners 5.
    image = np.full([3, 3, 1], 5.0)
    image[[0, 1, 1, 2], [1, 0, 2, 1]] = 2
    missing = np.zeros([3, 3], bool)
    missing[1, 1] = True
    filled = impute(image, missing)
    np.testing.assert_allclose(filled[1, 1], 4 * 2 / 6 + 4 * 5 / 12)
    np.testing.assert_array_equal(filled[~missing], image[~missing])

  def test_each_is_the_mean_of_its_neighbours(self):
    rng = np.random.default_rng(1)
    image, missing = rng.uniform(size=[9, 11, 3]), rng.uniform(
        size=[9, 11]) < 0.6
    # The solver's residual, far below the 1e-6 that the means are held to.
    filled = impute(image, missing, tolerance=1e-10)
    for row, column in np.argwhere(missing):
      total, weight = 0.0, 0.0
      for down in (-1, 0, 1):
        for right in (-1, 0, 1):
          r, c = row + down, column + right
          if (down, right) != (0, 0) and 0 <= r < 9 and 0 <= c < 11:
            share = 1 / 6 if 0 in (down, right) else 1 / 12
            total, weight = total + share * filled[r, c], weight + share
      # The solver's residual. Its usual 1e-4 would leave too much.
      np.testing.assert_allclose(filled[row, column], total / weight, rtol=1e-6)
    with self.assertRaisesRegex(ValueError, "must leave a pixel"):
      impute(image, np.ones([9, 11], bool))


if __name__ == "__main__":
  absltest.main()
