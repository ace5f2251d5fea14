"""Images from a folder for each class.

    root/{train,validation,test}/<class>/*.{png,jpg}, or
    root/<class>/*.{png,jpg}
    root/masks/<class>/<same name>.png, optional

`val` means `validation`. `parts.complete` fills a missing or empty validation
or test part. In a mask, values other than 0 mark the object. 255 is void if the
mask has other values than 0 and 255. A class without any mask has no object to
mark, for example whole pieces among defects. The names of MVTec work as well:
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
  """Lists the images.

  Without folders for the parts, a hash of the names orders each class's images:
  15 % are for test, 15 % for validation, at least one of each.

  Args:
    path: the root.
    seed: chooses the validation images from train, if there is a train part and
      no validation part.

  Returns:
    The source; its classes exclude each other. A part may lack images of some
    classes; a warning names the classes that train lacks.

  Raises:
    ValueError: the folders are not as above, or an image of a part with masks
      has none.
  """
  folders = {folder.name: folder for folder in _folders(path)
             if folder.name not in MASKS}
  if "val" in folders and "train" in folders:
    folders.setdefault("validation", folders.pop("val"))
  if "train" not in folders:
    return _divided(path, folders)
  if not {*folders} <= {*PARTS}:
    raise ValueError(
        f"name: {str(path)!r} must hold train and perhaps test, validation (or "
        f"val) and masks, or a folder for each class; got {[*folders]}.")
  known = {split: [class_folder.name for class_folder in _folders(folder)]
           for split, folder in folders.items()}
  for split, class_names in known.items():
    # Each has a class that the other lacks: probably one class, two names.
    if {*class_names} - {*known["train"]} and (
        {*known["train"]} - {*class_names}):
      raise ValueError(
          f"name: the classes of {folders[split]} must be those of train, "
          f"{known['train']}, or some of them, or more; got {class_names}.")
  names = sorted(
      {name for class_names in known.values() for name in class_names})
  splits = {split: {name: _files(folder / name) if name in known[split] else []
                   for name in names} for split, folder in folders.items()}
  unseen = [name for name in names if not splits["train"][name]]
  if unseen and len(unseen) < len(names):
    logging.getLogger(__name__).warning(
        "%s has no picture of %s: what is trained on it cannot learn them.",
        folders["train"], ", ".join(unseen))
  listed, ids = _with_masks(path, names, splits)
  listed, cut_off = complete(listed, seed, str(path))
  return Source(listed, tuple(names), ids, False, cut_off)


def _divided(path: Path, folders: dict[str, Path]) -> Source:
  if not folders:
    raise ValueError(f"name: {str(path)!r} holds no folder for a class.")
  splits = {split: {} for split in PARTS}
  for name, folder in folders.items():
    files = sorted(_files(folder), key=lambda file: hashlib.sha256(
        file.name.encode()).digest())
    if len(files) < len(PARTS):
      raise ValueError(
          f"name: {folder} must hold {len(PARTS)} pictures or more, to divide "
          f"among {', '.join(PARTS)}; got {len(files)}.")
    count = max(1, round(SHARE * len(files)))
    splits["test"][name] = files[:count]
    splits["validation"][name] = files[count:2 * count]
    splits["train"][name] = files[2 * count:]
  listed, ids = _with_masks(path, [*folders], splits)
  return Source(listed, (*folders,), ids, False, ("validation", "test"))


def _folders(path: Path) -> list[Path]:
  return sorted(entry for entry in path.iterdir()
                if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> list[Path]:
  files = sorted(entry for entry in folder.iterdir()
                 if not entry.name.startswith(".")
                 and entry.name.lower() not in _IGNORED)
  others = [file for file in files
            if file.suffix.lower() not in SUFFIXES or not file.is_file()]
  if others:
    raise ValueError(f"name: {folder} must hold {'/'.join(SUFFIXES)} files "
                     f"only; got {others[0].name}.")
  return files


def _with_masks(
    path: Path, names: Sequence[str], splits: dict[str, dict[str, list[Path]]]
) -> tuple[dict[str, Part], np.ndarray]:
  """Adds masks; returns the parts and each class's label, 0 for no mask."""
  there = {entry for folder in MASKS for entry in (path / folder).rglob("*")
           if entry.is_file() and not entry.name.startswith(".")}
  masks = {}
  for classes in splits.values():
    for name in names:
      for file in classes[name]:
        matches = [
            mask for mask in _mask_names(path, name, file) if mask in there]
        if len(matches) > 1:
          raise ValueError(f"name: a picture must have one mask; {file} has "
                           f"{' and '.join(map(str, matches))}.")
        if matches:
          masks.setdefault(matches[0], []).append((name, file))
  _check_masks(names, there, masks)
  matches = {file: mask for mask, pairs in masks.items() for _, file in pairs}
  marked = {name for pairs in masks.values() for name, _ in pairs}
  ids = np.array([number if name in marked else 0
                  for number, name in enumerate(names, 1)], int)
  listed = {}
  for split, classes in splits.items():
    pairs = [(number, file) for number, name in enumerate(names)
             for file in classes[name]]
    listed[split] = Part(
        [Picture(str(file), file, matches.get(file), int(ids[number]))
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
  """Rejects masks of no image, of two images, or of too many classes."""
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
