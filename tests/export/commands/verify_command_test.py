"""Tests of verify_command.py: exit codes, files and words of `kap-verify`."""

import contextlib
import functools
import io
import json
import sys

import keras as keras3
import numpy as np
import pytest
from absl.testing import absltest, flagsaver, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.commands import verify_command
from tests import command_helpers, tiny
from tests import export_helpers as helpers

MODULE = "keras_attr_preserve.export.commands.verify_command"


setUpModule = command_helpers.set_up_flags


class CommandTest(command_helpers.CommandCase):

  def test_good_enough(self):
    code, out, err = self.run_main(
        require_cosine=0.99, require_cosine_p5=0.99, require_spearman=0.99,
        require_prediction_agreement=1.0, require_dead=0.0)
    self.assertEqual((code, err), (0, ""))
    self.assertRegex(out, r"(?m)^cosine( +1\.0000){4}$")
    self.assertRegex(out, r"(?m)^road +tail$")

  def test_nothing_required(self):
    code, out, _ = self.run_main(tflite="other.tflite")
    self.assertEqual(code, 0)
    self.assertIn("agreement of maps", out)

  @parameterized.parameters(
      ("require_cosine", "cosine 0", 0.999),
      ("require_cosine_p5", "cosine_p5 0", 0.999),
      ("require_spearman", "spearman ", 0.999),
      ("require_prediction_agreement", "prediction_agreement 0", 1.0))
  def test_falls_short(self, name, words, limit):
    code, out, err = self.run_main(tflite="other.tflite", **{name: limit})
    self.assertEqual((code, err), (1, ""))
    self.assertRegex(out, f"^kap-verify: falls short: {words}.*, at least "
                     f"{limit:g} required")
    self.assertIn("agreement of maps", out)  # All the figures, too.

  def test_dead_maps(self):
    model = tiny.copy_of(self.teacher)
    kernel = model.get_layer("logits").kernel
    kernel.assign(-np.abs(kernel))
    (self.place / "dead.tflite").write_bytes(
        kap.export.convert(model, helpers.wcam(), mode="float32"))
    code, out, _ = self.run_main(tflite="dead.tflite", require_dead=0.5)
    self.assertEqual(code, 1)
    self.assertRegex(out, "falls short: dead 1.0000, at most 0.5 required")

  @parameterized.parameters(("good.tflite", 0), ("other.tflite", 1))
  def test_report_files(self, tflite, want):
    folder = tiny.folder(self) / "new" / "report"
    code, _, _ = self.run_main(
        tflite=tflite, output=str(folder), require_cosine=0.999)
    self.assertEqual(code, want)
    figures = json.loads((folder / "report.json").read_text())
    report = kap.export.verify(
        self.place / tflite, self.teacher, helpers.wcam(), helpers.images())
    self.assertEqual(figures, json.loads(json.dumps(report.to_dict())))
    rows = (folder / "report.csv").read_text().splitlines()
    self.assertLen(rows, 9)
    self.assertStartsWith(rows[0], "image,cosine,")

  def test_method_and_runtime(self):
    (self.place / "ewa.tflite").write_bytes(
        helpers.converted("gap", "float32", "ewa"))
    code, out, _ = self.run_main(
        tflite="ewa.tflite", method="ewa", runtime=["reference"],
        require_cosine=0.99)
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^method +ewa$")
    self.assertRegex(out, r"(?m)^runtime +reference$")
    code, out, _ = self.run_main(tflite="ewa.tflite", require_cosine=0.99)
    self.assertEqual(code, 0)  # The file says it.
    self.assertRegex(out, r"(?m)^method +ewa$")
    self.assert_bad_input(
        self.run_main(tflite="ewa.tflite", method="swa"),
        "--method is swa, but '.*ewa.tflite' says ewa")

  def test_images_of_an_archive(self):
    code, out, _ = self.run_main(images="images.npz")
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^images +8$")
    code, out, _ = self.run_main(images="images.npz", images_key="dark")
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^images +3$")
    self.assert_bad_input(
        self.run_main(images="images.npz", images_key="pictures"),
        "--images_key must be one of .*'images', 'dark', 'labels'.* got "
        "'pictures'")
    self.assert_bad_input(
        self.run_main(images="images.npz", images_key="labels"),
        "images must have shape")

  @parameterized.parameters("tflite", "teacher", "images")
  def test_missing_files(self, name):
    self.assert_bad_input(self.run_main(**{name: "missing"}), "missing")

  @parameterized.parameters("tflite", "teacher", "images")
  def test_missing_flags(self, name):
    self.assert_bad_input(
        self.run_main(**{name: None}), f"--{name} must be given")

  def test_all_flags_missing(self):
    self.assert_bad_input(
        self.run_main(tflite=None, teacher=None, layer=None, images=None),
        "--tflite, --teacher, --images must be given")

  def test_left_over_arguments(self):
    self.assert_bad_input(
        self.run_main("net.tflite"), "unknown arguments: net.tflite")

  @parameterized.parameters(
      (b"",), (b"not a model",), (b"\x1c\0\0\0TFL3" + bytes(100),))
  def test_no_tflite_file(self, content):
    (self.place / "bad.tflite").write_bytes(content)
    self.assert_bad_input(self.run_main(tflite="bad.tflite"), "tflite_model")

  def test_damaged_tflite_files(self):
    content = helpers.converted()
    rng = np.random.default_rng(1)
    for i in range(40):
      damaged = bytearray(content)
      damaged[rng.integers(len(content) if i % 2 else 300)] ^= (
          1 << rng.integers(8))
      (self.place / "bad.tflite").write_bytes(damaged)
      # Never 1: a broken file is no shortfall, nor is it a crash.
      code, _, _ = self.run_main(tflite="bad.tflite")
      self.assertIn(code, (0, 2))

  def test_a_foreign_tflite_file(self):
    (self.place / "foreign.tflite").write_bytes(
        helpers.foreign(helpers.converted()))
    code, _, err = self.run_main(
        tflite="foreign.tflite", require_cosine=0.999)
    self.assertEqual((code, err), (0, ""))

  def test_a_folder_for_a_file(self):
    self.assert_bad_input(self.run_main(tflite="."), "Is a directory")
    self.assert_bad_input(self.run_main(images="."), "holds no pictures")

  def test_layer(self):
    self.assert_bad_input(
        self.run_main(layer="relu9", student_layer="act"), "layer 'relu9'")

  @parameterized.parameters(b"", b"no model at all")
  def test_no_teacher(self, content):
    for name in ("bad.h5", "bad.keras", "bad"):
      (self.place / name).write_bytes(content)
      self.assert_bad_input(self.run_main(teacher=name), "")
    (self.place / "empty").mkdir(exist_ok=True)
    self.assert_bad_input(self.run_main(teacher="empty"), "")

  def test_a_keras_3_teacher(self):
    images = keras3.Input((8, 8, 2))
    x = keras3.layers.Conv2D(4, 3, name="act")(images)
    x = keras3.layers.GlobalAveragePooling2D()(x)
    keras3.Model(images, keras3.layers.Dense(3)(x)).save(
        self.place / "three.keras")
    self.assert_bad_input(
        self.run_main(teacher="three.keras"),
        "--teacher must hold a tf_keras model")

  @parameterized.parameters(
      ("empty.npy", b""), ("empty.npz", b""), ("text.npy", b"1 2 3"),
      ("half.npy", None), ("half.npz", None))
  def test_no_images(self, name, content):
    if content is None:
      whole = (self.place / name.replace("half", "images")).read_bytes()
      content = whole[:len(whole) // 2]
    (self.place / name).write_bytes(content)
    self.assert_bad_input(self.run_main(images=name), "")

  def test_images_of_another_kind(self):
    np.save(self.place / "flat.npy", np.zeros((3, 8)))
    self.assert_bad_input(
        self.run_main(images="flat.npy"), "images must have shape")
    np.save(self.place / "words.npy", np.array(["a", "b"]))
    self.assert_bad_input(
        self.run_main(images="words.npy"), "images must be numbers")

  def test_an_output_that_cannot_be_written(self):
    self.assert_bad_input(
        self.run_main(output=str(self.place / "net.h5")), "net.h5")

  @parameterized.parameters("net.keras", "folder")
  def test_other_forms_of_the_teacher(self, name):
    self.teacher.save(self.place / name)
    code, _, err = self.run_main(teacher=name, require_cosine=0.999)
    self.assertEqual((code, err), (0, ""))

  def test_a_quantize_aware_teacher(self):
    model = helpers.quantize_aware()
    model.save(self.place / "quantized.h5")
    (self.place / "quantized.tflite").write_bytes(
        kap.export.convert(model, helpers.wcam(), mode="int8"))
    code, _, err = self.run_main(
        teacher="quantized.h5", tflite="quantized.tflite",
        require_cosine=0.999)
    self.assertEqual((code, err), (0, ""))

  @helpers.needs_tflm
  def test_tflm(self):
    (self.place / "micro.tflite").write_bytes(
        helpers.converted(target="microcontroller"))
    code, out, _ = self.run_main(
        tflite="micro.tflite", runtime=["tflm"], require_cosine=0.999)
    self.assertEqual(code, 0)
    self.assertRegex(out, r"(?m)^runtime +tflm$")


class ParseTest(parameterized.TestCase):
  """What absl itself would end with 1, a shortfall's code."""

  @parameterized.parameters("--help", "-h", "--helpshort", "--helpfull")
  def test_help(self, flag):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), self.assertRaises(
        SystemExit) as caught:
      verify_command._parse(["kap-verify", flag])
    self.assertEqual(caught.exception.code, 0)
    self.assertIn("kap-verify --tflite=net.tflite", out.getvalue())
    self.assertIn("--require_cosine", out.getvalue())

  @parameterized.parameters(
      ("--requires_cosine=1", "requires_cosine"),
      ("--require_cosine=high", "require_cosine"),
      ("--method=cam", "method"), ("--runtime=gpu", "runtime"),
      ("--runtime=xnnpack,gpu", "runtime"), ("--runtime=", "runtime"),
      ("--runtime=all,xnnpack", "runtime"), ("--judges=lime", "judges"),
      ("--judge_images=0", "judge_images"))
  def test_bad_flags(self, flag, words):
    err = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(
        err), self.assertRaises(SystemExit) as caught:
      verify_command._parse(["kap-verify", flag])
    self.assertEqual(caught.exception.code, 2)
    self.assertRegex(err.getvalue(), f"^kap-verify: bad input: .*{words}")


