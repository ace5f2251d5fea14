"""PASCAL VOC from its devkit's folder.

    VOC2012/ImageSets/Main/{train,val}.txt         pictures with labels
    VOC2012/ImageSets/Segmentation/val.txt         pictures to judge maps on
    VOC2012/ImageSets/Segmentation/train.txt       more with masks, if there
    VOC2012/{JPEGImages,SegmentationClass}         pictures; masks, 255 void
    VOC2012/Annotations                            labels; where there is none,
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
  """The path, or its latest VOC<year>; None where it is no such folder."""
  if any((path / name).is_dir() for name in ("ImageSets", "JPEGImages")):
    return path
  years = sorted(path.glob("VOC[0-9][0-9][0-9][0-9]"))
  return years[-1] if years else None


def open_voc(
    path: Path, classes: Sequence[str] | None = None, seed: int = 0
) -> Source:
  """Reads lists and labels.

  The test part is Segmentation/val. The other pictures of Main/train and
  Main/val are for training but for a tenth, which is validation: as far as half
  of them go, pictures of Segmentation/train, so that it has masks too. A class
  is there if one of its objects is not marked as difficult.

  Args:
    path: a folder that `year_folder` finds one in.
    classes: those that are wanted; without Annotations, the lists of others
      are not read, and neither are they among the source's classes.
    seed: which pictures are for validation.

  Returns:
    The source; its train part has no masks.

  Raises:
    ValueError: a list, a picture, a mask or a label is missing or damaged.
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
               [name for part in with_masks for name in names[part]])
  kept, labels = _labels(folder, rest + test, classes)
  columns = [CLASSES.index(one) for one in kept]
  parts = {
      part: Part([_picture(folder, name, part in with_masks) for name in some],
                 np.array([labels[name] for name in some], np.float32).reshape(
                     len(some), len(kept)))
      for part, some in names.items()}
  return Source(parts, kept, 1 + np.array(columns), True,
                ("validation", "test"), tuple(range(1, len(CLASSES) + 1)))


def _names(folder: Path, kind: str, part: str) -> list[str]:
  return [line.split()[0] for line in _lines(
      folder / "ImageSets" / kind / f"{part}.txt")]


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
  """Classes, and of each picture 1 where a class is there."""
  if (folder / "Annotations").is_dir():
    _check_there(folder, "Annotations", ".xml", names)
    found = {name: _objects(folder / "Annotations" / f"{name}.xml")
             for name in names}
    return CLASSES, {name: [int(one in found[name]) for one in CLASSES]
                     for name in names}
  # A name that is no class's is told of later, among all of these.
  kept = CLASSES
  if {*(classes or CLASSES)} <= {*CLASSES}:
    kept = tuple(classes or CLASSES)
  present = [_present(folder, one) for one in kept]
  missing = [name for name in names if any(name not in one for one in present)]
  if missing:
    raise ValueError(
        f"name: {folder} has no Annotations, and {len(missing)} of "
        f"{len(names)} pictures have no label in ImageSets/Main/<class>_*.txt; "
        f"the first is {missing[0]}.")
  return kept, {name: [one[name] for one in present] for name in names}


def _objects(path: Path) -> set[str]:
  """The classes in a picture that are not difficult to see."""
  try:
    root = ElementTree.parse(path).getroot()
  except ElementTree.ParseError as error:
    raise ValueError(f"{path} cannot be read as XML: {error}") from error
  found = set()
  for one in root.findall("object"):
    name = (one.findtext("name") or "").strip()
    if name not in CLASSES:
      raise ValueError(
          f"{path}: the name of an object must be one of {[*CLASSES]}; got "
          f"{name!r}.")
    if (one.findtext("difficult") or "0").strip() == "0":
      found.add(name)
  return found


def _present(folder: Path, one: str) -> dict[str, int]:
  """What a class's lists say: 1 there, 0 difficult and -1 not."""
  found = {}
  for part in ("train", "val"):
    path = folder / "ImageSets/Main" / f"{one}_{part}.txt"
    for line in _lines(path):
      name, *value = line.split()
      if value not in (["1"], ["0"], ["-1"]):
        raise ValueError(
            f"{path}: a line must be a picture's name and 1, 0 or -1; got "
            f"{line!r}.")
      found[name] = int(value == ["1"])
  return found
