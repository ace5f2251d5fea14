"""Tests of rise.py: scores of randomly masked images."""

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import rise
from tests import export_helpers as helpers
from tests import tiny


def seen_masks(size=(8, 8), **settings):
  """The masks as a model of an all-white image sees them, and its map."""
  seen = []
  def predict(batch):
    seen.extend(batch[..., 0])
    return np.arange(len(seen) - len(batch), len(seen), dtype=float)[:, None]
  maps = rise(predict, np.ones((1, *size, 1)), 1, **settings)
  return np.stack(seen[1:]), maps[0]  # The first is the image itself.


class FormulaTest(parameterized.TestCase):

  @parameterized.parameters(0.5, 0.2)
  def test_equation_6_by_the_masks_a_model_sees(self, keep):
    masks, got = seen_masks(masks=30, cells=3, keep=keep, batch_size=7)
    self.assertEqual(masks.shape, (30, 8, 8))
    scores = np.arange(1, 31)  # 0 was the image itself.
    # Float32 masks and maps.
    np.testing.assert_allclose(
        got, np.einsum("n,nhw->hw", scores, masks) / (keep * 30), 1e-5)
    _, centred = seen_masks(masks=30, cells=3, keep=keep, centred=True)
    # Float32 masks and maps; most of each sum cancels once centred.
    np.testing.assert_allclose(
        centred, np.einsum("n,nhw->hw", scores - scores.mean(), masks)
        / (keep * 30), atol=1e-4)

  def test_a_mask_by_hand(self):
    # Two cells, an image 4 wide: cells of 2, enlarged to 6, cut at 0 or 1.
    # Bilinear from (0 1): positions (i + .5) / 3 - .5, clamped to 0..1.
    bend = np.array([[1, 0], [1, 0], [2 / 3, 1 / 3], [1 / 3, 2 / 3], [0, 1],
                     [0, 1]])
    masks, _ = seen_masks((4, 4), masks=60, cells=2)
    rng = np.random.default_rng(0)
    grids = rng.random((60, 2, 2)) < 0.5
    shifts = rng.integers(0, [2, 2], (60, 2))
    self.assertEqual(set(shifts.ravel()), {0, 1})
    for mask, grid, (down, across) in zip(masks, grids, shifts):
      want = (bend @ grid @ bend.T)[down:down + 4, across:across + 4]
      # Bilinear weights in float32, masks of 0 to 1.
      np.testing.assert_allclose(mask, want, atol=1e-6)

  def test_masks_keep_the_share(self):
    for keep in (0.3, 0.5):
      masks, _ = seen_masks((9, 7), masks=4000, cells=4, keep=keep)
      self.assertEqual((masks.min(), masks.max()), (0, 1))
      # Of 4000 draws the share shown is off by .008, one sigma.
      np.testing.assert_allclose(masks.mean(0), keep, atol=0.03)

  def test_finds_the_pixel_that_counts(self):
    images = np.ones((2, 12, 12, 1), np.float32)
    def predict(batch):
      return np.stack([batch[:, 2, 9, 0], batch[:, 8, 3, 0]], 1)
    maps = rise(predict, images, [0, 1], cells=4, centred=True)
    # E: Cov(m_p, m_q) / keep, largest at the pixel itself and 0 far away.
    for values, (down, across) in zip(maps, [(2, 9), (8, 3)]):
      self.assertLess(np.hypot(*np.subtract(
          np.unravel_index(values.argmax(), values.shape), (down, across))), 2)
      self.assertLess(np.abs(values[::11, ::11][
          (1, 0) if down < 6 else (0, 1)]).max(), 0.1 * values.max())

  def test_a_constant_score_says_nothing_once_centred(self):
    images = np.ones((1, 6, 6, 1), np.float32)
    def predict(batch):
      return np.full((len(batch), 1), 7.0)
    plain = rise(predict, images, masks=500, cells=3)
    # The share that 500 masks show is off by some 2 %, of 7.
    self.assertAlmostEqual(float(plain.mean()), 7, delta=0.5)
    self.assertGreater(plain.std(), 0.01)  # The noise of 500 masks.
    # Float32 sums of 64 masks against float64 ones; 7 cancels but for those.
    np.testing.assert_allclose(
        rise(predict, images, masks=500, cells=3, centred=True), 0, atol=1e-5)


