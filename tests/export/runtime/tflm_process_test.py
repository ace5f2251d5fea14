"""Tests of tflm_process.py: the script that runs TFLite Micro."""

import importlib.util
import json
import subprocess
import sys
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest

from keras_attr_preserve.export.runtime import tflm_process
from keras_attr_preserve.export.tflite.schema import read_model, signatures
from tests import export_helpers as helpers
from tests import tiny

# Runs the script where neither TensorFlow nor this package can be imported.
_ALONE = """
import runpy, sys
for name in ("tensorflow", "tf_keras", "keras_attr_preserve", "ai_edge_litert"):
  sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class InstalledTest(absltest.TestCase):

  def test_says_whether_the_package_is_there(self):
    self.assertEqual(
        tflm_process.installed(),
        importlib.util.find_spec("tflite_micro") is not None)
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
      self.assertFalse(tflm_process.installed())


@helpers.needs_tflm
class WorkerTest(absltest.TestCase):

  def write(self, content, wanted):
    folder = tiny.folder(self)
    (folder / "model.tflite").write_bytes(content)
    explain = signatures(read_model(content))["explain"]
    feeds = {"images": helpers.images(3),
             "class_weights": np.eye(3, dtype=np.float32)}
    self.feeds = {str(spec.position): spec.encode(feeds[name])
                  for name, spec in explain.inputs.items()}
    np.savez(folder / "in.npz", **self.feeds)
    (folder / "outputs.json").write_text(
        json.dumps([explain.outputs[name].position for name in wanted]))
    return folder, explain

  def run_worker(self, folder):
    return subprocess.run(
        [sys.executable, "-c", _ALONE, tflm_process.__file__, str(folder),
         "run"],
        capture_output=True, text=True, check=False, timeout=120)

  def test_all_inputs_and_the_outputs_that_are_wanted(self):
    content = helpers.converted("block", target="microcontroller")
    names = ("logits", "sensitivity")
    folder, explain = self.write(content, names)
    done = self.run_worker(folder)
    self.assertEqual(done.returncode, 0, done.stderr)
    with np.load(folder / "out.npz") as out:
      self.assertEqual(
          set(out.files),
          {str(explain.outputs[output].position) for output in names})
      for name in names:
        spec = explain.outputs[name]
        values = out[str(spec.position)]
        self.assertEqual(values.shape, (3, *spec.shape[1:]))
        self.assertEqual(values.dtype, spec.dtype)
      np.testing.assert_allclose(
          out[str(explain.outputs["logits"].position)],
          helpers.net("block").predict(helpers.images(3), verbose=0),
          1e-4, 1e-5)

  def test_a_file_that_is_refused(self):
    folder, _ = self.write(helpers.converted("gap", "float16"), ["logits"])
    done = self.run_worker(folder)
    self.assertNotEqual(done.returncode, 0)
    self.assertIn("DEQUANTIZE", done.stderr)
    self.assertFalse((folder / "out.npz").exists())

  def test_called(self):
    content = helpers.converted("block", "int8", target="microcontroller")
    _, explain = self.write(content, [])
    out = tflm_process.run(
        content, {int(key): array for key, array in self.feeds.items()},
        [spec.position for spec in explain.outputs.values()])
    for spec in explain.outputs.values():
      self.assertEqual(out[spec.position].shape, (3, *spec.shape[1:]))

  def test_one_that_does_not_end(self):
    with mock.patch.object(tflm_process, "TIMEOUT", 0.01), (
        self.assertRaisesRegex(
            ValueError, "'tflm' did not end within 0.01 seconds")):
      tflm_process.measure(helpers.converted("gap", "int8"))

  def test_one_that_takes_too_much_memory(self):
    model = helpers.parsed(helpers.converted("gap", "int8"))
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = np.int32([1, 1 << 14, 1 << 15, 2])
    with self.assertRaisesRegex(ValueError, "refused by the runtime 'tflm'"):
      tflm_process.measure(helpers.packed(model))

  def test_a_small_file_of_large_tensors(self):
    """Its arena is more than ten times the file, the interpreter's default."""
    @tf.function(input_signature=[tf.TensorSpec([1, 200, 200, 8])])
    def serve(x):
      return tf.nn.relu(x)
    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()]).convert()
    self.assertGreater(tflm_process.measure(content)["head"], 10 * len(content))
    image = np.random.default_rng(0).normal(
        size=[1, 200, 200, 8]).astype(np.float32)
    np.testing.assert_array_equal(
        tflm_process.run(content, {0: image}, [0])[0], np.maximum(image, 0))

  def test_one_that_kills_its_process(self):
    # Two subgraphs: the interpreter ends with a segmentation fault.
    with self.assertRaisesRegex(
        ValueError, "refused by the runtime 'tflm' .exit -11.: it said"):
      tflm_process.measure(helpers.converted("block", "int8"))


if __name__ == "__main__":
  absltest.main()
