"""Tests of voc.py, on a devkit of a dozen tiny images."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from tests import experiment_pictures as helpers

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.data import voc
  from examples.experiment.data.data_sets import load

TRAIN = [f"2008_{i:06}" for i in range(6)]
VAL = [f"2009_{i:06}" for i in range(6, 12)]
JUDGED = VAL[:4]
MASKED = TRAIN[:4]  # Of the others, those with masks.
NAMES = TRAIN + VAL
# Every image: classes, and whether each is difficult.
OBJECTS = {name: [("cat", False)] if i % 2 else [("dog", False), ("cat", True)]
           for i, name in enumerate(NAMES)}
OBJECTS[NAMES[3]] += [("person", True), ("person", False)]
HEIGHT, WIDTH = 12, 16


def setUpModule():
  helpers.skip_without_data()


def mask(name: str) -> Image.Image:
  """A palette image: the objects side by side, with a void border."""
  labels = np.zeros([HEIGHT, WIDTH], np.uint8)
  for i, (class_name, _) in enumerate(OBJECTS[name]):
    labels[2:8, 4 * i:4 * i + 4] = 1 + voc.CLASSES.index(class_name)
  labels[8] = 255
  image = Image.fromarray(labels)
  image.putpalette([*range(256)] * 3)
  return image


def annotation(name: str) -> list[str]:
  return ["<annotation>", f"<filename>{name}.jpg</filename>", *(
      f"<object><name>{class_name}</name><difficult>{int(hard)}</difficult>"
      # A part of a body has a name too.
      "<part><name>head</name></part></object>"
      for class_name, hard in OBJECTS[name]), "</annotation>"]


def write_devkit(folder: Path, year: int = 2012) -> Path:
  """Writes the official archive's files, and returns its year's folder."""
  root = folder / f"VOC{year}"
  for i, name in enumerate(NAMES):
    helpers.save(root / "JPEGImages" / f"{name}.jpg",
                 helpers.noise(i, HEIGHT, WIDTH))
    helpers.write_text(root / "Annotations" / f"{name}.xml", annotation(name))
  for name in MASKED + JUDGED:
    helpers.save(root / "SegmentationClass" / f"{name}.png", mask(name))
  lists = root / "ImageSets"
  helpers.write_text(lists / "Main/train.txt", TRAIN)
  helpers.write_text(lists / "Main/val.txt", VAL)
  helpers.write_text(lists / "Segmentation/train.txt", MASKED)
  helpers.write_text(lists / "Segmentation/val.txt", JUDGED)
  for class_name in voc.CLASSES:
    for split, names in (("train", TRAIN), ("val", VAL)):
      helpers.write_text(lists / "Main" / f"{class_name}_{split}.txt", [
          f"{name} {label(name, class_name):2}" for name in names])
  return root


def label(name: str, one: str) -> int:
  """1 where the class is there, 0 where it is difficult, else -1."""
  hard = [hard for other, hard in OBJECTS[name] if other == one]
  return int(not all(hard)) if hard else -1


class VocTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = helpers.new_folder(self)
    self.root = write_devkit(self.folder)

  def whose(self, images):
    """The names of images, by their content."""
    every = np.stack([
        np.asarray(Image.open(self.root / "JPEGImages" / f"{name}.jpg").resize(
            images.shape[2:0:-1], Image.Resampling.BILINEAR))
        for name in NAMES])
    same = (every == images[:, None]).all((2, 3, 4))
    np.testing.assert_array_equal(same.sum(1), 1)
    return [NAMES[i] for i in same.argmax(1)]

  def check(self, message, **options):
    helpers.refuses(self, message, self.folder, **options)

  def check_parts(self, data):
    test = self.whose(data.test.images)
    held = self.whose(data.validation.images)
    train = self.whose(data.train.images)
    self.assertCountEqual(test, JUDGED)
    self.assertCountEqual(train + held + test, NAMES)
    for split, names in ((data.train, train), (data.validation, held),
                         (data.test, test)):
      for name, row in zip(names, split.labels):
        self.assertEqual(
            {data.class_names[i] for i in np.flatnonzero(row)},
            {class_name for class_name, hard in OBJECTS[name]
             if not hard and class_name in data.class_names})
    return train, held, test

  def test_parts_labels_and_masks(self):
    data = load(str(self.folder), size=24)
    self.assertEqual(data.class_names, voc.CLASSES)
    np.testing.assert_array_equal(data.class_ids, np.arange(1, 21))
    self.assertTrue(data.multi_label)
    _, held, test = self.check_parts(data)
    self.assertContainsSubset(held, MASKED)
    self.assertIsNone(data.train.label_maps)
    for split, names in ((data.validation, held), (data.test, test)):
      want = [np.asarray(mask(name).resize((24, 24))) for name in names]
      np.testing.assert_array_equal(split.label_maps, want)
      self.assertContainsSubset({0, 255, 8}, set(split.label_maps.flat))

  def test_an_object_that_is_difficult_only_in_part(self):
    data = load(str(self.folder), size=12)
    person = voc.CLASSES.index("person")
    for split in data[:3]:
      np.testing.assert_array_equal(
          split.labels[:, person],
          [name == NAMES[3] for name in self.whose(split.images)])

  def test_labels_from_the_lists(self):
    want = load(str(self.folder), size=12)
    shutil.rmtree(self.root / "Annotations")
    data = load(str(self.folder), size=12)
    for item, split in zip(want[:3], data[:3]):
      np.testing.assert_array_equal(item.images, split.images)
      np.testing.assert_array_equal(item.labels, split.labels)
    # No more lists than are asked for.
    for item in set(voc.CLASSES) - {"cat", "person"}:
      (self.root / f"ImageSets/Main/{item}_val.txt").unlink()
    data = load(str(self.folder), size=12, classes=["person", "cat"])
    self.assertEqual(data.class_names, ("person", "cat"))
    np.testing.assert_array_equal(data.class_ids, [15, 8])
    self.check_parts(data)
    self.check("the list .*aeroplane_val.txt is missing")

  def test_chosen_classes(self):
    data = load(str(self.folder), size=12, classes=["dog", "bird"])
    self.assertEqual(data.class_names, ("dog", "bird"))
    np.testing.assert_array_equal(data.class_ids, [12, 3])
    self.check_parts(data)
    data = load(str(self.folder), size=12, classes=["person"],
                background_class="no person")
    np.testing.assert_array_equal(data.class_ids, [0, 15])
    np.testing.assert_array_equal(data.test.labels.sum(1), 1)
    self.check(r"classes must be among .*got \['lion'\]", classes=["lion"])
    shutil.rmtree(self.root / "Annotations")
    self.check(r"classes must be among .*got \['lion'\]", classes=["lion"])

  def test_where_the_year_s_folder_is(self):
    want = load(str(self.folder), size=12)
    same = load(str(self.root), size=12)
    np.testing.assert_array_equal(want.test.images, same.test.images)
    # Of two years the later; the other by its own path.
    older = write_devkit(self.folder, 2007)
    helpers.write_text(older / "ImageSets/Segmentation/val.txt", JUDGED[:2])
    self.assertLen(load(str(self.folder), size=12).test.images, 4)
    self.assertLen(load(str(older), size=12).test.images, 2)
    shutil.rmtree(self.root)
    self.assertLen(load(str(self.folder), size=12).test.images, 2)

  def test_without_masks_to_train_on(self):
    (self.root / "ImageSets/Segmentation/train.txt").unlink()
    data = load(str(self.folder), size=12)
    self.check_parts(data)
    self.assertLen(data.validation.images, 1)
    self.assertIsNone(data.validation.label_maps)
    self.assertIsNotNone(data.test.label_maps)

  def test_the_seed_moves_validation_alone(self):
    held = set()
    for seed in range(6):
      data = load(str(self.folder), size=12, seed=seed)
      held |= set(self.check_parts(data)[1])
      np.testing.assert_array_equal(
          data.test.images, load(str(self.folder), size=12).test.images)
    self.assertGreater(len(held), 1)

  def test_limit(self):
    data = load(str(self.folder), size=12, limit=2)
    self.assertEqual([len(split.images) for split in data[:3]], [2, 1, 2])

  def test_a_test_picture_that_is_also_for_training(self):
    helpers.write_text(self.root / "ImageSets/Main/train.txt", TRAIN + JUDGED)
    self.check_parts(load(str(self.folder), size=12))

  def test_a_test_picture_s_copy_is_not_trained_on(self):
    images = self.root / "JPEGImages"
    shutil.copy(images / f"{JUDGED[0]}.jpg", images / f"{VAL[5]}.jpg")
    with self.assertLogs(
        "examples.experiment.data.data_sets", "WARNING") as logs:
      data = load(str(self.folder), size=24)
    self.assertIn("1 of 7 pictures of train are left out", logs.output[0])
    self.assertLen(data.train.images, 6)
    self.assertLen(data.train.labels, 6)

  @parameterized.parameters("Main/train", "Main/val", "Segmentation/val")
  def test_a_missing_list(self, name):
    (self.root / "ImageSets" / f"{name}.txt").unlink()
    self.check(f"the list .*{name}.txt is missing")

  def test_no_lists_at_all(self):
    shutil.rmtree(self.root / "ImageSets")
    for path in (self.folder, self.root):
      helpers.refuses(self, "the list .*Main/train.txt is missing", path)

  @parameterized.parameters(
      (f"JPEGImages/{NAMES[2]}.jpg", "1 of 12 files"),
      (f"JPEGImages/{JUDGED[2]}.jpg", "1 of 12 files"),
      (f"Annotations/{NAMES[5]}.xml", "1 of 12 files"),
      (f"SegmentationClass/{JUDGED[1]}.png", "1 of 5 files"))
  def test_a_missing_file(self, name, message):
    (self.root / name).unlink()
    self.check(f"{message} .*are missing; the first is .*{name}")

  @parameterized.parameters(
      f"JPEGImages/{JUDGED[2]}.jpg", f"SegmentationClass/{JUDGED[1]}.png")
  def test_a_damaged_picture(self, name):
    path = self.root / name
    content = path.read_bytes()
    for bad in (b"", b"<html>", content[:len(content) // 2]):
      path.write_bytes(bad)
      self.check(f"{Path(name).stem}.* cannot be read as a picture")

  @parameterized.parameters(
      (lambda text: text[:40], "cannot be read as XML"),
      (lambda text: text.replace("cat", "lion"),
       "name of an object must be one of .*got 'lion'"),
      (lambda text: text.replace("<name>cat</name>", ""), "got ''"))
  def test_a_damaged_annotation(self, change, message):
    path = self.root / f"Annotations/{NAMES[1]}.xml"
    path.write_text(change(path.read_text()))
    self.check(f"{path.name}.*{message}")

  @parameterized.parameters("2", "", "1 1", "x")
  def test_a_damaged_class_list(self, value):
    shutil.rmtree(self.root / "Annotations")
    path = self.root / "ImageSets/Main/cat_train.txt"
    path.write_text(f"{TRAIN[0]} {value}\n")
    self.check("cat_train.txt: a line must be a picture's name and 1, 0 or -1")

  def test_a_class_list_that_lacks_pictures(self):
    shutil.rmtree(self.root / "Annotations")
    helpers.write_text(self.root / "ImageSets/Main/cat_train.txt",
                       [f"{TRAIN[0]} 1"])
    self.check(f"no Annotations, and 5 of 12 .* the first is {TRAIN[1]}")

  def test_a_mask_in_colours(self):
    path = self.root / f"SegmentationClass/{JUDGED[0]}.png"
    helpers.save(path, mask(JUDGED[0]).convert("RGB"))
    self.check(f"The mask of .*{JUDGED[0]}.jpg must have one channel.*'RGB'")

  def test_a_mask_of_grey_values(self):
    path = self.root / f"SegmentationClass/{JUDGED[0]}.png"
    helpers.save(path, np.full([HEIGHT, WIDTH], 38, np.uint8))
    self.check(rf"The mask of .*{JUDGED[0]}.jpg may hold .*1..20; got \[38\]")

  def test_a_mask_of_another_size(self):
    path = self.root / f"SegmentationClass/{JUDGED[0]}.png"
    helpers.save(path, mask(JUDGED[0]).resize((WIDTH, WIDTH)))
    self.check("must be of the picture's size, 16 x 12 .*; got 16 x 16")

  def test_nothing_to_judge_or_to_train_on(self):
    helpers.write_text(self.root / "ImageSets/Segmentation/val.txt", [])
    self.check("the part test of .* is empty")
    helpers.write_text(self.root / "ImageSets/Segmentation/val.txt", JUDGED)
    for split in ("train", "val"):
      helpers.write_text(self.root / f"ImageSets/Main/{split}.txt", JUDGED)
    self.check("the part train of .* is empty")


if __name__ == "__main__":
  absltest.main()
