"""Pictures from a folder for each class.

    root/{train,validation,test}/<class>/*.{png,jpg}, or
    root/<class>/*.{png,jpg}
    root/masks/<class>/<same name>.png, if masks are at hand

`val` is `validation`. `parts.complete` says what fills a part but train that is
missing or empty. In a mask, what is not 0 is the object; 255 is void where the
mask has other values than 0 and 255. A class without any mask, as that of whole
pieces among defects, has no object to mark. The names of MVTec do as well:
root/ground_truth/<class>/<same name>_mask.png.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.experiment.data.parts import PARTS, SHARE, complete
from examples.experiment.data.reading import Part, Picture, Source

__all__ = ["open_image_folder"]

MASKS = ("masks", "ground_truth")
SUFFIXES = (".png", ".jpg", ".jpeg")
_IGNORED = ("thumbs.db", "desktop.ini")


def open_image_folder(path: Path, seed: int = 0) -> Source:
  """Lists the pictures.

  Without folders for the parts, each class's pictures are ordered by a hash of
  their names: 15 % are for test, 15 % for validation, at least one of each.

  Args:
    path: the root.
    seed: which of train's pictures are for validation, where there is a train
      part and no validation.

  Returns:
    The source; its classes exclude each other. A part may lack pictures of some
    classes; a warning names those that train lacks.

  Raises:
    ValueError: the folders are not as above, or not all pictures of a part
      with masks have one.
  """
  folders = {one.name: one for one in _folders(path) if one.name not in MASKS}
  if "val" in folders and "train" in folders:
    folders.setdefault("validation", folders.pop("val"))
  if "train" not in folders:
    return _divided(path, folders)
  if not {*folders} <= {*PARTS}:
    raise ValueError(
        f"name: {str(path)!r} must hold train and perhaps test, validation (or "
        f"val) and masks, or a folder for each class; got {[*folders]}.")
  known = {part: [one.name for one in _folders(folder)]
           for part, folder in folders.items()}
  for part, theirs in known.items():
    # Each has one that the other lacks: a class by two names, most likely.
    if {*theirs} - {*known["train"]} and {*known["train"]} - {*theirs}:
      raise ValueError(
          f"name: the classes of {folders[part]} must be those of train, "
          f"{known['train']}, or some of them, or more; got {theirs}.")
  names = sorted({name for theirs in known.values() for name in theirs})
  parts = {part: {name: _files(folder / name) if name in known[part] else []
                  for name in names} for part, folder in folders.items()}
  unseen = [name for name in names if not parts["train"][name]]
  if unseen and len(unseen) < len(names):
    logging.getLogger(__name__).warning(
        "%s has no picture of %s: what is trained on it cannot learn them.",
        folders["train"], ", ".join(unseen))
  listed, ids = _with_masks(path, names, parts)
  listed, cut_off = complete(listed, seed, str(path))
  return Source(listed, tuple(names), ids, False, cut_off)


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
  listed, ids = _with_masks(path, [*folders], parts)
  return Source(listed, (*folders,), ids, False, ("validation", "test"))


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
) -> tuple[dict[str, Part], np.ndarray]:
  """The parts with their masks, and the classes' labels, 0 for no mask."""
  there = {one for folder in MASKS for one in (path / folder).rglob("*")
           if one.is_file() and not one.name.startswith(".")}
  masks = {}
  for classes in parts.values():
    for name in names:
      for file in classes[name]:
        own = [mask for mask in _mask_names(path, name, file) if mask in there]
        if len(own) > 1:
          raise ValueError(f"name: a picture must have one mask; {file} has "
                           f"{' and '.join(map(str, own))}.")
        if own:
          masks.setdefault(own[0], []).append((name, file))
  _check_masks(names, there, masks)
  own = {file: mask for mask, pairs in masks.items() for _, file in pairs}
  marked = {name for pairs in masks.values() for name, _ in pairs}
  ids = np.array([number if name in marked else 0
                  for number, name in enumerate(names, 1)], int)
  listed = {}
  for part, classes in parts.items():
    pairs = [(number, file) for number, name in enumerate(names)
             for file in classes[name]]
    listed[part] = Part(
        [Picture(str(file), file, own.get(file), int(ids[number]))
         for number, file in pairs],
        np.eye(len(names), dtype=np.float32)[
            np.array([number for number, _ in pairs], int)])
  return listed, ids


def _mask_names(path: Path, name: str, file: Path) -> list[Path]:
  return [path / folder / name / f"{file.stem}{end}.png"
          for folder in MASKS for end in ("", "_mask")]


def _check_masks(
    names: Sequence[str], there: set[Path],
    masks: dict[Path, list[tuple[str, Path]]],
) -> None:
  """Refuses masks of no picture, of two, or of too many classes."""
  if there and len(names) > 254:
    raise ValueError("name: pictures with masks must be of 254 classes or "
                     f"fewer; got {len(names)}.")
  for pairs in masks.values():
    if len(pairs) > 1:
      name, file = pairs[0]
      raise ValueError(
          f"name: with masks, a class's pictures must have different names; "
          f"{len(pairs)} of {name} are called {file.stem}.")
  others = there - {*masks}
  if others:
    raise ValueError(
        f"name: masks must be masks/<class>/<a picture's name>.png; "
        f"{len(others)} of {len(there)} belong to no picture, the first is "
        f"{min(others)}.")
