"""Tests of tables.py and csv_files.py."""

import csv
import io
import json

from absl.testing import absltest

from examples.experiment.report import tables
from examples.experiment.report.csv_files import per_class_csv, results_csv
from tests.experiment_rows import CLASSES, row, sweep


def cells(table):
  """A Markdown table as lists of cells, without the ruler."""
  lines = [[cell.strip() for cell in line.strip("|").split(" | ")]
           for line in table.splitlines()]
  assert len({len(line) for line in lines}) == 1, table
  return [lines[0], *lines[2:]]


class ResultsTableTest(absltest.TestCase):

  def test_by_hand(self):
    rows = [
        row("swa", 1, map=0.8, cosine_mean=0.9, bytes_gzipped=102_340),
        row("swa", 2, map=0.82, cosine_mean=0.92, bytes_gzipped=102_340),
        row("plain", 1, map=0.8, cosine_mean=0.7, bytes_gzipped=102_340),
        row("plain", 2, map=0.81, cosine_mean=None, bytes_gzipped=102_340),
        row("teacher", 1, map=0.9), row("centre_prior", 1, cosine_mean=0.95)]
    self.assertEqual(cells(tables.results_table(rows, "prune", 0.9)), [
        ["arm", "n", "mean AP", "cosine", "gzipped, kB"],
        ["teacher", "1", "0.900", "-", "-"],
        ["centre prior", "1", "-", "0.950", "-"],
        ["plain", "2", "**0.805 ± 0.007**", "0.700 (1)", "**102.3 ± 0.0**"],
        ["SWA", "2", "**0.810 ± 0.014**", "0.910 ± 0.014",
         "**102.3 ± 0.0**"]])

  def test_a_winner_alone_is_bold(self):
    values = {"teacher": 0.99, "centre_prior": 0.98, "fine_tune": 0.97,
              "plain": 0.5, "ewa": 0.6, "swa": 0.7}
    rows = [row(arm, seed, roc_auc=value + 0.01 * seed, dead=1 - value)
            for arm, value in values.items() for seed in (1, 2, 3)]
    for line in cells(tables.results_table(rows, "prune", 0.9))[1:]:
      for cell in line[2:]:
        self.assertEqual(cell.startswith("**"), line[0] == "SWA", line)

  def test_a_collapsed_arm_is_marked_and_never_bold(self):
    """Chance .2, teacher .7: below .2 + .2 * .5 = .3 a model has collapsed."""
    values = {"plain": (0.31, 0.32), "ewa": (0.5, 0.29), "swa": (0.5, 0.49)}
    rows = [row("teacher", 0, map=0.7, map_chance=0.2)] + [
        row(arm, seed, map=value, map_chance=0.2, float_map=0.6,
            roc_auc={"plain": 0.6, "ewa": 0.9, "swa": 0.7}[arm] + 0.01 * seed)
        for arm, figures in values.items()
        for seed, value in enumerate(figures)]
    lines = cells(tables.results_table(rows, "prune", 0.9))
    self.assertEqual([line[0] for line in lines[2:]],
                     ["plain", "EWA ‡ 1 of 2", "SWA"])
    self.assertEqual([["**" in cell for cell in line[2:]] for line in lines],
                     [[False] * 2] * 4 + [[True] * 2])
    self.assertNotIn("‡", tables.results_table(
        rows, "prune", 0.9, prefix="float_"))
    self.assertIn("less than 20 %", tables.RESULTS_CAPTION)
    # Rows that do not say what chance is are compared as ever.
    for entry in rows:
      del entry["map_chance"]
    self.assertNotIn("‡", tables.results_table(rows, "prune", 0.9))

  def test_the_float_student(self):
    rows = [row("swa", float_roc_auc=0.7, roc_auc=0.5)]
    table = tables.results_table(rows, "prune", 0.9, prefix="float_")
    self.assertEqual(cells(table)[1:], [["SWA", "1", "0.700"]])
    self.assertEmpty(tables.results_table([row(roc_auc=0.5)], "prune", 0.9,
                                          prefix="float_"))

  def test_a_bar_does_not_end_a_cell(self):
    table = tables.results_table([row("a|b", map=0.5)], "prune", 0.9)
    self.assertIn(r"| a\|b | 1 | 0.500 |", table)


