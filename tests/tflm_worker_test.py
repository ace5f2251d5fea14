"""Tests of tflm_worker.py: the script that runs TFLite Micro."""

import importlib.util
import json
import subprocess
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest

from keras_attr_preserve.export import tflm_worker
from keras_attr_preserve.export.flatbuffer import read_model, signatures
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
        tflm_worker.installed(),
        importlib.util.find_spec("tflite_micro") is not None)
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
      self.assertFalse(tflm_worker.installed())


@helpers.needs_tflm
class WorkerTest(absltest.TestCase):

  def write(self, content, wanted):
    folder = tiny.folder(self)
    (folder / "model.tflite").write_bytes(content)
    found = signatures(read_model(content))["explain"]
    feeds = {"images": helpers.images(3),
             "class_weights": np.eye(3, dtype=np.float32)}
    self.feeds = {str(spec.position): spec.encode(feeds[name])
                  for name, spec in found.inputs.items()}
    np.savez(folder / "in.npz", **self.feeds)
    (folder / "outputs.json").write_text(
        json.dumps([found.outputs[name].position for name in wanted]))
    return folder, found

  def run_worker(self, folder):
    return subprocess.run(
        [sys.executable, "-c", _ALONE, tflm_worker.__file__, str(folder)],
        capture_output=True, text=True, check=False, timeout=120)

  def test_all_inputs_and_the_outputs_that_are_wanted(self):
    content = helpers.converted("block", one_subgraph=True)
    wanted = ("logits", "sensitivity")
    folder, found = self.write(content, wanted)
    done = self.run_worker(folder)
    self.assertEqual(done.returncode, 0, done.stderr)
    with np.load(folder / "out.npz") as out:
      self.assertEqual(
          set(out.files), {str(found.outputs[one].position) for one in wanted})
      for name in wanted:
        spec = found.outputs[name]
        values = out[str(spec.position)]
        self.assertEqual(values.shape, (3, *spec.shape[1:]))
        self.assertEqual(values.dtype, spec.dtype)
      np.testing.assert_allclose(
          out[str(found.outputs["logits"].position)],
          helpers.net("block").predict(helpers.images(3), verbose=0),
          1e-4, 1e-5)

  def test_a_file_that_is_refused(self):
    folder, _ = self.write(helpers.converted("gap", "float16"), ["logits"])
    done = self.run_worker(folder)
    self.assertNotEqual(done.returncode, 0)
    self.assertIn("DEQUANTIZE", done.stderr)
    self.assertFalse((folder / "out.npz").exists())


if __name__ == "__main__":
  absltest.main()