class ProcessTest(parameterized.TestCase):
  """The whole command, in a process of its own."""

  @functools.cached_property
  def folder(self):
    folder = tiny.folder(self)
    helpers.net().save(folder / "net.h5")
    (folder / "net.tflite").write_bytes(helpers.converted())
    np.save(folder / "images.npy", helpers.images(4))
    return folder

  def run_command(self, *arguments):
    return helpers.run_module(MODULE, [
        f"--tflite={self.folder / 'net.tflite'}",
        f"--teacher={self.folder / 'net.h5'}",
        f"--images={self.folder / 'images.npy'}", "--layer=act", *arguments])

  @pytest.mark.slow("files")
  def test_exit_code_and_files_and_lists(self):
    done = self.run_command(
        "--runtime=builtin,reference", "--judges=occlusion,rise",
        "--judge_images=1", "--require=rise_cosine=1.5",
        f"--output={self.folder / 'report'}")
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertRegex(
        done.stdout, "falls short: builtin: rise_cosine 1.0000, at least 1.5 "
        "required. reference: rise_cosine")
    self.assertNotIn("pictures run", done.stderr)  # No terminal.
    self.assertTrue((self.folder / "report" / "comparison.json").exists())

  @pytest.mark.slow("binaries")
  def test_one_runtime(self):
    done = self.run_command(
        "--require_cosine=1.5", f"--output={self.folder / 'report'}")
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertIn("falls short: cosine 1.0000, at least 1.5", done.stdout)
    self.assertTrue((self.folder / "report" / "report.json").exists())

  def test_run_is_the_installed_command(self):
    self.assertTrue(callable(verify_command.run))
    self.assertEqual(sys.modules[MODULE].run, verify_command.run)


if __name__ == "__main__":
  absltest.main()
