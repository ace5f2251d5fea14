"""The results file: a JSON object a line, added to as an experiment goes."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_row", "digest", "find_row"]



def digest(settings: Mapping[str, Any]) -> str:
  """Twelve hex digits that tell settings apart."""
  text = json.dumps(settings, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_row(
    rows: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any]
) -> Mapping[str, Any] | None:
  """Finds the row of an experiment that has run already.

  Args:
    rows: of a results file.
    wanted: what it must have, by name.

  Returns:
    The row, or None.
  """
  return next((row for row in rows if all(
      row.get(key) == value for key, value in wanted.items())), None)


def add_row(path: Path, row: Mapping[str, Any]) -> None:
  """Adds a line, in one write that has reached the disk when this returns.

  A last line that a killed process left unfinished is cut off first.
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
