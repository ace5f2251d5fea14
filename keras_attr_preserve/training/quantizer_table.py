"""The effect of a model's quantizers on their inputs, as a table."""

import dataclasses
import math
from typing import Any

__all__ = ["QuantizerRange", "RangeTable", "harm"]

# Moving averages always clip a little; this share of features gets a warning.
_NOTABLE = 0.01


@dataclasses.dataclass(frozen=True)
class QuantizerRange:
  """One quantizer: its range and its inputs.

  Attributes:
    layer: the layer's name, without tfmot's prefix.
    kind: "input", "weights" or "activation".
    role: "scores", "features" (of a WCAM's layer), or "".
    low: the range's lower end, rounded by the quantizer so that 0 is one of its
      steps. With a range per channel, the lowest.
    high: its upper end; with a range per channel, the highest.
    least: the smallest input value.
    most: the largest input value.
    below: share of the values clipped at the lower end, 0..1. These are more
      than half a step outside, beyond rounding.
    above: share of the values clipped at the upper end.
    waste: share of the range without values, 0..1; a mean over channels.
    steps: how many of the `levels` steps occur; a mean over channels.
    levels: how many steps the range has, 256 at 8 bits.
    fault: "empty" for a range 0..0; "untrained" for the initial range of
      `quantize_model`; "not finite" for NaN or infinity in the values or the
      range; or "".
  """

  layer: str
  kind: str
  role: str
  low: float
  high: float
  least: float
  most: float
  below: float
  above: float
  waste: float
  steps: float
  levels: int
  fault: str

  @property
  def clipped(self) -> float:
    """Share of the values that are clipped at either end, 0..1."""
    return self.below + self.above

  @property
  def warning(self) -> str:
    """The warning of this quantizer, or ""."""
    name = f"{self.layer} ({self.kind})"
    if self.fault == "empty":
      what = "the model sees black" if self.kind == "input" else (
          "whatever arrives becomes 0")
      return f"{name}: EMPTY RANGE 0..0, {what}; train some steps first."
    if self.fault == "untrained":
      return (f"{name}: range {self.low:.3g}..{self.high:.3g} is as "
              "quantize_model made it; train some steps first.")
    if self.fault:
      return f"{name}: NaN or infinity arrives, or is in the range."
    if self.role == "scores" and self.clipped:
      return (f"{name}: clips {self.clipped:.2%} of the SCORES; a clipped "
              "score has no gradient, and its class may lose to another.")
    if self.role == "features" and self.clipped > _NOTABLE:
      return f"{name}: clips {self.clipped:.2%} of the FEATURES of the map."
    return ""


@dataclasses.dataclass(frozen=True)
class RangeTable:
  """The quantizers of a model, the most harmful first.

  Attributes:
    rows: quantizers with a fault, then with clipped scores, then with clipped
      features, then the others by their clipped share and their waste.
    top_clipped: share of the images whose top score is clipped, 0..1.
    images: how many images were run.
    unquantized: layers whose weights have no quantizer. tfmot leaves out a
      convolution that a ReLU layer follows without a normalization between. The
      file has its weights in int8 all the same, unseen by training.
  """

  rows: tuple[QuantizerRange, ...]
  top_clipped: float
  images: int
  unquantized: tuple[str, ...] = ()

  def of(self, role: str) -> list[QuantizerRange]:
    """The rows of a role, "scores" or "features"."""
    return [row for row in self.rows if row.role == role]

  @property
  def warnings(self) -> list[str]:
    """The warnings, the worst first."""
    messages = [row.warning for row in self.rows if row.warning]
    if self.unquantized:
      messages.append(
          f"{', '.join(self.unquantized)}: weights without a quantizer; the "
          "file rounds them, training does not see it.")
    return messages

  def __str__(self) -> str:
    """The warnings, and one line for each quantizer."""
    lines = [f"!! {warning}" for warning in self.warnings]
    lines += [f"{self.top_clipped:.2%} of {self.images} images have a clipped "
              "top score.", ""]
    lines.append(f"{'layer':<26}{'quantizer':<11}{'role':<9}{'range':>19}"
                 f"{'arrives':>21}{'clipped':>9}{'waste':>7}{'steps':>11}")
    for row in self.rows:
      lines.append(
          f"{row.layer:<26}{row.kind:<11}{row.role:<9}"
          f"{f'{row.low:.4g}..{row.high:.4g}':>19}"
          f"{f'{row.least:.4g}..{row.most:.4g}':>21}{row.clipped:>9.2%}"
          f"{row.waste:>7.0%}{f'{row.steps:.0f} of {row.levels}':>11}")
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Plain values; NaN becomes None."""
    rows = [{**dataclasses.asdict(row), "clipped": row.clipped}
            for row in self.rows]
    for row in rows:
      for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
          row[name] = None
    return {"images": self.images, "top_clipped": self.top_clipped,
            "rows": rows, "warnings": self.warnings,
            "unquantized": list(self.unquantized)}


def harm(row: QuantizerRange) -> tuple:
  """Returns the sort key of a row, the most harmful first."""
  clipped = row.clipped if math.isfinite(row.clipped) else 1.0
  faults = ("not finite", "empty", "untrained")
  fault = faults.index(row.fault) if row.fault else len(faults)
  roles = {"scores": 0, "features": 1} if row.warning else {}
  return fault, roles.get(row.role, 2), -clipped, -row.waste
