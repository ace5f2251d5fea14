"""An experiment's rows as CSV, for spreadsheets and other programs."""

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
    rows: of a results file.

  Returns:
    CSV with a head. The columns are always the same ones in the same order,
    empty where a row lacks the figure: what was run, every figure of the file
    that ships, the same of the float student ("float_"), and how it was run.
    Figures that are unknown here stand after them, by name. Settings and
    versions are JSON in one cell.
  """
  figures = [one.key for one in FIGURES]
  columns = [*_RUN, *figures, *(f"float_{key}" for key in figures), *_ABOUT]
  columns += sorted({key for row in rows for key in row}
                    - {*columns, "per_class"})
  return _csv(columns, ([row.get(key) for key in columns] for row in rows))


def per_class_csv(rows: Rows) -> str:
  """Writes a line for each row and class.

  Args:
    rows: of a results file.

  Returns:
    CSV with a head; only that where no row has figures by class.
  """
  found = [(row, name, figures) for row in rows
           for name, figures in (row.get("per_class") or {}).items()]
  keys = [*dict.fromkeys(key for *_, figures in found for key in figures)]
  return _csv([*_RUN, "class", *keys], (
      [*(row[key] for key in _RUN), name, *(figures.get(key) for key in keys)]
      for row, name, figures in found))


def _csv(columns, lines) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows([_plain(value) for value in line] for line in lines)
  return text.getvalue()


def _plain(value: Any) -> Any:
  """A dictionary or list as JSON, None as nothing; the rest as it is."""
  if isinstance(value, dict | list):
    return json.dumps(value, sort_keys=True)
  return value
