"""Tests of results_file.py: reading what an experiment wrote."""

import json
import math
import warnings

from absl.testing import absltest, parameterized

from examples.experiment.runs.results_file import current_rows, read_rows
from tests import tiny
from tests.experiment_rows import row, sweep


def line(one):
  return json.dumps(one).encode() + b"\n"


class ReadingTest(parameterized.TestCase):

  def file(self, content):
    path = tiny.folder(self) / "results.jsonl"
    path.write_bytes(content)
    return path

  def test_rows_come_back(self):
    rows = sweep(arms=("plain", "swa"), seeds=(1,))
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      self.assertEqual(read_rows(self.file(b"".join(map(line, rows)))), rows)
      # A last line that lacks no more than its end, and empty lines.
      self.assertEqual(
          read_rows(self.file(line(rows[0]) + b"\n" + line(rows[1])[:-1])),
          rows[:2])
      self.assertEqual(read_rows(self.file(b"")), [])

  def test_figures_may_be_missing(self):
    path = self.file(b'{"experiment": "e", "compression": "p", "strength": 1,'
                     b'"arm": "plain", "seed": 1, "map": NaN, "dead": null}\n')
    row = read_rows(path)[0]
    self.assertTrue(math.isnan(row["map"]))
    self.assertIsNone(row["dead"])

  def test_a_last_line_cut_anywhere_is_left_out_with_a_warning(self):
    first, last = line(row(seed=1)), line(row(seed=2, name="ö"))
    last = last.replace(b"\\u00f6", "ö".encode())
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      for end in range(1, len(last) - 2):
        self.assertEqual(read_rows(self.file(first + last[:end])),
                         [row(seed=1)])
        self.assertRegex(str(caught.pop().message), "line 2: .*cut short")
    with self.assertWarnsRegex(UserWarning, "line 2: .*cut short"):
      read_rows(self.file(first + b"\0" * 40))

  def test_other_damage_names_its_line(self):
    good, half = line(row()), line(row(seed=2))[:30]
    for content in (good + half + b"\n", good + half + good + good,
                    good + b"\xff\xfe\n" + good, good + b"{}}\n"):
      with self.assertRaisesRegex(ValueError, r"jsonl, line 2: not JSON"):
        read_rows(self.file(content))

  @parameterized.parameters(
      ([1], "must be a JSON object; got list"),
      ({**row(), "arm": None}, "arm must be a text; got None"),
      ({**row(), "experiment": ""}, "experiment must be a text"),
      ({**row(), "compression": "none"}, r"arm must be in .* got 'plain'"),
      ({**row(), "strength": "0.9"}, "strength must be a number; got '0.9'"),
      ({**row(), "strength": math.nan}, "strength must be a number; got nan"),
      ({**row(), "strength": True}, "strength must be a number; got True"),
      ({**row(), "seed": 1.0}, "seed must be a whole number; got 1.0"),
      ({**row(), "map": "high"}, "map must be a number; got 'high'"),
      ({**row(), "float_dead": [0]}, r"float_dead must be a number; got \[0\]"),
      ({**row(), "per_class": [1]}, "per_class must hold figures by class"),
      ({**row(), "per_class": {"dog": {"ap": "x"}}}, "'dog' must hold numbers"),
  )
  def test_what_is_not_a_row_is_refused(self, one, text):
    with self.assertRaisesRegex(ValueError, f"line 3: .*{text}"):
      read_rows(self.file(line(row()) + b"\n" + line(one)))


class CurrentTest(absltest.TestCase):

  def test_the_last_of_repeated_rows_stays(self):
    rows = [row(seed=1, map=0.1), row(seed=2, map=0.2), row(seed=1, map=0.3)]
    self.assertEqual(current_rows(rows), rows[1:])

  def test_an_arm_never_mixes_settings(self):
    old, new = {"digest": "a"}, {"digest": "b"}
    rows = [row(seed=1, **old), row(seed=2, **old), row("swa", 1, **old),
            row(seed=1, strength=0.8, **old), row(seed=1, **new)]
    self.assertEqual(current_rows(rows), rows[2:])
    rows = [row(seed=1, settings={"a": 1, "b": 2}),
            row(seed=2, settings={"b": 2, "a": 1}),
            row(seed=3, settings={"a": 1})]
    self.assertEqual(current_rows(rows), rows[2:])
    self.assertEqual(current_rows(rows[:2]), rows[:2])

  def test_nothing_else_is_left_out(self):
    rows = sweep(seeds=(1, 2))
    self.assertEqual(current_rows(rows), rows)


if __name__ == "__main__":
  absltest.main()
