"""Tests of microcontroller.py: what it writes, refuses and leaves alone."""

import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.firmware.microcontroller import microcontroller
from keras_attr_preserve.utils import atomic_files
from tests import device_exports as exports
from tests import export_helpers as helpers
from tests import tiny

NAME = exports.NAME
FILES = {"README.md", *(NAME + ending for ending in (
    ".tflite", ".json", "_model.h", "_model.cc", "_resolver.h", "_explain.h",
    "_explain.c", "_test.h", "_test.c", "_vectors.h", "_vectors.npz",
    "_tflm_test.cc"))}
TESTS = {NAME + ending for ending in (
    "_test.h", "_test.c", "_vectors.h", "_vectors.npz", "_tflm_test.cc")}


def names(folder: Path) -> set[str]:
  return set(os.listdir(folder))


class WrittenTest(parameterized.TestCase):

  @parameterized.parameters(*exports.QUICK)
  def test_files_and_figures(self, kind):
    self.check_files_and_figures(kind)

  def check_files_and_figures(self, kind):
    folder, facts = exports.exported(kind), exports.facts(kind)
    self.assertEqual(names(folder), FILES)
    for name in FILES:
      self.assertGreater((folder / name).stat().st_size, 300, name)
    self.assertEqual(facts["kind"], exports.KINDS[kind])
    self.assertEqual(
        facts["bytes"]["model"], (folder / f"{NAME}.tflite").stat().st_size)
    agreement = facts["agreement"]
    self.assertEqual(agreement["images"], 6)
    # Measured: .99987 and more.
    self.assertGreater(agreement["cosine_median"], 0.9995)
    self.assertEqual(agreement["dead"], agreement["model_dead"])

  @parameterized.parameters(*exports.QUICK)
  def test_texts_are_filled_in(self, kind):
    self.check_texts_are_filled_in(kind)

  def check_texts_are_filled_in(self, kind):
    for name in FILES - {f"{NAME}.tflite", f"{NAME}_vectors.npz"}:
      text = (exports.exported(kind) / name).read_text()
      self.assertNotRegex(text, r"(?i)kapnet|@\w+@", name)
      if name.endswith((".h", ".c")):
        self.assertTrue(text.isascii(), name)
        wide = [line for line in text.splitlines() if len(line) > 90]
        self.assertEmpty(wide, name)
    self.assertIn(
        exports.facts(kind)["sha256"],
        (exports.exported(kind) / f"{NAME}_explain.h").read_text())

  @parameterized.parameters(*exports.QUICK)
  def test_vectors_are_what_the_file_answers(self, kind):
    self.check_vectors_are_what_the_file_answers(kind)

  def check_vectors_are_what_the_file_answers(self, kind):
    device = exports.device(
        kind, exports.facts(kind)["agreement"]["runtime"])
    with np.load(exports.exported(kind) / f"{NAME}_vectors.npz") as file:
      vectors = dict(file)
    self.assertLen(vectors["inputs"], 4)
    outputs = device.run(vectors["inputs"])
    np.testing.assert_array_equal(outputs["logits"], vectors["logits"])
    np.testing.assert_array_equal(outputs["features"], vectors["features"])
    images = device.inputs["images"].decode(vectors["inputs"])
    np.testing.assert_allclose(
        images, helpers.images(6, seed=5)[:4],
        atol=0.51 * device.inputs["images"].scale + 4)  # Clipped ones, too.
    maps, top = device.explain(images)
    np.testing.assert_array_equal(top, vectors["top"])
    first = np.unique(vectors["images"], return_index=True)[1]
    np.testing.assert_array_equal(
        [result.map for result in maps], vectors["maps"][first])
    self.assertEqual(vectors["maps"].dtype, np.uint8)
    if kind != "ewa":
      self.assertLen(vectors["images"], 3 * 4 + 1)
      self.assertEqual(vectors["status"][-1], 1)
      # A map of the top class is not one of another.
      self.assertTrue(
          (vectors["raw"][first] != vectors["raw"][first + 1]).any())

  @parameterized.parameters(*exports.SLOW)
  @pytest.mark.slow("firmware")
  def test_other_kinds(self, kind):
    self.check_files_and_figures(kind)
    self.check_texts_are_filled_in(kind)
    self.check_vectors_are_what_the_file_answers(kind)

  def test_without_test_images(self):
    folder = tiny.folder(self) / "out"
    facts = exports.export_again("linear", folder, test_images=None)
    self.assertEqual(names(folder), FILES - TESTS)
    self.assertIsNone(facts["agreement"])
    self.assertNotIn("_test.c", (folder / "README.md").read_text())

  def test_returns_what_the_json_holds(self):
    folder = tiny.folder(self)
    facts = exports.export_again("linear", folder, labels=("x", "y", "z"))
    self.assertEqual(json.loads(json.dumps(facts)),
                     json.loads((folder / f"{NAME}.json").read_text()))
    self.assertEqual(facts["labels"], ["x", "y", "z"])

  def test_the_model_is_left_as_it_is(self):
    model = helpers.net("gap")
    before, config = model.get_weights(), model.to_json()
    exports.exported("linear")
    for weight, other in zip(before, model.get_weights()):
      np.testing.assert_array_equal(weight, other)
    self.assertEqual(model.to_json(), config)

  def test_the_arena_without_the_interpreter_is_not_smaller(self):
    for kind in ("linear", "hidden", "gradient"):
      folder = tiny.folder(self)
      module = sys.modules[microcontroller.__module__]
      with mock.patch.object(module, "tflm_installed", return_value=False):
        facts = exports.export_again(
            kind, folder, arena_known=False, test_images=None)
      self.assertIn("an upper estimate", facts["arena"])
      if kap.export.tflm_installed():
        # Measured: 2.5, 2.2, 1.6; of real models 1.1 to 1.4.
        self.assertBetween(facts["bytes"]["arena"] / exports.facts(kind)[
            "bytes"]["arena"], 1, 3)


