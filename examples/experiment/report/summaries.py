"""Summarizes seeds: means, spreads, the best variant, the gap closed."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from examples.experiment.report.figures import (
    TASK,
    UNCOMPRESSED,
    figure,
    in_order,
)

__all__ = [
  "COLLAPSED", "Closed", "Summary", "best_arms", "by_arm", "by_class",
  "collapsed_arms", "gap_closed", "settings_of", "summarize", "task_change",
]

Rows = Sequence[dict[str, Any]]

COLLAPSED = 0.2
"""Least share of the teacher's mean AP above chance; below it, a collapse."""


class Summary(NamedTuple):
  """A summary over seeds: mean, sample standard deviation, number of seeds.

  With one seed the spread is NaN. Without seeds the mean is NaN too.
  """

  mean: float
  spread: float
  count: int


class Closed(NamedTuple):
  """The share of the gap closed: mean, least, most, number of seeds."""

  mean: float
  low: float
  high: float
  count: int


def summarize(values: Iterable[float | None]) -> Summary:
  """Summarizes the values of all seeds, without None, NaN and infinities."""
  finite = [value for value in values
            if value is not None and math.isfinite(value)]
  if not finite:
    return Summary(math.nan, math.nan, 0)
  spread = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
  return Summary(float(np.mean(finite)), spread, len(finite))


def settings_of(rows: Rows) -> list[tuple[str, float]]:
  """Lists all compressions in file order, with ascending strengths."""
  names = [*dict.fromkeys(row["compression"] for row in rows)]
  settings = {(row["compression"], float(row["strength"])) for row in rows
              if row["compression"] != "none"}
  return sorted(settings, key=lambda setting: (
      names.index(setting[0]), setting[1]))


def by_arm(rows: Rows, compression: str, strength: float) -> dict[str, Rows]:
  """Groups the rows of a compression and the uncompressed rows by variant.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    strength: the compression's strength.

  Returns:
    Rows by variant, in the order of the tables.

  Raises:
    ValueError: there is no row of that compression and strength.
  """
  settings = settings_of(rows)
  if (compression, float(strength)) not in settings:
    raise ValueError(
        f"compression and strength must be one of {settings}; got "
        f"{(compression, strength)}.")
  chosen = [row for row in rows if row["compression"] == "none" or (
      row["compression"] == compression and row["strength"] == strength)]
  return {arm: [row for row in chosen if row["arm"] == arm]
          for arm in in_order(row["arm"] for row in chosen)}


def by_class(rows: Rows, key: str) -> dict[str, list[float | None]]:
  """Returns a figure's values in the rows, by class."""
  values = {}
  for row in rows:
    for name, figures in (row.get("per_class") or {}).items():
      if figures.get(key) is not None:
        values.setdefault(name, []).append(figures[key])
  return values


def best_arms(arms: dict[str, Rows], key: str) -> set[str]:
  """Names the best compressed variant, and all variants that tie with it.

  A variant ties with the best if the best leads by no more than the larger of
  the two spreads. A variant with one seed has no spread and takes no part. The
  `collapsed_arms` take no part either.

  Args:
    arms: rows by variant, from `by_arm`.
    key: the figure.

  Returns:
    The names. Empty if the figure has no better direction, or if fewer than two
    variants can be compared.
  """
  better = figure(key).better
  out = {*UNCOMPRESSED, *collapsed_arms(
      arms, "float_" if key.startswith("float_") else "")}
  summaries = {arm: summarize(row.get(key) for row in rows)
               for arm, rows in arms.items() if arm not in out}
  summaries = {arm: summary for arm, summary in summaries.items()
               if summary.count > 1}
  if not better or len(summaries) < 2:
    return set()
  top = max(summaries.values(), key=lambda summary: better * summary.mean)
  return {arm for arm, summary in summaries.items()
          if better * (top.mean - summary.mean) <= max(
              top.spread, summary.spread)}


