"""Writes the tables of an experiment in Markdown."""

import math
from collections.abc import Iterable, Sequence

from examples.experiment.report.figures import (
    TABLE,
    TASK,
    UNCOMPRESSED,
    arm_name,
    figure,
    in_order,
    strength_text,
)
from examples.experiment.report.summaries import (
    COLLAPSED,
    Closed,
    Rows,
    Summary,
    best_arms,
    by_arm,
    by_class,
    collapsed_arms,
    gap_closed,
    settings_of,
    summarize,
    task_change,
)

__all__ = [
  "CLOSED_CAPTION", "RESULTS_CAPTION", "closed_table", "cost_table",
  "per_class_table", "results_table",
]

RESULTS_CAPTION = (
    "Mean ± sample standard deviation over n seeds; a number in brackets says "
    "that fewer seeds have the figure. Bold: the best compressed arm of two "
    "seeds or more, with all arms that it leads by no more than the larger of "
    "the two standard deviations; so one bold arm alone stands out, and "
    "several are a tie. Teacher, centre prior and fine-tuned only take no "
    "part: they are not compressed. ‡: the students of so many seeds have "
    "collapsed; their mean AP is above chance by less than "
    f"{100 * COLLAPSED:.0f} % of what the teacher's is. Such an arm takes no "
    "part either: what a net looks at that guesses means nothing.")

CLOSED_CAPTION = (
    "Share of the gap closed, (arm - plain) / (teacher - plain) in each seed: "
    "mean over seeds (least to most). 100 % is the teacher's figure, 0 % plain "
    "compression's, and below it the arm is worse than plain compression. "
    "“-”: plain compression lost nothing that stands out from the "
    "seeds' noise (in some seed it lost nothing, or its mean loss is no larger "
    "than its standard deviation), or no seed has both. The columns with Δ "
    "give the task metric less plain compression's. †: a task metric is worse "
    "than plain compression's by more than the larger standard deviation (with "
    "one seed, by anything), so the share is not comparable; ?: no task metric "
    "to tell by.")

_CLOSED = tuple(key for key in TABLE
                if figure(key).better == 1 and key not in TASK
                and key != "same_top_class")
_COSTS = ("sparsity", "parameters", "macs", "bytes", "bytes_gzipped", "seconds")


def results_table(
    rows: Rows, compression: str, strength: float, *, prefix: str = ""
) -> str:
  """Compares the variants at one strength; the caption is `RESULTS_CAPTION`.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    strength: the compression's strength.
    prefix: "" for the shipped file, "float_" for the float student.

  Returns:
    A Markdown table with a row for each variant. Figures without a value are
    left out. Empty without any figure.
  """
  arms = by_arm(rows, compression, strength)
  keys = _present(arms, (prefix + key for key in TABLE))
  if not keys:
    return ""
  best = {key: best_arms(arms, key) for key in keys}
  collapsed = collapsed_arms(arms, prefix)
  lines = []
  for arm, arm_rows in arms.items():
    cells = []
    for key in keys:
      text = _cell(
          key, summarize(row.get(key) for row in arm_rows), len(arm_rows))
      cells.append(f"**{text}**" if arm in best[key] else text)
    mark = f" ‡ {collapsed[arm]} of {len(arm_rows)}" if arm in collapsed else ""
    lines.append([arm_name(arm) + mark, str(len(arm_rows)), *cells])
  return _markdown(["arm", "n", *(figure(key).title for key in keys)], lines)


def closed_table(rows: Rows, compression: str, strength: float) -> str:
  """Shows the share of the gap that each variant closes; see `CLOSED_CAPTION`.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    strength: the compression's strength.

  Returns:
    A Markdown table with a row for each compressed variant except plain. Empty
    without such a variant, or without plain.
  """
  arms = by_arm(rows, compression, strength)
  compared = [arm for arm in arms if arm not in (*UNCOMPRESSED, "plain")]
  if not compared or "plain" not in arms:
    return ""
  keys = _present({arm: arms[arm] for arm in (*compared, "plain")}, _CLOSED)
  tasks = _present(arms, TASK)
  lines = []
  for arm in compared:
    changes = task_change(arms, arm)
    worse = any(bad for _, bad in changes.values())
    mark = " †" if worse else "" if changes else " ?"
    shares = [gap_closed(arms, arm, key) for key in keys]
    lines.append([
        arm_name(arm) + mark,
        *("-" if share is None else _share(share) + mark for share in shares),
        *(_change(changes.get(key)) for key in tasks)])
  heads = [figure(key).title for key in keys]
  return _markdown(
      ["arm", *heads, *(f"Δ {figure(key).title}" for key in tasks)], lines)


