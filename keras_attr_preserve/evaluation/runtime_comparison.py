"""Compares the reports of one file on several runtimes."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.evaluation.report import (
    Report,
    ShortfallError,
    facts_lines,
    plain,
)
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

__all__ = ["Comparison", "apart"]

_APART = ("equal_logits", "largest", "steps", "equal_maps", "map_cosine_worst")


def apart(
    maps: np.ndarray, logits: np.ndarray, other_maps: np.ndarray,
    other_logits: np.ndarray, step: float,
) -> dict[str, float | int | None]:
  """Measures the difference of two runs of one file.

  Args:
    maps: `[images, height, width]`.
    logits: `[images, classes]`.
    other_maps: of the other run, the same shape.
    other_logits: of the other run, the same shape.
    step: the value of a logit's last bit; 0 where logits are floats.

  Returns:
    - equal_logits: share of the logits that are equal to the last bit.
    - largest: largest difference of a logit.
    - steps: the same in last bits of the integer; None for float logits.
    - equal_maps: share of the maps that are equal to the last bit.
    - map_cosine_worst: the least cosine of a pair of maps; NaN where all maps
      of the first run are zero.
  """
  largest = float(np.abs(logits - other_logits).max())
  cosine = agreement(maps, other_maps)["cosine"]
  cosine = cosine[~np.isnan(cosine)]
  return {
      "equal_logits": float((logits == other_logits).mean()),
      "largest": largest,
      "steps": round(largest / step) if step else None,
      "equal_maps": float((maps == other_maps).all((1, 2)).mean()),
      "map_cosine_worst": float(cosine.min()) if len(cosine) else float("nan"),
  }


class Comparison:
  """The reports of `verify` on several runtimes.

  Attributes:
    reports: a `Report` for each runtime, by name.
    refused: for each other runtime the reason why it cannot run the file.
    differences: for each pair of runtimes, `(one, other)`, the result of
      `apart`.
  """

  def __init__(
      self,
      reports: Mapping[str, Report],
      refused: Mapping[str, str],
      differences: Mapping[tuple[str, str], Mapping[str, Any]],
  ):
    """Keeps the reports; `verify` makes comparisons."""
    self.reports = dict(reports)
    self.refused = dict(refused)
    self.differences = dict(differences)

  def require(self, **limits: float) -> "Comparison":
    """Calls `Report.require` for every runtime.

    Args:
      **limits: as for `Report.require`.

    Returns:
      The comparison itself.

    Raises:
      ShortfallError: a runtime misses a limit; the message has all figures.
      ValueError: a limit names no score.
    """
    short = []
    for name, report in self.reports.items():
      missed = report.shortfalls(**limits)
      if missed:
        short.append(f"{name}: {'; '.join(missed)}")
    if short:
      raise ShortfallError(f"{'. '.join(short)}.\n{self}")
    return self

  def __str__(self) -> str:
    """Returns a table with a column per runtime, and their differences."""
    first = next(iter(self.reports.values()))
    lines = [*dict.fromkeys(
        warning for report in self.reports.values()
        for warning in report.warnings)]
    lines += facts_lines({name: value for name, value in first.facts.items()
                          if name != "runtime"})
    lines += ["", _row("agreement of maps", self.reports)]
    columns = [_figures(report) for report in self.reports.values()]
    for name in columns[0]:
      lines.append(_row(name, [f"{column[name]:.4f}" for column in columns]))
    lines += [f"{name + ' cannot':<22}{reason}"
              for name, reason in self.refused.items()]
    if self.differences:
      lines += ["", f"{'runtimes apart':<22}" + "".join(
          f"{head:>18}" for head in _APART)]
    for pair, row in self.differences.items():
      lines.append(f"{' - '.join(pair):<22}" + "".join(
          f"{_short(row[key]):>18}" for key in _APART))
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Returns reports and differences as plain values; NaN becomes None."""
    return plain({
        "runtimes": {name: report.to_dict()
                     for name, report in self.reports.items()},
        "refused": self.refused,
        "differences": [{"runtimes": list(pair), **row}
                        for pair, row in self.differences.items()],
    })

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `comparison.json`, and each report in its runtime's folder.

    Args:
      folder: created if needed; files of these names are replaced.

    Raises:
      OSError: the folder cannot be written to.
    """
    path = make_folder(folder)
    for name, report in self.reports.items():
      report.save(path / name)
    write_whole(path / "comparison.json",
                json.dumps(self.to_dict(), indent=2) + "\n")


def _figures(report: Report) -> dict[str, float]:
  """Returns the means by row name; for cosines also the low values."""
  figures = {}
  for name, row in report.summary().items():
    figures[name] = row["mean"]
    if name.endswith("cosine"):
      figures[f"{name}, median"] = row["median"]
      figures[f"{name}, 5th pct"] = row["p5"]
      figures[f"{name}, worst"] = row["worst"]
  return {**figures, "dead maps": report.dead,
          "same top class": report.prediction_agreement}


def _row(name: str, cells: Any) -> str:
  return f"{name:<26}" + "".join(f"{cell:>11}" for cell in cells)


def _short(value: float | int | None) -> str:
  if value is None:
    return "-"
  return str(value) if isinstance(value, int) else f"{value:.6g}"
