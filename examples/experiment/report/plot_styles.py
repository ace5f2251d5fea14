"""Styles of plots: a variant's colour and marker, the legend, the file.

A variant has the same colour and marker in every plot. The colours are from
Okabe and Ito (2008, Color Universal Design); colour-blind people can tell them
apart. Full and hollow markers distinguish variants of one colour. A plot is
1200 pixels wide and readable at 800.
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
"""Colour and dashes of the uncompressed variants."""

FAINT = "#e3e3e3"

_WIDTH, _DPI = 8, 150  # Inches, and pixels per inch.
# Colour, marker, and whether the marker is full.
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
  """Returns a variant's colour, marker, and whether the marker is full.

  Args:
    arm: the variant's name.
    arms: all variants of the plot. Variants without a style are grey and take a
      marker each, in order of their names.
  """
  if arm in _STYLES:
    return _STYLES[arm]
  others = [name for name in in_order(arms)
            if name not in _STYLES and name not in LINES]
  place = others.index(arm)
  return ("#666666", _OTHERS[place % len(_OTHERS)], place < len(_OTHERS))


def new_drawing(height: float) -> "Figure":
  """Makes an empty drawing, 8 inches wide; the height is in inches."""
  from matplotlib.figure import Figure  # pyplot has global state.

  drawing = Figure(figsize=(_WIDTH, height), layout="constrained")
  drawing.get_layout_engine().set(
      w_pad=0.1, h_pad=0.1, wspace=0.02, hspace=0.02)
  return drawing


def finish(
    drawing: "Figure", arms: Sequence[str], title: str, *, bars: bool = False
) -> None:
  """Gives a drawing its title, and a legend below it.

  Args:
    drawing: the drawing.
    arms: the variants in it.
    title: the title.
    bars: True if variants are bars, False for curves.
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
  """Returns the drawing as a PNG file, 1200 pixels wide."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  FigureCanvasAgg(drawing)  # This canvas needs no screen.
  content = io.BytesIO()
  # Without the version, equal drawings give equal files.
  drawing.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
  return content.getvalue()
