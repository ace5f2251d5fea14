"""Adds rows to the results file, which has a JSON object per line."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_row", "digest", "find_row"]



def digest(settings: Mapping[str, Any]) -> str:
  """Returns a hash of settings, twelve hex digits."""
  text = json.dumps(settings, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_row(
    rows: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> Mapping[str, Any] | None:
  """Finds the first row with the given values.

  Args:
    rows: the rows of a results file.
    wanted: the values that the row must have, by name.

  Returns:
    The row, or None.
  """
  return next((row for row in rows if all(
      row.get(key) == value for key, value in wanted.items())), None)


def add_row(path: Path, row: Mapping[str, Any]) -> None:
  """Adds a line in one write, and waits until it is on the disk.

  The function first removes an unfinished last line of a killed process.
  """
  line = json.dumps(row, allow_nan=True).encode() + b"\n"
  with open(path, "ab+") as file:
    _cut_unfinished(file)
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def _cut_unfinished(file) -> None:
  file.seek(0)
  content = file.read()
  if content and not content.endswith(b"\n"):
    file.truncate(content.rfind(b"\n") + 1)
  file.seek(0, os.SEEK_END)
