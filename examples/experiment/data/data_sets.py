"""Pictures for the experiments: train, validation and test, labels and masks.

Every experiment reads its pictures by `load`, whatever they come from.
"""

import logging
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.experiment.data import digit_scenes
from examples.experiment.data.image_folder import open_image_folder
from examples.experiment.data.near_duplicates import repeats
from examples.experiment.data.npz import open_npz
from examples.experiment.data.parts import PARTS, choose, shuffled
from examples.experiment.data.reading import (
    BACKGROUND,
    VOID,
    Part,
    Picture,
    Source,
    read,
)
from examples.experiment.data.tfds import open_tfds
from examples.experiment.data.voc import open_voc, year_folder

__all__ = ["Data", "Split", "load"]

SCENES = {"train": 5000, "validation": 600, "test": 1000}


class Split(NamedTuple):
  """Pictures of one part.

  Attributes:
    images: uint8 `[pictures, size, size, 3]`.
    labels: float32 `[pictures, classes]`, 1 where the picture shows the class;
      one-hot where classes exclude each other.
    label_maps: uint8 `[pictures, size, size]`, 0 background and 255 void; None
      where there are no masks.
  """

  images: np.ndarray
  labels: np.ndarray
  label_maps: np.ndarray | None


class Data(NamedTuple):
  """All parts of a data set.

  Attributes:
    train: what is learned from.
    validation: what is chosen by.
    test: what is reported.
    class_names: of the columns of the labels.
    class_ids: int `[classes]`, the label of each class in the label maps; 0
      where a class has no mask, and is never judged against one.
    multi_label: whether a picture may show several classes, or none.
  """

  train: Split
  validation: Split
  test: Split
  class_names: tuple[str, ...]
  class_ids: np.ndarray
  multi_label: bool


def load(
    name: str,
    *,
    size: int,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    background_class: str | None = None,
) -> Data:
  """Reads a data set.

  Args:
    name: "digits"; the path of PASCAL VOC's devkit, of a folder with a folder
      of pictures for each class, or of an .npz file; or "tfds:" and the name of
      a data set of TensorFlow Datasets. The modules voc, image_folder, npz and
      tfds say what each must hold.
    size: images are squashed to this height and width, and label maps to the
      same by their nearest pixel.
    classes: names of the classes to keep, in this order. Pictures of others
      are kept where a picture may show several, and left out where classes
      exclude each other.
    seed: which scenes are drawn, and which pictures are for validation where
      the source does not say so. Other test pictures it does not choose.
    limit: how many pictures of each part at most.
    background_class: with one class in `classes`, the name of its absence: the
      classes are then this one and that, and exclude each other.

  Returns:
    The data. The order within a part is mixed and always the same. From parts
    that the source does not name itself, pictures are taken out which nearly
    repeat one of test, or one of validation.

  Raises:
    ImportError: "tfds:" without that library.
    ValueError: an argument is wrong, the source lacks something or is damaged,
      or a part is empty.
  """
  _check_arguments(size, classes, seed, limit, background_class)
  kept = classes if background_class is None else None
  source = _open(name, classes, kept, seed, limit)
  source = choose(source, classes, background_class)
  splits = {}
  for key in PARTS:
    part = shuffled(source.parts[key], limit)
    if not part.pictures:
      raise ValueError(
          f"name: the part {key} of {name!r} is empty"
          + ("." if classes is None else f" for the classes {[*classes]}."))
    images, label_maps = read(part.pictures, size, key)
    _check_label_maps(label_maps, part.pictures, source.map_ids)
    splits[key] = Split(images, part.labels, label_maps)
  splits = _without_repeats(splits, source.cut)
  return Data(**splits, class_names=source.class_names,
              class_ids=source.class_ids, multi_label=source.multi_label)


def _whole(value: object) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_arguments(
    size: object,
    classes: object,
    seed: object,
    limit: object,
    background: object,
) -> None:
  for argument, value in (("size", size), ("limit", limit)):
    if argument == "limit" and value is None:
      continue
    if not _whole(value) or value < 1:
      raise ValueError(
          f"{argument} must be a whole number from 1; got {value!r}.")
  if not _whole(seed) or seed < 0:
    raise ValueError(f"seed must be a whole number from 0; got {seed!r}.")
  if classes is not None:
    names = () if isinstance(classes, str) else tuple(classes)
    if not names or len({*names}) < len(names) or not all(
        isinstance(one, str) for one in names):
      raise ValueError(
          "classes must be a list of different names, or None for all; got "
          f"{classes!r}.")
  if background is not None and (
      len(classes or ()) != 1 or background in classes):
    raise ValueError(
        "background_class must name the absence of the one class in `classes`; "
        f"got {background!r} with classes {classes!r}.")


def _open(
    name: str,
    classes: Sequence[str] | None,
    kept: Sequence[str] | None,
    seed: int,
    limit: int | None,
) -> Source:
  if name == "digits":
    return _digits(seed, limit)
  if name.startswith("tfds:"):
    return open_tfds(name.removeprefix("tfds:"), kept, seed, limit)
  path = Path(name).expanduser()
  if not name:
    raise ValueError("name must not be empty.")
  if path.suffix == ".npz" and path.is_file():
    return open_npz(path, classes, seed)
  if path.is_dir():
    return open_voc(path, classes, seed) if year_folder(
        path) else open_image_folder(path, seed)
  raise ValueError(
      "name must be 'digits', the path of a VOCdevkit folder, of a folder of "
      "pictures or of an .npz file, or 'tfds:' and a data set's name; got "
      f"{name!r}" + ("." if path.exists() else ", which does not exist."))


def _digits(seed: int, limit: int | None) -> Source:
  parts = {}
  for part, count in SCENES.items():
    scenes = digit_scenes.make_scenes(part, min(count, limit or count), seed)
    images = np.round(scenes.images * 255).astype(np.uint8)
    parts[part] = Part([
        Picture(f"{part} scene {i}", *one)
        for i, one in enumerate(zip(images, scenes.label_maps))], scenes.labels)
  ids = digit_scenes.CLASS_IDS.copy()
  return Source(parts, tuple(map(str, ids - 1)), ids, True)


def _check_label_maps(
    label_maps: np.ndarray | None,
    pictures: Sequence[Picture],
    known: Sequence[int] | None,
) -> None:
  if label_maps is None or known is None:
    return
  wrong = ~np.isin(label_maps, (BACKGROUND, *known, VOID))
  if wrong.any():
    first = int(wrong.any((1, 2)).argmax())
    raise ValueError(
        f"The mask of {pictures[first].name} may hold {BACKGROUND}, {VOID} and "
        f"the classes' labels {min(known)}..{max(known)}; got "
        f"{np.unique(label_maps[first][wrong[first]])[:5].tolist()}.")


def _without_repeats(
    splits: dict[str, Split], cut_off: Sequence[str]
) -> dict[str, Split]:
  """Takes out of train, and of validation, what others nearly repeat."""
  splits = dict(splits)
  for part, kept in (("validation", "test"), ("train", "test"),
                     ("train", "validation")):
    if kept not in cut_off:
      continue
    found = repeats(splits[part].images, splits[kept].images)
    if not found.any():
      continue
    if found.all():
      raise ValueError(
          f"name: the part {part} is empty without the pictures that nearly "
          f"repeat one of {kept}.")
    logging.getLogger(__name__).warning(
        "%d of %d pictures of %s are left out: they nearly repeat one of %s.",
        found.sum(), len(found), part, kept)
    splits[part] = Split(*(
        None if values is None else values[~found] for values in splits[part]))
  return splits
