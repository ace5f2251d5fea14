"""Turns the text of a grid into runs."""

from collections.abc import Collection, Iterable, Sequence

from examples.experiment.runs.compressing import kinds, parse, starts_fresh
from examples.experiment.runs.experiment import Run
from examples.experiment.runs.variants import ARMS, recalibrates

__all__ = ["expand", "read_grid"]


def read_grid(
    text: str, arms: Collection[str], seeds: Sequence[int]) -> list[Run]:
  """Reads a grid such as "none;prune:0.8,0.9@plain,swa;ptq".

  Args:
    text: compressions, their strengths, and their variants after an "@".
      Without "@" a compression has all variants that fit it. "none" trains on
      without compression.
    arms: the variants to run; others are left out.
    seeds: the seeds of each run.

  Returns:
    Runs in the order of `expand`: all runs of a seed come before the next seed.
    A compression without training always has the variant "plain".

  Raises:
    ValueError: a compression, strength or variant is unknown, or they do not
      fit each other. Or the text names no compression.
  """
  cells = []
  for entry in [piece for piece in text.split(";") if piece.strip()] or [""]:
    what, at, named = entry.partition("@")
    own_arms = [arm.strip() for arm in named.split(",")] if at else None
    for name, strength in parse(what):
      cells.append((name, strength, _arms(name, own_arms, arms)))
  return expand(cells, seeds)


def expand(
    cells: Iterable[tuple[str, float, Collection[str]]], seeds: Sequence[int]
) -> list[Run]:
  """Makes runs of compressions, their strengths and variants.

  Returns:
    The runs, seed by seed. A compression without training runs with the first
    seed only, as it does not depend on the seed.

  Raises:
    ValueError: a variant does not fit a compression.
  """
  return [Run(name, strength, arm, seed)
          for seed in seeds for name, strength, arms in cells
          if kinds(name) or seed == seeds[0] for arm in arms]


def _arms(
    name: str, own_arms: Sequence[str] | None, asked: Collection[str]
) -> list[str]:
  """Returns a compression's own variants, or all variants that fit it."""
  if kinds(name):
    fits = [arm for arm in ARMS if (arm == "fine_tune") == (name == "none")
            and not (starts_fresh(name) and recalibrates(arm))]
  else:
    fits = asked = ["plain"]
  wrong = [arm for arm in own_arms or () if arm not in fits]
  if wrong:
    raise ValueError(f"{name}'s arms must be of {fits}; got {wrong[0]!r}.")
  return [arm for arm in (fits if own_arms is None else own_arms)
          if arm in asked]
