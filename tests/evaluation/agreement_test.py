"""Tests of agreement.py against scipy, tf.image and by hand."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from scipy import stats

from keras_attr_preserve.evaluation import agreement
from keras_attr_preserve.evaluation.agreement import AGREEMENT, dead_maps

NAMES = {"cosine", "pearson", "spearman", "ssim", "top_k_iou", "l2"}
# Float64 sums over 30 positions in another order.
PLACES = 12


def _maps(seed, *shape, tied=False):
  """Random maps, of small integers if tied, with zeros as a ReLU leaves."""
  rng = np.random.default_rng(seed)
  maps = np.maximum(rng.normal(size=shape) + 0.3, 0)
  return np.round(2 * maps) if tied else maps


def _ssim(first, second):
  """One window over the whole map: Wang et al.'s formula, by NumPy."""
  size = first.shape[0]
  bell = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / 1.5) ** 2)
  window = np.outer(bell, bell) / bell.sum() ** 2
  mean, other_mean = (window * first).sum(), (window * second).sum()
  spread = (window * first**2).sum() - mean**2
  other_spread = (window * second**2).sum() - other_mean**2
  both = (window * first * second).sum() - mean * other_mean
  c1, c2 = 0.01**2, 0.03**2
  return ((2 * mean * other_mean + c1) * (2 * both + c2)) / (
      (mean**2 + other_mean**2 + c1) * (spread + other_spread + c2))


