"""What `import keras_attr_preserve` brings, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from absl.testing import absltest

import keras_attr_preserve

HEAVY = ("cv2", "matplotlib", "tensorboard", "sklearn", "scipy", "tf_explain",
         "tflite_micro")

# TensorFlow itself picks up some of these where they are installed, so they are
# hidden: an import of one fails.
_SAY = """
import json, sys
for name in sys.argv[1:]:
  sys.modules[name] = None
import keras_attr_preserve as kap
print(json.dumps({
    "public": sorted(kap.__all__),
    "missing": [name for name in kap.__all__ if not hasattr(kap, name)],
    "export": kap.export.__name__}))
"""


class ImportTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    root = Path(keras_attr_preserve.__file__).parent.parent
    path = os.pathsep.join([str(root), *sys.path])
    cls.result = subprocess.run(
        [sys.executable, "-c", _SAY, *HEAVY], check=False, capture_output=True,
        text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})
    lines = cls.result.stdout.splitlines()
    cls.said = json.loads(lines[-1]) if lines else {}

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


if __name__ == "__main__":
  absltest.main()
