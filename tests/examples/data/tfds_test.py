"""Tests of tfds.py, on a stand-in that has the calls which it makes."""

import contextlib
import sys
import types
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from tests import experiment_pictures as helpers

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.data.data_sets import load
  from examples.experiment.data.reading import Picture, read

NAMES = ("cat", "dog", "cow")
LABELS = types.SimpleNamespace(names=NAMES)
MANY = types.SimpleNamespace(feature=LABELS)
BOXES = types.SimpleNamespace(feature={"label": LABELS, "bbox": None})
SKIP = object()


def setUpModule():
  helpers.skip_without_data()


def pictures(count: int, seed: int) -> list[bytes]:
  return [helpers.encoded(helpers.noise(100 * seed + i))
          for i in range(count)]


class StandIn(types.ModuleType):
  """What tensorflow_datasets 4.9 answers to the calls that are made."""

  def __init__(self, features, splits):
    super().__init__("tensorflow_datasets")
    self.features, self.splits = features, splits
    self.prepared, self.read = False, 0
    self.decode = types.SimpleNamespace(SkipDecoding=lambda: SKIP)

  def builder(self, name):
    assert name == "tiny/1"
    return types.SimpleNamespace(
        info=types.SimpleNamespace(
            features={"image": None, **self.features}, splits=self.splits),
        download_and_prepare=self.prepare, as_dataset=self.dataset)

  def prepare(self):
    self.prepared = True

  def dataset(self, split, decoders):
    assert self.prepared
    assert decoders == {"image": SKIP}
    return split

  def as_numpy(self, split):
    for example in self.splits[split]:
      self.read += 1
      yield example


class TfdsTest(parameterized.TestCase):

  def load(self, module, **options):
    with mock.patch.dict(sys.modules, tensorflow_datasets=module):
      return load("tfds:tiny/1", size=16, **options)

  def check(self, message, module, **options):
    with self.assertRaisesRegex(ValueError, message):
      self.load(module, **options)

  def exclusive(self, **counts):
    return StandIn({"label": LABELS}, {
        split: [{"image": image, "label": np.int64(i % 3)}
                for i, image in enumerate(pictures(count, len(split)))]
        for split, count in counts.items()})

  def voc(self, key="labels_no_difficult", test_labels=False):
    """Two classes per image, the second of them difficult."""
    def examples(split):
      for i, image in enumerate(pictures(9, len(split))):
        told = split != "test" or test_labels
        both = np.array([i % 3, (i + 1) % 3][:2 * told], np.int64)
        yield {"image": image, "labels": both,
               "labels_no_difficult": both[:1],
               "objects": {"label": both,
                           "is_difficult": np.arange(len(both)) > 0}}
    features = {"objects": BOXES}
    if key != "objects":
      features["labels"] = MANY
    if key == "labels_no_difficult":
      features[key] = MANY
    return StandIn(features, {
        split: [*examples(split)] for split in ("test", "train", "validation")})

  def test_exclusive_classes(self):
    data = self.load(self.exclusive(train=12, validation=4, test=5))
    self.assertEqual(data.class_names, NAMES)
    np.testing.assert_array_equal(data.class_ids, 0)
    self.assertFalse(data.multi_label)
    for split, count in zip(data[:3], (12, 4, 5)):
      self.assertEqual(split.images.shape, (count, 16, 16, 3))
      np.testing.assert_array_equal(split.labels.sum(1), 1)
      self.assertIsNone(split.label_maps)
    # Each image with its own label.
    every, _ = read([
        Picture("", pixels) for pixels in pictures(12, len("train"))], 16)
    for image, row in zip(*data.train[:2]):
      which = (every == image).all((1, 2, 3)).argmax()
      np.testing.assert_array_equal(row, np.eye(3)[which % 3])

  def test_no_validation(self):
    data = self.load(self.exclusive(train=20, test=5))
    self.assertEqual([len(split.images) for split in data[:3]], [18, 2, 5])
    # What validation takes is not missing from a limited train.
    data = self.load(self.exclusive(train=20, test=5), limit=4)
    self.assertEqual([len(split.images) for split in data[:3]], [4, 1, 4])

  @parameterized.parameters("labels_no_difficult", "objects")
  def test_difficult_objects_do_not_count(self, key):
    data = self.load(self.voc(key, test_labels=True))
    self.assertTrue(data.multi_label)
    for split in data[:3]:
      np.testing.assert_array_equal(split.labels.sum(0), [3, 3, 3])

  def test_all_labels_where_none_is_marked(self):
    data = self.load(self.voc("labels", test_labels=True))
    np.testing.assert_array_equal(data.test.labels.sum(0), [6, 6, 6])

  def test_a_test_split_without_labels(self):
    module = self.voc()
    data = self.load(module)
    self.assertEqual([len(split.images) for split in data[:3]], [8, 1, 9])
    np.testing.assert_array_equal(data.test.labels.sum(1), 1)
    want = self.load(self.voc(test_labels=True))
    self.assertTrue(helpers.same_pictures(
        data.test.images, want.validation.images))
    # -1 is what exclusive labels have there.
    module = self.exclusive(train=12, validation=6, test=5)
    for example in module.splits["test"]:
      example["label"] = np.int64(-1)
    self.assertLen(self.load(module).test.images, 6)

  def test_classes_and_limit(self):
    module = self.exclusive(train=90, validation=40, test=50)
    data = self.load(module, classes=["cow", "cat"], limit=4)
    self.assertEqual(data.class_names, ("cow", "cat"))
    for split in data[:3]:
      self.assertLen(split.images, 4)
      np.testing.assert_array_equal(split.labels.sum(1), 1)
    self.assertLess(module.read, 30)  # No more than are needed.
    data = self.load(module, classes=["cow"], background_class="no cow",
                     limit=6)
    np.testing.assert_array_equal(data.test.labels.sum(0), [4, 2])

  def test_the_library_is_missing(self):
    with mock.patch.dict(sys.modules, tensorflow_datasets=None), (
        self.assertRaisesRegex(ImportError, "'tfds:voc/2012' needs .*: pip "
                               "install tensorflow-datasets")):
      load("tfds:voc/2012", size=8)

  def test_unknown_classes_are_told_before_a_download(self):
    module = self.exclusive(train=6, test=3)
    self.check(r"classes must be among \['cat', .*got \['lion'\]", module,
               classes=["lion", "cat"])
    self.assertFalse(module.prepared)

  def test_other_data_sets(self):
    self.check("'tfds:tiny/1' must have the features image and labels.*got "
               r"\['image', 'text'\]", StandIn({"text": None}, {}))
    self.check(r"must have a split train, .*got \['test'\]",
               self.exclusive(test=3))
    self.check(r"must have a split train, .*got \['train'\]",
               self.exclusive(train=3))

  def test_a_damaged_picture(self):
    module = self.exclusive(train=6, test=3)
    module.splits["test"][1]["image"] = b"no picture"
    self.check("picture 1 of tiny/1 test cannot be read as a picture", module)


if __name__ == "__main__":
  absltest.main()
