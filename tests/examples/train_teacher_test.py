"""Smoke runs of train_teacher: its files, and writing them only once."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny
from tests.experiment_helpers import run_inside
from tests.places import ROOT

FILES = ["teacher.h5", "teacher.json", "teacher.png"]


def setUpModule():
  helpers.skip_without_examples()


def run(folder: Path, *arguments: str):
  return run_inside(
      "train_teacher", "--smoke", f"--output={folder}", *arguments)


class TrainTeacherTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    place = tempfile.TemporaryDirectory()
    cls.addClassCleanup(place.cleanup)
    cls.folder = Path(place.name) / "new" / "teacher"
    cls.done = run(cls.folder, "--flip", "--head_first", "--freeze_batch_norm")

  def test_what_it_writes(self):
    self.assertEqual(self.done.returncode, 0, self.done.stderr[-3000:])
    for words in ("15,874 parameters on 48 pictures, 6 steps",
                  "epoch 2: loss", "validation: mean AP", "test: mean AP",
                  str(self.folder)):
      self.assertIn(words, self.done.stdout)
    self.assertEqual(sorted(os.listdir(self.folder)), FILES)
    self.assertStartsWith(
        (self.folder / "teacher.png").read_bytes(), b"\x89PNG\r\n\x1a\n")

  def test_the_net(self):
    model = kap.load_model(self.folder / "teacher.h5")
    self.assertIsNone(model.optimizer)
    self.assertTrue(all(layer.trainable for layer in model.layers))
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3))
    self.assertEqual(model(images).shape, (2, 10))

  def test_the_report(self):
    report = json.loads((self.folder / "teacher.json").read_text())
    settings = report["settings"]
    self.assertEqual(
        (settings["data"], settings["net"], settings["size"],
         settings["flip"], settings["head_first"]),
        ("digits", "small", 32, True, True))
    self.assertEqual(
        (report["layer"], report["pixel_range"], report["steps"],
         report["parameters"], report["multi_label"], report["resumed"]),
        ("relu3", [0, 1], 6, 15_874, True, False))
    self.assertLen(report["class_names"], 10)
    for split in ("validation", "test"):
      for key in ("map", "accuracy", "f1"):
        self.assertBetween(report[split][key], 0, 1)
      self.assertAlmostEqual(report[split]["map"], np.mean(
          [*report[split]["average_precision"].values()]))
    self.assertIn("tf_keras", report["versions"])
    self.assertGreater(report["seconds"], 0)

  def contents(self):
    return {name: (self.folder / name).read_bytes() for name in FILES}

  def test_a_second_run_changes_nothing(self):
    before = self.contents()
    again = run(self.folder, "--flip", "--head_first", "--freeze_batch_norm")
    self.assertEqual(again.returncode, 0, again.stderr[-3000:])
    self.assertIn("teacher.h5 is there already", again.stdout)
    self.assertEqual(self.contents(), before)

  def test_another_teacher_is_not_overwritten(self):
    before = self.contents()
    other = run(self.folder, "--flip", "--net=resnet8")
    self.assertNotEqual(other.returncode, 0)
    self.assertIn("has one of another freeze_batch_norm, head_first, net",
                  other.stderr)
    self.assertEqual(self.contents(), before)

  @pytest.mark.slow("binaries")
  def test_a_killed_run_goes_on(self):
    folder = tiny.folder(self)
    command = [sys.executable, "-m", "examples.train_teacher", "--smoke",
               "--epochs=60", f"--output={folder}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
      if "epoch 3: " in line:
        process.send_signal(signal.SIGKILL)
        break
    process.wait()
    process.stdout.close()
    self.assertEqual(process.returncode, -signal.SIGKILL)
    self.assertNoCommonElements(os.listdir(folder), FILES)
    done = run(folder, "--epochs=60")
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertNotIn("epoch 1: ", done.stdout)
    self.assertIn("Going on with", done.stdout)
    self.assertIn("epoch 60: ", done.stdout)
    self.assertEqual(sorted(os.listdir(folder)), FILES)
    self.assertTrue(json.loads(
        (folder / "teacher.json").read_text())["resumed"])


if __name__ == "__main__":
  absltest.main()
