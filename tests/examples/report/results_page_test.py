"""Tests of results_page.py: the page, and that it shows all results."""

import json
import re
from unittest import mock
from urllib.parse import unquote

import pytest
from absl.testing import absltest, parameterized

from examples.experiment.report import results_page
from examples.experiment.report.results_page import write_report
from examples.experiment.runs.grids import read_grid
from examples.experiment.runs.variants import ARMS
from tests import tiny
from tests.experiment_rows import row, sweep


def save(folder, rows):
  (folder / "results.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in rows))


class ReportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder, self.output = tiny.folder(self), tiny.folder(self) / "docs"

  def report(self, rows, **settings):
    save(self.folder, rows)
    return write_report(self.folder, self.output,
                        **{"command": "python -m made_up", **settings})

  @pytest.mark.slow("experiments")
  def test_a_whole_page(self):
    (self.folder / "grid one.png").write_bytes(b"a picture")
    files = self.report(
        sweep(arms=("plain", "swa"), strengths=(0.8, 0.9), seeds=(1, 2)),
        command="python -m made_up --seeds=1,2", notes="## What it says\n\nAh.")
    page = files[0].read_text()
    self.assertEqual(files[0], self.output / "made_up.md")
    for text in ("# made_up\n\n## What it says\n\nAh.\n",
                 "```sh\npython -m made_up --seeds=1,2\n```", "Seeds: 1, 2.",
                 "Steps: 600.", "Batch size: 32.", "Versions: made_up 1.0.",
                 "12 runs.", "### prune, 80 %", "### prune, 90 %",
                 "Class by class: average precision", "The float student"):
      self.assertIn(text, page)
    self.assertNotIn("Not all has run", page)
    self.assertNotIn("Left out here", page)
    linked = {unquote(link) for link in re.findall(r"\]\((.+?)\)", page)}
    self.assertEqual(
        {str(file.relative_to(self.output)) for file in files[1:]}, linked)
    self.assertEqual(
        {file.name for file in (self.output / "made_up").iterdir()},
        {file.name for file in files[1:]})
    self.assertIn("made_up/picture-grid one.png", linked)
    for path in files[1:]:
      if path.suffix == ".png" and not path.name.startswith("picture-"):
        self.assertStartsWith(path.read_bytes(), b"\x89PNG")

  def test_maps_that_the_file_s_integers_did_not_make_are_told(self):
    rows = [row("plain", 1, map=0.5, road="whole"),
            row("swa", 1, map=0.5, road="tail"), row("swa", 2, map=0.5),
            row("swa", 1, strength=0.5, map=0.5, road="tail")]
    page = self.report(rows)[0].read_text()
    self.assertIn("1 of these 2 files compute their map", page)
    self.assertIn("probes the integer net: plain (seed 1).", page)
    self.assertEqual(page.count("compute their map"), 1)

  def test_a_page_while_it_runs_says_what_is_missing(self):
    page = self.report([
        row("teacher", 1), row("plain", 1, map=0.5), row("swa", 1, map=0.5),
        row("plain", 2, strength=0.95, map=0.5),
        row("plain", 1, strength=0.95, map=0.5)],
        runs=read_grid("prune:0.9,0.95@plain,swa", ARMS, [1, 2]))[0].read_text()
    self.assertIn(
        "**Not all has run.** Missing: prune 95 % SWA, seeds 1, 2; prune 90 % "
        "plain, seeds 2; prune 90 % SWA, seeds 2.", page)

  def test_a_teacher_s_one_row_is_no_seed(self):
    page = self.report([
        row("teacher", 0, map=0.9), row("plain", 1, map=0.5),
        row("plain", 2, map=0.5)],
        runs=read_grid("prune:0.9@plain", ARMS, [1, 2]))[0].read_text()
    self.assertIn("Seeds: 1, 2.", page)
    self.assertNotIn("Missing", page)

  def test_what_trains_nothing_hangs_on_no_seed(self):
    page = self.report([
        row("plain", 1, compression="obs", strength=0.5, map=0.5),
        row("plain", 1, map=0.5), row("plain", 2, map=0.5)],
        runs=read_grid("prune:0.9@plain;obs:0.5", ARMS, [1, 2]))[0].read_text()
    self.assertIn("Seeds: 1, 2.", page)
    self.assertNotIn("Missing", page)

  def test_repeated_rows_are_counted_once_and_told(self):
    files = self.report([row(map=0.1), row(map=0.7, compression="a b/c"),
                         row(map=0.9)])
    page = files[0].read_text()
    self.assertIn("Left out here: 1", page)
    self.assertIn("| plain | 1 | 0.900 |", page)
    self.assertNotIn("0.100", page)
    self.assertLen(files[1].read_text().splitlines(), 4)
    self.assertIn("a_b_c-strength.png", {file.name for file in files})

  def test_a_page_again_leaves_nothing_old(self):
    self.report([row(map=0.5), row(compression="ptq", strength=8, map=0.5)])
    self.assertTrue((self.output / "made_up/ptq-strength.png").exists())
    self.report([row(map=0.6)])
    self.assertFalse((self.output / "made_up/ptq-strength.png").exists())
    self.assertTrue((self.output / "made_up/prune-strength.png").exists())

  def test_another_file_in_the_folder_is_not_lost(self):
    self.report([row(map=0.5)])
    (self.output / "made_up/mine.txt").write_text("mine")
    with self.assertRaisesRegex(ValueError, "something else: mine.txt"):
      self.report([row(map=0.6)])
    self.assertIn("0.500", (self.output / "made_up.md").read_text())

  def test_a_failed_write_leaves_the_earlier_page(self):
    self.report([row(map=0.5)])
    broken = mock.patch.object(
        results_page, "replace_folder", side_effect=OSError("full"))
    with broken, self.assertRaisesRegex(OSError, "full"):
      self.report([row(map=0.6)])
    self.assertIn("0.500", (self.output / "made_up.md").read_text())

  @parameterized.parameters(
      ([], r"one experiment.*got \[\]"),
      ([row(), {**row(), "experiment": "b"}], r"got \['b', 'made_up'\]"),
      ([{**row(), "experiment": "../b"}], r"got \['../b'\]"),
      ([row("teacher")], r"must hold a compressed arm; got \['teacher'\]"),
  )
  def test_what_is_refused(self, rows, text):
    with self.assertRaisesRegex(ValueError, text):
      self.report(rows)
    self.assertFalse(self.output.exists())

  def test_no_results_file(self):
    with self.assertRaises(FileNotFoundError):
      write_report(self.folder, self.output, command="x")


if __name__ == "__main__":
  absltest.main()