def cost_table(rows: Rows) -> str:
  """Shows each variant's sparsity, parameters, MACs, bytes and seconds.

  Args:
    rows: the rows of one experiment.

  Returns:
    A Markdown table of means over seeds, with a row for each compression,
    strength and variant.
  """
  keys = _present({"": rows}, _COSTS)
  lines = []
  for name, strength in [("none", 0.0), *settings_of(rows)]:
    setting_rows = [row for row in rows if row["compression"] == name and (
        name == "none" or row["strength"] == strength)]
    for arm in in_order(row["arm"] for row in setting_rows):
      arm_rows = [row for row in setting_rows if row["arm"] == arm]
      lines.append([
          name, "" if name == "none" else strength_text(name, strength),
          arm_name(arm), str(len(arm_rows)),
          *(_mean(key, summarize(row.get(key) for row in arm_rows).mean)
            for key in keys)])
  return _markdown(["compression", "strength", "arm", "n",
                    *(figure(key).title for key in keys)], lines)


def per_class_table(
    rows: Rows, compression: str, strength: float, key: str
) -> str:
  """Compares the variants in one figure, class by class.

  Args:
    rows: the rows of one experiment.
    compression: the compression's name.
    strength: the compression's strength.
    key: the figure within `per_class`, such as "ap", "cosine_mean", "roc_auc".

  Returns:
    A Markdown table with a row for each class, and a column for each variant
    with the figure. Empty if no variant has it.
  """
  arms = by_arm(rows, compression, strength)
  flat = {arm: by_class(arm_rows, key) for arm, arm_rows in arms.items()}
  flat = {arm: values for arm, values in flat.items() if values}
  names = dict.fromkeys(name for values in flat.values() for name in values)
  key = "map" if key == "ap" else key  # For the decimals.
  lines = [[name, *(_cell(key, summarize(values.get(name, ())), len(arms[arm]))
                    for arm, values in flat.items())] for name in names]
  return _markdown(["class", *map(arm_name, flat)], lines) if lines else ""


def _present(arms: dict[str, Rows], keys: Iterable[str]) -> list[str]:
  """Returns the figures that at least one row has."""
  rows = [row for arm_rows in arms.values() for row in arm_rows]
  return [key for key in keys
          if summarize(row.get(key) for row in rows).count]


def _cell(key: str, summary: Summary, rows: int) -> str:
  """Formats "0.812 ± 0.011", with " (2)" if only 2 of the rows have it."""
  if not summary.count:
    return "-"
  spread = f" ± {_mean(key, summary.spread)}" if summary.count > 1 else ""
  return _mean(key, summary.mean) + spread + (
      f" ({summary.count})" if summary.count < rows else "")


def _mean(key: str, value: float) -> str:
  metric = figure(key)
  return ("-" if math.isnan(value)
          else f"{metric.scale * value:.{metric.decimals}f}")


def _share(closed: Closed) -> str:
  text = f"{100 * closed.mean:.0f} %"
  if closed.count > 1:
    text += f" ({100 * closed.low:.0f} to {100 * closed.high:.0f})"
  return text


def _change(change: tuple[float, bool] | None) -> str:
  if change is None:
    return "-"
  return f"{change[0]:+.3f}" + (" †" if change[1] else "")


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Formats a table; columns of figures align right."""
  # An unescaped bar would end the cell.
  table = [[cell.replace("|", "\\|") for cell in line]
           for line in (heads, *lines)]
  table.insert(1, ["---", *["---:"] * (len(heads) - 1)])
  return "".join(f"| {' | '.join(line)} |\n" for line in table)
