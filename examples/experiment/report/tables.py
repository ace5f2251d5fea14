"""Tables of an experiment in Markdown."""

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
  """Compares the arms at one strength; the caption is `RESULTS_CAPTION`.

  Args:
    rows: of one experiment.
    compression: its name.
    strength: of it.
    prefix: "" for the file that ships, "float_" for the float student.

  Returns:
    A Markdown table, a row for each arm; figures that no arm has are left out.
    Empty where no arm has any.
  """
  arms = by_arm(rows, compression, strength)
  keys = _present(arms, (prefix + key for key in TABLE))
  if not keys:
    return ""
  best = {key: best_arms(arms, key) for key in keys}
  collapsed = collapsed_arms(arms, prefix)
  lines = []
  for arm, theirs in arms.items():
    cells = []
    for key in keys:
      text = _cell(key, summarize(row.get(key) for row in theirs), len(theirs))
      cells.append(f"**{text}**" if arm in best[key] else text)
    mark = f" ‡ {collapsed[arm]} of {len(theirs)}" if arm in collapsed else ""
    lines.append([arm_name(arm) + mark, str(len(theirs)), *cells])
  return _markdown(["arm", "n", *(figure(key).title for key in keys)], lines)


def closed_table(rows: Rows, compression: str, strength: float) -> str:
  """Says how much of the gap each arm closes, as `CLOSED_CAPTION` explains.

  Args:
    rows: of one experiment.
    compression: its name.
    strength: of it.

  Returns:
    A Markdown table, a row for each compressed arm but plain; empty where there
    is no such arm, or no plain one.
  """
  arms = by_arm(rows, compression, strength)
  ours = [arm for arm in arms if arm not in (*UNCOMPRESSED, "plain")]
  if not ours or "plain" not in arms:
    return ""
  keys = _present({arm: arms[arm] for arm in (*ours, "plain")}, _CLOSED)
  tasks = _present(arms, TASK)
  lines = []
  for arm in ours:
    changes = task_change(arms, arm)
    worse = any(bad for _, bad in changes.values())
    mark = " †" if worse else "" if changes else " ?"
    shares = [gap_closed(arms, arm, key) for key in keys]
    lines.append([
        arm_name(arm) + mark,
        *("-" if one is None else _share(one) + mark for one in shares),
        *(_change(changes.get(key)) for key in tasks)])
  heads = [figure(key).title for key in keys]
  return _markdown(
      ["arm", *heads, *(f"Δ {figure(key).title}" for key in tasks)], lines)


def cost_table(rows: Rows) -> str:
  """Says what each arm costs: sparsity, parameters, MACs, bytes, seconds.

  Args:
    rows: of one experiment.

  Returns:
    A Markdown table of means over seeds, a row for each compression, strength
    and arm.
  """
  keys = _present({"": rows}, _COSTS)
  lines = []
  for name, strength in [("none", 0.0), *settings_of(rows)]:
    own = [row for row in rows if row["compression"] == name and (
        name == "none" or row["strength"] == strength)]
    for arm in in_order(row["arm"] for row in own):
      theirs = [row for row in own if row["arm"] == arm]
      lines.append([
          name, "" if name == "none" else strength_text(name, strength),
          arm_name(arm), str(len(theirs)),
          *(_mean(key, summarize(row.get(key) for row in theirs).mean)
            for key in keys)])
  return _markdown(["compression", "strength", "arm", "n",
                    *(figure(key).title for key in keys)], lines)


def per_class_table(
    rows: Rows, compression: str, strength: float, key: str
) -> str:
  """Compares the arms in one figure, class by class.

  Args:
    rows: of one experiment.
    compression: its name.
    strength: of it.
    key: the figure within `per_class`, such as "ap", "cosine_mean", "roc_auc".

  Returns:
    A Markdown table, a row for each class and a column for each arm that has
    the figure; empty where none has it.
  """
  arms = by_arm(rows, compression, strength)
  flat = {arm: by_class(theirs, key) for arm, theirs in arms.items()}
  flat = {arm: found for arm, found in flat.items() if found}
  names = dict.fromkeys(name for found in flat.values() for name in found)
  key = "map" if key == "ap" else key  # Its decimals.
  lines = [[name, *(_cell(key, summarize(found.get(name, ())), len(arms[arm]))
                    for arm, found in flat.items())] for name in names]
  return _markdown(["class", *map(arm_name, flat)], lines) if lines else ""


def _present(arms: dict[str, Rows], keys: Iterable[str]) -> list[str]:
  """The figures that some row has."""
  rows = [row for theirs in arms.values() for row in theirs]
  return [key for key in keys
          if summarize(row.get(key) for row in rows).count]


def _cell(key: str, one: Summary, rows: int) -> str:
  """"0.812 ± 0.011", "(2)" after it where only 2 of the rows have it."""
  if not one.count:
    return "-"
  spread = f" ± {_mean(key, one.spread)}" if one.count > 1 else ""
  return _mean(key, one.mean) + spread + (
      f" ({one.count})" if one.count < rows else "")


def _mean(key: str, value: float) -> str:
  one = figure(key)
  return ("-" if math.isnan(value)
          else f"{one.scale * value:.{one.decimals}f}")


def _share(one: Closed) -> str:
  text = f"{100 * one.mean:.0f} %"
  if one.count > 1:
    text += f" ({100 * one.low:.0f} to {100 * one.high:.0f})"
  return text


def _change(change: tuple[float, bool] | None) -> str:
  if change is None:
    return "-"
  return f"{change[0]:+.3f}" + (" †" if change[1] else "")


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """A table whose columns of figures stand to the right."""
  # A bar would end the cell.
  table = [[cell.replace("|", "\\|") for cell in line]
           for line in (heads, *lines)]
  table.insert(1, ["---", *["---:"] * (len(heads) - 1)])
  return "".join(f"| {' | '.join(line)} |\n" for line in table)
