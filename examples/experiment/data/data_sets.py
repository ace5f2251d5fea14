"""Images for the experiments: train, validation and test, labels and masks.

Every experiment reads its images by `load`, from any source.
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
  """Images of one part.

  Attributes:
    images: uint8 `[images, size, size, 3]`.
    labels: float32 `[images, classes]`, 1 if the image shows the class;
      one-hot if classes exclude each other.
    label_maps: uint8 `[images, size, size]`, 0 background and 255 void; None
      without masks.
  """

  images: np.ndarray
  labels: np.ndarray
  label_maps: np.ndarray | None


class Data(NamedTuple):
  """All parts of a data set.

  Attributes:
    train: images to train on.
    validation: images to choose settings on.
    test: images to report on.
    class_names: names of the columns of the labels.
    class_ids: int `[classes]`, the label of each class in the label maps; 0 for
      a class without masks, which no mask judges.
    multi_label: whether an image may show several classes, or none.
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
    name: "digits"; a path; or "tfds:" and the name of a data set of TensorFlow
      Datasets. The path names PASCAL VOC's devkit, a folder with a folder of
      images for each class, or an .npz file. The modules voc, image_folder, npz
      and tfds document their formats.
    size: height and width of the resized images, in any aspect ratio. Label
      maps take the nearest pixel.
    classes: names of the classes to keep, in this order. Images of other
      classes stay if an image may show several classes. They are left out if
      classes exclude each other.
    seed: chooses the scenes. It also chooses the validation images if the
      source has no validation part. It never chooses other test images.
    limit: the largest number of images of each part.
    background_class: the name for the absence of the one class in `classes`.
      The two classes then exclude each other.

  Returns:
    The data. The order within a part is shuffled and always the same. If the
    source has no test or validation part, the parts before it lose images that
    nearly repeat one of it.

  Raises:
    ImportError: "tfds:" without the library.
    ValueError: an argument is wrong, the source is incomplete or damaged, or a
      part is empty.
  """
  _check_arguments(size, classes, seed, limit, background_class)
  kept_classes = classes if background_class is None else None
  source = _open(name, classes, kept_classes, seed, limit)
  source = choose(source, classes, background_class)
  splits = {}
  for key in PARTS:
    unread = shuffled(source.parts[key], limit)
    if not unread.pictures:
      raise ValueError(
          f"name: the part {key} of {name!r} is empty"
          + ("." if classes is None else f" for the classes {[*classes]}."))
    images, label_maps = read(unread.pictures, size, key)
    _check_label_maps(label_maps, unread.pictures, source.map_ids)
    splits[key] = Split(images, unread.labels, label_maps)
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
        isinstance(class_name, str) for class_name in names):
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
    kept_classes: Sequence[str] | None,
    seed: int,
    limit: int | None,
) -> Source:
  if name == "digits":
    return _digits(seed, limit)
  if name.startswith("tfds:"):
    return open_tfds(name.removeprefix("tfds:"), kept_classes, seed, limit)
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
  splits = {}
  for name, count in SCENES.items():
    scenes = digit_scenes.make_scenes(name, min(count, limit or count), seed)
    images = np.round(scenes.images * 255).astype(np.uint8)
    splits[name] = Part([
        Picture(f"{name} scene {i}", *pair)
        for i, pair in enumerate(zip(images, scenes.label_maps))],
        scenes.labels)
  ids = digit_scenes.CLASS_IDS.copy()
  return Source(splits, tuple(map(str, ids - 1)), ids, True)


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
  """Removes images of train and validation that nearly repeat others."""
  splits = dict(splits)
  for name, reference in (("validation", "test"), ("train", "test"),
                          ("train", "validation")):
    if reference not in cut_off:
      continue
    repeated = repeats(splits[name].images, splits[reference].images)
    if not repeated.any():
      continue
    if repeated.all():
      raise ValueError(
          f"name: the part {name} is empty without the pictures that nearly "
          f"repeat one of {reference}.")
    logging.getLogger(__name__).warning(
        "%d of %d pictures of %s are left out: they nearly repeat one of %s.",
        repeated.sum(), len(repeated), name, reference)
    splits[name] = Split(*(
        None if values is None else values[~repeated]
        for values in splits[name]))
  return splits
