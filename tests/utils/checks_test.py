"""Tests of checks.py: images are checked before anything is computed."""

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve.utils.checks import check_images

SHAPE = (4, 5, 3)


class CheckImagesTest(parameterized.TestCase):

  def test_float32_is_handed_on_untouched(self):
    images = np.zeros((2, *SHAPE), np.float32)
    self.assertIs(check_images(images, SHAPE), images)

  @parameterized.parameters(np.float64, np.float16, np.uint8, np.int64, bool)
  def test_other_numbers_become_float32(self, dtype):
    images = np.ones((2, *SHAPE), dtype)
    got = check_images(images, SHAPE)
    self.assertEqual(got.dtype, np.float32)
    np.testing.assert_array_equal(got, np.ones((2, *SHAPE)))

  def test_lists_are_taken(self):
    self.assertEqual(check_images([[[[1]]]], (1, 1, 1)).shape, (1, 1, 1, 1))

  def test_any_size_where_the_model_takes_any(self):
    images = np.zeros((2, 9, 7, 3))
    self.assertEqual(
        check_images(images, (None, None, 3)).shape, (2, 9, 7, 3))
    with self.assertRaisesRegex(ValueError, "any, any, 1"):
      check_images(images, (None, None, 1))

  @parameterized.parameters(
      ((4, 5, 3),), ((2, 5, 4, 3),), ((2, 4, 5, 1),), ((0, 4, 5, 3),),
      ((2, 1, 4, 5, 3),), ((),))
  def test_another_shape(self, shape):
    got = ", ".join(map(str, shape))
    with self.assertRaisesRegex(
        ValueError, r"photos must have shape \[at least 1, 4, 5, 3\]; got "
        rf"\[{got}\]"):
      check_images(np.zeros(shape), SHAPE, "photos")

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_not_finite(self, value):
    images = np.zeros((3, *SHAPE))
    images[0, 1, 1, 1] = images[0, 2, 2, 2] = images[2, 0, 0, 0] = value
    with self.assertRaisesRegex(
        ValueError, "images must be finite; 2 of 3 hold NaN or infinity"):
      check_images(images, SHAPE)

  def test_too_large_for_float32(self):
    images = np.full((1, *SHAPE), 1e300)
    with np.errstate(over="ignore"), self.assertRaisesRegex(
        ValueError, "images must be finite; 1 of 1"):
      check_images(images, SHAPE)

  @parameterized.parameters("<U3", object, np.complex64)
  def test_no_numbers(self, dtype):
    with self.assertRaisesRegex(
        TypeError, "images must be numbers; got an array of "):
      check_images(np.zeros((1, *SHAPE)).astype(dtype), SHAPE)


if __name__ == "__main__":
  absltest.main()
