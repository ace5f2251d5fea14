"""Reads an experiment's results file, with a JSON object per line."""

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiment.report.figures import FIGURES, UNCOMPRESSED

__all__ = ["current_rows", "read_rows"]

_NAMES = ("experiment", "compression", "arm")
_FIGURES = {name for figure in FIGURES
            for name in (figure.key, f"float_{figure.key}")}


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads a results file.

  A killed process may leave an incomplete last line. The function skips that
  line with a warning, as its run will be repeated. Any other damage is an
  error. A figure may be missing, null or NaN.

  Args:
    path: the path of the file.

  Returns:
    A row for each line, in the file's order.

  Raises:
    OSError: the file cannot be read.
    ValueError: a line is not a results row; the text gives its number.
  """
  content = Path(path).read_bytes()
  lines = content.split(b"\n")
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:  # Includes bytes that are not UTF-8.
      if number == len(lines):
        warnings.warn(
            f"{path}, line {number}: the last line is cut short and left out.",
            stacklevel=2)
        continue
      raise ValueError(f"{path}, line {number}: not JSON: {error}.") from error
    fault = _fault(row)
    if fault:
      raise ValueError(f"{path}, line {number}: {fault}.")
    rows.append(row)
  return rows


def current_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Leaves out rows of repeated runs and of earlier settings.

  The last row stays of each compression, strength, variant and seed. A
  variant's seeds are averaged, so their settings must be equal. At a
  compression and strength, a variant's rows must have the settings of its last
  row.

  Args:
    rows: the rows of one experiment, from `read_rows`.

  Returns:
    The remaining rows, in their order.
  """
  last = {_cell(row): _settings(row) for row in rows}
  latest = {(*_cell(row), row["seed"]): row for row in rows
            if _settings(row) == last[_cell(row)]}
  return [row for row in rows
          if latest.get((*_cell(row), row["seed"])) is row]


def _cell(row: dict[str, Any]) -> tuple:
  return (*(row[name] for name in _NAMES), float(row["strength"]))


def _settings(row: dict[str, Any]) -> str:
  """Returns the digest of a row's settings, or all settings as text."""
  return row.get("digest") or json.dumps(
      row.get("settings"), sort_keys=True, default=str)


def _fault(row: Any) -> str | None:
  """Describes the fault of a row; None for a valid row."""
  if not isinstance(row, dict):
    return f"must be a JSON object; got {type(row).__name__}"
  for name in _NAMES:
    if not isinstance(row.get(name), str) or not row[name]:
      return f"{name} must be a text; got {row.get(name)!r}"
  if row["compression"] == "none" and row["arm"] not in UNCOMPRESSED:
    return f"without compression arm must be in {UNCOMPRESSED}; got " + repr(
        row["arm"])
  if not _is_number(row.get("strength")) or not math.isfinite(row["strength"]):
    return f"strength must be a number; got {row.get('strength')!r}"
  if type(row.get("seed")) is not int:
    return f"seed must be a whole number; got {row.get('seed')!r}"
  for name in sorted(_FIGURES & row.keys()):
    if row[name] is not None and not _is_number(row[name]):
      return f"{name} must be a number; got {row[name]!r}"
  classes = row.get("per_class") or {}
  if not isinstance(classes, dict):
    return f"per_class must hold figures by class; got {classes!r}"
  for name, figures in classes.items():
    if not isinstance(figures, dict) or not all(
        value is None or _is_number(value) for value in figures.values()):
      return f"per_class {name!r} must hold numbers; got {figures!r}"
  return None


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
