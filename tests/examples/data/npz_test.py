"""Tests of npz.py: images from .npz files in their three forms."""

import contextlib
import itertools

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from tests import experiment_pictures as helpers

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.data.data_sets import load
  from examples.experiment.data.near_duplicates import repeats

PARTS = helpers.PARTS


def setUpModule():
  helpers.skip_without_data()


class NpzTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = str(helpers.new_folder(self) / "pictures.npz")
    self.images = helpers.noises(12)
    self.split = np.repeat([0, 1, 2], [6, 3, 3])

  def load(self, size=16, classes=None, **arrays):
    np.savez(self.path, **arrays)
    return load(self.path, size=size, classes=classes)

  def check(self, message, classes=None, **arrays):
    np.savez(self.path, **arrays)
    helpers.refuses(self, message, self.path, classes=classes)

  def test_class_numbers(self):
    labels = np.arange(12) % 3
    data = self.load(images=self.images, labels=labels, split=self.split)
    self.assertEqual(data.class_names, ("0", "1", "2"))
    np.testing.assert_array_equal(data.class_ids, 0)
    self.assertFalse(data.multi_label)
    for number, name in enumerate(PARTS):
      images, rows, label_maps = getattr(data, name)
      self.assertIsNone(label_maps)
      self.assertTrue(helpers.same_pictures(
          images, self.images[self.split == number]))
      for image, row in zip(images, rows):  # Each with its own label.
        which = (self.images == image).all((1, 2, 3)).argmax()
        np.testing.assert_array_equal(row, np.eye(3)[labels[which]])

  def test_rows_of_classes_with_maps(self):
    labels = np.random.default_rng(0).integers(0, 2, (12, 3))
    labels[0] = 1
    maps = np.random.default_rng(1).choice(
        np.uint8([0, 4, 6, 9, 255]), (12, 16, 16))
    data = self.load(
        images=self.images, labels=labels, label_maps=maps,
        class_names=["cat", "dog", "cow"], class_ids=[9, 4, 6],
        split=np.array(PARTS)[self.split])
    self.assertEqual(data.class_names, ("cat", "dog", "cow"))
    np.testing.assert_array_equal(data.class_ids, [9, 4, 6])
    self.assertTrue(data.multi_label)
    for image, row, label_map in zip(*data.validation):
      which = (self.images == image).all((1, 2, 3)).argmax()
      self.assertEqual(self.split[which], 1)
      np.testing.assert_array_equal(row, labels[which])
      np.testing.assert_array_equal(label_map, maps[which])

  def test_names_in_bytes(self):
    data = self.load(images=self.images, labels=np.arange(12) % 2,
                     class_names=np.array([b"cat", b"dog"]),
                     split=np.array([b"train", b"validation", b"test"] * 4))
    self.assertEqual(data.class_names, ("cat", "dog"))
    self.assertLen(data.test.images, 4)

  def test_one_hot_rows_exclude_each_other(self):
    rows = np.eye(3)[np.arange(12) % 3]
    self.assertFalse(self.load(
        images=self.images, labels=rows, split=self.split).multi_label)
    data = self.load(images=self.images, labels=np.arange(12)[:, None] % 3,
                     split=self.split)
    self.assertFalse(data.multi_label)
    self.assertEqual(data.train.labels.shape, (6, 3))

  def test_pictures_of_other_exclusive_classes_go(self):
    labels = np.arange(12) % 3
    data = self.load(images=self.images, labels=labels, split=self.split,
                     classes=["2", "0"])
    self.assertEqual(data.class_names, ("2", "0"))
    self.assertTrue(helpers.same_pictures(
        data.train.images, self.images[:6][labels[:6] != 1]))
    np.testing.assert_array_equal(data.train.labels.sum(0), 2)
    helpers.refuses(self, "classes must be two or more .*or one with "
                    r"background_class; got \['1'\]", self.path, classes=["1"])
    # With its absence beside it, one will do, and all images stay.
    data = load(self.path, size=16, classes=["1"], background_class="other")
    self.assertLen(data.train.images, 6)

  def test_class_ids_that_are_not_told(self):
    maps = np.zeros([12, 16, 16], np.uint8)
    maps[:, 3:], maps[:, 9:] = 2, 255
    arrays = {"images": self.images, "labels": np.arange(12) % 3,
              "split": self.split}
    np.testing.assert_array_equal(
        self.load(label_maps=maps, **arrays).class_ids, [1, 2, 3])
    maps[7, 0, 0] = 4
    self.check(r"mask of picture 7 of pictures.npz may hold 0, 255 .*1..3; "
               r"got \[4\]", label_maps=maps, **arrays)

  @parameterized.parameters(
      (bool, 1, ()), (np.uint8, 1, ()), (np.uint8, 255, (1,)),
      (np.int64, 1, (1,)))
  def test_masks_of_one_object(self, kind, value, channels):
    labels = np.arange(12) % 3
    masks = np.zeros([12, 16, 16, *channels], kind)
    masks[labels > 0, :5] = value  # Class 0: whole pieces, nothing marked.
    data = self.load(images=self.images, labels=labels, split=self.split,
                     masks=masks)
    np.testing.assert_array_equal(data.class_ids, [1, 2, 3])
    for split in data[:3]:
      number = split.labels.argmax(1)
      np.testing.assert_array_equal(
          split.label_maps[:, 0, 0], np.where(number > 0, number + 1, 0))
      np.testing.assert_array_equal(split.label_maps[:, 5:], 0)

  def test_masks_with_void_and_labels_of_their_own(self):
    masks = np.zeros([12, 16, 16], np.uint8)
    masks[:, :5], masks[:, 5:7] = 1, 255
    data = self.load(images=self.images, labels=np.arange(12) % 2,
                     split=self.split, masks=masks, class_ids=[7, 4])
    np.testing.assert_array_equal(
        data.train.label_maps[:, 0, 0],
        np.array([7, 4])[data.train.labels.argmax(1)])
    np.testing.assert_array_equal(data.train.label_maps[:, 6], 255)

  @parameterized.parameters(
      # Images 0 to 5 are in part 0, the next three in each other part. At
      # least a tenth of train is validation, or 15 %.
      ([0, 0, 2], [8, 1, 3]), ([0, 1, 1], [5, 1, 6]), ([0, 0, 0], [8, 2, 2]))
  def test_a_part_without_a_picture(self, into, want):
    data = self.load(images=self.images, labels=np.arange(12) % 2,
                     split=np.array(into)[self.split])
    self.assertEqual([len(split.images) for split in data[:3]], want)
    self.assertTrue(helpers.same_pictures(
        np.concatenate([split.images for split in data[:3]]), self.images))

  def test_no_test_pictures_in_a_cifar_like_file(self):
    data = self.load(x_train=self.images, y_train=np.arange(12) % 2,
                     x_test=self.images[:0], y_test=np.zeros([0], int))
    self.assertEqual([len(split.images) for split in data[:3]], [8, 2, 2])

  def test_without_a_split(self):
    images = helpers.noises(100)
    arrays = {"images": images, "labels": np.arange(100) % 4}
    first, second = (self.load(**arrays), load(self.path, size=16, seed=5))
    for data in (first, second):
      self.assertEqual([len(split.images) for split in data[:3]], [70, 15, 15])
      self.assertTrue(helpers.same_pictures(
          np.concatenate([split.images for split in data[:3]]), images))
    # The seed moves validation, and never the reported part.
    np.testing.assert_array_equal(first.test.images, second.test.images)
    self.assertFalse(helpers.same_pictures(
        first.validation.images, second.validation.images))

  def test_no_picture_repeats_one_of_another_part(self):
    images = helpers.noises(60)
    images[30:] = images[:30]
    images[30:, 0, 0] ^= 1  # Saved anew: not quite the same.
    arrays = {"images": images, "labels": np.arange(60) % 2}
    with self.assertLogs(
        "examples.experiment.data.data_sets", "WARNING") as logs:
      data = self.load(**arrays)
    self.assertIn("pictures of train are left out: they nearly repeat one of "
                  "test.", "".join(logs.output))
    for first, second in itertools.combinations(data[:3], 2):
      self.assertFalse(repeats(first.images, second.images).any())
      self.assertEqual(len(first.images), len(first.labels))
    self.assertLen(data.test.images, 9)
    # The file's own split is kept as it is.
    data = self.load(split=np.arange(60) % 3, **arrays)
    self.assertEqual([len(split.images) for split in data[:3]], [20, 20, 20])

  def test_nothing_but_repetitions(self):
    self.check("the part validation is empty without the pictures that nearly "
               "repeat one of test", images=np.repeat(self.images[:1], 12, 0),
               labels=np.arange(12) % 2)

  def test_cifar_like(self):
    pictures = helpers.noises(50)
    labels = np.sort(np.arange(40) % 4)[:, None]
    arrays = {"x_train": pictures[:40], "y_train": labels,
              "x_test": pictures[40:], "y_test": np.arange(10) % 4,
              "class_names": ["ant", "bee", "cow", "dog"]}
    data = self.load(**arrays)
    self.assertEqual(data.class_names, ("ant", "bee", "cow", "dog"))
    self.assertEqual([len(split.images) for split in data[:3]], [36, 4, 10])
    self.assertTrue(helpers.same_pictures(
        np.concatenate([data.train.images, data.validation.images]),
        pictures[:40]))
    self.assertTrue(helpers.same_pictures(data.test.images, pictures[40:]))
    for image, row in zip(*data.train[:2]):
      which = (pictures == image).all((1, 2, 3)).argmax()
      np.testing.assert_array_equal(row, np.eye(4)[labels[which, 0]])
    # Sorted by class in the file, mixed here.
    self.assertGreater(len(set(data.train.labels[:8].argmax(1))), 1)
    other = load(self.path, size=16, seed=1)
    self.assertFalse(helpers.same_pictures(
        data.validation.images, other.validation.images))

  def test_a_limit_is_a_fair_sample_and_always_the_same(self):
    images = helpers.noises(60)
    arrays = {"images": images, "labels": np.repeat([0, 1], 30),
              "split": np.tile([0, 1, 2], 20)}
    full = self.load(**arrays)
    limited = load(self.path, size=16, limit=8)
    np.testing.assert_array_equal(limited.train.images, full.train.images[:8])
    np.testing.assert_array_equal(limited.test.labels, full.test.labels[:8])
    self.assertEqual(set(limited.train.labels.argmax(1)), {0, 1})

  def jpegs(self, count=12):
    files = [helpers.encoded(helpers.noise(i), "JPEG") for i in range(count)]
    return files, {
        "jpeg_buf": np.frombuffer(b"".join(files), np.uint8),
        "jpeg_off": np.cumsum([0, *map(len, files)])}

  def test_jpeg_files(self):
    _, arrays = self.jpegs()
    maps = np.zeros([12, 12, 16], np.uint8)
    maps[:, 6:] = 8
    labels = np.zeros([12, 20], int)
    labels[:, 14], labels[::2, 7] = 1, 1
    names = [f"class {i}" for i in range(20)]
    names[7], names[14] = "cat", "person"
    arrays |= {"label_maps": maps, "targets": labels[:, [7, 3]],
               "class_names": ["cat", "boat"], "class_label_ids": [8, 4],
               "targets20": labels, "voc20_names": names, "split": self.split}
    data = self.load(**arrays)
    self.assertEqual(data.class_names, ("cat", "boat"))
    np.testing.assert_array_equal(data.class_ids, [8, 4])
    want = [np.asarray(Image.fromarray(image).resize((16, 16)))
            for image in map(helpers.noise, range(6))]
    nearest = np.abs(data.train.images[:, None] - np.float32(want)).mean(
        (2, 3, 4)).argmin(1)
    self.assertEqual(set(nearest), set(range(6)))
    np.testing.assert_array_equal(data.train.labels[:, 0], nearest % 2 == 0)
    self.assertEqual(data.train.label_maps.shape, (6, 16, 16))
    # A class that class_names does not have is among all twenty.
    data = self.load(classes=["person", "cat"], **arrays)
    self.assertEqual(data.class_names, ("person", "cat"))
    np.testing.assert_array_equal(data.class_ids, [15, 8])
    np.testing.assert_array_equal(data.test.labels[:, 0], 1)
    self.check(r"classes must be among \['class 0'.*got \['lion'\] too",
               classes=["lion"], **arrays)

  def test_a_damaged_jpeg_file(self):
    _, arrays = self.jpegs()
    arrays["jpeg_buf"] = arrays["jpeg_buf"].copy()
    first = arrays["jpeg_off"][4]
    arrays["jpeg_buf"][first:first + 40] = 0
    self.check("picture 4 of pictures.npz cannot be read as a picture",
               labels=np.arange(12) % 2, split=self.split, **arrays)

  def test_a_jpeg_file_cut_short(self):
    files, _ = self.jpegs()
    files[5] = files[5][:-60]
    self.check("picture 5 of pictures.npz cannot be read as a picture.*trunc",
               labels=np.arange(12) % 2, split=self.split,
               jpeg_buf=np.frombuffer(b"".join(files), np.uint8),
               jpeg_off=np.cumsum([0, *map(len, files)]))

  @parameterized.parameters(
      (range(1, 13),), (range(12),), (range(12, -1, -1),), ([0, 5, 5, 12],),
      ([0, 5, 3, 12],))
  def test_jpeg_offsets(self, which):
    _, arrays = self.jpegs()
    arrays["jpeg_off"] = arrays["jpeg_off"][[*which]]
    self.check("jpeg_off must rise from 0 to the length of jpeg_buf",
               labels=np.arange(12) % 2, **arrays)

  def test_grey_and_transparent_arrays(self):
    grey = self.images[..., 0]
    for images in (grey, grey[..., None]):
      data = self.load(images=images, labels=np.arange(12) % 2,
                       split=self.split)
      self.assertTrue(helpers.same_pictures(
          data.train.images, np.repeat(grey[:6, ..., None], 3, -1)))
    clear = np.concatenate([self.images, np.zeros_like(grey)[..., None]], -1)
    data = self.load(images=clear, labels=np.arange(12) % 2, split=self.split)
    np.testing.assert_array_equal(data.train.images, 255)

  @parameterized.parameters(
      ({"images": None}, "images is missing; it has"),
      ({"labels": None}, "labels is missing; it has"),
      ({"images": np.zeros([12, 8, 8, 3], np.float32)},
       r"images must be uint8 \[n, height, width, 3\]; got float32 \[12, 8"),
      ({"images": np.zeros([12, 8, 8, 2], np.uint8)}, "images must be uint8"),
      ({"images": np.zeros([11, 8, 8, 3], np.uint8)},
       "arrays must be equally long; got {'images': 11, 'labels': 12"),
      ({"labels": np.zeros([11], int)}, "arrays must be equally long"),
      ({"labels": np.full([12], 0.5)}, "labels must be class numbers"),
      ({"labels": np.full([12], -1)}, r"class numbers .*-1\.\.-1"),
      ({"labels": np.full([12, 3], 2)}, r"labels must be .*int64 \[12, 3\], 2"),
      ({"labels": np.full([12, 3], np.nan)}, "labels must be class numbers"),
      ({"labels": np.array(["cat"] * 12)}, "labels must be class numbers"),
      ({"class_names": ["a"]}, "labels must be class numbers .* below 1"),
      ({"split": np.full([12], 3)},
       r"split must hold \[0, 1, 2\]; got \[3\]"),
      ({"split": np.array(["val"] * 12)},
       r"split must hold \['train', .*; got \['val'\]"),
      ({"split": np.ones([12], int)}, "the part train of .* is empty"),
      ({"masks": np.zeros([12, 16, 16])}, "masks must be uint8 .*got float64"),
      ({"masks": np.full([12, 16, 16], 256)}, "masks must be uint8 .*int64"),
      ({"masks": np.zeros([11, 16, 16], bool)},
       "arrays must be equally long; got .*'masks': 11"),
      ({"masks": np.zeros([12, 16, 16], bool), "labels": np.ones([12, 3])},
       "masks need labels of one class each.* give label_maps"),
      ({"masks": np.zeros([12, 16, 16], bool),
        "label_maps": np.zeros([12, 16, 16], np.uint8)},
       "label_maps or masks, not both"),
      ({"masks": np.zeros([12, 16, 16], bool), "class_ids": [1, 2, 255]},
       r"masks need class_ids of 1\.\.254"),
      ({"label_maps": np.zeros([12, 16, 16], int)}, "maps must be uint8"),
      ({"label_maps": np.zeros([12, 16], np.uint8)}, "maps must be uint8"),
      ({"label_maps": np.zeros([12, 9, 16], np.uint8)},
       "The mask of picture .* must be of the picture's size, 16 x 16 as it is "
       "shown; got 16 x 9"),
      ({"label_maps": np.zeros([12, 16, 16], np.uint8), "class_ids": [1]},
       "class_ids must be 3 whole numbers"))
  def test_arrays_that_do_not_fit(self, changed, message):
    arrays = {"images": self.images, "labels": np.arange(12) % 3,
              "split": self.split} | changed
    self.check(message, **{
        key: value for key, value in arrays.items() if value is not None})

  @parameterized.parameters(
      ({"y_train": None}, "y_train is missing"),
      ({"x_test": None}, "x_test is missing"),
      ({"y_test": np.zeros([5], int)}, "x_test and y_test .*got 12 and 5"),
      ({"y_test": np.full([12], 7)}, "y_test must be class numbers .*below 3"))
  def test_cifar_like_arrays_that_do_not_fit(self, changed, message):
    arrays = {"x_train": self.images, "y_train": np.arange(12) % 3,
              "x_test": self.images, "y_test": np.arange(12) % 3} | changed
    self.check(message, **{
        key: value for key, value in arrays.items() if value is not None})

  def test_damaged_files(self):
    np.savez(self.path, images=self.images, labels=np.arange(12))
    with open(self.path, "rb") as file:
      content = file.read()
    middle = len(content) // 3
    for bad in (b"", b"no zip", content[:-200], content[:middle],
                content[:middle] + b"x" * 50 + content[middle + 50:]):
      with open(self.path, "wb") as file:
        file.write(bad)
      helpers.refuses(self, "name must be an .npz file of whole arrays; "
                      ".*pictures.npz' cannot be read", self.path)

  def test_changed_bytes(self):
    np.savez(self.path, images=self.images, labels=np.arange(12))
    with open(self.path, "rb") as file:
      content = file.read()
    header = content.index(b"\x93NUMPY") + 10  # "{'descr': ..."
    entry = content.index(b"PK\x01\x02")
    for place, value in (
        (header, b"("), (entry + 6, b"\xff"), (entry + 8, b"\x01"),
        (entry + 10, b"\x63")):  # Text, version, encryption, compression.
      with open(self.path, "wb") as file:
        file.write(content[:place] + value + content[place + 1:])
      helpers.refuses(self, "name must be an .npz file of whole arrays; "
                      ".*pictures.npz' cannot be read", self.path)

  def test_python_objects_are_not_unpickled(self):
    self.check("name must be an .npz file of whole arrays.*Object arrays",
               images=np.array([{}] * 3, object), labels=np.arange(3))


if __name__ == "__main__":
  absltest.main()