class ClosedTableTest(absltest.TestCase):

  def test_by_hand(self):
    rows = [
        row("teacher", 1, accuracy=0.9, roc_auc=0.8),
        row("plain", 1, accuracy=0.8, roc_auc=0.6, cosine_mean=0.5,
            pointing=0.4),
        row("swa", 1, accuracy=0.8, roc_auc=0.75, cosine_mean=0.9,
            pointing=0.5),
        row("ewa", 1, accuracy=0.79, roc_auc=0.5, cosine_mean=0.4),
        row("e2kd", 1, roc_auc=0.7), row("fine_tune", 1, roc_auc=0.8)]
    self.assertEqual(cells(tables.closed_table(rows, "prune", 0.9)), [
        ["arm", "cosine", "ROC-AUC", "pointing", "Δ accuracy"],
        ["EWA †", "-20 % †", "-50 % †", "-", "-0.010 †"],
        ["e2KD ?", "-", "50 % ?", "-", "-"],
        # The teacher's row has no pointing.
        ["SWA", "80 %", "75 %", "-", "+0.000"]])

  def test_range_over_seeds(self):
    rows = [row("plain", 1, cosine_mean=0.5), row("plain", 2, cosine_mean=0.6),
            row("swa", 1, cosine_mean=0.9), row("swa", 2, cosine_mean=0.9)]
    self.assertEqual(cells(tables.closed_table(rows, "prune", 0.9))[1:],
                     [["SWA ?", "78 % (75 to 80) ?"]])

  def test_nothing_to_compare(self):
    self.assertEmpty(tables.closed_table([row("swa", map=1)], "prune", 0.9))
    self.assertEmpty(tables.closed_table([row(map=1)], "prune", 0.9))


class OtherTablesTest(absltest.TestCase):

  def test_costs(self):
    rows = [row("teacher", parameters=218_000, seconds=100),
            row("plain", 1, macs=7_490_000, seconds=60.4),
            row("plain", 2, macs=7_490_000, seconds=61.8),
            row("plain", 1, "narrow", 4, parameters=54_000)]
    self.assertEqual(cells(tables.cost_table(rows)), [
        ["compression", "strength", "arm", "n", "parameters, thousands",
         "MACs, millions", "seconds"],
        ["none", "", "teacher", "1", "218.0", "-", "100"],
        ["prune", "90 %", "plain", "2", "-", "7.49", "61"],
        ["narrow", "1/4", "plain", "1", "54.0", "-", "-"]])

  def test_classes(self):
    rows = [row("plain", 1, per_class={"dog": {"ap": 0.5}}),
            row("plain", 2, per_class={"dog": {"ap": 0.7}, "cat": {"ap": 0.1}}),
            row("swa", 1, per_class={"cow": {"ap": 0.9}}), row("ewa", 1)]
    self.assertEqual(
        cells(tables.per_class_table(rows, "prune", 0.9, "ap")), [
            ["class", "plain", "SWA"],
            ["dog", "0.600 ± 0.141", "-"],
            ["cat", "0.100 (1)", "-"],
            ["cow", "-", "0.900"]])
    self.assertEmpty(tables.per_class_table(rows, "prune", 0.9, "roc_auc"))


class CsvTest(absltest.TestCase):

  def test_columns_are_the_same_whatever_the_rows(self):
    bare, full = ([*csv.reader(io.StringIO(results_csv(rows)))]
                  for rows in ([row()], sweep(arms=("plain",), seeds=(1,))))
    self.assertEqual(bare[0], full[0])
    self.assertEqual(bare[0][:7], [
        "experiment", "compression", "strength", "arm", "seed", "map",
        "accuracy"])
    self.assertLen(bare[0], len(set(bare[0])))
    more = [*csv.reader(io.StringIO(results_csv([row(zebra=2, alpha=1)])))]
    self.assertEqual(more[0], [*bare[0], "alpha", "zebra"])
    self.assertEqual(more[1][-2:], ["1", "2"])

  def test_values_come_back_exactly(self):
    rows = sweep(arms=("plain", "swa"), seeds=(1, 2))
    csv_rows = [*csv.DictReader(io.StringIO(results_csv(rows)))]
    self.assertLen(csv_rows, len(rows))
    for entry, line in zip(rows, csv_rows):
      self.assertEqual(line["arm"], entry["arm"])
      for key in ("roc_auc", "bytes_gzipped", "strength", "float_cosine_mean"):
        if key in entry:
          self.assertEqual(float(line[key]), entry[key])
        else:
          self.assertEqual(line[key], "")
      if "settings" in entry:
        self.assertEqual(json.loads(line["settings"]), entry["settings"])

  def test_classes_have_a_line_each(self):
    rows = sweep(arms=("swa",), strengths=(0.9,), seeds=(4,))
    csv_rows = [*csv.DictReader(io.StringIO(per_class_csv(rows)))]
    self.assertLen(csv_rows, 3 * len(CLASSES))  # Not the centre prior.
    last = csv_rows[-1]
    self.assertEqual((last["arm"], last["seed"], last["class"]),
                     ("swa", "4", CLASSES[-1]))
    self.assertEqual(float(last["ap"]),
                     rows[-1]["per_class"][CLASSES[-1]]["ap"])
    self.assertLen(per_class_csv([row()]).splitlines(), 1)


if __name__ == "__main__":
  absltest.main()
