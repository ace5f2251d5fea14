"""How a plot looks: an arm's colour and marker, the legend, the file.

An arm has the same colour and marker in every plot. The colours are those of
Okabe and Ito (2008, Color Universal Design), which colour-blind people can tell
apart; full and hollow markers tell arms of one colour apart. A plot has 1200
pixels across and is made to be read at 800.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from examples.experiment.report.figures import arm_name, in_order

if TYPE_CHECKING:
  from matplotlib.figure import Figure

__all__ = ["FAINT", "LINES", "finish", "new_drawing", "png", "style"]

LINES = {"teacher": ("#000000", "--"), "centre_prior": ("#555555", ":"),
         "fine_tune": ("#8c8c8c", "-.")}
"""Colour and dashes of the arms that are not compressed."""

FAINT = "#e3e3e3"

_WIDTH, _DPI = 8, 150  # Inches, and pixels an inch.
# Colour, marker, and whether it is full.
_STYLES = {
    "plain": ("#000000", "o", True),
    "plain_bn": ("#000000", "o", False),
    "distillation": ("#0072B2", "s", True),
    "distillation_bn": ("#0072B2", "s", False),
    "ewa": ("#56B4E9", "^", True),
    "e2kd": ("#0072B2", "D", False),
    "e2kd_bn": ("#0072B2", "D", True),
    "catkd": ("#009E73", "v", True),
    "swa": ("#D55E00", "P", True),
    "swa_stochastic": ("#E69F00", "X", True),
    "swa_distillation": ("#CC79A7", "*", True),
    "agreement": ("#D55E00", "p", False),
    "hints": ("#009E73", "d", False),
    "swa_hints": ("#D55E00", "h", True),
    "swa_hints_bn": ("#D55E00", "H", False),
    "swa_hints_distillation": ("#CC79A7", "h", False),
    "swa_hints_distillation_bn": ("#CC79A7", "H", True),
}
_OTHERS = ("<", ">", "h", "d", "8", "H")


def style(arm: str, arms: Sequence[str]) -> tuple[str, str, bool]:
  """An arm's colour, marker, and whether it is full.

  Args:
    arm: its name.
    arms: all arms of the plot; those without a style of their own share grey
      and take a marker each, in order of their names.
  """
  if arm in _STYLES:
    return _STYLES[arm]
  others = [one for one in in_order(arms)
            if one not in _STYLES and one not in LINES]
  place = others.index(arm)
  return ("#666666", _OTHERS[place % len(_OTHERS)], place < len(_OTHERS))


def new_drawing(height: float) -> "Figure":
  """An empty drawing of the usual width; height in inches, 8 are the width."""
  from matplotlib.figure import Figure  # Not through pyplot: no global state.

  drawing = Figure(figsize=(_WIDTH, height), layout="constrained")
  drawing.get_layout_engine().set(
      w_pad=0.1, h_pad=0.1, wspace=0.02, hspace=0.02)
  return drawing


def finish(
    drawing: "Figure", arms: Sequence[str], title: str, *, bars: bool = False
) -> None:
  """Gives a drawing its title, and a legend below it.

  Args:
    drawing: what was drawn.
    arms: those in it.
    title: above it all.
    bars: whether arms are bars, or else curves.
  """
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  handles = []
  for arm in in_order(arms):
    if arm in LINES:
      color, dashes = LINES[arm]
      handles.append(Line2D([], [], color=color, linestyle=dashes))
      continue
    color, marker, full = style(arm, arms)
    handles.append(
        Patch(facecolor=color if full else "white", edgecolor=color,
              hatch=None if full else "////") if bars else
        Line2D([], [], color=color, marker=marker,
               markerfacecolor=color if full else "white"))
  drawing.suptitle(title, fontsize=10)
  drawing.legend(
      handles, [arm_name(arm) for arm in in_order(arms)],
      loc="outside lower center", ncols=4, fontsize=9, frameon=False)


def png(drawing: "Figure") -> bytes:
  """The drawing as a PNG file, 1200 pixels wide."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  FigureCanvasAgg(drawing)  # Needs no screen.
  content = io.BytesIO()
  # Without the version in it, the same drawing is the same file.
  drawing.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
  return content.getvalue()