def collapsed_arms(arms: dict[str, Rows], prefix: str = "") -> dict[str, int]:
  """Names the collapsed variants, with the number of collapsed seeds.

  Args:
    arms: rows by variant, from `by_arm`.
    prefix: "" for the shipped file, "float_" for the float student.

  Returns:
    The number of collapsed seeds by compressed variant, without zeros. A seed
    has collapsed if its mean AP above chance is less than `COLLAPSED` of the
    teacher's. Without a row of the teacher, its mean AP counts as 1. Rows
    without chance, as of earlier versions, are ignored.
  """
  teacher = summarize(row.get("map") for row in arms.get("teacher", ())).mean
  top = 1.0 if math.isnan(teacher) else teacher

  def guesses(row):
    value, chance = row.get(f"{prefix}map"), row.get("map_chance")
    return None not in (value, chance) and (
        not value - chance >= COLLAPSED * (top - chance))

  counts = {arm: sum(map(guesses, rows)) for arm, rows in arms.items()
            if arm not in UNCOMPRESSED}
  return {arm: count for arm, count in counts.items() if count}


def gap_closed(
    arms: dict[str, Rows], arm: str, key: str, *, plain: str = "plain"
) -> Closed | None:
  """Returns the share of the plain loss that a variant recovers.

  A seed's share is (variant - plain) / (teacher - plain). 1 is the
  teacher's figure, 0 is plain's figure, and below 0 is worse than plain. The
  teacher's agreement with itself is 1. Other figures come from the teacher's
  row of the same seed, or from its single row.

  Args:
    arms: rows by variant, from `by_arm`.
    arm: the variant.
    key: a figure for which more is better.
    plain: the variant of compression alone.

  Returns:
    The share. None if the variant shares no seed with plain, or if plain has no
    clear loss. A loss is clear if teacher - plain is above 0 in every seed, and
    its mean is above its sample standard deviation.

  Raises:
    ValueError: more is not better for the figure.
  """
  metric = figure(key)
  if metric.better != 1:
    raise ValueError(f"key must be a figure to raise; got {key!r}.")
  arm_values, plain_values = (
      _by_seed(arms, arm, key), _by_seed(arms, plain, key))
  if metric.teachers is None:
    top = _by_seed(arms, "teacher", key)
    if len(top) == 1:  # One teacher serves all seeds.
      top = dict.fromkeys(plain_values, *top.values())
  else:
    top = dict.fromkeys(plain_values, metric.teachers)
  gaps = {seed: top[seed] - plain_values[seed]
          for seed in plain_values if seed in top}
  lost = summarize(gaps.values())
  if not gaps or min(gaps.values()) <= 0 or (
      lost.count > 1 and lost.mean <= lost.spread):
    return None
  shares = [(arm_values[seed] - plain_values[seed]) / gap
            for seed, gap in gaps.items() if seed in arm_values]
  if not shares:
    return None
  return Closed(float(np.mean(shares)), min(shares), max(shares), len(shares))


def task_change(
    arms: dict[str, Rows], arm: str, *, plain: str = "plain"
) -> dict[str, tuple[float, bool]]:
  """Compares a variant's task metrics with plain compression's.

  Args:
    arms: rows by variant, from `by_arm`.
    arm: the variant.
    plain: the variant of compression alone.

  Returns:
    The mean difference of each task metric over shared seeds, and whether it is
    clearly worse. That means worse by more than the larger spread of the two.
    With one seed there is no spread, and any loss counts.
  """
  changes = {}
  for key in TASK:
    arm_values, plain_values = (
        _by_seed(arms, arm, key), _by_seed(arms, plain, key))
    seeds = [seed for seed in arm_values if seed in plain_values]
    if seeds:
      both = [summarize(each[seed] for seed in seeds)
              for each in (arm_values, plain_values)]
      noise = max(summary.spread for summary in both) if len(seeds) > 1 else 0.0
      change = both[0].mean - both[1].mean
      changes[key] = change, -change > noise
  return changes


def _by_seed(arms: dict[str, Rows], arm: str, key: str) -> dict[int, float]:
  """Returns a figure's finite values by seed."""
  values = {row["seed"]: row.get(key) for row in arms.get(arm, ())}
  return {seed: value for seed, value in values.items()
          if value is not None and math.isfinite(value)}
