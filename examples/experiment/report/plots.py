"""Curves of an experiment: figures against strength and against size."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from examples.experiment.report.figures import (
    TASK,
    UNCOMPRESSED,
    figure,
    in_order,
    strength_text,
)
from examples.experiment.report.plot_styles import (
    FAINT,
    LINES,
    finish,
    new_drawing,
    style,
)
from examples.experiment.report.summaries import (
    Rows,
    by_arm,
    gap_closed,
    settings_of,
    summarize,
    task_change,
)

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

__all__ = ["PANELS", "closed_curves", "trade_off_curves"]

PANELS = (
    "cosine_mean", "roc_auc", "pointing", "gradient_cosine_mean",
    "occlusion_cosine_mean")
"""The figures of the curves; the first task metric goes before them."""

_TITLES = {
    "cosine_mean": "agreement: cosine to the teacher's map",
    "roc_auc": "localization: ROC-AUC against masks",
    "pointing": "localization: pointing game",
    "gradient_cosine_mean": "not trained on: int. gradients, cosine",
    "occlusion_cosine_mean": "not trained on: occlusion, cosine",
}
_SPREAD_OUT = 0.5  # How wide the arms stand at a strength, of the step.
_VIEW = (-100.0, 200.0)  # Of the share closed, in percent.

# A curve's point: its height, and how far its bar reaches down and up.
Point = tuple[float, float, float]
_NO_POINT: Point = (math.nan, 0.0, 0.0)


def trade_off_curves(
    rows: Rows,
    compression: str,
    *,
    against: str = "strength",
    panels: Sequence[str] | None = None,
) -> "Figure | None":
  """Draws figures against strength or size, a panel each, a curve an arm.

  Bars are the sample standard deviation over seeds; one seed has none.
  Uncompressed arms are level lines.

  Args:
    rows: of one experiment.
    compression: its name.
    against: "strength", at even steps, the arms a little apart so that bars do
      not hide one another; or a figure such as "bytes_gzipped".
    panels: the figures drawn; None for the first task metric there is, and
      `PANELS`. Those that no compressed arm has are left out.

  Returns:
    The drawing; None where there is nothing to draw.

  Raises:
    ValueError: no row has the compression.
  """
  grid = _grid(rows, compression)
  own = [row for row in rows if row["compression"] == compression]

  def known(key):
    return summarize(row.get(key) for row in own).count > 0

  if panels is None:
    panels = (*[key for key in TASK if known(key)][:1], *PANELS)
  arms = in_order({row["arm"] for row in own} - {*LINES})
  beside = {arm: [row for row in rows if row["arm"] == arm] for arm in LINES}

  def draw(axes, key):
    one = figure(key)
    for arm, (color, dashes) in LINES.items():
      level = summarize(row.get(key) for row in beside[arm])
      if level.count:
        axes.axhline(level.mean * one.scale, color=color, linestyle=dashes)
    for arm in arms:
      points = []
      for cells in grid.values():
        found = summarize(row.get(key) for row in cells.get(arm, ()))
        reach = found.spread if found.count > 1 else 0.0
        points.append(tuple(one.scale * x for x in (found.mean, reach, reach)))
      _curve(axes, arm, arms, _places(grid, arm, arms, against), points)
    _name_places(axes, grid, compression, against)
    axes.set_title(_TITLES.get(key, one.title))

  drawn = against == "strength" or known(against)
  return _panelled(
      [key for key in panels if drawn and known(key)], draw,
      [*arms, *(arm for arm in beside if beside[arm])],
      f"{compression}: means over seeds, bars ± one standard deviation")


def closed_curves(
    rows: Rows, compression: str, *, panels: Sequence[str] = PANELS
) -> "Figure | None":
  """Draws the share of the gap closed against strength, a panel a figure.

  Bars reach from the least seed to the most. Where plain compression lost
  nothing there is no point, see `gap_closed`; a dagger stands at points whose
  task metric is worse than plain compression's, see `task_change`.

  Args:
    rows: of one experiment.
    compression: its name.
    panels: the figures drawn; those of which no arm has a share are left out.

  Returns:
    The drawing; None where there is nothing to draw.

  Raises:
    ValueError: no row has the compression.
  """
  grid = _grid(rows, compression)
  arms = in_order({arm for cells in grid.values() for arm in cells}
                  - {*UNCOMPRESSED, "plain"})
  shares = {key: {arm: [_share(cells, arm, key) for cells in grid.values()]
                  for arm in arms} for key in panels}
  shown = [key for key in panels if any(
      point is not _NO_POINT for points in shares[key].values()
      for point in points)]

  def draw(axes, key):
    for level, dashes in ((0, "-"), (100, "--")):
      axes.axhline(level, color="#000000", linestyle=dashes, linewidth=1)
    for arm in arms:
      places = _places(grid, arm, arms, "strength")
      _curve(axes, arm, arms, places, shares[key][arm])
      for x, point, cells in zip(places, shares[key][arm], grid.values()):
        if point is not _NO_POINT and any(
            worse for _, worse in task_change(cells, arm).values()):
          axes.annotate("†", (x, point[0]), (4, 3), fontsize=9,
                        textcoords="offset points", annotation_clip=True)
    _limit_view(axes, shares[key].values())
    _name_places(axes, grid, compression, "strength")
    axes.set_title(_TITLES.get(key, figure(key).title))
    axes.set_ylabel("% of the gap closed", fontsize=9)

  return _panelled(
      shown, draw, arms,
      f"{compression}: share of the gap closed, 0 % plain compression, 100 % "
      "the teacher;\nbars from the least seed to the most, † at a worse task "
      "metric than plain")


def _grid(rows: Rows, compression: str) -> dict[float, dict[str, Rows]]:
  """Arms by strength, ascending."""
  strengths = [one for name, one in settings_of(rows) if name == compression]
  if not strengths:
    raise ValueError(
        "compression must be one of "
        f"{sorted({name for name, _ in settings_of(rows)})}; got "
        f"{compression!r}.")
  return {one: by_arm(rows, compression, one) for one in strengths}


def _share(cells: dict[str, Rows], arm: str, key: str) -> Point:
  one = gap_closed(cells, arm, key)
  if one is None:
    return _NO_POINT
  return (100 * one.mean, 100 * (one.mean - one.low),
          100 * (one.high - one.mean))


def _places(grid, arm: str, arms: Sequence[str], against: str) -> list[float]:
  """Where an arm's points stand, from left to right."""
  if against == "strength":
    aside = (arms.index(arm) + 0.5) / len(arms) - 0.5
    return [i + _SPREAD_OUT * aside for i in range(len(grid))]
  return [figure(against).scale * summarize(
      row.get(against) for row in cells.get(arm, ())).mean
          for cells in grid.values()]


