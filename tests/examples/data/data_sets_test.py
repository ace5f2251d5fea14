"""Tests of the experiments' data: the call, digits, near-duplicates."""

import contextlib
import itertools
import os
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from examples.experiment.data import digit_scenes
from tests import experiment_pictures as helpers
from tests.export.conversion import pretrained_test

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.data.data_sets import load
  from examples.experiment.data.near_duplicates import repeats

PARTS = helpers.PARTS


def setUpModule():
  helpers.skip_without_data()


class LoadTest(parameterized.TestCase):

  def check(self, message, name="digits", **options):
    options.setdefault("limit", 2)
    helpers.refuses(self, message, name, **options)

  def test_digits(self):
    data_sets = load("digits", size=64, seed=3, limit=12)
    self.assertEqual(data_sets.class_names, tuple("0123456789"))
    np.testing.assert_array_equal(data_sets.class_ids, np.arange(1, 11))
    self.assertTrue(data_sets.multi_label)
    for name in PARTS:
      images, labels, label_maps = getattr(data_sets, name)
      want = digit_scenes.make_scenes(name, 12, seed=3)
      self.assertEqual((images.dtype, labels.dtype, label_maps.dtype),
                       (np.uint8, np.float32, np.uint8))
      self.assertTrue(helpers.same_pictures(
          images, np.round(want.images * 255).astype(np.uint8)))
      for label, label_map in zip(labels, label_maps):
        self.assertEqual(set(np.unique(label_map)) - {0, 255},
                         {1 + digit for digit in np.flatnonzero(label)})

  def test_digits_of_another_size(self):
    data_sets = load("digits", size=32, limit=3)
    full = load("digits", size=64, limit=3)
    self.assertEqual(data_sets.test.images.shape, (3, 32, 32, 3))
    # Squashed to half, each pixel is near the mean of four.
    means = full.test.images.reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
    self.assertLess(np.abs(data_sets.test.images - means).mean(), 6)
    # A map's pixel is one of the four.
    four = full.test.label_maps.reshape(3, 32, 2, 32, 2).transpose(
        0, 1, 3, 2, 4).reshape(3, 32, 32, 4)
    self.assertTrue(
        (four == data_sets.test.label_maps[..., None]).any(-1).all())

  def test_how_many_digits(self):
    # Drawn at the full number it takes seconds, so only asked for.
    from examples.experiment.data import data_sets
    self.assertEqual(
        data_sets.SCENES, {"train": 5000, "validation": 600, "test": 1000})

  def test_equal_calls_are_equal(self):
    first, second, third = (
        load("digits", size=16, limit=6, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(itertools.chain(*first[:3]), itertools.chain(*second[:3])):
      np.testing.assert_array_equal(a, b)
    self.assertFalse(np.array_equal(first.train.images, third.train.images))

  def test_chosen_classes_in_their_order(self):
    every = load("digits", size=16, limit=20)
    chosen = load("digits", size=16, limit=20, classes=["7", "2"])
    self.assertEqual(chosen.class_names, ("7", "2"))
    np.testing.assert_array_equal(chosen.class_ids, [8, 3])
    # Scenes of other digits stay: they are what these are told from.
    np.testing.assert_array_equal(
        chosen.train.labels, every.train.labels[:, [7, 2]])
    np.testing.assert_array_equal(chosen.train.images, every.train.images)

  def test_the_absence_of_a_class_as_a_class(self):
    every = load("digits", size=16, limit=20)
    data_sets = load("digits", size=16, limit=20, classes=["7"],
                background_class="no seven")
    self.assertEqual(data_sets.class_names, ("no seven", "7"))
    np.testing.assert_array_equal(data_sets.class_ids, [0, 8])
    self.assertFalse(data_sets.multi_label)
    self.assertEqual(data_sets.train.labels.dtype, np.float32)
    np.testing.assert_array_equal(
        data_sets.train.labels[:, 1], every.train.labels[:, 7])
    np.testing.assert_array_equal(data_sets.train.labels.sum(1), 1)

  @parameterized.parameters(
      ({"size": 0}, "size must be a whole number from 1; got 0"),
      ({"size": 16.0}, "size must be a whole number from 1; got 16.0"),
      ({"size": True}, "size must be a whole number from 1; got True"),
      ({"limit": 0}, "limit must be a whole number from 1; got 0"),
      ({"seed": -1}, "seed must be a whole number from 0; got -1"),
      ({"seed": None}, "seed must be a whole number from 0; got None"),
      ({"classes": "7"}, "classes must be a list of different names.*got '7'"),
      ({"classes": []}, r"classes must be a list .*got \[\]"),
      ({"classes": ["7", "7"]}, "classes must be a list of different names"),
      ({"classes": [7]}, r"classes must be a list .*got \[7\]"),
      ({"classes": ["7", "ten"]},
       r"classes must be among \['0', .*'9'\]; got \['ten'\] too"),
      ({"background_class": "none"}, "background_class must name .*one class"),
      ({"background_class": "none", "classes": ["1", "2"]},
       "background_class must name .*one class in `classes`.*'none'"),
      ({"background_class": "1", "classes": ["1"]}, "background_class must"))
  def test_arguments(self, options, message):
    self.check(message, **options)

  @parameterized.parameters("digit", "/no/such/place", "/no/such/file.npz")
  def test_name(self, name):
    self.check(
        "name must be 'digits', the path of a VOCdevkit folder, .*got "
        f"'{name}'", name)

  def test_a_path_in_the_home_folder(self):
    folder = helpers.new_folder(self)
    np.savez(folder / "mine.npz", images=helpers.noises(40),
             labels=np.arange(40) % 2)
    with mock.patch.dict(os.environ, HOME=str(folder)):
      self.assertLen(load("~/mine.npz", size=8).test.images, 6)

  def test_a_file_of_another_kind(self):
    path = helpers.new_folder(self) / "pictures.zip"
    path.write_text("")
    self.check("name must be 'digits'.*pictures.zip'.$", path)


class RepeatsTest(absltest.TestCase):

  def test_what_repeats(self):
    from PIL import Image
    scenes = digit_scenes.make_scenes("train", 40, seed=1).images
    images = np.round(scenes * 255).astype(np.uint8)
    again = np.stack([
        np.asarray(Image.fromarray(image).resize((40, 40)).resize((64, 64)))
        for image in images])
    np.testing.assert_array_equal(repeats(again[:30], images[10:]),
                                  np.arange(30) >= 10)

  def test_plain_pictures_repeat_nothing(self):
    plain = np.zeros([3, 8, 8, 3], np.uint8) + np.uint8([200, 10, 0])
    self.assertFalse(repeats(plain, plain).any())

  def test_more_than_a_block(self):
    images = helpers.noises(2100, size=4)
    repeated = repeats(images, images[[5, 1000, 2099]])
    self.assertEqual(list(np.flatnonzero(repeated)), [5, 1000, 2099])


class RealFileTest(parameterized.TestCase):
  """PASCAL VOC 2012 images of animals, where they are at hand."""

  @pytest.mark.slow("experiments")
  def test_animals(self):
    name = "voc2012_animals_160.npz"
    path = pretrained_test._needs(
        pretrained_test.DATA, "KAP_DATA_DIR", name)
    data_sets = load(str(path), size=96)
    self.assertEqual([len(split.images) for split in data_sets[:3]],
                     [1948, 233, 418])
    self.assertLen(data_sets.class_names, 12)
    ids = dict(zip(data_sets.class_names, data_sets.class_ids))
    self.assertEqual((ids["bottle"], ids["tvmonitor"]), (5, 20))
    # A class's mask is in the images that have its label, and in no other.
    _, labels, label_maps = data_sets.test
    masks = (label_maps[..., None] == data_sets.class_ids).any((1, 2))
    np.testing.assert_array_equal(masks, labels == 1)
    persons = load(str(path), size=96, classes=["person"],
                   background_class="no person")
    np.testing.assert_array_equal(persons.test.images, data_sets.test.images)
    np.testing.assert_array_equal(persons.class_ids, [0, 15])
    # The README beside the file counts 484.
    self.assertEqual(sum(split.labels[:, 1].sum() for split in persons[:3]),
                     484)

  @pytest.mark.slow("experiments")
  def test_cifar(self):
    path = pretrained_test._needs(
        pretrained_test.DATA, "KAP_DATA_DIR", "cifar10_subset.npz")
    data_sets = load(str(path), size=32)
    self.assertEqual(data_sets.class_names[:2], ("airplane", "automobile"))
    self.assertLen(data_sets.test.images, 1500)
    self.assertLen(data_sets.validation.images, 400)
    self.assertBetween(len(data_sets.train.images), 3590, 3600)


if __name__ == "__main__":
  absltest.main()
