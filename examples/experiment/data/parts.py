"""Choosing among pictures and dividing them: train, validation and test."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from examples.experiment.data.reading import Part, Source

__all__ = ["HELD_OUT", "PARTS", "SHARE", "check_known", "choose", "complete",
           "cut", "divide", "draw", "hold_out", "shuffled"]

PARTS = ("train", "validation", "test")
SHARE = 0.15  # Of validation and of test, where all is divided.
HELD_OUT = 0.1  # Of what is there to train on, where a test part is given.


def check_known(classes: Sequence[str], names: Sequence[str]) -> None:
  """Raises a ValueError where one of the classes is none of the names."""
  unknown = [one for one in classes if one not in names]
  if unknown:
    raise ValueError(
        f"classes must be among {[*names]}; got {unknown} too.")


def choose(
    source: Source, classes: Sequence[str] | None, background: str | None
) -> Source:
  """The source with the wanted classes alone.

  Args:
    source: what there is.
    classes: names in the wanted order; None for all.
    background: the name of the absence of the class in `classes`, then one.

  Returns:
    Another source. Where classes exclude each other, the pictures of others
    are gone.

  Raises:
    ValueError: a class is unknown, or alone where classes exclude each other.
  """
  names = source.class_names if classes is None else (*classes,)
  if background is None and not source.multi_label and len(names) == 1:
    raise ValueError(
        "classes must be two or more where they exclude each other, or one "
        f"with background_class; got {[*names]}.")
  if classes is None:
    return source
  check_known(classes, source.class_names)
  columns = [source.class_names.index(one) for one in classes]
  ids = source.class_ids[columns]
  parts = {name: Part(part.pictures, part.labels[:, columns])
           for name, part in source.parts.items()}
  if background is not None:
    parts = {
        name: Part(part.pictures, np.hstack([1 - part.labels, part.labels]))
        for name, part in parts.items()}
    return source._replace(
        parts=parts, class_names=(background, *classes),
        class_ids=np.concatenate([[0], ids]), multi_label=False)
  if not source.multi_label:
    parts = {name: cut(part, part.labels.any(1))
             for name, part in parts.items()}
  return source._replace(parts=parts, class_names=names, class_ids=ids)


def complete(
    parts: Mapping[str, Part], seed: int, name: str
) -> tuple[dict[str, Part], tuple[str, ...]]:
  """Gives pictures to the parts that a source leaves out, or leaves empty.

  Without pictures in test, validation is test. Without any in both, train is
  divided as by `divide`; without validation, it is cut off train.

  Args:
    parts: the source's own; "train" among them.
    seed: which of train's pictures are for validation.
    name: of the source, for the warning where test is not its own.

  Returns:
    All parts, and the names of those that were cut off train. All stay empty
    where train is.
  """
  nothing = cut(parts["train"], [])
  parts = {part: parts.get(part, nothing) for part in PARTS}
  if not parts["train"].pictures:
    return parts, ()
  if not parts["test"].pictures:
    instead = "validation" if parts["validation"].pictures else "train"
    logging.getLogger(__name__).warning(
        "%s has no picture for test; %s.", name,
        "its validation part is test" if instead == "validation"
        else "train is divided")
    if instead == "train":
      return divide(parts["train"], seed), ("validation", "test")
    parts["test"], parts["validation"] = parts["validation"], nothing
  if parts["validation"].pictures:
    return parts, ()
  parts["train"], parts["validation"] = hold_out(parts["train"], seed)
  return parts, ("validation",)


def cut(part: Part, which: np.ndarray | Sequence[int]) -> Part:
  """Some pictures of a part, by number or by a mask."""
  numbers = np.arange(len(part.pictures))[which]
  return Part([part.pictures[i] for i in numbers], part.labels[numbers])


def draw(names: Sequence[str], count: int, seed: int) -> list[str]:
  """Some of the names, which the seed chooses, in the order of all."""
  chosen = np.random.default_rng(seed).permutation(len(names))[:count]
  return [names[i] for i in sorted(chosen)]


def divide(part: Part, seed: int) -> dict[str, Part]:
  """70 % to train, 15 % to validation and to test, which no seed changes."""
  order = np.random.default_rng(0).permutation(len(part.pictures))
  tests = max(1, round(SHARE * len(order)))
  rest, validation = hold_out(
      cut(part, np.sort(order[tests:])), seed, SHARE / (1 - SHARE))
  return {"train": rest, "validation": validation,
          "test": cut(part, np.sort(order[:tests]))}


def hold_out(
    part: Part, seed: int, share: float = HELD_OUT
) -> tuple[Part, Part]:
  """Cuts a share, at least one picture, off a part.

  Returns:
    The rest, and what was held out, which the seed chooses.
  """
  order = np.random.default_rng(seed).permutation(len(part.pictures))
  held = max(1, round(share * len(order)))
  return cut(part, np.sort(order[held:])), cut(part, np.sort(order[:held]))


def shuffled(part: Part, limit: int | None) -> Part:
  """The part in an order that is always the same, or the first ones of it.

  Files come sorted by class, or by the day they were taken.
  """
  order = np.random.default_rng(0).permutation(len(part.pictures))
  return cut(part, order[:limit])
