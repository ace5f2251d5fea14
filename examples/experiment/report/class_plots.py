"""Draws bars of one figure, class by class."""

from typing import TYPE_CHECKING

import numpy as np

from examples.experiment.report.figures import figure, strength_text
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
    by_class,
    summarize,
)

if TYPE_CHECKING:
  from matplotlib.figure import Figure

__all__ = ["class_bars", "class_title"]


def class_title(key: str) -> str:
  """Returns the title of a figure within `per_class`."""
  return "average precision" if key == "ap" else figure(key).title


def class_bars(
    rows: Rows, compression: str, strength: float, key: str
) -> "Figure | None":
  """Draws one figure class by class, with a bar for each variant.

  Thin bars show the sample standard deviation over seeds. Uncompressed variants
  are lines across a class.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    strength: the compression's strength.
    key: the figure within `per_class`, such as "ap", "cosine_mean", "roc_auc".

  Returns:
    The drawing; None if no compressed variant has the figure.

  Raises:
    ValueError: no row has the compression at that strength.
  """
  values = {arm: by_class(arm_rows, key) for arm, arm_rows in
            by_arm(rows, compression, strength).items()}
  values = {arm: classes for arm, classes in values.items() if classes}
  arms = [arm for arm in values if arm not in LINES]
  names = [*dict.fromkeys(name for arm in arms for name in values[arm])]
  if not names:
    return None
  drawing = new_drawing(1.3 + len(names) * (0.15 + 0.11 * len(arms)))
  axes = drawing.subplots()
  thick = 0.84 / len(arms)
  centres = np.arange(len(names))
  for i, arm in enumerate(arms):
    color, _, full = style(arm, arms)
    summaries = [summarize(values[arm].get(name, ())) for name in names]
    axes.barh(
        centres + (i - (len(arms) - 1) / 2) * thick,
        [summary.mean for summary in summaries], thick * 0.88,
        xerr=[summary.spread if summary.count > 1 else 0
              for summary in summaries],
        color=color if full else "white", edgecolor=color, linewidth=0.8,
        hatch=None if full else "////", label=arm,
        error_kw={"ecolor": "#444444", "elinewidth": 0.9})
  for arm in values:
    if arm in LINES:
      color, dashes = LINES[arm]
      means = [summarize(values[arm].get(name, ())).mean for name in names]
      axes.vlines(means, centres - 0.46, centres + 0.46, color=color,
                  linestyle=dashes, label=arm)
  axes.set_yticks(centres, names, fontsize=10)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.tick_params(axis="y", length=0)
  axes.grid(axis="x", color=FAINT)
  axes.set_axisbelow(True)
  axes.set_xlabel(class_title(key))
  axes.spines[["top", "right"]].set_visible(False)
  finish(drawing, [*values],
         f"{compression}, {strength_text(compression, strength)}: classes, "
         "means over seeds, bars ± one standard deviation", bars=True)
  return drawing
