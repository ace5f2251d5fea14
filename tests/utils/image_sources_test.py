"""Tests of image_sources.py: images from generators, datasets and lists."""

import itertools
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.utils import image_sources
from keras_attr_preserve.utils.checks import check_images
from tests import export_helpers as helpers

IMAGES = np.arange(24, dtype=np.float32).reshape(4, 2, 1, 3)
LABELS = np.arange(4)


class _Sequence(keras.utils.Sequence):

  def __len__(self):
    return 2

  def __getitem__(self, number):
    batch = slice(2 * number, 2 * number + 2)
    return IMAGES[batch], LABELS[batch]


def _dataset(*arrays):
  return tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else arrays[0])


# Each gives IMAGES, in the ways that public code does.
SOURCES = {
    "array": lambda: IMAGES,
    "lists_of_numbers": IMAGES.tolist,
    "list_of_images": lambda: [*IMAGES],
    "tensor": lambda: tf.constant(IMAGES),
    "list_of_batches": lambda: [IMAGES[:3], IMAGES[3:]],
    "list_of_tensors": lambda: [tf.constant(IMAGES[:3]), IMAGES[3:]],
    "list_of_lists": lambda: [[image[None]] for image in IMAGES],
    "list_of_pairs": lambda: [(IMAGES[:2], LABELS[:2]),
                              (IMAGES[2:], LABELS[2:])],
    # TensorFlow Lite's own convention, with and without signatures.
    "function": lambda: lambda: ([image[None]] for image in IMAGES),
    "function_of_mappings": lambda: lambda: (
        {"input_1": image[None]} for image in IMAGES),
    "generator": lambda: ([image[None]] for image in IMAGES),
    "generator_of_images": lambda: iter(IMAGES),
    "keras_generator": lambda: (
        [IMAGES[i:i + 2], LABELS[i:i + 2]] for i in (0, 2)),
    "sequence": _Sequence,
    "dataset": lambda: _dataset(IMAGES),
    "dataset_of_batches": lambda: _dataset(IMAGES).batch(3).prefetch(1),
    "dataset_with_labels": lambda: _dataset(IMAGES, LABELS).batch(3),
    "dataset_of_mappings": lambda: tf.data.Dataset.from_tensor_slices(
        {"label": LABELS, "image": IMAGES}).batch(3),
    "dataset_of_bytes": lambda: _dataset(IMAGES.astype(np.uint8)),
}


class GatheredTest(parameterized.TestCase):

  @parameterized.parameters(*SOURCES)
  def test_every_form(self, name):
    got = check_images(SOURCES[name](), (2, 1, 3))
    self.assertEqual(got.dtype, np.float32)
    np.testing.assert_array_equal(got, IMAGES)

  @parameterized.parameters(
      ("words", TypeError, "must be numbers"),
      (3, ValueError, "must have shape"),
      (lambda: 3, TypeError, "a function without arguments that gives them"),
      (lambda: iter([]), ValueError, "photos gave no image; a generator is"),
      ([[IMAGES, IMAGES]], TypeError, "gives lists of 2 arrays"),
      (lambda: iter([{"a": IMAGES, "b": IMAGES}]), TypeError,
       r"gives mappings of \['a', 'b'\]"),
      ((IMAGES, LABELS), ValueError, r"photos must give images of one shape"),
      ([IMAGES, IMAGES[:, :1]], ValueError,
       r"got \[\[4, 2, 1, 3\], \[4, 1, 1, 3\]\]"),
      (lambda: iter([LABELS]), ValueError, r"got \[\[4\]\]"),
      ({"images": IMAGES}, TypeError, "must be numbers"))
  def test_what_is_none(self, source, error, words):
    with self.assertRaisesRegex(error, words):
      check_images(source, (2, 1, 3), "photos")

  @parameterized.parameters(
      lambda: itertools.repeat(IMAGES), lambda: _dataset(IMAGES).repeat())
  def test_what_does_not_end(self, make):
    with mock.patch.object(image_sources, "MOST", 50), self.assertRaisesRegex(
        ValueError, r"photos must end: .* more than 50 images; take some"):
      check_images(make(), (2, 1, 3), "photos")


class UsersTest(parameterized.TestCase):
  """Functions with representative images take all their forms."""

  @pytest.mark.slow("files")
  def test_convert(self):
    images = helpers.calibration()
    want = kap.export.convert(
        helpers.net(), helpers.wcam(), representative_images=images)
    # The converter names tensors by number: equal but for that.
    want = kap.export.Interpreter(want)
    for source in (lambda: ([image[None]] for image in images),
                   tf.data.Dataset.from_tensor_slices(
                       (images, np.zeros(32))).batch(5)):
      got = kap.export.Interpreter(kap.export.convert(
          helpers.net(), helpers.wcam(), representative_images=source))
      self.assertEqual(got.metadata, want.metadata)
      np.testing.assert_array_equal(
          got.predict(images), want.predict(images))

  @parameterized.parameters(
      "selective", "recalibrate_batch_norm", "calibrate_quantizers")
  def test_others(self, name):
    images = helpers.calibration()
    seen = []

    def check(given, *arguments):
      seen.append(check_images(given, *arguments))
      raise KeyboardInterrupt  # It was asked; what follows is slow.
    with mock.patch("keras_attr_preserve.models.inputs.check_images", check), (
        self.assertRaises(KeyboardInterrupt)):
      source = ([image[None]] for image in images)
      if name == "selective":
        kap.export.selective(helpers.net(), helpers.wcam(), source)
      else:
        getattr(kap, name)(helpers.net(), source)
    np.testing.assert_array_equal(seen[0], images)


if __name__ == "__main__":
  absltest.main()
