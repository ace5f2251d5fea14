"""Seeds brought together: means, spreads, the best arm, the gap closed."""

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
"""A net that keeps less of what the teacher is above chance has collapsed."""


class Summary(NamedTuple):
  """Values of some seeds: mean, sample standard deviation, how many.

  The spread is NaN with one seed, the mean too with none.
  """

  mean: float
  spread: float
  count: int


class Closed(NamedTuple):
  """The share of the gap closed: mean over seeds, least, most, how many."""

  mean: float
  low: float
  high: float
  count: int


def summarize(values: Iterable[float | None]) -> Summary:
  """Brings seeds together; None, NaN and infinities are left out."""
  kept = [one for one in values if one is not None and math.isfinite(one)]
  if not kept:
    return Summary(math.nan, math.nan, 0)
  spread = float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan
  return Summary(float(np.mean(kept)), spread, len(kept))


def settings_of(rows: Rows) -> list[tuple[str, float]]:
  """All compressions, in the file's order, with their strengths, ascending."""
  names = [*dict.fromkeys(row["compression"] for row in rows)]
  found = {(row["compression"], float(row["strength"])) for row in rows
           if row["compression"] != "none"}
  return sorted(found, key=lambda one: (names.index(one[0]), one[1]))


def by_arm(rows: Rows, compression: str, strength: float) -> dict[str, Rows]:
  """The rows of a compression at a strength, and the uncompressed, by arm.

  Args:
    rows: of one experiment.
    compression: its name.
    strength: of it.

  Returns:
    Rows by arm, in the order of every table.

  Raises:
    ValueError: there is no row of that compression and strength.
  """
  settings = settings_of(rows)
  if (compression, float(strength)) not in settings:
    raise ValueError(
        f"compression and strength must be one of {settings}; got "
        f"{(compression, strength)}.")
  kept = [row for row in rows if row["compression"] == "none" or (
      row["compression"] == compression and row["strength"] == strength)]
  return {arm: [row for row in kept if row["arm"] == arm]
          for arm in in_order(row["arm"] for row in kept)}


def by_class(rows: Rows, key: str) -> dict[str, list[float | None]]:
  """One figure's values in each row, by class; without classes that lack it."""
  found = {}
  for row in rows:
    for name, figures in (row.get("per_class") or {}).items():
      if figures.get(key) is not None:
        found.setdefault(name, []).append(figures[key])
  return found


def best_arms(arms: dict[str, Rows], key: str) -> set[str]:
  """Names the best compressed arm, and all that tie with it.

  An arm ties with the best where the best leads by no more than the larger of
  their two spreads. An arm with one seed has no spread and takes no part;
  neither do `collapsed_arms`.

  Args:
    arms: as `by_arm` gives them.
    key: the figure.

  Returns:
    Their names; none where more of the figure is neither better nor worse, and
    none where fewer than two arms could be compared.
  """
  better = figure(key).better
  out = {*UNCOMPRESSED, *collapsed_arms(
      arms, "float_" if key.startswith("float_") else "")}
  found = {arm: summarize(row.get(key) for row in rows)
           for arm, rows in arms.items() if arm not in out}
  found = {arm: one for arm, one in found.items() if one.count > 1}
  if not better or len(found) < 2:
    return set()
  top = max(found.values(), key=lambda one: better * one.mean)
  return {arm for arm, one in found.items()
          if better * (top.mean - one.mean) <= max(top.spread, one.spread)}


def collapsed_arms(arms: dict[str, Rows], prefix: str = "") -> dict[str, int]:
  """Names the compressed arms that guess, with how many of their seeds do.

  Args:
    arms: as `by_arm` gives them.
    prefix: "" for the file that ships, "float_" for the float student.

  Returns:
    Arms of which a seed's mean AP lies above chance by less than `COLLAPSED` of
    what the teacher's does, or of what 1 does where no teacher has a row. Rows
    that do not say what chance is, as of earlier versions, tell nothing.
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
  """The share of what plain compression lost that an arm has kept.

  (arm - plain) / (teacher - plain) in each seed: 1 is the teacher's figure, 0
  is plain's, and less is worse than plain. The teacher's agreement with itself
  is 1; other figures come from the teacher's row of the same seed, or from its
  one row.

  Args:
    arms: as `by_arm` gives them.
    arm: whose share.
    key: a figure of which more is better.
    plain: the arm of compression alone.

  Returns:
    The share; None where plain lost nothing that stands out (in one of the
    seeds teacher - plain is not above 0, or its mean is not above its own
    sample standard deviation), or where the arm shares no seed with plain.

  Raises:
    ValueError: more of the figure is not better.
  """
  one = figure(key)
  if one.better != 1:
    raise ValueError(f"key must be a figure to raise; got {key!r}.")
  ours, theirs = _by_seed(arms, arm, key), _by_seed(arms, plain, key)
  if one.teachers is None:
    top = _by_seed(arms, "teacher", key)
    if len(top) == 1:  # One teacher for all seeds.
      top = dict.fromkeys(theirs, *top.values())
  else:
    top = dict.fromkeys(theirs, one.teachers)
  gaps = {seed: top[seed] - theirs[seed] for seed in theirs if seed in top}
  lost = summarize(gaps.values())
  if not gaps or min(gaps.values()) <= 0 or (
      lost.count > 1 and lost.mean <= lost.spread):
    return None
  shares = [(ours[seed] - theirs[seed]) / gap for seed, gap in gaps.items()
            if seed in ours]
  if not shares:
    return None
  return Closed(float(np.mean(shares)), min(shares), max(shares), len(shares))


def task_change(
    arms: dict[str, Rows], arm: str, *, plain: str = "plain"
) -> dict[str, tuple[float, bool]]:
  """How an arm's task metrics differ from plain compression's.

  Args:
    arms: as `by_arm` gives them.
    arm: whose.
    plain: the arm of compression alone.

  Returns:
    For each task metric that both have in a same seed: the mean difference, and
    whether it is worse by more than the larger of the two spreads over those
    seeds (by anything at all with one seed, where no spread is known).
  """
  found = {}
  for key in TASK:
    ours, theirs = _by_seed(arms, arm, key), _by_seed(arms, plain, key)
    seeds = [seed for seed in ours if seed in theirs]
    if seeds:
      both = [summarize(each[seed] for seed in seeds)
              for each in (ours, theirs)]
      noise = max(one.spread for one in both) if len(seeds) > 1 else 0.0
      change = both[0].mean - both[1].mean
      found[key] = change, -change > noise
  return found


def _by_seed(arms: dict[str, Rows], arm: str, key: str) -> dict[int, float]:
  """A figure's finite values by seed."""
  values = {row["seed"]: row.get(key) for row in arms.get(arm, ())}
  return {seed: value for seed, value in values.items()
          if value is not None and math.isfinite(value)}
