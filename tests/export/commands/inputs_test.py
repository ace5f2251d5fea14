"""Tests of inputs.py's folders of images; the rest in the command's.
"""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.commands.inputs import load_pictures
from tests import tiny


class PicturesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)

  def write(self, name, pixels, encode=tf.io.encode_png):
    (self.folder / name).write_bytes(encode(np.uint8(pixels)).numpy())

  def test_by_hand(self):
    self.write("b.png", [[[0, 51, 255]]])
    self.write("a.PNG", [[[255, 0, 0]]])
    (self.folder / "notes.txt").write_text("no picture")
    got = load_pictures(str(self.folder), (1, 1, 3), ["-1", "1"])
    self.assertEqual(got.dtype, np.float32)
    # Float32 scales by 2 / 255, which rounds.
    np.testing.assert_allclose(
        got, [[[[1, -1, -1]]], [[[-1, -0.6, 1]]]], atol=1e-6)
    np.testing.assert_allclose(
        load_pictures(str(self.folder), (1, 1, 3), ["0", "255"])[1],
        [[[0, 51, 255]]])

  def test_resized(self):
    self.write("a.png", np.repeat([[[[0] * 3, [200] * 3]]], 2, 1)[0])
    got = load_pictures(str(self.folder), (1, 1, 3), ["0", "255"])
    np.testing.assert_allclose(got, np.full((1, 1, 1, 3), 100))
    got = load_pictures(str(self.folder), (4, 6, 3), ["0", "1"])
    self.assertEqual(got.shape, (1, 4, 6, 3))

  def test_grey_and_colour(self):
    self.write("a.png", [[[100], [200]]])  # A grey file.
    for channels in (1, 3):
      # The weights of grey add up to .9999: 200 comes out as 199.98.
      np.testing.assert_allclose(
          load_pictures(str(self.folder), (1, 2, channels), ["0", "255"]),
          np.float32([100, 200]).reshape(1, 1, 2, 1).repeat(channels, -1),
          atol=0.1)
    self.write("a.png", [[[100, 100, 100], [255, 0, 0]]])
    # The weights of grey add up to .9999, of which red's is .2989.
    np.testing.assert_allclose(
        load_pictures(str(self.folder), (1, 2, 1), ["0", "255"]).ravel(),
        [100, 0.2989 * 255], atol=0.1)

  def test_other_formats(self):
    self.write("a.jpg", np.full((8, 8, 3), 100), tf.io.encode_jpeg)
    # JPEG rounds colours and coefficients: two of 255 levels.
    np.testing.assert_allclose(load_pictures(
        str(self.folder), (8, 8, 3), ["0", "255"]), 100, atol=2)

  @parameterized.parameters(None, [["1"]], [["0", "1", "2"]], [["low", "1"]])
  def test_range(self, value_range):
    self.write("a.png", [[[0, 0, 0]]])
    with self.assertRaisesRegex(
        ValueError, "--images_range must say what the model takes for black"):
      load_pictures(str(self.folder), (1, 1, 3), value_range)

  @parameterized.parameters(([None, None, 3],), ([8, 8, 2],))
  def test_models_of_something_else(self, shape):
    self.write("a.png", [[[0, 0, 0]]])
    with self.assertRaisesRegex(ValueError, "fixed size in colour or grey"):
      load_pictures(str(self.folder), shape, ["0", "1"])

  def test_no_pictures(self):
    with self.assertRaisesRegex(ValueError, "holds no pictures .bmp, .jpeg"):
      load_pictures(str(self.folder), (8, 8, 3), ["0", "1"])
    with self.assertRaises(FileNotFoundError):
      load_pictures(str(self.folder / "none"), (8, 8, 3), ["0", "1"])

  @parameterized.parameters(0, 20, 60)
  def test_a_damaged_picture(self, length):
    self.write("a.png", np.zeros((8, 8, 3)))
    whole = (self.folder / "a.png").read_bytes()
    (self.folder / "a.png").write_bytes(whole[:length])
    with self.assertRaisesRegex(ValueError, "'.*a.png' is no whole picture"):
      load_pictures(str(self.folder), (8, 8, 3), ["0", "1"])


if __name__ == "__main__":
  absltest.main()
