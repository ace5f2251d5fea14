"""What importing the library brings, and inspecting a file by it, alone."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl.testing import absltest

import keras_attr_preserve
from tests import export_helpers as helpers

HEAVY = ("cv2", "matplotlib", "tensorboard", "sklearn", "scipy", "tf_explain",
         "tflite_micro")

# TensorFlow itself picks up some of these where they are installed, so they are
# hidden: an import of one fails.
_SAY = """
import json, runpy, sys
for name in sys.argv[2:]:
  sys.modules[name] = None
import keras_attr_preserve as kap
print(json.dumps({
    "public": sorted(kap.__all__),
    "missing": [name for name in kap.__all__ if not hasattr(kap, name)],
    "export": kap.export.__name__}))
del sys.argv[2:]
runpy.run_module("keras_attr_preserve.export.commands.inspect_command",
                 run_name="__main__", alter_sys=True)
"""


class ImportTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = Path(keras_attr_preserve.__file__).parent.parent
    path = os.pathsep.join([str(root), *sys.path])
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
      file.write(helpers.converted(target="microcontroller"))
      file.flush()
      cls.result = subprocess.run(
          [sys.executable, "-c", _SAY, file.name, *HEAVY], check=False,
          capture_output=True, text=True, timeout=300,
          env={**os.environ, "PYTHONPATH": path})
    said, _, cls.inspected = cls.result.stdout.partition("\n")
    cls.said = json.loads(said or "{}")

  def test_nothing_heavy(self):
    self.assertEqual(self.result.returncode, 0, self.result.stderr)

  def test_every_public_name_is_there(self):
    self.assertContainsSubset(
        {"Distillation", "PreserveAttribution", "TrainStep", "WCAM",
         "attribution", "clone_model", "evaluation", "export"},
        self.said["public"])
    self.assertEmpty(self.said["missing"])

  def test_export_goes_by_one_name(self):
    self.assertEqual(self.said["export"], "keras_attr_preserve.export")

  def test_the_command_that_inspects(self):
    self.assertIn("tflite-micro is not installed", self.inspected)


if __name__ == "__main__":
  absltest.main()