class ProbesTest(parameterized.TestCase):

  def test_the_same_for_every_image_and_model(self):
    image = helpers.images(1)
    model = helpers.net("block")
    maps = rise(model, np.repeat(image, 3, 0), 0, masks=20)
    # Float32 convolutions of equal batches; nothing else may differ.
    np.testing.assert_allclose(maps[1:], maps[:1].repeat(2, 0), atol=1e-6)
    runner = kap.export.Interpreter(helpers.converted("block"))
    # Float32 sums of LiteRT's kernels and TensorFlow's, in another order.
    np.testing.assert_allclose(
        rise(runner.predict, image, 0, masks=20), maps[:1], atol=1e-4)
    # A hundred times the runtimes' difference: other masks must show.
    self.assertFalse(np.allclose(
        rise(model, image, 0, masks=20, seed=1), maps[:1], atol=1e-2))

  @parameterized.parameters(1, 3, 64)
  def test_the_batch_size_does_not_matter(self, batch_size):
    model, images = tiny.conv_net(), tiny.images(3)
    # Float32 convolutions of batches of another size.
    np.testing.assert_allclose(
        rise(model, images, masks=10, cells=2, batch_size=batch_size),
        rise(model, images, masks=10, cells=2), atol=1e-5)

  def test_targets(self):
    model, images = tiny.conv_net(), tiny.images(4)
    top = model(images).numpy().argmax(1)
    want = rise(model, images, top, masks=9)
    np.testing.assert_array_equal(rise(model, images, masks=9), want)
    np.testing.assert_array_equal(
        rise(model, images, np.eye(3)[top], masks=9), want)
    self.assertFalse(np.allclose(want, rise(model, images, 0, masks=9)))

  @parameterized.parameters((1, 1, 1), (5, 3, 7), (2, 9, 2), (8, 8, 1))
  def test_any_size(self, height, width, cells):
    images = np.random.default_rng(0).normal(size=(2, height, width, 3))
    maps = rise(lambda batch: batch.mean((1, 2)), images, masks=5, cells=cells)
    self.assertEqual((maps.shape, maps.dtype), (
        (2, height, width), np.float32))
    self.assertTrue(np.isfinite(maps).all())

  def test_progress_and_batches(self):
    calls, sizes = [], []
    def predict(batch):
      sizes.append(len(batch))
      return batch.mean((1, 2))
    rise(predict, np.ones((2, 4, 4, 2)), masks=5, batch_size=3,
         progress=lambda *counts: calls.append(counts))
    self.assertEqual(calls, [(3, 10), (6, 10), (8, 10), (10, 10)])
    self.assertEqual(max(sizes), 3)

  @parameterized.parameters(
      ({"masks": 0}, "masks must be a whole number of 1 or more; got 0"),
      ({"masks": 2.5}, "masks must be a whole number"),
      ({"masks": True}, "masks must be a whole number"),
      ({"cells": 0}, "cells must be a whole number of 1 or more"),
      ({"seed": -1}, "seed must be a whole number of 0 or more; got -1"),
      ({"keep": 0}, "keep must be between 0 and 1; got 0"),
      ({"keep": 1}, "keep must be between 0 and 1; got 1"),
      ({"keep": float("nan")}, "keep must be between 0 and 1; got nan"),
      ({"batch_size": 0}, "batch_size must be 1 or more"),
      ({"targets": 5}, "targets must be class numbers"),
      ({"images": np.zeros((6, 6, 2))}, "images must have shape"))
  def test_errors(self, changed, message):
    settings = {"images": tiny.images(2), "masks": 2, **changed}
    with self.assertRaisesRegex(ValueError, message):
      rise(tiny.conv_net(), **settings)


if __name__ == "__main__":
  absltest.main()
