"""Helpers for the tests of `kap-verify`."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from absl.testing import flagsaver, parameterized

from keras_attr_preserve.export.commands import verify_command
from tests import export_helpers as helpers


def set_up_flags():
  if not flags.FLAGS.is_parsed():  # Under pytest.
    flags.FLAGS.mark_as_parsed()


class CommandCase(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    place = tempfile.TemporaryDirectory()
    cls.addClassCleanup(place.cleanup)
    cls.place = Path(place.name)
    cls.teacher = helpers.net()
    cls.teacher.save(cls.place / "net.h5")
    (cls.place / "good.tflite").write_bytes(helpers.converted())
    (cls.place / "other.tflite").write_bytes(helpers.converted(seed=5))
    np.save(cls.place / "images.npy", helpers.images())
    np.savez(cls.place / "images.npz", images=helpers.images(),
             dark=0.1 * helpers.images(3), labels=np.zeros(8))

  def run_main(self, *arguments, **changes):
    """Runs the command in this process.

    Returns:
      The exit code, stdout and stderr.
    """
    values = {"tflite": "good.tflite", "teacher": "net.h5",
              "images": "images.npy", **changes}
    for name in ("tflite", "teacher", "images"):
      if values[name] is not None:
        values[name] = str(self.place / values[name])
    values.setdefault("layer", "act")
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(**values), contextlib.redirect_stdout(
        out), contextlib.redirect_stderr(err):
      code = verify_command.main(["kap-verify", *arguments])
    return code, out.getvalue(), err.getvalue()

  def assert_bad_input(self, result, words):
    code, out, err = result
    self.assertEqual(code, 2, err)
    self.assertEqual(out, "")
    self.assertRegex(err, f"^kap-verify: bad input: .*{words}")
    self.assertNotIn("Traceback", err)
