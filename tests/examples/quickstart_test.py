"""A smoke run of the quickstart: few scenes, one epoch each, all files."""

import csv
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny
from tests.experiment_helpers import run_inside

# Of as few scenes as one batch the last bits of gradients hang on where in
# memory the scenes lie, which Adam's first step makes much of.
FLAGS = ("--train_scenes=512", "--test_scenes=16", "--teacher_epochs=1",
         "--tune_epochs=1", "--quantize_epochs=1")


def setUpModule():
  helpers.skip_without_examples()


def run_process(folder: Path):
  # How threads share a sum shows in its last bits.
  return helpers.run_module(
      "examples.quickstart", [f"--output={folder}", *FLAGS],
      env={**os.environ, "TF_NUM_INTRAOP_THREADS": "1"})


@pytest.mark.slow("binaries")
class QuickstartTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    place = tempfile.TemporaryDirectory()
    cls.addClassCleanup(place.cleanup)
    cls.folder = Path(place.name) / "new" / "quickstart"
    cls.done = run_process(cls.folder)

  def report(self, folder=None):
    return json.loads(((folder or self.folder) / "report.json").read_text())

  def test_it_ends_well_and_says_what_it_found(self):
    self.assertEqual(self.done.returncode, 0, self.done.stderr[-3000:])
    for words in ("1. Drawing", "2. Training", "3. Compressing", "4. Reading",
                  "agreement with the teacher's maps", "localization",
                  str(self.folder)):
      self.assertIn(words, self.done.stdout)
    for name in ("plain", "preserved"):
      self.assertIn(name, self.done.stdout)

  def test_files(self):
    self.assertEqual(
        sorted(os.listdir(self.folder)),
        ["maps.png", "plain.tflite", "preserved.tflite", "report.csv",
         "report.json"])
    content = (self.folder / "maps.png").read_bytes()
    self.assertStartsWith(content, b"\x89PNG\r\n\x1a\n")
    self.assertGreater(len(content), 50_000)

  def test_tflite_files(self):
    for name in ("plain", "preserved"):
      content = (self.folder / f"{name}.tflite").read_bytes()
      runner = kap.export.Interpreter(content)
      self.assertEqual(runner.metadata, {
          "layer": "relu4", "method": "swa", "mode": "int8",
          "target": "microcontroller", "road": "features",
          "median_cosine": None, "measured_on": 0})
      self.assertEqual(runner.input_shape, (64, 64, 3))
      images = np.random.default_rng(0).uniform(size=(2, 64, 64, 3))
      maps, logits = runner.explain(images)
      self.assertEqual((maps.shape, logits.shape), ((2, 8, 8), (2, 10)))
      self.assertEqual(
          self.report()["results"][name]["bytes"], len(content))

  def test_report(self):
    report = self.report()
    self.assertEqual(
        set(report), {"settings", "versions", "results", "gap_closed"})
    for flag in FLAGS:
      name, value = flag[2:].split("=")
      self.assertEqual(report["settings"][name], int(value))
    self.assertEqual(
        list(report["results"]),
        ["centre prior", "teacher", "plain", "preserved"])
    for name in ("plain", "preserved"):
      row = report["results"][name]
      for key in ("cosine_mean", "spearman_p5", "roc_auc", "dead_maps",
                  "mean_average_precision", "same_top_class"):
        self.assertBetween(row[key], -1, 1, key)
    # 13, 26, 51 and 51 filters of 32, 64, 128 and 128, of 3x3, and ten logits.
    self.assertEqual(report["results"]["plain"]["macs"], 9 * (
        64**2 * 3 * 13 + 32**2 * 13 * 26 + 16**2 * 26 * 51 + 8**2 * 51**2)
        + 51 * 10)
    for key, value in report["gap_closed"].items():
      plain, preserved = (report["results"][name][key]
                          for name in ("plain", "preserved"))
      best = report["results"]["teacher"].get(key, 1.0)
      self.assertAlmostEqual(value, (preserved - plain) / (best - plain))

  def test_table_file(self):
    rows = list(csv.DictReader((self.folder / "report.csv").open()))
    results = self.report()["results"]
    self.assertEqual(
        list(rows[0]), ["figure", *results, "gap_closed"])
    for row in rows:
      for name, values in results.items():
        if row["figure"] in values:
          self.assertEqual(float(row[name]), values[row["figure"]])
        else:
          self.assertEqual(row[name], "")

  def test_a_second_run_gives_the_same(self):
    second = tiny.folder(self) / "other"
    done = run_process(second)
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertEqual((self.folder / "plain.tflite").read_bytes(),
                     (second / "plain.tflite").read_bytes())
    first, again = self.report(), self.report(second)
    for section in ("settings", "versions"):
      self.assertEqual(first[section], again[section])
    self.assertEqual(first["results"]["plain"], again["results"]["plain"])
    for section in (first["results"]["preserved"], first["gap_closed"]):
      repeated = (again["gap_closed"] if section is first["gap_closed"]
                  else again["results"]["preserved"])
      self.assertEqual(set(section), set(repeated))
      for key, value in section.items():
        # Runs repeat but for rounding; of too few scenes figures differ by .01.
        self.assertAlmostEqual(value, repeated[key], places=4, msg=key)


class RefusalTest(absltest.TestCase):

  def test_a_share_that_is_none_is_told_before_anything_is_trained(self):
    for share in ("1.5", "nan"):
      done = run_inside("quickstart", f"--output={tiny.folder(self)}", *FLAGS,
                        f"--share={share}")
      self.assertNotEqual(done.returncode, 0)
      self.assertIn("must be between 0 and 1", done.stderr)
      self.assertNotIn("Epoch", done.stdout)


if __name__ == "__main__":
  absltest.main()
