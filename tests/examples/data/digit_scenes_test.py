"""Tests of digit_scenes.py: scenes with true masks, and parts kept apart."""

import contextlib
import itertools

import numpy as np
from absl.testing import absltest, parameterized

from tests import export_helpers as helpers

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from sklearn import datasets

  from examples.experiment.data import digit_scenes

PARTS = ("train", "validation", "test")
COUNT = 120


def setUpModule():
  helpers.skip_without_examples()


class PartsTest(parameterized.TestCase):

  def test_no_digit_is_in_two_parts(self):
    whole = datasets.load_digits()
    # Together the parts are the data set, each digit once; so what one has no
    # other has.
    images, classes = map(np.concatenate, zip(
        *(digit_scenes._digits(name) for name in PARTS)))
    self.assertLen(images, len(whole.images))
    rows = np.column_stack([images.reshape(len(images), -1) * 16, classes])
    want = np.column_stack([whole.data, whole.target])
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], want[np.lexsort(want.T)])
    # Nor does a copy of one stand in another.
    for first, second in itertools.combinations(PARTS, 2):
      self.assertNoCommonElements(
          *({digit.tobytes() for digit in digit_scenes._digits(name)[0]}
            for name in (first, second)))

  def test_every_part_has_every_digit(self):
    for name in PARTS:
      _, classes = digit_scenes._digits(name)
      self.assertGreater(np.bincount(classes, minlength=10).min(), 15)

  def test_no_photo_region_is_in_two_parts(self):
    strips = zip(*(digit_scenes._photos(name) for name in PARTS))
    for photo, regions in zip(datasets.load_sample_images().images, strips):
      # Side by side the strips are the photograph.
      np.testing.assert_array_equal(
          np.round(np.concatenate(regions, axis=1) * 255), photo)
      for strip in regions:
        self.assertGreaterEqual(min(strip.shape[:2]), digit_scenes.SIZE)


class ScenesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.scenes = {name: digit_scenes.make_scenes(name, COUNT, seed=3)
                  for name in PARTS}

  @parameterized.parameters(*PARTS)
  def test_shapes_types_and_ranges(self, part):
    images, labels, label_maps = self.scenes[part]
    self.assertEqual(images.shape, (COUNT, 64, 64, 3))
    self.assertEqual(labels.shape, (COUNT, 10))
    self.assertEqual(label_maps.shape, (COUNT, 64, 64))
    self.assertEqual((images.dtype, labels.dtype, label_maps.dtype),
                     (np.float32, np.float32, np.uint8))
    # Of 120 crops of photographs some hold a pixel that is nearly black.
    self.assertBetween(images.min(), 0, 0.1)
    # And some hold a nearly white one: the range is 0..1, not 0..255.
    self.assertBetween(images.max(), 0.9, 1)
    self.assertEqual(set(labels.flat), {0, 1})
    self.assertContainsSubset(
        set(label_maps.flat), {0, *range(1, 11), 255})

  @parameterized.parameters(*PARTS)
  def test_one_to_three_digits_a_scene(self, part):
    counts = self.scenes[part].labels.sum(1)
    self.assertEqual(set(counts), {1, 2, 3})
    # Every digit turns up.
    self.assertGreater(self.scenes[part].labels.sum(0).min(), 5)

  @parameterized.parameters(*PARTS)
  def test_labels_are_those_of_the_masks(self, part):
    for label, label_map in zip(*self.scenes[part][1:]):
      self.assertEqual(
          set(np.unique(label_map)) - {0, 255},
          {digit + 1 for digit in np.flatnonzero(label)})

  def test_class_ids(self):
    self.assertEqual(list(digit_scenes.CLASS_IDS), list(range(1, 11)))

  def test_a_stroke_differs_from_what_is_behind_it(self):
    # Painted in a colour at least .4 from the mean behind, so a solid stroke
    # stands out from the rest of its scene.
    images, _, label_maps = self.scenes["test"]
    contrasts = []
    for image, label_map in zip(images, label_maps):
      solid = (label_map > 0) & (label_map < 255)
      contrasts.append(np.abs(
          image[solid].mean(0) - image[label_map == 0].mean(0)).max())
    # Solid strokes cover by half or more, so that not all of the .4 is left.
    self.assertGreater(np.median(contrasts), 0.3)

  def test_void_is_the_edge_of_strokes(self):
    for label_map in self.scenes["test"].label_maps[:20]:
      solid = (label_map > 0) & (label_map < 255)
      near = np.zeros_like(solid)
      for down, right in itertools.product(range(-3, 4), repeat=2):
        near |= np.roll(solid, (down, right), (0, 1))
      self.assertTrue(near[label_map == 255].all())

  @parameterized.parameters(*PARTS)
  def test_equal_seeds_draw_equal_scenes(self, part):
    np.random.seed(int(part == "test"))  # noqa: NPY002  Must not matter.
    for array, again in zip(
        self.scenes[part], digit_scenes.make_scenes(part, COUNT, seed=3)):
      np.testing.assert_array_equal(array, again)

  def test_other_seeds_and_parts_draw_others(self):
    images = [scenes.images for scenes in self.scenes.values()]
    images.append(digit_scenes.make_scenes("train", COUNT, seed=4).images)
    for first, second in itertools.combinations(images, 2):
      self.assertFalse(np.array_equal(first, second))

  def test_a_longer_set_begins_with_the_shorter(self):
    for longer, shorter in zip(
        self.scenes["test"], digit_scenes.make_scenes("test", 7, seed=3)):
      np.testing.assert_array_equal(longer[:7], shorter)

  def test_drawing_changes_no_global_state(self):
    np.random.seed(0)  # noqa: NPY002
    want = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    digit_scenes.make_scenes("train", 2)
    self.assertEqual(np.random.random(), want)  # noqa: NPY002

  def test_part(self):
    with self.assertRaisesRegex(
        ValueError, "part must be one of .*'train'.*'test'.*; got 'val'"):
      digit_scenes.make_scenes("val", 1)


if __name__ == "__main__":
  absltest.main()
