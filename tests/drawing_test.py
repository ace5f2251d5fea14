"""Tests of drawing.py's labelled PNG; the rest is in agreement_logger_test."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve.drawing import labelled_png, side_by_side

STRIP = 18


def drawn(images, *maps, **settings):
  settings = {"heads": ("picture", "map")[:1 + len(maps)],
              "labels": [f"image {i}" for i in range(len(images))], **settings}
  png = labelled_png(images, *maps, **settings)
  assert png.startswith(b"\x89PNG\r\n\x1a\n")
  return tf.io.decode_png(png).numpy()


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
    one, same, other = (drawn(image, labels=[text])
                        for text in ("0.51", "0.51", "0.52"))
    np.testing.assert_array_equal(one, same)
    self.assertFalse(np.array_equal(one, other))

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
