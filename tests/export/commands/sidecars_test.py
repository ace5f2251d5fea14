"""Tests of sidecars.py, and of the commands that read them."""

import json
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.commands import sidecars
from tests import command_helpers, tiny
from tests import export_helpers as helpers

setUpModule = command_helpers.set_up_flags


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)

  def write(self, content, name="net.json"):
    (self.folder / name).write_text(
        content if isinstance(content, str) else json.dumps(content))

  def test_by_hand(self):
    self.write({"pixel_range": [-1, 1], "class_names": ["cat", "dog"],
                "layer": "relu4", "settings": {"size": 96},
                "test": {"map": 0.5}})
    got = sidecars.read_sidecar(self.folder / "net.h5")
    self.assertEqual(
        (got.pixel_range, got.class_names, got.layer, got.settings),
        ((-1.0, 1.0), ("cat", "dog"), "relu4", {"size": 96}))
    self.assertEqual(got.figures, {"validation": {}, "test": {"map": 0.5}})

  def test_beside_a_folder(self):
    (self.folder / "net.v1").mkdir()
    self.write({"pixel_range": [0, 255]}, "net.v1.json")
    self.assertEqual(
        sidecars.read_sidecar(self.folder / "net.v1").pixel_range, (0, 255))

  @parameterized.parameters(
      None, [{"class_name": "Functional"}], [[1, 2]])
  def test_nothing_that_is_known(self, content):
    if content is not None:
      self.write(content)
    got = sidecars.read_sidecar(self.folder / "net.h5")
    self.assertEqual((got.layer, got.pixel_range, got.class_names),
                     (None, None, None))

  @parameterized.parameters(
      ("{", "is no JSON"), ({"pixel_range": [1, 0]}, "'pixel_range' is not of"),
      ({"pixel_range": ["0", "1"]}, "'pixel_range'"),
      ({"pixel_range": [0, 1], "class_names": "ab"}, "'class_names'"),
      ({"pixel_range": [0, 1], "layer": 3}, "'layer'"))
  def test_what_is_not_of_its_kind(self, content, words):
    self.write(content)
    with self.assertRaisesRegex(ValueError, f"net.json.*beside.*{words}"):
      sidecars.read_sidecar(self.folder / "net.h5")

  def test_settled(self):
    self.assertEqual(sidecars.settled("size", None, 8, "a.json"), 8)
    self.assertEqual(sidecars.settled("size", 8, None, "a.json"), 8)
    self.assertEqual(sidecars.settled("size", 8, 8, "a.json"), 8)
    self.assertIsNone(sidecars.settled("size", None, None, "a.json"))
    with self.assertRaisesRegex(
        ValueError, "^--pixel_range is 0,1, but 'a.json' says -1,1: leave"):
      sidecars.settled("pixel_range", (0.0, 1.0), (-1.0, 1.0), "a.json")

  @parameterized.parameters(
      (0, 1, (0, 1), True), (-1, 1, (-1, 1), True), (0.05, 0.9, (0, 1), True),
      (0, 1, (-1, 1), False), (0, 255, (0, 1), False), (0, 1, (0, 255), False),
      (-1, 1, (0, 1), False), (0, 255, None, True))
  def test_range(self, low, high, known, fits):
    images = np.float32([[low], [high]])
    known = sidecars.Sidecar("net.json", pixel_range=known)
    if fits:
      sidecars.check_range(images, known, "--images")
    else:
      with self.assertRaisesRegex(
          ValueError, f"--images holds numbers of {low}..{high}, but the model "
          f"takes {known.pixel_range[0]} for black and"):
        sidecars.check_range(images, known, "--images")


class VerifyTest(command_helpers.CommandCase):

  def beside(self, **entries):
    path = self.place / "net.json"
    path.write_text(json.dumps(entries))
    self.addCleanup(path.unlink, missing_ok=True)

  def test_the_layer_of_the_file(self):
    code, out, err = self.run_main(layer=None, require_cosine=0.99)
    self.assertEqual((code, err), (0, ""))
    self.assertRegex(out, "(?m)^file_layer +act$")
    self.assert_bad_input(
        self.run_main(layer="act2"), "--layer is act2, but '.*good.tflite' "
        "says act: leave the flag out")
    self.assert_bad_input(
        self.run_main(method="ewa"), "--method is ewa, but .* says swa")
    self.assert_bad_input(
        self.run_main(student_layer="act2"), "--student_layer is act2, but")
    code, _, _ = self.run_main(layer="quant_act", student_layer="act")
    self.assertEqual(code, 0)

  def test_a_file_that_does_not_say_it(self):
    (self.place / "foreign.tflite").write_bytes(
        helpers.foreign(helpers.converted()))
    self.assert_bad_input(
        self.run_main(tflite="foreign.tflite", layer=None),
        "--layer must be given, since --tflite was not made by kap-export")

  def test_images_of_another_range(self):
    self.beside(pixel_range=[0, 255])
    self.assert_bad_input(
        self.run_main(), "--images holds numbers of .* takes 0 for black and "
        "255 for white, says '.*net.json'")
    self.beside(pixel_range=[-4, 4])
    self.assertEqual(self.run_main()[0], 0)


class PicturesTest(command_helpers.CommandCase):

  def test_the_range_of_a_folder(self):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="act")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = tiny.shake(keras.Model(images, keras.layers.Dense(3)(x)))
    model.save(self.place / "three.h5")
    (self.place / "three.tflite").write_bytes(
        kap.export.convert(model, helpers.wcam(), mode="float32"))
    (self.place / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (self.place / "pictures" / "a.png").write_bytes(
        tf.io.encode_png(pixels).numpy())
    flags = {"tflite": "three.tflite", "teacher": "three.h5",
             "images": "pictures"}
    self.assert_bad_input(
        self.run_main(**flags), "--images_range must say what the model takes")
    (self.place / "three.json").write_text('{"pixel_range": [-1, 1]}')
    code, out, err = self.run_main(**flags)
    self.assertEqual((code, err), (0, ""))
    low, high = (2 * float(pixel) / 255 - 1
                 for pixel in (pixels.min(), pixels.max()))
    said = re.search(r"images_range +\[(.*), (.*)\]", out)
    # The report's digits are those of float32.
    np.testing.assert_allclose(
        [float(said[1]), float(said[2])], [low, high], atol=1e-6)
    self.assert_bad_input(
        self.run_main(**flags, images_range=["0", "1"]),
        "--images_range is 0,1, but '.*three.json' says -1,1")


if __name__ == "__main__":
  absltest.main()
