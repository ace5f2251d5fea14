"""Tests of verify_command.py: runtimes, judges, folders, any requirement."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import command_helpers, tiny
from tests import export_helpers as helpers

setUpModule = command_helpers.set_up_flags


class FlagsTest(command_helpers.CommandCase):

  def test_a_folder_of_pictures(self):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="act")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = tiny.shake(keras.Model(images, keras.layers.Dense(3)(x)), 1)
    model.save(self.place / "colour.h5")
    (self.place / "colour.tflite").write_bytes(kap.export.convert(
        model, helpers.wcam(), mode="float32"))
    folder = self.place / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(
        0, 256, (3, 9, 12, 3), np.uint8)):
      (folder / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    settings = {"tflite": "colour.tflite", "images": "pictures"}
    (folder / "1.png").rename(folder / "1\udcff.png")  # A byte of its own.
    for teacher, runtime, place in (
        ("colour.h5", ["xnnpack"], "."),
        ("colour.tflite", ["xnnpack", "reference"], "reference")):
      report = tiny.folder(self)
      code, out, err = self.run_main(
          teacher=teacher, images_range=["-1", "1"], require_cosine=0.999,
          runtime=runtime, output=str(report), **settings)
      rows = (report / place / "report.csv").read_text().splitlines()
      self.assertEqual([line.split(",")[0] for line in rows],
                       ["image", "0.png", r"1\udcff.png", "2.png"])
      self.assertEqual((code, err), (0, ""))
      self.assertRegex(out, r"(?m)^images +3$")
      self.assertRegex(out, r"(?m)^images_range +\[-0\.\d+, 0\.\d+\]$")
    self.assert_bad_input(
        self.run_main(teacher="colour.h5", **settings),
        "--images_range must say what the model takes for black and white")

  def test_a_file_for_a_teacher(self):
    for tflite, want in (("good.tflite", 0), ("other.tflite", 1)):
      code, _, _ = self.run_main(
          teacher="good.tflite", tflite=tflite, require_cosine=0.999)
      self.assertEqual(code, want)
    self.assert_bad_input(self.run_main(teacher="missing.tflite"), "missing")

  def test_several_runtimes(self):
    folder = tiny.folder(self)
    code, out, err = self.run_main(
        runtime=["xnnpack", "reference"], output=str(folder),
        require_cosine=0.999)
    self.assertEqual((code, err), (0, ""))
    self.assertRegex(out, r"(?m)^agreement of maps +xnnpack +reference$")
    self.assertRegex(out, r"(?m)^xnnpack - reference ")
    for name in ("comparison.json", "xnnpack/worst.png",
                 "reference/report.json"):
      self.assertTrue((folder / name).exists(), name)
    code, out, _ = self.run_main(
        tflite="other.tflite", runtime=["xnnpack", "reference"],
        require_cosine=0.999)
    self.assertEqual(code, 1)
    self.assertRegex(out, r"falls short: xnnpack: cosine 0.*\. reference: cos")

  def test_all_runtimes(self):
    (self.place / "half.tflite").write_bytes(
        helpers.converted("gap", "float16"))
    code, out, _ = self.run_main(runtime=["all"], tflite="half.tflite")
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^tflm cannot ")

  def test_judges(self):
    code, out, _ = self.run_main(
        judges=["occlusion"], judge_images=2, require_occlusion_cosine=0.999,
        require=["occlusion_spearman=0.9", "pearson_worst=0.99", "l2=0.01"])
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^judge_images +2$")
    code, out, _ = self.run_main(
        tflite="other.tflite", judges=["occlusion"], judge_images=2,
        require=["occlusion_cosine=0.9999"])
    self.assertEqual(code, 1)
    self.assertRegex(out, "falls short: occlusion_cosine .*, at least 0.9999")

  @parameterized.parameters(
      (["cosine"], "--require must be name=limit by commas; got 'cosine'"),
      (["cosine=high"], "--require must be name=limit"),
      (["cosine=.5", "cosine=.6"], "--require: cosine is given twice"),
      (["cosin=.5"], "'cosin' is no figure"),
      (["occlusion_cosine=.5"], "'occlusion_cosine' is no figure"))
  def test_a_wrong_requirement(self, require, words):
    self.assert_bad_input(self.run_main(require=require), words)


if __name__ == "__main__":
  absltest.main()
