"""PASCAL VOC from its devkit's folder.

    VOC2012/ImageSets/Main/{train,val}.txt         images with labels
    VOC2012/ImageSets/Segmentation/val.txt         images to judge maps on
    VOC2012/ImageSets/Segmentation/train.txt       more masks, optional
    VOC2012/{JPEGImages,SegmentationClass}         images; masks, 255 void
    VOC2012/Annotations                            labels; without it,
    VOC2012/ImageSets/Main/<class>_{train,val}.txt

Everingham et al., The PASCAL Visual Object Classes Challenge,
http://host.robots.ox.ac.uk/pascal/VOC/.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from examples.experiment.data.parts import HELD_OUT, draw
from examples.experiment.data.reading import Part, Picture, Source

__all__ = ["CLASSES", "open_voc", "year_folder"]

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor")
"""Class k has the label k + 1 in the masks."""


def year_folder(path: Path) -> Path | None:
  """Returns the path or its latest VOC<year>; None for another folder."""
  if any((path / name).is_dir() for name in ("ImageSets", "JPEGImages")):
    return path
  years = sorted(path.glob("VOC[0-9][0-9][0-9][0-9]"))
  return years[-1] if years else None


def open_voc(
    path: Path, classes: Sequence[str] | None = None, seed: int = 0
) -> Source:
  """Reads lists and labels.

  The test part is Segmentation/val. A tenth of the other images of Main/train
  and Main/val is validation, the rest is for training. If possible, validation
  takes images of Segmentation/train, at most half of them, so it has masks too.
  A class is there if one of its objects is not marked as difficult.

  Args:
    path: a folder that `year_folder` accepts.
    classes: the classes to keep. Without Annotations, the function reads only
      their lists, and the source has only these classes.
    seed: chooses the validation images.

  Returns:
    The source; its train part has no masks.

  Raises:
    ValueError: a list, an image, a mask or a label is missing or damaged.
  """
  folder = year_folder(path)
  listed = _names(folder, "Main", "train") + _names(folder, "Main", "val")
  test = _names(folder, "Segmentation", "val")
  rest = [name for name in dict.fromkeys(listed) if name not in {*test}]
  masked = set()
  if (folder / "ImageSets/Segmentation/train.txt").is_file():
    masked = {*_names(folder, "Segmentation", "train")}
  candidates = [name for name in rest if name in masked]
  count = max(1, round(HELD_OUT * len(rest)))
  if candidates:
    count = min(count, max(1, len(candidates) // 2))
  held = draw(candidates or rest, count, seed)
  names = {"train": [name for name in rest if name not in {*held}],
           "validation": held, "test": test}
  with_masks = {"validation", "test"} if candidates else {"test"}
  _check_there(folder, "JPEGImages", ".jpg", rest + test)
  _check_there(folder, "SegmentationClass", ".png",
               [name for split in with_masks for name in names[split]])
  class_names, labels = _labels(folder, rest + test, classes)
  columns = [CLASSES.index(name) for name in class_names]
  splits = {
      split: Part(
          [_picture(folder, name, split in with_masks) for name in split_names],
          np.array([labels[name] for name in split_names], np.float32).reshape(
              len(split_names), len(class_names)))
      for split, split_names in names.items()}
  return Source(splits, class_names, 1 + np.array(columns), True,
                ("validation", "test"), tuple(range(1, len(CLASSES) + 1)))


def _names(folder: Path, kind: str, split: str) -> list[str]:
  return [line.split()[0] for line in _lines(
      folder / "ImageSets" / kind / f"{split}.txt")]


def _lines(path: Path) -> list[str]:
  if not path.is_file():
    raise ValueError(f"name: the list {path} is missing.")
  return [line for line in path.read_text().splitlines() if line.strip()]


def _picture(folder: Path, name: str, with_mask: bool) -> Picture:
  path = folder / "JPEGImages" / f"{name}.jpg"
  mask = folder / "SegmentationClass" / f"{name}.png" if with_mask else None
  return Picture(str(path), path, mask)


def _check_there(
    folder: Path, kind: str, suffix: str, names: Sequence[str]
) -> None:
  there = {path.name for path in (folder / kind).glob(f"*{suffix}")}
  missing = [name for name in names if f"{name}{suffix}" not in there]
  if missing:
    raise ValueError(
        f"name: {len(missing)} of {len(names)} files that the lists name are "
        f"missing; the first is {folder / kind / (missing[0] + suffix)}.")


def _labels(
    folder: Path, names: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
  """Returns the classes, and 1 for each class in each image."""
  if (folder / "Annotations").is_dir():
    _check_there(folder, "Annotations", ".xml", names)
    objects = {name: _objects(folder / "Annotations" / f"{name}.xml")
               for name in names}
    return CLASSES, {
        name: [int(class_name in objects[name]) for class_name in CLASSES]
        for name in names}
  # With an unknown name, keep all: the later error then lists them.
  class_names = CLASSES
  if {*(classes or CLASSES)} <= {*CLASSES}:
    class_names = tuple(classes or CLASSES)
  present = [_present(folder, class_name) for class_name in class_names]
  missing = [name for name in names if any(
      name not in class_labels for class_labels in present)]
  if missing:
    raise ValueError(
        f"name: {folder} has no Annotations, and {len(missing)} of "
        f"{len(names)} pictures have no label in ImageSets/Main/<class>_*.txt; "
        f"the first is {missing[0]}.")
  return class_names, {
      name: [class_labels[name] for class_labels in present] for name in names}


def _objects(path: Path) -> set[str]:
  """Returns the classes of an image's objects that are not difficult."""
  try:
    root = ElementTree.parse(path).getroot()
  except ElementTree.ParseError as error:
    raise ValueError(f"{path} cannot be read as XML: {error}") from error
  names = set()
  for element in root.findall("object"):
    name = (element.findtext("name") or "").strip()
    if name not in CLASSES:
      raise ValueError(
          f"{path}: the name of an object must be one of {[*CLASSES]}; got "
          f"{name!r}.")
    if (element.findtext("difficult") or "0").strip() == "0":
      names.add(name)
  return names


def _present(folder: Path, class_name: str) -> dict[str, int]:
  """Reads a class's lists; 1 in a list means there, 0 difficult, -1 not."""
  present = {}
  for split in ("train", "val"):
    path = folder / "ImageSets/Main" / f"{class_name}_{split}.txt"
    for line in _lines(path):
      name, *value = line.split()
      if value not in (["1"], ["0"], ["-1"]):
        raise ValueError(
            f"{path}: a line must be a picture's name and 1, 0 or -1; got "
            f"{line!r}.")
      present[name] = int(value == ["1"])
  return present
