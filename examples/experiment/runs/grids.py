"""From the text of a grid to its runs."""

from collections.abc import Collection, Iterable, Sequence

from examples.experiment.runs.compressing import kinds, parse, starts_fresh
from examples.experiment.runs.experiment import Run
from examples.experiment.runs.variants import ARMS, recalibrates

__all__ = ["expand", "read_grid"]


def read_grid(
    text: str, arms: Collection[str], seeds: Sequence[int]) -> list[Run]:
  """Reads a grid such as "none;prune:0.8,0.9@plain,swa;ptq".

  Args:
    text: compressions, their strengths, and after an "@" the variants that they are
      run in; where there is none, in all that go with them. "none" trains on
      without any compression.
    arms: no others are run.
    seeds: of each.

  Returns:
    See `expand`; a part of them says something of all. What trains nothing has
    the variant "plain", whatever variants are asked for.

  Raises:
    ValueError: an unknown compression or variant, a strength that it cannot have,
      a variant that it does not go with, or no compression at all.
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
    A seed after another; nothing in what trains nothing hangs on a seed, and it
    is run with the first alone.

  Raises:
    ValueError: a variant does not go with a compression.
  """
  return [Run(name, strength, arm, seed)
          for seed in seeds for name, strength, arms in cells
          if kinds(name) or seed == seeds[0] for arm in arms]


def _arms(
    name: str, own_arms: Sequence[str] | None, asked: Collection[str]
) -> list[str]:
  """The variants that a compression is run in: its own, or all that fit it."""
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
