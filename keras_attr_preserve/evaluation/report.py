"""The report of a verification: figures, files and requirements."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.utils.atomic_files import make_folder, write_whole
from keras_attr_preserve.utils.drawing import labelled_png

__all__ = ["Examples", "Report", "ShortfallError", "facts_lines", "plain",
           "summarize", "worst_numbers"]

_STATISTICS = ("mean", "median", "p5", "worst")
_HEADS = ("mean", "median", "5th pct", "worst")
_NO_SCORES = ("same_class",)


class Examples(NamedTuple):
  """Example images with both maps.

  Attributes:
    numbers: indices of the images among the verified images.
    images: `[examples, height, width, channels]`.
    reference: the teacher's maps, `[examples, map height, map width]`.
    maps: the file's maps, `[examples, map height, map width]`.
    value_range: the values drawn black and white.
  """

  numbers: list[int]
  images: np.ndarray
  reference: np.ndarray
  maps: np.ndarray
  value_range: tuple[float, float]


class ShortfallError(AssertionError):
  """A report misses limits of `Report.require`; the message has the figures."""


def summarize(values: np.ndarray, name: str = "") -> dict[str, float]:
  """Returns a score's mean, median, 5th percentile and worst value.

  Args:
    values: one per image; NaN is left out.
    name: the score's name; for "l2" large values are bad, and "p5" is the 95th
      percentile.

  Returns:
    "mean", "median", "p5" and "worst"; NaN where no value is left.
  """
  values = values[~np.isnan(values)]
  if not len(values):
    return dict.fromkeys(_STATISTICS, float("nan"))
  low = not _lower_is_better(name)
  return {
      "mean": float(values.mean()),
      "median": float(np.median(values)),
      "p5": float(np.percentile(values, 5 if low else 95)),
      "worst": float(values.min() if low else values.max()),
  }


class Report:
  """Agreement of a file's attribution maps with its teacher's.

  Attributes:
    scores: per image, as `agreement` gives them; NaN where the teacher's map is
      all zero. "same_class" is 1 where the top classes agree. A judge's scores
      carry its name, "occlusion_cosine", and are NaN where it did not run.
    dead: share of the file's maps that are all zero although the teacher's map
      is not, 0..1.
    facts: the file, layer, method, runtime and sizes.
    examples: images of the lowest cosine, the worst first; None for none.
    warnings: sentences that put the figures in doubt. The report's text begins
      with them, and `require` fails.
    image_names: names of the images, such as file names, or None. `save` uses
      them.
  """

  def __init__(
      self,
      scores: Mapping[str, np.ndarray],
      dead: float,
      facts: Mapping[str, Any],
      examples: Examples | None = None,
      warnings: Sequence[str] = (),
  ):
    """Keeps the figures; `verify` makes reports."""
    self.warnings = tuple(warnings)
    self.scores = dict(scores)
    self.dead = float(dead)
    self.facts = dict(facts)
    self.examples = examples
    self.image_names: Sequence[str] | None = None

  @property
  def prediction_agreement(self) -> float:
    """Share of the images on which the top classes agree, 0..1."""
    return float(np.mean(self.scores["same_class"]))

  def summary(self) -> dict[str, dict[str, float]]:
    """Returns mean, median, 5th percentile and worst of every map score."""
    return {name: summarize(values, name)
            for name, values in self.scores.items() if name not in _NO_SCORES}

  def worst_images(self, count: int = 5, score: str = "cosine") -> list[int]:
    """Lists the indices of a score's worst images, the worst first."""
    return worst_numbers(self.scores[score], count, score)

  def require(
      self,
      *,
      prediction_agreement: float | None = None,
      dead: float | None = None,
      **limits: float,
  ) -> "Report":
    """Raises an error unless the figures meet the limits.

    Args:
      prediction_agreement: the least share of equal top classes, 0..1.
      dead: the largest share of dead maps, 0..1.
      **limits: the least value of a score's mean, such as `cosine=0.9` or a
        judge's `occlusion_cosine=0.9`. A suffix limits its median, 5th
        percentile or worst image: `cosine_median=0.9`, `cosine_p5=0.8`,
        `cosine_worst=0.5`. For l2 the limit is the largest value.

    Returns:
      The report itself.

    Raises:
      ShortfallError: a limit is missed; the message has the figures.
      ValueError: a limit names no score.
    """
    short = self.shortfalls(
        prediction_agreement=prediction_agreement, dead=dead, **limits)
    if short:
      raise ShortfallError(f"{'; '.join(short)}.\n{self}")
    return self

  def shortfalls(
      self,
      *,
      prediction_agreement: float | None = None,
      dead: float | None = None,
      **limits: float,
  ) -> list[str]:
    """Lists warnings and missed limits; takes the arguments of `require`."""
    short = list(self.warnings)
    for key, limit in limits.items():
      name, value = self._figure(key)
      low = not _lower_is_better(name)
      if not (value >= limit if low else value <= limit):
        short.append(f"{key} {value:.4f}, {'at least' if low else 'at most'} "
                     f"{limit:g} required")
    if prediction_agreement is not None and not (
        self.prediction_agreement >= prediction_agreement):
      short.append(f"prediction_agreement {self.prediction_agreement:.4f}, "
                   f"at least {prediction_agreement:g} required")
    if dead is not None and not self.dead <= dead:
      short.append(f"dead {self.dead:.4f}, at most {dead:g} required")
    return short

  def _figure(self, key: str) -> tuple[str, float]:
    summary = self.summary()
    name, _, statistic = key.rpartition("_")
    if key in summary:
      name, statistic = key, "mean"
    if name not in summary or statistic not in _STATISTICS:
      raise ValueError(
          f"require: {key!r} is no figure; take {sorted(summary)}, alone "
          "or followed by _median, _p5 or _worst, or prediction_agreement or "
          "dead.")
    return name, summary[name][statistic]

  def __str__(self) -> str:
    """Returns the figures as a table of text."""
    lines = [*self.warnings, *facts_lines(self.facts)]
    lines += ["", f"{'agreement of maps':<22}" + "".join(
        f"{head:>9}" for head in _HEADS)]
    for name, row in self.summary().items():
      lines.append(f"{name:<22}" + "".join(
          f"{row[statistic]:>9.4f}" for statistic in _STATISTICS))
    lines += [
        f"{'dead maps':<22}{self.dead:>9.4f}",
        f"{'same top class':<22}{self.prediction_agreement:>9.4f}",
    ]
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Returns facts and figures as plain values; NaN becomes None."""
    return plain({
        "warnings": self.warnings,
        **self.facts,
        "agreement": self.summary(),
        "dead": self.dead,
        "prediction_agreement": self.prediction_agreement,
        "worst_images": self.worst_images(),
        **({} if self.image_names is None else {"worst_names": [
            self.image_names[i] for i in self.worst_images()]}),
    })

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the figures, a row per image, and the worst images.

    `report.json` holds the figures, and `report.csv` the figures of each image.
    `worst.png` shows the images of the lowest cosine under their number and
    cosine: the image, the teacher's map and the file's map. Names replace the
    numbers if the images have names. Only "worst_images" of `report.json` keeps
    numbers, and "worst_names" holds the names.

    Args:
      folder: created if needed; files of these names are replaced.

    Raises:
      OSError: the folder cannot be written to.
      ValueError: the numbers of names and images differ.
    """
    columns = list(self.scores.values())
    names = self.image_names
    if names is None:
      names = range(len(columns[0]))
    elif len(names) != len(columns[0]):
      raise ValueError(
          f"image_names must be {len(columns[0])}, one an image; got "
          f"{len(names)}.")
    path = make_folder(folder)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", *self.scores])
    for i, name in enumerate(names):
      writer.writerow([name, *(f"{column[i]:.6g}" for column in columns)])
    write_whole(path / "report.csv", table.getvalue())
    write_whole(path / "report.json",
                json.dumps(self.to_dict(), indent=2) + "\n")
    examples = self.examples

    def title(number):  # The font has only ASCII.
      return f"image {number}" if self.image_names is None else str(
          names[number]).encode("ascii", "backslashreplace").decode()

    # An older report's file shows other images.
    (path / "worst.png").unlink(missing_ok=True)
    if examples is not None and examples.numbers:
      write_whole(path / "worst.png", labelled_png(
          examples.images, examples.reference, examples.maps,
          value_range=examples.value_range,
          heads=("picture", "teacher", "file"),
          labels=[f"{title(i)}: cosine {self.scores['cosine'][i]:.4f}"
                  for i in examples.numbers]))


def worst_numbers(
    values: np.ndarray, count: int, name: str = "") -> list[int]:
  """Lists the indices of a score's worst values, the worst first; no NaN."""
  values = -values if _lower_is_better(name) else values
  order = np.argsort(values, kind="stable")
  return [int(i) for i in order if not np.isnan(values[i])][:count]


def facts_lines(facts: Mapping[str, Any]) -> list[str]:
  """Returns a line of text for each fact."""
  return [f"{name:<22}{value}" for name, value in facts.items()]


def plain(value: Any) -> Any:
  """Turns NumPy's values into Python's, and NaN and infinity into None."""
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not np.isfinite(value) else value


def _lower_is_better(name: str) -> bool:
  return name == "l2" or name.endswith("_l2")
