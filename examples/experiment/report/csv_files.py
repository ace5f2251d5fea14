"""Writes an experiment's rows as CSV, for other programs."""

import csv
import io
import json
from typing import Any

from examples.experiment.report.figures import FIGURES
from examples.experiment.report.summaries import Rows

__all__ = ["per_class_csv", "results_csv"]

_RUN = ("experiment", "compression", "strength", "arm", "seed")
_ABOUT = ("road", "steps", "batch_size", "digest", "settings", "versions")


def results_csv(rows: Rows) -> str:
  """Writes a line for each row.

  Args:
    rows: the rows of a results file.

  Returns:
    CSV with a header. The columns have a fixed order: the run, every figure of
    the shipped file, the figures of the float student ("float_"), and the
    settings of the run. A cell is empty if the row lacks the figure. Unknown
    figures come last, by name. Settings and versions are JSON in one cell.
  """
  figures = [figure.key for figure in FIGURES]
  columns = [*_RUN, *figures, *(f"float_{key}" for key in figures), *_ABOUT]
  columns += sorted({key for row in rows for key in row}
                    - {*columns, "per_class"})
  return _csv(columns, ([row.get(key) for key in columns] for row in rows))


def per_class_csv(rows: Rows) -> str:
  """Writes a line for each row and class.

  Args:
    rows: the rows of a results file.

  Returns:
    CSV with a header; only the header if no row has figures by class.
  """
  entries = [(row, name, figures) for row in rows
             for name, figures in (row.get("per_class") or {}).items()]
  keys = [*dict.fromkeys(key for *_, figures in entries for key in figures)]
  return _csv([*_RUN, "class", *keys], (
      [*(row[key] for key in _RUN), name, *(figures.get(key) for key in keys)]
      for row, name, figures in entries))


def _csv(columns, lines) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows([_plain(value) for value in line] for line in lines)
  return text.getvalue()


def _plain(value: Any) -> Any:
  """Turns a dictionary or list into JSON; returns other values as they are."""
  if isinstance(value, dict | list):
    return json.dumps(value, sort_keys=True)
  return value
