"""Tests of runs: judged, written down, not run twice, the same again."""

import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl import app
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from examples.experiment.data.data_sets import Data
from examples.experiment.runs import experiment as module
from examples.experiment.runs import running
from examples.experiment.runs.experiment import KINDS, Experiment, Run, Settings
from examples.experiment.runs.fitting import Recipe, fit
from examples.experiment.runs.results_file import read_rows
from examples.experiment.runs.variants import (
  ARM_SETTINGS,
  ARMS,
  CALLBACK_ARMS,
  arm_callbacks,
  recalibrates,
)
from tests import tiny
from tests.examples.runs import fitting_test
from tests.examples.runs.compressing_test import net
from tests.examples.runs.judge_test import split
from tests.experiment_helpers import eager

SETTINGS = Settings(
    steps=dict.fromkeys(KINDS, 4), learning_rates=dict.fromkeys(KINDS, 1e-3),
    batch_size=4, flip=False, pixel_range=(-1.0, 1.0), layers=("relu2",),
    judged_layer="relu2", probes=2)
RUN = Run("filters", 0.5, "swa_distillation", 1)


def data() -> Data:
  return Data(split(8, seed=1), split(6, seed=2), split(6, seed=3),
              ("a", "b", "c"), np.array([1, 2, 3]), True)


# Between them all objectives, scores and hints, alone and with each other.
SOME_ARMS = ("plain_bn", "distillation", "ewa", "e2kd", "catkd", "hints",
             "swa_hints_distillation", "agreement")


class ArmsTest(parameterized.TestCase):

  def check_fit(self, arm):
    teacher = net()
    before = teacher.get_weights()
    student = kap.clone_model(teacher)
    student.set_weights([1.1 * array for array in student.get_weights()])
    settings = {name: value for name, value in {
        "layers": ["relu1", "relu2"], "target": "present"}.items()
        if name in ARM_SETTINGS[arm]}
    callbacks = arm_callbacks(arm, teacher, multi_label=True, **settings)
    self.assertEqual(recalibrates(arm), arm.endswith("_bn"))
    arm = arm.removesuffix("_bn")
    self.assertEqual(bool(callbacks), arm != "plain")
    recipe = Recipe(2, 1e-3, 4, 0, (-1.0, 1.0), False, True)
    with eager():
      logs = fit(student, fitting_test.split(), recipe, callbacks)
    held = arm not in ("plain", "distillation", "hints")
    self.assertEqual("attr_agreement" in logs, held)
    taught = arm in ("distillation", "e2kd", "swa_distillation", "agreement",
                     "hints", "swa_hints_distillation")
    self.assertEqual("distill_loss" in logs, taught)
    self.assertEqual("hint_loss" in logs, "hints" in arm)
    for expected, weight in zip(before, teacher.get_weights()):
      np.testing.assert_array_equal(expected, weight)

  @parameterized.parameters(*SOME_ARMS)
  def test_an_arm_fits(self, arm):
    self.check_fit(arm)

  @parameterized.parameters(
      *(arm for arm in CALLBACK_ARMS if arm not in SOME_ARMS))
  @pytest.mark.slow("experiments")
  def test_every_other_arm_fits(self, arm):
    self.check_fit(arm)

  def test_only_named_arms_recalibrate(self):
    self.assertFalse(recalibrates("swa_bn"))
    with self.assertRaisesRegex(ValueError, "must be one of"):
      arm_callbacks("swa_bn", net(), layers=["relu2"], multi_label=True)

  @parameterized.parameters("hints", "swa_hints", "swa_hints_distillation")
  def test_hints_are_told_which_channels_are_left(self, arm):
    maps = {} if arm == "hints" else {"layers": ["relu2"]}
    callback, = arm_callbacks(arm, net(), multi_label=True,
                              channels={"relu2": [0, 99]}, **maps)
    student = tiny.compiled(kap.clone_model(net()))
    with self.assertRaisesRegex(ValueError, "channels must name"):
      callback.set_model(student)

  def test_an_unknown_arm(self):
    with self.assertRaisesRegex(ValueError, "must be one of"):
      arm_callbacks("magic", net(), layers=["relu2"], multi_label=True)


class RunTest(parameterized.TestCase):

  @parameterized.parameters(
      ("prune", "magic", "arm must be"), ("prune", "fine_tune", "alone"),
      ("none", "swa", "alone"), ("ptq", "swa", "trains nothing"),
      ("narrow", "plain_bn", "nothing to recalibrate"))
  def test_what_does_not_go_together(self, compression, arm, said):
    self.assertIn("fine_tune", ARMS)
    with self.assertRaisesRegex(ValueError, said):
      Run(compression, 0.5, arm, 1)


class _NoJudge:
  """Finds nothing: for tests of a run's output, not of its quality."""

  def __init__(self, *args, **settings):
    del args, settings

  def judge_file(self, content, student):
    del content, student
    return {}

  def judge_model(self, student):
    del student
    return {}


class ExperimentTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.teacher = net()
    cls.before = cls.teacher.get_weights()

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  def tearDown(self):
    # Whatever was made of the teacher.
    for expected, weight in zip(self.before, self.teacher.get_weights()):
      np.testing.assert_array_equal(expected, weight)
    super().tearDown()

  def leave_unjudged(self):
    """Has runs make a student, but no file, and no figures."""
    self.enter_context(mock.patch.object(module, "Judge", _NoJudge))
    self.enter_context(mock.patch.object(
        Experiment, "_ship", return_value=b""))

  def open(self, folder="results", settings=SETTINGS, **named):
    return Experiment("made", self.teacher, data(), settings,
                      self.folder / folder, **named)

  @parameterized.parameters(("plain", False), ("plain_bn", True))
  def test_where_an_arm_starts_from(self, arm, recalibrated):
    self.leave_unjudged()
    experiment, started = self.open(arm), []

    def compress(name, strength, start, fit, pictures, starts):
      started.append(start)
      return kap.clone_model(start)

    with mock.patch.object(module, "compress", side_effect=compress):
      experiment.run(Run("filters", 0.5, arm, 1))
    self.assertEqual(started[0] is self.teacher, not recalibrated)
    pictures = module.calibration(experiment.data, SETTINGS.pixel_range)
    # Recalibrated weights have another size: float32 rounds them anew.
    np.testing.assert_allclose(
        started[0](pictures), self.teacher(pictures), rtol=1e-4, atol=1e-5)

  @pytest.mark.slow("experiments")
  def test_arms_that_start_alike_share_what_trains_nothing(self):
    self.leave_unjudged()
    experiment = self.open()
    prune = kap.prune_with_reconstruction
    with mock.patch.object(module, "fit", return_value={}), mock.patch.object(
        kap, "prune_with_reconstruction", side_effect=prune) as pruned:
      for arm in ("plain", "swa", "plain_bn", "distillation_bn"):
        experiment.run(Run("obs+refine", 0.5, arm, 1))
    self.assertEqual(
        [call.args[0] is self.teacher for call in pruned.call_args_list],
        [True, False])

  @pytest.mark.slow("experiments")
  def test_a_run_is_written_down_once(self):
    experiment = self.open(keep=True)
    experiment.references()
    row = experiment.run(RUN)
    for key in ("map", "cosine_mean", "roc_auc", "gradient_cosine_mean",
                "occlusion_cosine_mean", "float_cosine_mean", "bytes_gzipped",
                "parameters", "macs", "same_top_class", "dead"):
      self.assertTrue(np.isfinite(row[key]), key)
    self.assertEqual(row["settings"]["layers"], ["relu2"])
    self.assertIn("tensorflow", row["versions"])

    again = self.open()
    with mock.patch.object(module, "compress", side_effect=AssertionError):
      self.assertEqual(again.run(RUN), row)
    again.references()
    self.assertLen(read_rows(experiment.path), 3)
    file = experiment.kept(RUN)
    self.assertEqual(kap.export.file_sizes(file)["bytes"], row["bytes"])
    student = kap.load_model(experiment.folder / "students" / f"{RUN.name}.h5")
    self.assertEqual(student.get_layer("conv1").filters, 4)

  @pytest.mark.slow("experiments")
  def test_a_run_is_the_same_again(self):
    row, other = (self.open(folder).run(RUN) for folder in ("one", "other"))
    for key, value in row.items():
      if isinstance(value, float) and "seconds" not in key:
        # Threads may add in another order.
        self.assertAlmostEqual(other[key], value, places=3, msg=key)

  def test_other_settings_are_another_run(self):
    self.leave_unjudged()
    with mock.patch.object(module, "fit", return_value={}):
      row = self.open().run(RUN)

    def found(**changed):
      return self.open(settings=dataclasses.replace(
          SETTINGS, **changed)).find(RUN)

    for changed in ({"batch_size": 2}, {"weight": 2.0}, {"probes": 3},
                    {"steps": {**SETTINGS.steps, "tune": 5}}):
      self.assertIsNone(found(**changed), changed)
    # What only other arms and other fits go by.
    for changed in ({}, {"e2kd_weight": 2.0}, {"hint_weight": 2.0},
                    {"steps": {**SETTINGS.steps, "prune": 5}}):
      self.assertEqual(found(**changed), row, changed)

  def test_other_pictures_are_another_run(self):
    self.leave_unjudged()
    experiment = self.open()
    row = experiment.run(Run("ptq", 8, "plain", 1))
    others = data()
    others.test.images[0, 0, 0, 0] ^= 1
    with mock.patch(f"{__name__}.data", return_value=others):
      self.assertIsNone(self.open().find(Run("ptq", 8, "plain", 1)))
    self.assertEqual(self.open().find(Run("ptq", 8, "plain", 1)), row)

  def test_a_net_that_does_not_fit_the_data_is_refused(self):
    fits = data()
    self.assertIs(
        running.fitting_net(self.teacher, fits, "--teacher"), self.teacher)
    with self.assertRaisesRegex(app.UsageError, "--teacher scores 3 classes"):
      running.fitting_net(self.teacher, fits._replace(
          class_names=("a", "b")), "--teacher")
    large = fits.train._replace(images=np.zeros([2, 9, 9, 3], np.uint8))
    with self.assertRaisesRegex(app.UsageError, r"\[8, 8, 3\].*\[9, 9, 3\]"):
      running.fitting_net(
          self.teacher, fits._replace(train=large), "--teacher")

  def test_a_run_that_fails_leaves_no_row(self):
    experiment = self.open()
    stopped = mock.patch.object(
        module.kap.export, "convert", side_effect=KeyboardInterrupt)
    unjudged = mock.patch.object(module, "Judge", _NoJudge)
    with stopped, unjudged, self.assertRaises(KeyboardInterrupt):
      experiment.run(Run("ptq", 8, "plain", 1))
    self.assertEmpty(read_rows(experiment.path))

  def test_too_few_steps_for_the_rounds(self):
    self.leave_unjudged()
    with self.assertRaisesRegex(ValueError, "must be 20 or more"):
      self.open().run(Run("prune", 0.9, "plain", 1))

  @pytest.mark.slow("experiments")
  def test_the_teacher_stays_as_it_came(self):
    self.open().run(Run("qat", 8, "swa", 1))  # Compared in tearDown.


if __name__ == "__main__":
  absltest.main()