class AgreementTest(parameterized.TestCase):

  def test_by_hand(self):
    got = agreement([[[3, 4], [0, 0]]], [[[4, 3], [0, 0]]], top_share=0.25)
    self.assertEqual(set(got), NAMES)
    self.assertAlmostEqual(got["cosine"][0], 24 / 25)
    # Centred by 7/4: 24 - 49/4 over 25 - 49/4.
    self.assertAlmostEqual(got["pearson"][0], 11.75 / 12.75)
    # Ranks 3, 4, 1.5, 1.5 and 4, 3, 1.5, 1.5 about 2.5.
    self.assertAlmostEqual(got["spearman"][0], 3.5 / 4.5)
    self.assertEqual(got["top_k_iou"][0], 0)  # One position each, another.
    self.assertAlmostEqual(got["l2"][0], np.sqrt(2) / 5)

  def test_equal_maps(self):
    maps = _maps(0, 3, 5, 6)
    got = agreement(maps, maps)
    for name in NAMES:
      self.assertEqual(got[name].shape, (3,))
      self.assertEqual(got[name].dtype, np.float64)
      # SSIM is computed in float32.
      np.testing.assert_allclose(
          got[name], np.full(3, float(name != "l2")), atol=1e-6)

  @parameterized.product(seed=[*range(3)], tied=[False, True])
  def test_against_scipy(self, seed, tied):
    reference = _maps(seed, 4, 5, 6, tied=tied)
    maps = _maps(seed + 100, 4, 5, 6, tied=tied)
    got = agreement(reference, maps)
    for i in range(4):
      first, second = reference[i].ravel(), maps[i].ravel()
      self.assertAlmostEqual(
          got["pearson"][i], stats.pearsonr(first, second).statistic,
          places=PLACES)
      self.assertAlmostEqual(
          got["spearman"][i], stats.spearmanr(first, second).statistic,
          places=PLACES)
      cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
      self.assertAlmostEqual(got["cosine"][i], cosine, places=PLACES)
      # The root of a small difference has half of float64's digits.
      self.assertAlmostEqual(
          got["l2"][i], np.sqrt(2 * (1 - cosine)), places=7)

  @parameterized.parameters((7, 7), (3, 3))
  def test_ssim_of_one_window_by_hand(self, height, width):
    reference, maps = (_maps(seed, 2, height, width) for seed in (0, 1))
    got = agreement(reference, maps)["ssim"]
    want = [_ssim(first / first.max(), second / second.max())
            for first, second in zip(reference, maps)]
    np.testing.assert_allclose(got, want, atol=1e-5)  # Float32 windows.

  def test_ssim_of_large_maps_against_tensorflow(self):
    reference, maps = (_maps(seed, 2, 16, 20) for seed in (0, 1))
    def picture(one):
      peak = one.max((1, 2), keepdims=True)
      return tf.constant((one / peak)[..., None], tf.float32)
    # SSIM is computed in float32 on both sides.
    np.testing.assert_allclose(
        agreement(reference, maps)["ssim"],
        tf.image.ssim(picture(reference), picture(maps), 1.0), atol=1e-6)

  def test_top_k_iou(self):
    reference = np.arange(20.0).reshape(1, 4, 5)
    maps = reference.copy()
    maps[0, 3, 4] = 0.5  # The strongest position falls out of the top four.
    self.assertEqual(
        agreement(reference, maps, top_share=0.2)["top_k_iou"][0], 3 / 5)
    self.assertEqual(
        agreement(reference, maps, top_share=1.0)["top_k_iou"][0], 1)
    # Never fewer than one position.
    self.assertEqual(
        agreement(reference, maps, top_share=1e-6)["top_k_iou"][0], 0)

  def test_ties_at_the_edge_are_broken_alike(self):
    maps = np.ones((1, 4, 4))
    other = 3 * maps
    self.assertEqual(
        agreement(maps, other, top_share=0.25)["top_k_iou"][0], 1)

  @parameterized.parameters(1e-30, 1e-5, 7.0, 1e30)
  def test_no_scale_matters(self, scale):
    reference, maps = _maps(0, 3, 5, 5), _maps(1, 3, 5, 5)
    want = agreement(reference, maps)
    for got in (agreement(reference, scale * maps),
                agreement(scale * reference, maps)):
      for name in NAMES:
        # SSIM takes float32 of maps over their peaks; a scale rounds anew.
        np.testing.assert_allclose(got[name], want[name], atol=1e-6)

  def test_dead_maps(self):
    reference, maps = _maps(0, 4, 3, 3), _maps(1, 4, 3, 3)
    reference[1] = reference[3] = maps[2] = maps[3] = 0
    np.testing.assert_array_equal(
        dead_maps(reference), [False, True, False, True])
    got = agreement(reference, maps)
    for name, values in got.items():
      self.assertTrue(np.isfinite(values[0]))
      self.assertTrue(np.isnan(values[1]) and np.isnan(values[3]), name)
      self.assertEqual(values[2], np.sqrt(2) if name == "l2" else 0)

  def test_flat_maps_have_no_correlation(self):
    flat, maps = np.full((1, 3, 3), 0.1), _maps(1, 1, 3, 3)
    correlations = ("pearson", "spearman", "kendall")
    for reference in (flat, -flat, flat[:, :1, :1]):
      # Nothing to agree with, not even with itself.
      got = agreement(reference, reference, scores=AGREEMENT)
      for name in AGREEMENT:
        self.assertEqual(np.isnan(got[name][0]), name in correlations, name)
    for name, values in agreement(maps, flat, scores=correlations).items():
      self.assertEqual(values[0], 0, name)
    got = agreement(flat, maps)
    self.assertTrue(np.isnan(got["spearman"][0]))
    self.assertAlmostEqual(
        got["cosine"][0], maps.sum() / 3 / np.linalg.norm(maps))

  def test_does_not_change_its_arguments(self):
    reference, maps = _maps(0, 2, 3, 3), _maps(1, 2, 3, 3)
    copies = reference.copy(), maps.copy()
    agreement(reference, maps)
    np.testing.assert_array_equal((reference, maps), copies)

  @parameterized.parameters(np.nan, np.inf)
  def test_not_finite(self, value):
    good, bad = _maps(0, 2, 3, 3), _maps(1, 2, 3, 3)
    bad[1, 2, 2] = value
    with self.assertRaisesRegex(ValueError, "maps must be finite; got NaN or"):
      agreement(good, bad)
    with self.assertRaisesRegex(ValueError, "reference must be finite; got "):
      agreement(bad, good)

  @parameterized.parameters(
      ((2, 3), (2, 3), {}, r"reference must be \[images, .*; got \[2, 3\]"),
      ((0, 3, 3), (0, 3, 3), {}, r"reference must .*; got \[0, 3, 3\]"),
      ((2, 3, 3), (2, 3, 3, 1), {}, r"maps must be .*; got \[2, 3, 3, 1\]"),
      ((2, 3, 3), (2, 3, 4), {},
       r"maps must have the reference's shape \[2, 3, 3\]; got \[2, 3, 4\]"),
      ((2, 3, 3), (2, 3, 3), {"top_share": 0},
       r"top_share must be in \(0, 1\]; got 0"),
      ((2, 3, 3), (2, 3, 3), {"top_share": 1.5},
       r"top_share must be in \(0, 1\]; got 1.5"))
  def test_errors(self, reference, maps, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      agreement(np.ones(reference), np.ones(maps), **settings)


class MoreScoresTest(absltest.TestCase):

  def test_by_hand(self):
    reference = np.array([[[4.0, 2.0, 0.0, -2.0]], [[1.0, 0, 0, 0]],
                          [[0.0, 0, 0, 0]]])
    maps = np.array([[[2.0, 1.0, 1.0, -1.0]], [[0.0, 0, 0, 0]],
                     [[1.0, 0, 0, 0]]])
    got = agreement(reference, maps, scores=("kendall", "sign", "rmse"))
    # Six pairs, one tied in the maps: 5 / sqrt(6 * 5). Peaks 4 and 2: the third
    # place differs by .5. A dead map; a dead reference.
    np.testing.assert_allclose(got["kendall"], [5 / 30**0.5, 0, np.nan])
    np.testing.assert_allclose(got["sign"], [0.75, 0, np.nan])
    np.testing.assert_allclose(got["rmse"], [0.25, 1, np.nan])
    with self.assertRaisesRegex(ValueError, "scores must be out of"):
      agreement(reference, maps, scores=("tau",))


if __name__ == "__main__":
  absltest.main()
