"""Tests of image_folder.py, and of reading images of every kind."""

import contextlib
import shutil
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from tests import experiment_pictures as helpers

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.data.data_sets import load
  from examples.experiment.data.reading import Picture, read

PARTS = helpers.PARTS
CLASSES = ("ant", "bee")


def setUpModule():
  helpers.skip_without_data()


def mask(*values: int) -> np.ndarray:
  """A mask for `helpers.noise`: stripes of the values."""
  return np.repeat(np.uint8(values), 12 // len(values))[:, None].repeat(16, 1)


class _FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = helpers.new_folder(self)

  def load(self, size=16, **options):
    return load(str(self.root), size=size, **options)

  def check(self, message, **options):
    helpers.refuses(self, message, self.root, **options)

  def seeds(self, split):
    """Which `helpers.noise` each image of a split is."""
    every = np.stack([
        np.asarray(Image.fromarray(helpers.noise(i)).resize(
            (16, 16), Image.Resampling.BILINEAR)) for i in range(100)])
    same = (every == split.images[:, None]).all((2, 3, 4))
    np.testing.assert_array_equal(same.sum(1), 1)
    return [int(i) for i in same.argmax(1)]


class PartsTest(_FolderTest):
  """root/{train,validation,test}/<class>."""

  def setUp(self):
    super().setUp()
    self.numbers = {}
    seed = 0
    for name, count in zip(PARTS, (5, 2, 3)):
      for class_name in CLASSES:
        for i in range(count):
          helpers.save(self.root / name / class_name / f"{name}{i}.png",
                       helpers.noise(seed))
          self.numbers[name, class_name, i] = seed
          seed += 1

  def numbers_of(self, part):
    return {number for key, number in self.numbers.items() if key[0] == part}

  def test_parts_and_labels(self):
    data = self.load()
    self.assertEqual(data.class_names, CLASSES)
    np.testing.assert_array_equal(data.class_ids, 0)
    self.assertFalse(data.multi_label)
    for name in PARTS:
      split = getattr(data, name)
      self.assertIsNone(split.label_maps)
      seeds = self.seeds(split)
      self.assertCountEqual(seeds, self.numbers_of(name))
      for seed, row in zip(seeds, split.labels):
        class_name = next(key[1] for key, number in self.numbers.items()
                          if number == seed)
        np.testing.assert_array_equal(row, np.eye(2)[CLASSES.index(class_name)])

  def test_val_is_validation(self):
    (self.root / "validation").rename(self.root / "val")
    self.assertCountEqual(self.seeds(self.load().validation),
                          self.numbers_of("validation"))

  def test_without_validation(self):
    shutil.rmtree(self.root / "validation")
    data = self.load()
    self.assertCountEqual(
        self.seeds(data.train) + self.seeds(data.validation),
        self.numbers_of("train"))
    self.assertLen(data.validation.images, 1)
    self.assertCountEqual(self.seeds(data.test), self.numbers_of("test"))

  def test_own_parts_are_kept_as_they_are(self):
    helpers.save(self.root / "train/ant/again.png",
                 helpers.noise(min(self.numbers_of("test"))))
    self.assertLen(self.load().train.images, 11)

  def test_masks(self):
    for name in ("validation", "test"):
      for class_name in CLASSES:
        for path in (self.root / name / class_name).iterdir():
          values = (0, 7) if class_name == "ant" else (0, 255)
          helpers.save(self.root / "masks" / class_name / path.name,
                       mask(*values))
    data = self.load()
    np.testing.assert_array_equal(data.class_ids, [1, 2])
    self.assertIsNone(data.train.label_maps)
    for split in (data.validation, data.test):
      for row, label_map in zip(split.labels, split.label_maps):
        np.testing.assert_array_equal(label_map[:8], 0)
        np.testing.assert_array_equal(label_map[8:], 1 + row.argmax())

  def test_what_a_mask_s_255_is(self):
    for class_name in CLASSES:
      for path in (self.root / "test" / class_name).iterdir():
        helpers.save(self.root / "masks" / class_name / path.name,
                     mask(0, 255, 1))
    for label_map, row in zip(self.load(12).test.label_maps,
                              self.load(12).test.labels):
      np.testing.assert_array_equal(
          label_map[:, 0], np.repeat([0, 255, 1 + row.argmax()], 4))
    for path in (self.root / "masks").rglob("*.png"):
      helpers.save(path, Image.fromarray(mask(0, 255)).convert("1"))
    for label_map, row in zip(self.load(12).test.label_maps,
                              self.load(12).test.labels):
      np.testing.assert_array_equal(
          label_map[:, 0], np.repeat([0, 1 + row.argmax()], 6))

  def test_a_missing_mask(self):
    for class_name in CLASSES:
      for path in (self.root / "test" / class_name).iterdir():
        helpers.save(self.root / "masks" / class_name / path.name, mask(0, 1))
    path = self.root / "masks/bee/test1.png"
    path.unlink()
    self.check("test: all pictures or none must have a mask; 1 of 6 have none, "
               "the first is .*test/bee/test1.png")
    helpers.save(path, mask(0, 1))
    self.load()
    helpers.save(path.with_name("stray.png"), mask(0, 1))
    self.check("1 of 7 belong to no picture, the first is .*bee/stray.png")

  def test_a_mask_of_two_pictures(self):
    helpers.save(self.root / "train/ant/test0.jpg", helpers.noise(80))
    helpers.save(self.root / "masks/ant/test0.png", mask(0, 1))
    self.check("different names; 2 of ant are called test0")

  def test_folders_that_do_not_fit(self):
    extra = self.root / "test" / "cow"
    extra.mkdir()
    with self.assertLogs(
        "examples.experiment.data.image_folder", "WARNING") as logs:
      self.assertEqual(self.load().class_names, (*CLASSES, "cow"))
    self.assertIn("train has no picture of cow", logs.output[0])
    bee = self.root / "test" / "bee"
    bee.rename(self.root / "train" / ".bee")  # Not a class there.
    self.check(r"the classes of .*test must be those of train, \['ant', 'bee'"
               r"\], or some of them, or more; got \['ant', 'cow'\]")
    (self.root / "train" / ".bee").rename(bee)
    extra.rmdir()
    (self.root / "extra").mkdir()
    self.check("must hold train and perhaps test, validation .*'extra'")

  def empty(self, part):
    for path in (self.root / part).rglob("*.png"):
      path.unlink()

  @parameterized.parameters(True, False)
  def test_no_picture_for_validation(self, folders):
    self.empty("validation")
    if not folders:
      shutil.rmtree(self.root / "validation/bee")
    data = self.load()
    self.assertLen(data.validation.images, 1)
    self.assertCountEqual(
        self.seeds(data.train) + self.seeds(data.validation),
        self.numbers_of("train"))
    self.assertCountEqual(self.seeds(data.test), self.numbers_of("test"))

  @parameterized.parameters(True, False)
  def test_no_picture_for_test(self, folders):
    self.empty("test")
    if not folders:
      shutil.rmtree(self.root / "test")
    with self.assertLogs("examples.experiment.data.parts", "WARNING") as logs:
      data = self.load()
    self.assertIn("no picture for test; its validation part is test",
                  logs.output[0])
    self.assertCountEqual(self.seeds(data.test), self.numbers_of("validation"))
    self.assertCountEqual(
        self.seeds(data.train) + self.seeds(data.validation),
        self.numbers_of("train"))

  def test_pictures_for_train_alone(self):
    self.empty("test")
    self.empty("validation")
    with self.assertLogs("examples.experiment.data.parts", "WARNING") as logs:
      data = self.load()
    self.assertIn("no picture for test; train is divided", logs.output[0])
    # 15 % of 10 images, then 15 / 85 of the 8 others, each rounded.
    self.assertEqual([len(split.images) for split in data[:3]], [7, 1, 2])
    self.assertCountEqual([seed for split in data[:3]
                           for seed in self.seeds(split)],
                          self.numbers_of("train"))

  def test_no_picture_for_train(self):
    self.empty("train")
    self.check("the part train of .* is empty")

  @parameterized.parameters(("masks", ""), ("ground_truth", "_mask"))
  def test_a_class_without_an_object(self, folder, end):
    """Whole pieces beside defects, as in MVTec: nothing to mark in them."""
    shutil.rmtree(self.root / "validation")
    shutil.rmtree(self.root / "train/bee")  # Learned from whole ones alone.
    for class_name in CLASSES:  # Of one name in each part.
      (self.root / "test" / class_name / "test0.png").rename(
          self.root / "test" / class_name / "train0.png")
    for path in (self.root / "test/bee").iterdir():
      helpers.save(self.root / folder / "bee" / f"{path.stem}{end}.png",
                   mask(0, 1))
    with self.assertLogs(
        "examples.experiment.data.image_folder", "WARNING") as logs:
      data = self.load()
    self.assertIn("train has no picture of bee: what is", logs.output[0])
    np.testing.assert_array_equal(data.class_ids, [0, 2])
    self.assertIsNone(data.train.label_maps)
    for row, label_map in zip(data.test.labels, data.test.label_maps):
      np.testing.assert_array_equal(label_map[:8], 0)
      np.testing.assert_array_equal(label_map[8:], 2 * row[1])

  def test_two_masks_of_a_picture(self):
    for name in ("masks/bee/test0", "ground_truth/bee/test0_mask"):
      helpers.save(self.root / f"{name}.png", mask(0, 1))
    self.check("must have one mask; .*test/bee/test0.png has .*masks/bee/test0."
               "png and .*test0_mask.png")

  def test_other_files(self):
    for name in (".DS_Store", "Thumbs.db"):  # What file browsers leave.
      (self.root / "train/ant" / name).write_text("")
    self.load()
    path = self.root / "train/ant/notes.txt"
    path.write_text("")
    self.check("train/ant must hold .png/.jpg/.jpeg files only; got notes.txt")
    path.unlink()
    (self.root / "train/ant/more").mkdir()
    self.check("files only; got more")

  def test_a_damaged_picture(self):
    (self.root / "validation/bee/validation1.png").write_bytes(b"\x89PNG no")
    self.check("validation1.png cannot be read as a picture")


class DividedTest(_FolderTest):
  """root/<class>, which is divided here."""

  def setUp(self):
    super().setUp()
    self.write(20)

  def write(self, count):
    for number, class_name in enumerate(CLASSES):
      for i in range(count):
        helpers.save(self.root / class_name / f"{i}.png",
                     helpers.noise(50 * number + i))

  def test_shares_of_every_class(self):
    data = self.load()
    for split, count in zip(data[:3], (14, 3, 3)):
      np.testing.assert_array_equal(split.labels.sum(0), [count] * 2)
      for seed, row in zip(self.seeds(split), split.labels):
        self.assertEqual(row.argmax(), seed >= 50)
    self.assertLen({seed for split in data[:3] for seed in self.seeds(split)},
                   40)

  def test_it_depends_on_names_alone(self):
    first = self.load()
    second = self.load(seed=9)
    for split, same in zip(first[:3], second[:3]):
      np.testing.assert_array_equal(split.images, same.images)
    # The same names elsewhere, written in another order.
    self.root = helpers.new_folder(self)
    for number, name in enumerate(CLASSES):
      for i in reversed(range(20)):
        helpers.save(self.root / name / f"{i}.png",
                     helpers.noise(50 * number + i))
    np.testing.assert_array_equal(self.load().test.images, first.test.images)

  def test_few_pictures(self):
    shutil.rmtree(self.root)
    self.write(3)
    for split in self.load()[:3]:
      np.testing.assert_array_equal(split.labels.sum(0), [1, 1])
    (self.root / "bee/0.png").unlink()
    self.check("bee must hold 3 pictures or more, .*; got 2")

  def test_a_copy_is_in_one_part(self):
    for name in ("copy", "again", "more"):
      for i in range(20):
        path = self.root / "ant" / f"{name}{i}.jpg"
        if i % 4 == 0:
          helpers.save(path, helpers.noise(i), quality=95, subsampling=0)
    with self.assertLogs("examples.experiment.data.data_sets", "WARNING"):
      data = self.load()
    # JPEG changes the copies a little; the nearest original tells which.
    originals = np.stack([
        np.asarray(Image.fromarray(helpers.noise(i)).resize((16, 16)))
        for i in range(20)]).astype(np.float32)
    which = [{int(np.abs(originals - image).mean((1, 2, 3)).argmin())
              for image in split.images[split.labels[:, 0] == 1]}
             for split in data[:3]]
    self.assertNoCommonElements(which[0], which[1])
    self.assertNoCommonElements(which[0] | which[1], which[2])

  def test_masks(self):
    for number, class_name in enumerate(CLASSES):
      for i in range(20):
        helpers.save(self.root / "masks" / class_name / f"{i}.png",
                     mask(0, number + 1))
    data = self.load()
    self.assertEqual(data.class_names, CLASSES)  # Masks are no class.
    for split in data[:3]:
      np.testing.assert_array_equal(
          split.label_maps.max((1, 2)), 1 + split.labels.argmax(1))

  def test_one_class(self):
    shutil.rmtree(self.root / "bee")
    self.check(r"classes must be two or more .*; got \['ant'\]")
    data = self.load(classes=["ant"], background_class="none")
    self.assertEqual(data.class_names, ("none", "ant"))

  def test_no_class(self):
    shutil.rmtree(self.root)
    (self.root / "masks").mkdir(parents=True)
    self.check("holds no folder for a class")


class ReadTest(parameterized.TestCase):
  """Images of every kind, alone."""

  def read(self, *contents, size=8, **options):
    return read([Picture(f"picture {i}", content, **options)
                 for i, content in enumerate(contents)], size)

  def one(self, image, kind="PNG", **options):
    return self.read(helpers.encoded(image, kind, **options))[0][0]

  def test_kinds(self):
    colours = helpers.noise(0, 8, 8)
    grey = colours[..., 0]
    np.testing.assert_array_equal(self.one(colours), colours)
    np.testing.assert_array_equal(self.one(grey), grey[..., None].repeat(3, 2))
    palette = Image.fromarray(colours // 128 * 255).convert(
        "P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(self.one(palette), colours // 128 * 255)
    bits = Image.fromarray(grey // 128 * 255).convert("1")
    np.testing.assert_array_equal(
        self.one(bits), np.asarray(bits.convert("RGB")))
    # JPEG loses a little of a colour; inverted inks would be off by 255.
    np.testing.assert_allclose(
        self.one(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)

  def test_16_bits(self):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    np.testing.assert_array_equal(
        self.one(Image.fromarray(grey))[..., 1], grey // 257)
    with self.assertRaisesRegex(ValueError, "picture 0 must have 8 or 16 bits"):
      self.one(Image.fromarray(np.ones([8, 8], np.float32)), "TIFF")
    with self.assertRaisesRegex(ValueError, r"16 bits.* values are 70000\.\."):
      self.one(Image.fromarray(np.full([8, 8], 70000, np.int32)), "TIFF")

  def test_transparency_is_white(self):
    clear = np.zeros([8, 8, 4], np.uint8)
    clear[:4] = [10, 20, 30, 255]
    want = np.full([8, 8, 3], 255, np.uint8)
    want[:4] = [10, 20, 30]
    np.testing.assert_array_equal(self.one(clear), want)
    grey = Image.fromarray(clear).convert("LA")
    self.assertEqual(self.one(grey)[6].min(), 255)
    palette = Image.fromarray(np.eye(8, dtype=np.uint8))
    palette.putpalette([9, 9, 9, 50, 60, 70])
    image = self.one(palette, transparency=0)
    np.testing.assert_array_equal(image[0, :2], [[50, 60, 70], [255] * 3])

  @parameterized.parameters(range(1, 9))
  def test_exif_rotation(self, orientation):
    # What viewers do with each value, by the standard's table.
    turned = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x)}
    image = helpers.noise(1, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        self.one(image, exif=exif), turned[orientation](image))

  def test_a_mask_is_of_the_picture_as_it_is_shown(self):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = helpers.encoded(helpers.noise(0, 8, 12), "JPEG", exif=exif)
    label_map = np.zeros([12, 8], np.uint8)
    label_map[:6] = 3
    _, label_maps = self.read(content, label_map=label_map)
    np.testing.assert_array_equal(label_maps[0, :, 0], np.repeat([3, 0], 4))
    with self.assertRaisesRegex(
        ValueError, "The mask of picture 0 .*8 x 12 as it is .*got 12 x 8"):
      self.read(content, label_map=label_map.T)

  def test_made_smaller_by_a_filter_that_averages(self):
    # Stripes of a pixel are grey from afar, not one of their colours.
    stripes = np.zeros([64, 64, 3], np.uint8)
    stripes[::2] = 255
    image = self.read(stripes)[0][0]
    self.assertBetween(image.min(), 110, 128)
    self.assertBetween(image.max(), 127, 145)

  def test_nothing_to_read(self):
    images, label_maps = self.read()
    self.assertEqual(images.shape, (0, 8, 8, 3))
    self.assertIsNotNone(label_maps)

  def test_an_error_stops_the_reading(self):
    path = helpers.save(helpers.new_folder(self) / "good.png",
                        helpers.noise(0, 300, 300))
    pictures = [Picture("bad", b"no picture")] + [
        Picture("good", path)] * 400
    with mock.patch.object(
        type(path), "read_bytes", autospec=True,
        side_effect=type(path).read_bytes) as reading, self.assertRaisesRegex(
            ValueError, "bad cannot be read"):
      read(pictures, 4)
    self.assertLess(reading.call_count, 200)


if __name__ == "__main__":
  absltest.main()