def _curve(
    axes: "Axes", arm: str, arms: Sequence[str], places: Iterable[float],
    points: Sequence[Point],
) -> None:
  """Draws the points that there are, joined, with their bars."""
  color, marker, full = style(arm, arms)
  kept = np.array([(x, *point) for x, point in zip(places, points)
                   if math.isfinite(x) and math.isfinite(point[0])])
  if not len(kept):
    return
  axes.errorbar(
      kept[:, 0], kept[:, 1], yerr=kept[:, 2:].T, color=color, marker=marker,
      markerfacecolor=color if full else "white", markersize=6, linewidth=1.2,
      elinewidth=1, label=arm)


def _name_places(axes: "Axes", grid, compression: str, against: str) -> None:
  axes.grid(axis="y", color=FAINT)
  axes.set_axisbelow(True)
  if against != "strength":
    axes.set_xlabel(figure(against).title)
    return
  axes.set_xticks(range(len(grid)),
                  [strength_text(compression, one) for one in grid])
  axes.set_xlim(-0.5, len(grid) - 0.5)
  for edge in range(1, len(grid)):
    axes.axvline(edge - 0.5, color=FAINT, linewidth=1)
  axes.set_xlabel("strength")


def _limit_view(axes: "Axes", curves: Iterable[Sequence[Point]]) -> None:
  """Keeps shares of a tiny gap from flattening the rest, and says so."""
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, _VIEW[0]), min(high, _VIEW[1]))
  out = sum(not _VIEW[0] <= point[0] <= _VIEW[1] for points in curves
            for point in points if point is not _NO_POINT)
  if out:
    axes.text(0.02, 0.02, f"{out} outside the view", fontsize=8,
              transform=axes.transAxes)


def _panelled(
    keys: Sequence[str], draw: Callable[["Axes", str], None],
    arms: Sequence[str], title: str,
) -> "Figure | None":
  """Draws panels, two in a line."""
  if not keys:
    return None
  lines = math.ceil(len(keys) / 2)
  drawing = new_drawing(1.2 + 2.6 * lines)
  axes = drawing.subplots(lines, min(2, len(keys)), squeeze=False).flat
  for one, key in zip(axes, keys):
    draw(one, key)
    one.title.set_fontsize(10)
    one.xaxis.label.set_fontsize(9)
    one.tick_params(labelsize=9)
    one.spines[["top", "right"]].set_visible(False)
  for one in axes[len(keys):]:
    one.remove()
  finish(drawing, arms, title)
  return drawing
