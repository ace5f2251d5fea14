"""Tests of the results file as it grows, and of what tells runs apart."""

import json
import math
import tempfile
from pathlib import Path

from absl.testing import absltest

from examples.experiment.runs.records import add_row, digest, find_row
from examples.experiment.runs.results_file import read_rows

ROW = {"experiment": "e", "compression": "prune", "strength": 0.9,
       "arm": "swa", "seed": 1}


class RecordsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = Path(folder) / "results.jsonl"

  def test_rows_come_back_in_their_order(self):
    rows = [{**ROW, "seed": seed, "cosine_mean": 0.5} for seed in (2, 1)]
    for row in rows:
      add_row(self.path, row)
    self.assertEqual(read_rows(self.path), rows)

  def test_what_a_killed_process_left_is_cut_off(self):
    add_row(self.path, ROW)
    with open(self.path, "ab") as file:
      file.write(json.dumps({**ROW, "seed": 2}).encode()[:-9])
    add_row(self.path, {**ROW, "seed": 3})
    self.assertEqual([row["seed"] for row in read_rows(self.path)], [1, 3])

  def test_a_first_row_cut_short_is_cut_off_too(self):
    self.path.write_bytes(b'{"experiment": "e"')
    add_row(self.path, ROW)
    self.assertEqual(read_rows(self.path), [ROW])

  def test_nan_survives(self):
    add_row(self.path, {**ROW, "cosine_mean": math.nan})
    self.assertTrue(math.isnan(read_rows(self.path)[0]["cosine_mean"]))

  def test_a_row_is_found_by_all_that_is_asked(self):
    rows = [ROW, {**ROW, "seed": 2}]
    self.assertIs(find_row(rows, {"arm": "swa", "seed": 2}), rows[1])
    self.assertIsNone(find_row(rows, {"arm": "plain", "seed": 2}))

  def test_a_digest_hangs_on_values_and_not_on_order(self):
    self.assertEqual(
        digest({"a": 1, "b": (2, 3)}), digest({"b": [2, 3], "a": 1}))
    self.assertNotEqual(digest({"a": 1}), digest({"a": 2}))


if __name__ == "__main__":
  absltest.main()
