"""Pictures from a folder for each class.

    root/{train,validation,test}/<class>/*.{png,jpg}, or
    root/<class>/*.{png,jpg}
    root/masks/<class>/<same name>.png, if masks are at hand

`val` is `validation`, which may be missing. In a mask, what is not 0 is the
object; 255 is void where the mask has other values than 0 and 255.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.experiment.parts import PARTS, SHARE, hold_out
from examples.experiment.reading import Part, Picture, Source

__all__ = ["open_image_folder"]

MASKS = "masks"
SUFFIXES = (".png", ".jpg", ".jpeg")
_IGNORED = ("thumbs.db", "desktop.ini")


def open_image_folder(path: Path, seed: int = 0) -> Source:
  """Lists the pictures.

  Without folders for the parts, each class's pictures are ordered by a hash of
  their names: 15 % are for test, 15 % for validation, at least one of each.

  Args:
    path: the root.
    seed: which of train's pictures are for validation, where there is a test
      part and no validation.

  Returns:
    The source; its classes exclude each other.

  Raises:
    ValueError: the folders are not as above, or not all pictures of a part
      with masks have one.
  """
  folders = {one.name: one for one in _folders(path) if one.name != MASKS}
  if "val" in folders and "train" in folders:
    folders.setdefault("validation", folders.pop("val"))
  if "train" not in folders:
    return _divided(path, folders)
  if not {"train", "test"} <= {*folders} <= {*PARTS}:
    raise ValueError(
        f"name: {str(path)!r} must hold train, test and perhaps validation (or "
        f"val) and masks, or a folder for each class; got {[*folders]}.")
  names = [one.name for one in _folders(folders["train"])]
  parts = {}
  for part, folder in folders.items():
    theirs = [one.name for one in _folders(folder)]
    if theirs != names:
      raise ValueError(
          f"name: the classes of {folder} must be those of train, {names}; got "
          f"{theirs}.")
    parts[part] = {name: _files(folder / name) for name in names}
  listed = _with_masks(path, names, parts)
  cut = ()
  if "validation" not in listed:
    listed["train"], listed["validation"] = hold_out(listed["train"], seed)
    cut = ("validation",)
  return _source(path, names, listed, cut)


def _divided(path: Path, folders: dict[str, Path]) -> Source:
  if not folders:
    raise ValueError(f"name: {str(path)!r} holds no folder for a class.")
  parts = {part: {} for part in PARTS}
  for name, folder in folders.items():
    files = sorted(_files(folder), key=lambda file: hashlib.sha256(
        file.name.encode()).digest())
    if len(files) < len(PARTS):
      raise ValueError(
          f"name: {folder} must hold {len(PARTS)} pictures or more, to divide "
          f"among {', '.join(PARTS)}; got {len(files)}.")
    count = max(1, round(SHARE * len(files)))
    parts["test"][name] = files[:count]
    parts["validation"][name] = files[count:2 * count]
    parts["train"][name] = files[2 * count:]
  listed = _with_masks(path, [*folders], parts)
  return _source(path, [*folders], listed, ("validation", "test"))


def _source(
    path: Path, names: Sequence[str], parts: dict[str, Part],
    cut: tuple[str, ...]
) -> Source:
  ids = 1 + np.arange(len(names))
  if not (path / MASKS).is_dir():
    ids[:] = 0
  return Source(parts, tuple(names), ids, False, cut)


def _folders(path: Path) -> list[Path]:
  return sorted(one for one in path.iterdir()
                if one.is_dir() and not one.name.startswith("."))


def _files(folder: Path) -> list[Path]:
  files = sorted(one for one in folder.iterdir()
                 if not one.name.startswith(".")
                 and one.name.lower() not in _IGNORED)
  others = [one for one in files
            if one.suffix.lower() not in SUFFIXES or not one.is_file()]
  if others:
    raise ValueError(f"name: {folder} must hold {'/'.join(SUFFIXES)} files "
                     f"only; got {others[0].name}.")
  return files


def _with_masks(
    path: Path, names: Sequence[str], parts: dict[str, dict[str, list[Path]]]
) -> dict[str, Part]:
  """The parts, with the masks that lie under root/masks."""
  there = {one for one in (path / MASKS).rglob("*")
           if one.is_file() and not one.name.startswith(".")}
  if there:
    if len(names) > 254:
      raise ValueError("name: pictures with masks must be of 254 classes or "
                       f"fewer; got {len(names)}.")
    _check_apart(parts)
  listed = {}
  for part, classes in parts.items():
    pictures, numbers = [], []
    for number, name in enumerate(names):
      for file in classes[name]:
        mask = path / MASKS / name / f"{file.stem}.png"
        pictures.append(Picture(
            str(file), file, mask if mask in there else None, number + 1))
        numbers.append(number)
    listed[part] = Part(pictures, np.eye(
        len(names), dtype=np.float32)[np.array(numbers, int)])
  others = there - {one.label_map for part in listed.values()
                    for one in part.pictures}
  if others:
    raise ValueError(
        f"name: masks must be {MASKS}/<class>/<a picture's name>.png; "
        f"{len(others)} of {len(there)} belong to no picture, the first is "
        f"{min(others)}.")
  return listed


def _check_apart(parts: dict[str, dict[str, list[Path]]]) -> None:
  """A mask must belong to one picture."""
  counts = Counter((name, file.stem) for classes in parts.values()
                   for name, files in classes.items() for file in files)
  (name, stem), count = counts.most_common(1)[0] if counts else (("", ""), 0)
  if count > 1:
    raise ValueError(
        f"name: with masks, a class's pictures must have different names; "
        f"{count} of {name} are called {stem}.")