class RefusedTest(parameterized.TestCase):

  def refused(self, pattern, error=ValueError, **settings):
    folder = tiny.folder(self)
    with self.assertRaisesRegex(error, pattern):
      exports.export("linear", folder / "out", **settings)
    self.assertEmpty(names(folder))

  @parameterized.parameters(
      "", "1net", "my-net", "net__x", "_net", "net_", "nét", "a b", "x" * 41,
      "a/b", "net\n")
  def test_name(self, name):
    self.refused("name must be a C identifier: .*; got", name=name)

  def test_name_of_another_type(self):
    self.refused("name must be a str; got int", TypeError, name=3)

  @parameterized.parameters((["a", "b"],), ([],), (["a"] * 4,))
  def test_number_of_labels(self, labels):
    self.refused(
        r"labels must name the model's 3 classes; got \d", labels=labels)

  @parameterized.parameters("cat", (["a", "b", 3],), (["a", "b", "c\0"],), 5)
  def test_labels_of_another_type(self, labels):
    self.refused("labels must be a list of str; got", TypeError, labels=labels)

  def test_images(self):
    self.refused(r"test_images must have shape .*8, 8, 2\]; got \[4, 6, 6, 2\]",
                 test_images=tiny.images())
    self.refused("test_images must be finite",
                 test_images=np.full([1, 8, 8, 2], np.nan))
    self.refused("test_images must be in the range",
                 test_images=1000 * helpers.images())
    self.refused("representative_images must be given",
                 representative_images=None)

  def test_keras_3(self):
    import keras as keras3
    model = keras3.Sequential(
        [keras3.Input((8, 8, 2)), keras3.layers.Flatten()])
    with self.assertRaisesRegex(TypeError, "must be a tf_keras model"):
      microcontroller(model, helpers.wcam(), tiny.folder(self), name="net")

  def test_operators_that_tflite_micro_lacks(self):
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, name=helpers.LAYER)(inputs)
    x = keras.layers.Lambda(lambda t: keras.backend.tile(t, [1, 2, 1, 1]))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    folder = tiny.folder(self)
    with self.assertRaisesRegex(ValueError, "TFLite Micro lacks: TILE"):
      microcontroller(model, helpers.wcam("ewa"), folder / "out", name="net",
                      representative_images=helpers.calibration())
    self.assertEmpty(names(folder))


class FolderTest(absltest.TestCase):

  def test_other_files_are_not_touched(self):
    folder = tiny.folder(self)
    (folder / "main.c").write_text("int main(void) { return 0; }")
    with self.assertRaisesRegex(
        ValueError, "folder must be new, empty, or .* something else: main.c"):
      exports.export("linear", folder)
    self.assertEqual(names(folder), {"main.c"})

  def test_another_name_is_not_mixed_in(self):
    folder = tiny.folder(self)
    exports.export_again("linear", folder)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    with self.assertRaisesRegex(ValueError, "folder must be new"):
      exports.export("linear", folder, name="other")
    self.assertEqual(before, {
        name: (folder / name).read_bytes() for name in names(folder)})

  def test_an_earlier_export_is_replaced_as_a_whole(self):
    folder = tiny.folder(self) / "deep" / "er"
    exports.export_again("linear", folder)
    exports.export_again("hidden", folder, test_images=None)
    self.assertEqual(names(folder), FILES - TESTS)
    self.assertIn("units", (folder / f"{NAME}_explain.h").read_text())
    self.assertEqual(names(folder.parent), {"er"})

  def test_a_full_disk_leaves_the_earlier_export(self):
    folder = tiny.folder(self) / "out"
    exports.export_again("linear", folder)
    before = (folder / f"{NAME}.json").read_bytes()
    write, calls = atomic_files.write_whole, []

    def fails(path, content):
      calls.append(path)
      if len(calls) == 5:
        raise OSError(28, "No space left on device")
      return write(path, content)

    with mock.patch(
        "keras_attr_preserve.utils.atomic_files.write_whole", fails), (
            self.assertRaisesRegex(OSError, "No space left")):
      exports.export_again("hidden", folder)
    self.assertLen(calls, 5)
    self.assertEqual(names(folder), FILES)
    self.assertEqual((folder / f"{NAME}.json").read_bytes(), before)
    self.assertEqual(names(folder.parent), {"out"})

  def test_a_file_in_the_folder_s_place(self):
    folder = tiny.folder(self)
    (folder / "out").write_text("a file")
    with self.assertRaisesRegex(ValueError, "folder must be new.*: out"):
      exports.export("linear", folder / "out")
    with self.assertRaisesRegex(OSError, "folder must be a folder that can"):
      exports.export("linear", folder / "out" / "in")


class DocumentTest(absltest.TestCase):

  def test_the_readme_names_what_there_is(self):
    text = (exports.exported("hidden") / "README.md").read_text()
    headers = "".join(
        (exports.exported("hidden") / f"{NAME}_{suffix}.h").read_text()
        for suffix in ("model", "explain", "resolver", "test"))
    for name in set(re.findall(rf"(?i:\b{NAME}_\w+)", text)):
      known = name in headers or name == f"{NAME.upper()}_TEST_MAIN" or any(
          file.startswith(name) for file in FILES)
      self.assertTrue(known, name)
    for figure in ("sha256", "arena"):
      self.assertIn(str(exports.facts("hidden")[figure]), text)


if __name__ == "__main__":
  absltest.main()
