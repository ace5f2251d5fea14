"""Smoke runs of the experiments' programs, each in a process of its own."""

import os
import tempfile
from pathlib import Path

from absl.testing import absltest, parameterized

from tests import export_helpers as helpers

ONE_ARM = ("--arm=swa_distillation",)


def setUpModule():
  helpers.skip_without_examples()


def run(name: str, *arguments: str):
  return helpers.run_module(f"examples.{name}", [*arguments], env={
      **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})


class SmokeTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def ran(self, name, *arguments):
    done = run(name, "--smoke", f"--output={self.folder / 'out'}", *arguments)
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    return done.stdout

  @parameterized.parameters(
      ("prune", *ONE_ARM), ("prune", "--reconstruct", *ONE_ARM),
      ("prune_filters", *ONE_ARM), ("prune_filters", "--reconstruct", *ONE_ARM),
      ("distill", *ONE_ARM), ("quantize", *ONE_ARM),
      ("combine", "--way=prune+qat", *ONE_ARM))
  def test_compressing(self, name, *arguments):
    said = self.ran(name, *arguments)
    self.assertIn("swa_distillation, seed 1: mAP", said)
    lines = (self.folder / "out" / "results.jsonl").read_text().splitlines()
    # The teacher, the centre prior, and the runs.
    self.assertLen(lines, 4 if name == "quantize" else 3)

  def test_a_file_is_written_and_verified(self):
    name = str(self.folder / "out")
    self.assertIn(name, self.ran("export_tflite"))
    done = run("verify_tflite", "--smoke", f"--tflite={name}",
               f"--output={self.folder / 'report'}", "--require_cosine=1")
    # An int8 file falls a little short of 1, and the exit code says so.
    self.assertEqual(done.returncode, 1, done.stderr[-3000:])
    self.assertIn("cosine", done.stdout)
    self.assertIn("cosine", done.stderr)
    self.assertTrue((self.folder / "report" / "report.json").exists())

  def test_a_sweep_goes_on_where_it_was_stopped_and_reports(self):
    arguments = ("--grid=filters:0.5", "--keep", "--seed=1", "--arm=plain")
    said = self.ran("sweep", *arguments, "--seed=2",
                    "--grid=filters:0.5;ptq", "--minutes=0")
    # Quantizing after training hangs on no seed.
    self.assertIn("3 runs are left", said)
    self.assertFalse((self.folder / "out" / "report").exists())
    self.ran("sweep", *arguments)
    said = self.ran("sweep", *arguments, "--arm=swa")
    self.assertIn("1 of 2 runs are in", said)
    report = self.folder / "out" / "report"
    self.assertIn("python -m examples.sweep --smoke",
                  (report / "experiment.md").read_text())
    self.assertTrue((report / "experiment" / "results.csv").exists())


class MistakesTest(parameterized.TestCase):

  @parameterized.parameters(
      ("prune", (), "--layers must name"),
      ("prune", ("--layers=relu3",), "--teacher must name"),
      ("sweep", ("--grid=melt:1",), "must be one of"),
      ("quantize", ("--way=ptq", "more"), "unknown arguments"))
  def test_a_wrong_flag_is_said_without_a_trace(self, name, arguments, said):
    with tempfile.TemporaryDirectory() as folder:
      done = run(name, f"--output={folder}", *arguments)
    self.assertNotEqual(done.returncode, 0)
    self.assertIn(said, done.stderr + done.stdout)
    self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
  absltest.main()
