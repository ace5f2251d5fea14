"""Draws curves of figures against strength and against size."""

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
"""The figures of the curves; the first task metric precedes them."""

_TITLES = {
    "cosine_mean": "agreement: cosine to the teacher's map",
    "roc_auc": "localization: ROC-AUC against masks",
    "pointing": "localization: pointing game",
    "gradient_cosine_mean": "not trained on: int. gradients, cosine",
    "occlusion_cosine_mean": "not trained on: occlusion, cosine",
}
_SPREAD_OUT = 0.5  # Spread of the variants, as a share of the step.
_VIEW = (-100.0, 200.0)  # Limits of the share closed, in percent.

# A curve's point: its height, and its bar's reach down and up.
Point = tuple[float, float, float]
_NO_POINT: Point = (math.nan, 0.0, 0.0)


def trade_off_curves(
    rows: Rows,
    compression: str,
    *,
    against: str = "strength",
    panels: Sequence[str] | None = None,
) -> "Figure | None":
  """Draws figures against strength or size; variants are curves.

  Each figure has a panel. Bars show the sample standard deviation over seeds;
  one seed has no bar. Uncompressed variants are level lines.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    against: "strength", at even steps, or a figure such as "bytes_gzipped".
      Against strength, the variants stand a little apart, so all bars are
      visible.
    panels: the figures to draw; None for the first available task metric and
      `PANELS`. Figures without a compressed variant are left out.

  Returns:
    The drawing; None if there is nothing to draw.

  Raises:
    ValueError: no row has the compression.
  """
  grid = _grid(rows, compression)
  compressed = [row for row in rows if row["compression"] == compression]

  def known(key):
    return summarize(row.get(key) for row in compressed).count > 0

  if panels is None:
    panels = (*[key for key in TASK if known(key)][:1], *PANELS)
  arms = in_order({row["arm"] for row in compressed} - {*LINES})
  beside = {arm: [row for row in rows if row["arm"] == arm] for arm in LINES}

  def draw(axes, key):
    metric = figure(key)
    for arm, (color, dashes) in LINES.items():
      level = summarize(row.get(key) for row in beside[arm])
      if level.count:
        axes.axhline(level.mean * metric.scale, color=color, linestyle=dashes)
    for arm in arms:
      points = []
      for cells in grid.values():
        summary = summarize(row.get(key) for row in cells.get(arm, ()))
        reach = summary.spread if summary.count > 1 else 0.0
        points.append(tuple(
            metric.scale * x for x in (summary.mean, reach, reach)))
      _curve(axes, arm, arms, _places(grid, arm, arms, against), points)
    _name_places(axes, grid, compression, against)
    axes.set_title(_TITLES.get(key, metric.title))

  drawn = against == "strength" or known(against)
  return _panelled(
      [key for key in panels if drawn and known(key)], draw,
      [*arms, *(arm for arm in beside if beside[arm])],
      f"{compression}: means over seeds, bars ± one standard deviation")


def closed_curves(
    rows: Rows, compression: str, *, panels: Sequence[str] = PANELS
) -> "Figure | None":
  """Draws the share of the gap closed against strength.

  Each figure has a panel. Bars reach from the lowest seed to the highest. There
  is no point if plain compression lost nothing; see `gap_closed`. A dagger
  marks a worse task metric than plain compression's; see `task_change`.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    panels: the figures to draw; figures without any share are left out.

  Returns:
    The drawing; None if there is nothing to draw.

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
  """Groups the rows by strength, ascending, and by variant."""
  strengths = [strength for name, strength in settings_of(rows)
               if name == compression]
  if not strengths:
    raise ValueError(
        "compression must be one of "
        f"{sorted({name for name, _ in settings_of(rows)})}; got "
        f"{compression!r}.")
  return {strength: by_arm(rows, compression, strength)
          for strength in strengths}


def _share(cells: dict[str, Rows], arm: str, key: str) -> Point:
  closed = gap_closed(cells, arm, key)
  if closed is None:
    return _NO_POINT
  return (100 * closed.mean, 100 * (closed.mean - closed.low),
          100 * (closed.high - closed.mean))


def _places(grid, arm: str, arms: Sequence[str], against: str) -> list[float]:
  """Returns the horizontal positions of a variant's points."""
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
  """Draws a curve of the finite points, with their bars."""
  color, marker, full = style(arm, arms)
  drawn = np.array([(x, *point) for x, point in zip(places, points)
                    if math.isfinite(x) and math.isfinite(point[0])])
  if not len(drawn):
    return
  axes.errorbar(
      drawn[:, 0], drawn[:, 1], yerr=drawn[:, 2:].T, color=color, marker=marker,
      markerfacecolor=color if full else "white", markersize=6, linewidth=1.2,
      elinewidth=1, label=arm)


def _name_places(axes: "Axes", grid, compression: str, against: str) -> None:
  axes.grid(axis="y", color=FAINT)
  axes.set_axisbelow(True)
  if against != "strength":
    axes.set_xlabel(figure(against).title)
    return
  axes.set_xticks(range(len(grid)),
                  [strength_text(compression, strength) for strength in grid])
  axes.set_xlim(-0.5, len(grid) - 0.5)
  for edge in range(1, len(grid)):
    axes.axvline(edge - 0.5, color=FAINT, linewidth=1)
  axes.set_xlabel("strength")


def _limit_view(axes: "Axes", curves: Iterable[Sequence[Point]]) -> None:
  """Limits the view, as huge shares would flatten the rest; counts the rest."""
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
  """Draws panels, two in a row."""
  if not keys:
    return None
  lines = math.ceil(len(keys) / 2)
  drawing = new_drawing(1.2 + 2.6 * lines)
  axes = drawing.subplots(lines, min(2, len(keys)), squeeze=False).flat
  for panel, key in zip(axes, keys):
    draw(panel, key)
    panel.title.set_fontsize(10)
    panel.xaxis.label.set_fontsize(9)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)
  for panel in axes[len(keys):]:
    panel.remove()
  finish(drawing, arms, title)
  return drawing
