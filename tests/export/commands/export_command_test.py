"""Tests of export_command.py: what `kap-export` writes, prints and refuses."""

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.commands import export_command
from keras_attr_preserve.export.tflite.schema import read_metadata, read_model
from keras_attr_preserve.utils import atomic_files
from tests import export_helpers as helpers
from tests import tiny


class CommandTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    place = tempfile.TemporaryDirectory()
    cls.addClassCleanup(place.cleanup)
    cls.place = Path(place.name)
    helpers.net().save(cls.place / "net.h5")
    helpers.net("block").save(cls.place / "block.h5")
    np.save(cls.place / "images.npy", helpers.calibration())
    np.savez(cls.place / "images.npz", images=helpers.calibration(),
             test=helpers.images(8))
    (cls.place / "labels.txt").write_text("cat\ndog\nbird\n")

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)

  def run_main(self, **flags):
    """Runs the command; returns the exit code, stdout and stderr."""
    flags = {"model": "net.h5", "layer": "act", "images": "images.npy",
             "output": self.folder / "net.tflite", **flags}
    for name in ("model", "images", "test_images", "labels"):
      if flags.get(name) is not None:
        flags[name] = self.place / flags[name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = export_command.main(["kap-export", *(
          f"--{name}={value}" for name, value in flags.items()
          if value is not None)])
    return code, out.getvalue(), err.getvalue()

  def assert_bad_input(self, result, words):
    code, out, err = result
    self.assertEqual((code, out), (2, ""), err)
    self.assertRegex(err, f"^kap-export: bad input: .*{words}")
    self.assertEqual(os.listdir(self.folder), [])

  @parameterized.parameters(("float32", "swa"), ("int8", "ewa"))
  def test_for_phones(self, mode, method):
    code, out, err = self.run_main(
        mode=mode, method=method, images="images.npz")
    self.assertEqual(code, 0, err)
    content = (self.folder / "net.tflite").read_bytes()
    facts = read_metadata(read_model(content))
    self.assertEqual(facts["method"], method)
    self.assertEqual(facts["mode"], mode)
    for words in (f"bytes           {len(content):,}; gzipped",
                  f"road            {facts['road']}", "layer           act",
                  "arena, LiteRT   about", "sparsity        ",
                  "times predict's time"):
      self.assertIn(words, out)
    maps, _ = kap.export.Interpreter(content).explain(helpers.images(), 1)
    attribute = (kap.attribution.grad_cam if method == "swa"
                 else kap.attribution.equal_weighted)
    want = attribute(helpers.net(), helpers.images(), 1, helpers.LAYER)
    # Eight bits turn a map slightly, and float32 by its rounding alone; as
    # COSINES in convert_test.py, at worst.
    self.assertGreater(helpers.cosines(maps, want).min(),
                       {"float32": 1 - 1e-7, "int8": 0.998}[mode])

  def test_a_road_that_is_asked_for(self):
    code, out, err = self.run_main(mode="float32", road="features")
    self.assertEqual(code, 0, err)
    self.assertIn("road            features", out)
    self.assertIn("arena, TFLM", out)

  def test_a_folder_that_is_not_there_yet(self):
    output = self.folder / "a" / "b" / "net.tflite"
    with mock.patch.object(
        export_command, "convert", return_value=helpers.converted()):
      code, _, err = self.run_main(mode="float32", output=output)
    self.assertEqual(code, 0, err)
    self.assertTrue(kap.export.Interpreter(output).metadata)

  def test_a_full_disk_leaves_what_was_there(self):
    path = self.folder / "net.tflite"
    path.write_bytes(b"old")
    full = mock.patch.object(atomic_files.os, "fsync", side_effect=OSError(
        28, "No space left on device"))
    with full, mock.patch.object(
        export_command, "convert", return_value=helpers.converted()):
      code, out, err = self.run_main(mode="float32")
    self.assertEqual((code, out), (2, ""))
    self.assertIn("No space left", err)
    self.assertEqual(path.read_bytes(), b"old")
    self.assertEqual(os.listdir(self.folder), ["net.tflite"])

  @parameterized.parameters(
      ({"model": None, "layer": None}, "--model, --layer must be given"),
      ({"target": "microcontroller"}, "--name must be given"),
      ({"name": "net"}, "--name: only for --target=microcontroller"),
      ({"labels": "labels.txt", "test_images": "images.npy"},
       "--labels, --test_images: only for"),
      ({"target": "microcontroller", "name": "a", "mode": "float32"},
       "takes --mode=int8"),
      ({"model": "none.h5"}, "--model: no file or folder"),
      ({"model": "labels.txt"}, ""),
      ({"images": "none.npy"}, "none.npy"),
      ({"images": "labels.txt"}, "--images must be a whole"),
      ({"images": "images.npz", "images_key": "x"}, "--images_key must be one"),
      ({"layer": "relu9"}, "layer 'relu9'"),
      ({"images": None}, "representative_images must be given"),
      ({"target": "watch"}, "target"), ({"mode": "int4"}, "mode"),
      ({"method": "cam"}, "method"), ({"road": "none"}, "road must be one of"),
      ({"colour": "red"}, "colour"))
  def test_bad_input(self, flags, words):
    self.assert_bad_input(self.run_main(**flags), words)

  def test_an_output_that_cannot_be_written(self):
    self.assert_bad_input(self.run_main(output=self.folder), "is a folder")
    self.assert_bad_input(
        self.run_main(output=self.place / "labels.txt" / "net.tflite"),
        "--output must be a folder that can be written to")

  def test_what_stands_beside_the_model(self):
    path = self.place / "net.json"
    self.addCleanup(path.unlink)
    path.write_text(json.dumps({
        "pixel_range": [-4, 4], "layer": "act",
        "class_names": ["cat", "dog", "owl"]}))
    code, out, err = self.run_main(layer=None, mode="float32")
    self.assertEqual(code, 0, err)
    self.assertIn("layer           act", out)
    (self.folder / "net.tflite").unlink()
    self.assert_bad_input(
        self.run_main(target="microcontroller", name="animals",
                      labels="labels.txt"),
        "--labels is cat,dog,bird, but '.*net.json' says cat,dog,owl")
    path.write_text(json.dumps({"pixel_range": [0, 255]}))
    self.assert_bad_input(
        self.run_main(), "--images holds numbers of .*net.json")
    self.assert_bad_input(
        self.run_main(layer=None), "--layer must be given")

  def test_layers_of_ones_own_and_code(self):
    # A module in the folder that the command runs in.
    (self.place / "own_layers_of_test.py").write_text(
        "import tf_keras as keras\n"
        "class Scale(keras.layers.Layer):\n"
        "  def call(self, x):\n    return 2 * x\n")
    before, modules = os.getcwd(), set(sys.modules)
    os.chdir(self.place)
    self.addCleanup(os.chdir, before)
    self.addCleanup(lambda: [
        sys.modules.pop(name) for name in set(sys.modules) - modules
        if name == "own_layers_of_test"])
    paths = [*sys.path]
    with mock.patch.object(sys, "path", [*sys.path, os.getcwd()]):
      scale = importlib.import_module("own_layers_of_test").Scale
    for name, layer in (("own", scale()), ("code", keras.layers.Lambda(
        lambda x: 2 * x))):
      inputs = keras.Input((8, 8, 2))
      x = keras.layers.Conv2D(4, 3, name="act")(layer(inputs))
      x = keras.layers.GlobalAveragePooling2D()(x)
      keras.Model(inputs, keras.layers.Dense(3)(x)).save(f"{name}.h5")
    for model, flag, words in (
        ("own.h5", {"custom_objects": "own_layers_of_test:Scale"},
         "--model must hold .*Scale.*--custom_objects=MODULE:NAME"),
        ("code.h5", {"unsafe": "true"}, "holds Python code .*--unsafe")):
      self.assert_bad_input(
          self.run_main(model=model, mode="float32"), words)
      code, _, err = self.run_main(model=model, mode="float32", **flag)
      self.assertEqual(code, 0, err)
      self.assertEqual(sys.path, paths)
      (self.folder / "net.tflite").unlink()
    self.assert_bad_input(
        self.run_main(model="own.h5", custom_objects="own_layers_of_test:No"),
        "module 'own_layers_of_test' has no 'No'")
    self.assert_bad_input(
        self.run_main(model="own.h5", custom_objects="no_such_module:Scale"),
        "No module named 'no_such_module'")

  @parameterized.parameters("--help", "-h")
  def test_help(self, flag):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      self.assertEqual(export_command.main(["kap-export", flag]), 0)
    self.assertIn("kap-export --model=net.h5", out.getvalue())
    self.assertIn("--test_images", out.getvalue())

  def test_left_over_arguments(self):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      self.assertEqual(export_command.main(["kap-export", "net.h5"]), 2)
    self.assertIn("unknown arguments: net.h5", err.getvalue())

  @pytest.mark.slow("files")
  def test_for_microcontrollers(self):
    folder = self.folder / "firmware"
    code, out, err = self.run_main(
        target="microcontroller", name="animals", labels="labels.txt",
        images="images.npz", test_images="images.npz", test_images_key="test",
        output=folder)
    self.assertEqual(code, 0, err)
    self.assertContainsSubset(
        {"animals.tflite", "animals_explain.c", "README.md"},
        os.listdir(folder))
    self.assertIn("animals_explain.c", out)
    self.assertIn("arena, TFLM", out)
    self.assert_bad_firmware(name="no name")

  def assert_bad_firmware(self, **flags):
    code, _, err = self.run_main(
        target="microcontroller", output=self.folder / "other", **flags)
    self.assertEqual(code, 2)
    self.assertIn("kap-export: bad input: name", err)
    self.assertFalse((self.folder / "other").exists())


if __name__ == "__main__":
  absltest.main()
