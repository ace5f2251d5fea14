"""Tests of localization.py against scikit-learn and brute force."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from sklearn import metrics

from keras_attr_preserve.evaluation import (
  box_masks,
  centre_prior,
  localization,
)
from keras_attr_preserve.evaluation.localization import VOID, mask_pairs


def _pairs(seed, count=4, height=6, width=7, values=None):
  """Maps (of so many values, for ties), masks and valid pixels."""
  rng = np.random.default_rng(seed)
  maps = rng.uniform(size=(count, height, width))
  if values is not None:
    maps = np.floor(maps * values)
  masks = rng.uniform(size=maps.shape) < 0.3
  valid = rng.uniform(size=maps.shape) < 0.8
  valid[:, 0, :2] = True
  masks[:, 0, 0], masks[:, 0, 1] = True, False
  return maps, masks, valid


def _pointing(values, mask, valid, tolerance):
  """Of the strongest valid pixels the share near a pixel of the mask."""
  inside = np.argwhere(mask & valid)
  peaks = np.argwhere(valid & (values == values[valid].max()))
  near = [(np.hypot(*(inside - peak).T) <= tolerance).any() for peak in peaks]
  return np.mean(near)


class BoxesTest(absltest.TestCase):

  def test_by_hand(self):
    got = box_masks([[0, 1, 2, 3], [0.4, 0, 1.4, 1]], 2, 4)
    np.testing.assert_array_equal(got[0], [[0, 1, 1, 0], [0, 1, 1, 0]])
    # The middle of the first row, .5, is inside; that of the second is not.
    np.testing.assert_array_equal(got[1], [[1, 0, 0, 0], [0, 0, 0, 0]])
    for bad in ([0, 0, 2, 4], [0.6, 0, 1.4, 1]):
      with self.assertRaisesRegex(ValueError, "box 1 is"):
        box_masks([[0, 1, 2, 3], bad], 2, 4)


class ThresholdsTest(parameterized.TestCase):

  @parameterized.product(seed=[*range(3)], values=[None, 2, 5])
  def test_precision_against_sklearn_and_overlap_by_force(self, seed, values):
    maps, masks, valid = _pairs(seed, values=values)
    got = localization(maps, masks, valid)
    for i in range(len(maps)):
      hits, known = masks[i][valid[i]], maps[i][valid[i]].astype(np.float32)
      # Float64 sums of at most 42 terms in another order; ratios of counts.
      self.assertAlmostEqual(
          got["average_precision"][i],
          metrics.average_precision_score(hits, known), places=10)
      best = max((hits & (known >= threshold)).sum()
                 / (hits | (known >= threshold)).sum() for threshold in known)
      self.assertAlmostEqual(got["best_iou"][i], best, places=10)

  def test_a_dead_map(self):
    masks = np.zeros([1, 2, 2], bool)
    masks[0, 0, 0] = True
    got = localization(np.zeros([1, 2, 2]), masks)
    self.assertEqual(got["average_precision"][0], 0.25)
    self.assertEqual(got["best_iou"][0], 0.25)


class LocalizationTest(parameterized.TestCase):

  def test_by_hand(self):
    maps = [[[4.0, 3], [2, 1]]]
    masks = np.array([[[True, False], [True, False]]])
    got = localization(maps, masks)
    # 4 beats 3 and 1; 2 beats 1 alone: three of four pairs.
    self.assertEqual(got["roc_auc"][0], 0.75)
    self.assertEqual(got["pointing"][0], 1)
    self.assertAlmostEqual(got["energy_inside"][0], 0.6)
    # Without the 4: 2 beats 1 and not 3; the peak is 3, outside; 2 of 6.
    valid = np.array([[[False, True], [True, True]]])
    got = localization(maps, masks, valid)
    self.assertEqual(got["roc_auc"][0], 0.5)
    self.assertEqual(got["pointing"][0], 0)
    self.assertAlmostEqual(got["energy_inside"][0], 2 / 6)
    # From 3, at (0, 1), to 2, at (1, 0), it is sqrt(2): more than one pixel.
    self.assertEqual(
        localization(maps, masks, valid, tolerance=1)["pointing"][0], 0)
    # The pointing game's own tolerance, in pixels.
    self.assertEqual(
        localization(maps, masks, valid, tolerance=2)["pointing"][0], 1)

  @parameterized.product(seed=[*range(3)], values=[None, 2, 5])
  def test_auc_against_sklearn_without_void(self, seed, values):
    maps, masks, valid = _pairs(seed, values=values)
    got = localization(maps, masks, valid)["roc_auc"]
    self.assertEqual(got.dtype, np.float64)
    for i in range(len(maps)):
      # Float64: ours counts ranks, scikit-learn sums trapezoids.
      self.assertAlmostEqual(got[i], metrics.roc_auc_score(
          masks[i][valid[i]], maps[i][valid[i]]), places=12)

  @parameterized.product(seed=[*range(3)], values=[None, 3],
                         tolerance=[0, 1, 2, 3, 5])
  def test_pointing_against_distances(self, seed, values, tolerance):
    maps, masks, valid = _pairs(seed, height=8, width=6, values=values)
    masks &= np.random.default_rng(seed).uniform(size=masks.shape) < 0.3
    masks[:, 0, 0] = True
    got = localization(maps, masks, valid, tolerance=tolerance)["pointing"]
    want = [_pointing(*row, tolerance) for row in zip(maps, masks, valid)]
    # Shares of tied pixels, float64 ratios of small counts.
    np.testing.assert_allclose(got, want, rtol=1e-12)

  @parameterized.parameters(
      *[(side, tolerance) for side in (4, 10, 14) for tolerance in (6, 15)])
  def test_a_tolerance_beyond_the_picture(self, side, tolerance):
    maps, masks, valid = _pairs(0, height=side, width=side)
    masks[:] = False
    masks[:, 0, 0] = True
    maps[:, -1, -1] = 2
    got = localization(maps, masks, valid, tolerance=tolerance)["pointing"]
    want = [_pointing(*row, tolerance) for row in zip(maps, masks, valid)]
    # Shares of tied pixels, float64 ratios of small counts.
    np.testing.assert_allclose(got, want, rtol=1e-12)

  def test_the_allowed_pixels_are_round(self):
    """Of a lone pixel in the middle: those within five pixels, no more."""
    masks = np.zeros((1, 13, 13), bool)
    masks[0, 6, 6] = True
    for place in np.ndindex(13, 13):
      maps = np.zeros((1, 13, 13))
      maps[(0, *place)] = 1
      # The pointing game's own tolerance, in pixels.
      got = localization(maps, masks, tolerance=5)["pointing"][0]
      self.assertEqual(
          got, (place[0] - 6) ** 2 + (place[1] - 6) ** 2 <= 25, place)

  def test_each_pair_has_allowed_pixels_of_its_own(self):
    """In the official code an image's classes shared them by mistake."""
    maps = np.zeros((2, 5, 5))
    maps[:, 0, 0] = 1
    masks = np.zeros((2, 5, 5), bool)
    masks[0, 0, 0] = masks[1, 4, 4] = True
    # The pointing game's own tolerance, in pixels.
    np.testing.assert_array_equal(
        localization(maps, masks, tolerance=1)["pointing"], [1, 0])

  def test_energy(self):
    maps, masks, valid = _pairs(0)
    got = localization(maps, masks, valid)["energy_inside"]
    want = [values[mask & known].sum() / values[known].sum()
            for values, mask, known in zip(maps, masks, valid)]
    np.testing.assert_allclose(got, want, rtol=1e-6)  # Maps become float32.

  def test_void_counts_nowhere(self):
    maps, masks, valid = _pairs(1)
    other = maps.copy()
    other[~valid] = 100.0
    flipped = np.where(valid, masks, ~masks)
    # The pointing game's own tolerance, in pixels.
    want, got = (localization(maps, masks, valid, tolerance=1),
                 localization(other, flipped, valid, tolerance=1))
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])

  def test_a_dead_map_is_chance(self):
    masks = np.zeros((1, 4, 5), bool)
    masks[0, 0] = True
    got = localization(np.zeros((1, 4, 5)), masks)
    self.assertEqual(got["roc_auc"][0], 0.5)
    self.assertEqual(got["pointing"][0], 0.25)  # 5 of 20 tied pixels.
    self.assertEqual(got["energy_inside"][0], 0)

  def test_small_maps_are_resized(self):
    maps = np.random.default_rng(0).uniform(size=(2, 3, 4)).astype(np.float32)
    _, masks, valid = _pairs(0, count=2, height=9, width=8)
    large = tf.image.resize(maps[..., None], (9, 8)).numpy()[..., 0]
    got, want = (localization(values, masks, valid) for values in (maps, large))
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])
    self.assertTrue((np.diff(want["roc_auc"]) != 0).all())

  @parameterized.parameters(
      ({"masks": np.zeros((1, 2, 2), int)},
       r"masks must be bool .*; got int64 of shape \[1, 2, 2\]"),
      ({"masks": np.zeros((2, 2), bool)},
       r"masks must be bool \[pairs, .*; got bool of shape \[2, 2\]"),
      ({"maps": np.zeros((2, 2, 2))},
       r"maps must be \[1, height, width\], .*; got \[2, 2, 2\]"),
      ({"maps": np.zeros((1, 2, 2, 1))}, r"maps must be .*; got \[1, 2, 2, 1"),
      ({"maps": np.full((1, 2, 2), np.nan)}, "maps must be finite and not neg"),
      ({"maps": np.full((1, 2, 2), -1.0)}, "maps must be finite and not neg"),
      ({"valid": np.ones((1, 2, 2))},
       r"valid must be bool of the masks' shape \[1, 2, 2\]; got float64"),
      ({"valid": np.ones((1, 2, 3), bool)}, r"valid must .*; got bool of shape "
       r"\[1, 2, 3\]"),
      ({"tolerance": -1}, "tolerance must be 0 or more; got -1"),
      ({"masks": np.zeros((1, 2, 2), bool)}, "masks must each hold a pixel in"),
      ({"masks": np.ones((1, 2, 2), bool)}, "masks must each .* mask_pairs"),
      ({"valid": np.array([[[False, True], [True, True]]])},
       "masks must each hold .* not void"))
  def test_errors(self, changed, message):
    masks = np.zeros((1, 2, 2), bool)
    masks[0, 0, 0] = True
    settings = {"maps": np.ones((1, 2, 2)), "masks": masks, **changed}
    with self.assertRaisesRegex(ValueError, message):
      localization(**settings)


