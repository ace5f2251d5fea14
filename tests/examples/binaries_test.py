"""Smoke runs of the experiments' programs, and their errors."""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from tests import export_helpers as helpers
from tests.experiment_helpers import run_inside

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples.experiment.runs import running

ONE_ARM = ("--arm=swa_distillation",)


def setUpModule():
  helpers.skip_without_examples()


def run_process(name: str, *arguments: str):
  return helpers.run_module(f"examples.{name}", [*arguments], env={
      **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})


class SmokeTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  def ran(self, name, *arguments, run=run_inside):
    done = run(name, "--smoke", f"--output={self.folder / 'out'}", *arguments)
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    return done.stdout

  def check_compressing(self, name, *arguments, runs=1, **settings):
    said = self.ran(name, *arguments, *ONE_ARM, **settings)
    self.assertIn("swa_distillation, seed 1: mAP", said)
    lines = (self.folder / "out" / "results.jsonl").read_text().splitlines()
    # The teacher and the centre prior, too.
    self.assertLen(lines, 2 + runs)

  @pytest.mark.slow("binaries")
  def test_filters_are_removed(self):
    self.check_compressing("prune_filters")

  @pytest.mark.slow("binaries")
  def test_quantizing(self):
    self.check_compressing("quantize", runs=2)

  @parameterized.parameters(
      ("prune", "--reconstruct"), ("prune_filters", "--reconstruct"),
      ("distill",), ("combine", "--way=prune+qat"))
  @pytest.mark.slow("binaries")
  def test_compressing(self, *command):
    self.check_compressing(*command)

  @pytest.mark.slow("binaries")
  def test_as_a_process(self):
    self.check_compressing("prune", run=run_process)

  @pytest.mark.slow("binaries")
  def test_a_file_is_written_and_verified(self):
    name = str(self.folder / "out")
    self.assertIn(name, self.ran("export_tflite"))
    done = run_inside("verify_tflite", "--smoke", f"--tflite={name}",
                      f"--output={self.folder / 'report'}",
                      "--require_cosine=1")
    # An int8 file falls a little short of 1, and the exit code says so.
    self.assertEqual(done.returncode, 1, done.stderr[-3000:])
    self.assertIn("cosine", done.stdout)
    self.assertIn("cosine", done.stderr)
    self.assertTrue((self.folder / "report" / "report.json").exists())

  @pytest.mark.slow("binaries")
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


class HelpTest(parameterized.TestCase):

  @parameterized.parameters("sweep", "prune")
  @pytest.mark.slow("binaries")
  def test_it_shows_the_flags_that_programs_share(self, name):
    shown = run_process(name, "--help").stdout
    for flag in ("data", "teacher", "layers", "pixel_range", "output"):
      self.assertRegex(shown, rf"\n *--(\[no\])?{flag}:")


class RestartTest(parameterized.TestCase):
  """A sweep goes on in a fresh process, whose memory is its own."""

  @parameterized.parameters((0, 3, False), (2, 2, True), (3, 3, False))
  def test_after_some_runs(self, after, runs, restarted):
    experiment = mock.Mock(**{
        "find.return_value": None, "rows.return_value": []})
    arguments = ["--grid=prune:0.8@plain", "--seed=1", "--seed=2", "--seed=3",
                 f"--restart_after={after}"]
    with (mock.patch.object(
              running, "open_experiment", return_value=experiment),
          mock.patch.object(running, "show", return_value=""),
          mock.patch.dict(os.environ),
          mock.patch.object(os, "execv", side_effect=SystemExit) as execv):
      run_inside("sweep", *arguments)
      self.assertEqual("KAP_SWEEP_STARTED" in os.environ, restarted)
    self.assertEqual(experiment.run.call_count, runs)
    self.assertEqual(execv.call_args_list, [mock.call(sys.executable, [
        sys.executable, "-m", "examples.sweep", *arguments])] * restarted)

  def test_minutes_are_those_of_all_processes(self):
    experiment = mock.Mock(**{
        "find.return_value": None, "rows.return_value": []})
    with (mock.patch.object(
              running, "open_experiment", return_value=experiment),
          mock.patch.dict(
              os.environ, KAP_SWEEP_STARTED=str(time.time() - 61))):
      done = run_inside("sweep", "--grid=prune:0.8@plain", "--minutes=1")
      self.assertNotIn("KAP_SWEEP_STARTED", os.environ)
    self.assertIn("stopped after 1 minutes; 3 runs are left", done.stdout)
    experiment.run.assert_not_called()


class MistakesTest(parameterized.TestCase):

  def check_refusal(self, run, name, arguments, said):
    with tempfile.TemporaryDirectory() as folder:
      done = run(name, f"--output={folder}", *arguments)
    self.assertNotEqual(done.returncode, 0)
    self.assertIn(said, done.stderr + done.stdout)
    self.assertNotIn("Traceback", done.stderr)

  @parameterized.parameters(
      ("prune", ("--sparsity=high",), "--sparsity=high"),
      ("prune", (), "--layers must name"),
      ("prune", ("--layers=relu3", "--limit=8"), "--teacher must name"),
      ("sweep", ("--grid=melt:1",), "must be one of"),
      ("sweep", ("--layers=relu3", "--data=nowhere"),
       "--data: name must be 'digits'"),
      ("train_teacher", ("--data=nowhere",), "--data: name must be 'digits'"),
      ("train_teacher", ("--size=7",), "size must be an integer of 8 or more"),
      ("train_teacher", ("--smoke", "--width=2"), "width must be above 0"),
      ("train_teacher", ("--smoke", "--weights=nowhere.h5"),
       "weights: there is no file 'nowhere.h5'"),
      ("quantize", ("--way=ptq", "more"), "unknown arguments"))
  def test_a_wrong_flag(self, *refusal):
    self.check_refusal(run_inside, *refusal)

  @parameterized.parameters(
      "combine", "distill", "export_tflite", "prune", "prune_filters",
      "quantize", "quickstart", "sweep", "train_teacher", "verify_tflite")
  @pytest.mark.slow("binaries")
  def test_a_process_that_is_refused_shows_no_trace(self, name):
    self.check_refusal(run_process, name, ("more",), "unknown arguments")


if __name__ == "__main__":
  absltest.main()
