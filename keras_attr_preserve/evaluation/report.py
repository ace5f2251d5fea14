"""What a verification found: figures, files and a gate."""

import csv
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.files import make_folder, write_whole

__all__ = ["Report", "ShortfallError", "summarize"]

_LOWER_IS_BETTER = frozenset({"l2"})
_STATISTICS = ("mean", "p5", "worst")


class ShortfallError(AssertionError):
  """A report falls short of what `Report.require` asks; says by how much."""


def summarize(values: np.ndarray, name: str = "") -> dict[str, float]:
  """Gives the mean of a score, the 5 % that are worse, and the worst.

  Args:
    values: one per image; NaN is left out.
    name: the score's name; of "l2" the large values are the bad ones.

  Returns:
    "mean", "p5" and "worst"; NaN where no value is left.
  """
  values = values[~np.isnan(values)]
  if not len(values):
    return dict.fromkeys(_STATISTICS, float("nan"))
  low = name not in _LOWER_IS_BETTER
  return {
      "mean": float(values.mean()),
      "p5": float(np.percentile(values, 5 if low else 95)),
      "worst": float(values.min() if low else values.max()),
  }


class Report:
  """Agreement of a shipped file's maps with its teacher's.

  Attributes:
    scores: per image, as `agreement` gives them; NaN where the teacher's map is
      all zero. "same_class" is 1 where the top classes agree.
    dead: share of the file's maps that are all zero although the teacher's are
      not, 0..1.
    facts: what was judged: file, layer, method, runtime, sizes.
  """

  def __init__(
      self,
      scores: Mapping[str, np.ndarray],
      dead: float,
      facts: Mapping[str, Any],
  ):
    """Keeps the figures; `verify` makes reports."""
    self.scores = dict(scores)
    self.dead = float(dead)
    self.facts = dict(facts)

  @property
  def prediction_agreement(self) -> float:
    """Share of the images on which the top classes agree, 0..1."""
    return float(np.mean(self.scores["same_class"]))

  def summary(self) -> dict[str, dict[str, float]]:
    """Gives mean, 5th percentile and worst of every map score."""
    return {name: summarize(values, name)
            for name, values in self.scores.items() if name != "same_class"}

  def worst_images(self, count: int = 5, score: str = "cosine") -> list[int]:
    """Numbers the images that a score rates worst, the worst first."""
    values = self.scores[score]
    if score in _LOWER_IS_BETTER:
      values = -values
    order = np.argsort(values, kind="stable")
    return [int(i) for i in order if not np.isnan(values[i])][:count]

  def require(
      self,
      *,
      prediction_agreement: float | None = None,
      dead: float | None = None,
      **limits: float,
  ) -> "Report":
    """Demands that the figures are good enough.

    Args:
      prediction_agreement: the least share of equal top classes, 0..1.
      dead: the largest share of dead maps, 0..1.
      **limits: the least value of a score's mean, such as `cosine=0.9`, or of
        its 5th percentile or worst image, `cosine_p5=0.8`, `cosine_worst=0.5`;
        of l2 the largest.

    Returns:
      The report itself.

    Raises:
      ShortfallError: something falls short; the message has the figures.
      ValueError: a limit names no score.
    """
    short = []
    for key, limit in limits.items():
      name, value = self._figure(key)
      low = name not in _LOWER_IS_BETTER
      if not (value >= limit if low else value <= limit):
        short.append(f"{key} {value:.4f}, {'at least' if low else 'at most'} "
                     f"{limit:g} required")
    if prediction_agreement is not None and not (
        self.prediction_agreement >= prediction_agreement):
      short.append(f"prediction_agreement {self.prediction_agreement:.4f}, "
                   f"at least {prediction_agreement:g} required")
    if dead is not None and not self.dead <= dead:
      short.append(f"dead {self.dead:.4f}, at most {dead:g} required")
    if short:
      raise ShortfallError(f"{'; '.join(short)}.\n{self}")
    return self

  def _figure(self, key: str) -> tuple[str, float]:
    summary = self.summary()
    name, _, statistic = key.rpartition("_")
    if key in summary:
      name, statistic = key, "mean"
    if name not in summary or statistic not in _STATISTICS:
      raise ValueError(
          f"require: {key!r} is no figure; take {sorted(summary)}, alone "
          "or followed by _p5 or _worst, or prediction_agreement or dead.")
    return name, summary[name][statistic]

  def __str__(self) -> str:
    """The figures as a table of text."""
    lines = [f"{name:<22}{value}" for name, value in self.facts.items()]
    lines += ["", f"{'agreement of maps':<22}" + "".join(
        f"{head:>9}" for head in ("mean", "5th pct", "worst"))]
    for name, row in self.summary().items():
      lines.append(f"{name:<22}" + "".join(
          f"{row[statistic]:>9.4f}" for statistic in _STATISTICS))
    lines += [
        f"{'dead maps':<22}{self.dead:>9.4f}",
        f"{'same top class':<22}{self.prediction_agreement:>9.4f}",
    ]
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Gives facts and figures as plain values; NaN becomes None."""
    return _plain({
        **self.facts,
        "agreement": self.summary(),
        "dead": self.dead,
        "prediction_agreement": self.prediction_agreement,
        "worst_images": self.worst_images(),
    })

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `report.json`, the figures, and `report.csv`, a row an image.

    Args:
      folder: created if need be; files of these names are replaced.

    Raises:
      OSError: the folder cannot be written to.
    """
    path = make_folder(folder)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", *self.scores])
    columns = list(self.scores.values())
    for i in range(len(columns[0])):
      writer.writerow([i, *(f"{column[i]:.6g}" for column in columns)])
    write_whole(path / "report.csv", table.getvalue())
    write_whole(path / "report.json",
                json.dumps(self.to_dict(), indent=2) + "\n")


def _plain(value: Any) -> Any:
  """Turns NumPy's values into Python's, and NaN into None."""
  if isinstance(value, Mapping):
    return {key: _plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and np.isnan(value) else value
