"""Tests of drawing.py: images beside maps, and the labelled PNG."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve.utils.drawing import labelled_png, side_by_side
from tests import tiny

STRIP = 18
GAP = 4


def drawn(images, *maps, **settings):
  settings = {"heads": ("picture", "map")[:1 + len(maps)],
              "labels": [f"image {i}" for i in range(len(images))], **settings}
  png = labelled_png(images, *maps, **settings)
  assert png.startswith(b"\x89PNG\r\n\x1a\n")
  return tf.io.decode_png(png).numpy()


class SideBySideTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3, 4)
  def test_panels(self, channels):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 70, 90, channels)) * 1000
    maps = rng.uniform(size=(2, 5, 6)), rng.uniform(size=(2, 100, 100))
    drawn = side_by_side(images, *maps)
    self.assertEqual(drawn.dtype, np.uint8)
    self.assertEqual(drawn.shape, (2, 70, 3 * 90 + 2 * GAP, 3))
    for start in (90, 180 + GAP):
      self.assertTrue((drawn[:, :, start:start + GAP] == 255).all())
    scaled = (images - images.min()) / np.ptp(images) * 255
    if channels != 3:
      scaled = np.repeat(scaled.mean(-1, keepdims=True), 3, -1)
    # Rounding to whole greys: half a step.
    np.testing.assert_allclose(drawn[:, :, :90], scaled, atol=0.51)

  def test_colours_by_hand(self):
    # A grey half-bright image; a map of one live column, and a dead one.
    images = np.full((2, 65, 65, 1), 5.0)
    maps = np.zeros((2, 65, 65))
    maps[0, :, 40] = 7e-9
    maps[0, :, 41] = -3
    drawn = side_by_side(images, maps, value_range=(0, 10))
    grey = drawn[0, 0, 0].astype(float)
    np.testing.assert_array_equal(grey, [128, 128, 128])
    overlay = drawn[:, :, 65 + GAP:]
    blue = np.round(0.6 * np.array([24, 26, 110]) + 0.4 * 127.5)
    yellow = np.round(0.6 * np.array([255, 236, 70]) + 0.4 * 127.5)
    np.testing.assert_array_equal(
        overlay[1], np.broadcast_to(blue, overlay[1].shape))
    np.testing.assert_array_equal(
        overlay[0, :, 40], np.broadcast_to(yellow, (65, 3)))
    np.testing.assert_array_equal(
        overlay[0, :, 41], np.broadcast_to(blue, (65, 3)))

  def test_brighter_all_the_way(self):
    images = np.zeros((1, 100, 200, 3))
    ramp = np.broadcast_to(np.linspace(0, 1, 200), (1, 100, 200))
    drawn = side_by_side(images, ramp)[0, 50, 200 + GAP:].astype(float)
    light = drawn @ [0.2126, 0.7152, 0.0722]
    self.assertGreaterEqual(np.diff(light).min(), -1)
    self.assertGreater(light[-1] - light[0], 100)

  def test_small_pictures_grow(self):
    images = tiny.images(2, size=6)
    maps = np.zeros((2, 3, 3))
    maps[:, 2, 0] = 1
    drawn = side_by_side(images, maps)
    self.assertEqual(drawn.shape, (2, 126, 252 + GAP, 3))
    np.testing.assert_array_equal(drawn[:, 0, 0], drawn[:, 20, 20])
    yellow = drawn[0, :, 126 + GAP:, 0].astype(int) - drawn[0, :, :126, 0] * 0.4
    row, column = np.unravel_index(yellow.argmax(), yellow.shape)
    self.assertGreater(row, 80)
    self.assertLess(column, 42)

  @parameterized.parameters(0.0, 3.0)
  def test_a_picture_of_one_value(self, value):
    drawn = side_by_side(np.full((1, 64, 64, 3), value), np.ones((1, 2, 2)))
    self.assertEqual(drawn[0, :, :128].max(), 0)

  def test_values_beyond_the_range(self):
    images = np.linspace(-1, 2, 100 * 100 * 3).reshape(1, 100, 100, 3)
    drawn = side_by_side(images, value_range=(0, 1))
    self.assertEqual(drawn[0, 0, 0, 0], 0)
    self.assertEqual(drawn[0, -1, -1, 0], 255)


class LabelledTest(parameterized.TestCase):

  @parameterized.parameters((3, 96, 96), (2, 8, 8), (1, 130, 200))
  def test_rows_under_strips(self, count, height, width):
    images = np.random.default_rng(0).random((count, height, width, 3))
    maps = np.random.default_rng(1).random((count, 4, 4))
    got = drawn(images, maps)
    rows = side_by_side(images, maps)
    step = STRIP + rows.shape[1]
    self.assertEqual(
        got.shape, (STRIP + count * step, rows.shape[2], 3))
    for i, row in enumerate(rows):
      top = STRIP + i * step
      np.testing.assert_array_equal(got[top + STRIP:top + step], row)
      strip = got[top:top + STRIP]
      self.assertEqual(strip.max(), 255)
      self.assertLess(strip.min(), 100)  # A text in black.
    for start in (0, rows.shape[2] // 2):  # A head over each column.
      self.assertLess(got[:STRIP, start:start + 60].min(), 100)

  def test_text_says_what_is_asked(self):
    image = np.zeros((1, 64, 64, 3))
    first, same, other = (drawn(image, labels=[text])
                          for text in ("0.51", "0.51", "0.52"))
    np.testing.assert_array_equal(first, same)
    self.assertFalse(np.array_equal(first, other))

  def test_long_text_is_not_cut(self):
    image = np.zeros((1, 128, 128, 3))
    got = drawn(image, labels=["image 12345: cosine 0.1234567890"])
    self.assertGreater(got.shape[1], 180)
    self.assertEqual(got[2 * STRIP:, 128:].min(), 255)  # Padded in white.
    self.assertLess(got[STRIP:2 * STRIP, 128:].min(), 100)

  def test_the_range(self):
    image = np.full((1, 64, 64, 3), 5.0)
    self.assertEqual(
        drawn(image, value_range=(0, 10))[-1, 0].tolist(), [128] * 3)


if __name__ == "__main__":
  absltest.main()