class MaskPairsTest(parameterized.TestCase):

  def test_by_hand(self):
    label_maps = np.array([
        [[0, 1], [0, 1]],  # Classes 0 and 1.
        [[1, 1], [VOID, VOID]],  # All known pixels are class 1.
        [[2, VOID], [0, 0]],
        [[VOID, VOID], [VOID, VOID]],
    ], np.uint8)
    pictures, classes = mask_pairs(label_maps, np.array([1, 2, 7]))
    # Class numbers index class_ids: label 1 is class 0, label 2 is class 1.
    self.assertEqual(list(zip(pictures, classes)), [(0, 0), (2, 1)])

  def test_every_pair_it_lists_can_be_judged(self):
    rng = np.random.default_rng(0)
    label_maps = rng.choice([0, 1, 2, VOID], (30, 2, 2))
    class_ids = np.array([1, 2])
    pictures, classes = mask_pairs(label_maps, class_ids)
    self.assertBetween(len(pictures), 1, 59)
    masks = label_maps[pictures] == class_ids[classes][:, None, None]
    got = localization(
        np.ones(masks.shape), masks, label_maps[pictures] != VOID)
    np.testing.assert_array_equal(got["roc_auc"], np.full(len(masks), 0.5))
    # And every other cannot.
    skipped = {(i, k) for i in range(30) for k in range(2)} - set(
        zip(pictures, classes))
    for i, k in skipped:
      with self.assertRaisesRegex(ValueError, "masks must each hold"):
        localization(np.ones((1, 2, 2)), label_maps[[i]] == class_ids[k],
                     label_maps[[i]] != VOID)

  @parameterized.parameters(
      (np.zeros((2, 2), int), r"got int64 of shape \[2, 2\]"),
      (np.zeros((1, 2, 2)), r"got float64 of shape \[1, 2, 2\]"))
  def test_errors(self, label_maps, message):
    with self.assertRaisesRegex(
        ValueError, r"label_maps must be integers \[images, .*" + message):
      mask_pairs(label_maps, np.array([1]))

  @parameterized.parameters(([],), ([VOID],), ([1.0],), (1,))
  def test_bad_classes(self, class_ids):
    with self.assertRaisesRegex(ValueError, "class_ids must be labels"):
      mask_pairs(np.eye(3, dtype=int)[None], class_ids)

  def test_all_void(self):
    pictures, classes = mask_pairs(np.full((2, 3, 3), VOID), [1, 2])
    self.assertEqual((len(pictures), len(classes)), (0, 0))


class CentrePriorTest(absltest.TestCase):

  def test_a_gaussian_of_a_quarter_of_each_side(self):
    got = centre_prior(8, 20)
    self.assertEqual((got.shape, got.dtype), ((8, 20), np.float32))
    down = (np.arange(8) + 0.5 - 4) / 2
    across = (np.arange(20) + 0.5 - 10) / 5
    # A float64 product of exponentials, rounded to float32: 6e-8.
    np.testing.assert_allclose(got, np.exp(
        -(down[:, None] ** 2 + across**2) / 2), rtol=1e-5)

  def test_peaks_at_the_middle(self):
    got = centre_prior(5, 7)
    self.assertEqual(got[2, 3], 1)
    self.assertEqual((got == 1).sum(), 1)
    # Mirrored places are computed alike, up to the last bit of float32.
    np.testing.assert_allclose(got, got[::-1, ::-1], rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
