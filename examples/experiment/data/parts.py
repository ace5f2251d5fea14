"""Chooses images and divides them into train, validation and test."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from examples.experiment.data.reading import Part, Source

__all__ = ["HELD_OUT", "PARTS", "SHARE", "check_known", "choose", "complete",
           "cut", "divide", "draw", "hold_out", "shuffled"]

PARTS = ("train", "validation", "test")
SHARE = 0.15  # Of validation and of test each, if all images are divided.
HELD_OUT = 0.1  # Of the training images, if a test part is given.


def check_known(classes: Sequence[str], names: Sequence[str]) -> None:
  """Raises a ValueError if one of the classes is not among the names."""
  unknown = [name for name in classes if name not in names]
  if unknown:
    raise ValueError(
        f"classes must be among {[*names]}; got {unknown} too.")


def choose(
    source: Source, classes: Sequence[str] | None, background: str | None
) -> Source:
  """Reduces a source to the chosen classes.

  Args:
    source: the whole source.
    classes: class names in their new order; None for all.
    background: the name for the absence of the one class in `classes`, or None.

  Returns:
    A new source. If classes exclude each other, it has no images of other
    classes.

  Raises:
    ValueError: a class is unknown, or alone although classes exclude each
      other.
  """
  names = source.class_names if classes is None else (*classes,)
  if background is None and not source.multi_label and len(names) == 1:
    raise ValueError(
        "classes must be two or more where they exclude each other, or one "
        f"with background_class; got {[*names]}.")
  if classes is None:
    return source
  check_known(classes, source.class_names)
  columns = [source.class_names.index(name) for name in classes]
  ids = source.class_ids[columns]
  splits = {name: Part(split.pictures, split.labels[:, columns])
            for name, split in source.parts.items()}
  if background is not None:
    splits = {
        name: Part(split.pictures, np.hstack([1 - split.labels, split.labels]))
        for name, split in splits.items()}
    return source._replace(
        parts=splits, class_names=(background, *classes),
        class_ids=np.concatenate([[0], ids]), multi_label=False)
  if not source.multi_label:
    splits = {name: cut(split, split.labels.any(1))
              for name, split in splits.items()}
  return source._replace(parts=splits, class_names=names, class_ids=ids)


def complete(
    parts: Mapping[str, Part], seed: int, name: str
) -> tuple[dict[str, Part], tuple[str, ...]]:
  """Fills the missing or empty parts of a source.

  If test and validation are empty, `divide` divides train. If test is empty,
  the validation part becomes test. An empty validation part takes a share of
  train.

  Args:
    parts: the parts of the source, including "train".
    seed: chooses the validation images from train.
    name: the source's name, for the warning about an empty test part.

  Returns:
    All parts, and the names of the parts cut off train. If train is empty, the
    empty parts stay empty.
  """
  nothing = cut(parts["train"], [])
  parts = {split: parts.get(split, nothing) for split in PARTS}
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
  """Selects images of a part, by number or by a mask."""
  numbers = np.arange(len(part.pictures))[which]
  return Part([part.pictures[i] for i in numbers], part.labels[numbers])


def draw(names: Sequence[str], count: int, seed: int) -> list[str]:
  """Draws names by the seed and keeps their order."""
  chosen = np.random.default_rng(seed).permutation(len(names))[:count]
  return [names[i] for i in sorted(chosen)]


def divide(part: Part, seed: int) -> dict[str, Part]:
  """Divides 70 %, 15 % and 15 %; the seed does not change test."""
  order = np.random.default_rng(0).permutation(len(part.pictures))
  tests = max(1, round(SHARE * len(order)))
  rest, validation = hold_out(
      cut(part, np.sort(order[tests:])), seed, SHARE / (1 - SHARE))
  return {"train": rest, "validation": validation,
          "test": cut(part, np.sort(order[:tests]))}


def hold_out(
    part: Part, seed: int, share: float = HELD_OUT
) -> tuple[Part, Part]:
  """Cuts a share, at least one image, off a part.

  Returns:
    The rest, and the held-out images, which the seed chooses.
  """
  order = np.random.default_rng(seed).permutation(len(part.pictures))
  held = max(1, round(share * len(order)))
  return cut(part, np.sort(order[held:])), cut(part, np.sort(order[:held]))


def shuffled(part: Part, limit: int | None) -> Part:
  """Shuffles a part in a fixed order, and cuts it to the limit.

  Files are often sorted by class, or by date.
  """
  order = np.random.default_rng(0).permutation(len(part.pictures))
  return cut(part, order[:limit])
