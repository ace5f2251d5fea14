"""Reads the file beside a model's file: layer, pixel range, classes.

`examples.train_teacher` writes such a file beside its model, and sweeps beside
their students: `net.json` beside `net.h5`.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Sidecar", "check_range", "read_sidecar", "settled"]


@dataclasses.dataclass(frozen=True)
class Sidecar:
  """The content of a model's sidecar; None for a missing entry.

  Attributes:
    path: the file; it need not exist.
    layer: the model's explained layer.
    pixel_range: the model's values for black and for white.
    class_names: names of the classes, in the order of the scores.
    settings: flags of the program that made the model.
    figures: the model's figures on "validation" and "test".
  """

  path: Path
  layer: str | None = None
  pixel_range: tuple[float, float] | None = None
  class_names: tuple[str, ...] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_sidecar(model: str | os.PathLike) -> Sidecar:
  """Reads the sidecar of a model.

  Args:
    model: the model's file or folder, `net.h5`; the sidecar is `net.json`.

  Returns:
    The sidecar; without entries where the file is missing.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is no JSON, or an entry is not of its kind.
  """
  path = Path(model)
  path = path.with_name(
      (path.name if path.is_dir() else path.stem) + ".json")
  if not path.is_file():
    return Sidecar(path)
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
        f"{str(path)!r} stands beside the model, but is no JSON: mend or move "
        f"it; {error}") from error
  if not isinstance(content, dict) or "pixel_range" not in content:
    return Sidecar(path)  # Another JSON file, such as `model.to_json`.
  names, pixels = content.get("class_names"), content["pixel_range"]
  for key, fits in (
      ("pixel_range", isinstance(pixels, list) and len(pixels) == 2 and all(
          type(value) in (int, float) for value in pixels)
       and pixels[0] < pixels[1]),
      ("class_names", names is None or (isinstance(names, list) and all(
          isinstance(name, str) for name in names))),
      ("layer", isinstance(content.get("layer"), str | None))):
    if not fits:
      raise ValueError(
          f"{str(path)!r} stands beside the model, but its {key!r} is not of "
          f"its kind: {content.get(key)!r}.")
  return Sidecar(
      path, content.get("layer"), (float(pixels[0]), float(pixels[1])),
      None if names is None else tuple(names),
      _mapping(content.get("settings")),
      {split: _mapping(content.get(split)) for split in ("validation", "test")})


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, dict) else {}


def settled(flag: str, given: Any, known: Any, source: Any) -> Any:
  """Returns the given or the known value, and raises where the two differ.

  Args:
    flag: the flag's name, for the error.
    given: the flag's value; None where it is not given.
    known: the value from a file; None where the file has none.
    source: the file.

  Raises:
    ValueError: both values exist, and differ.
  """
  if given is not None and known is not None and given != known:
    raise ValueError(
        f"--{flag} is {_said(given)}, but {str(source)!r} says {_said(known)}: "
        "leave the flag out, or make the file say what is right.")
  return known if given is None else given


def _said(value: Any) -> str:
  return ",".join(
      f"{item:g}" if isinstance(item, float) else str(item)
      for item in (value if isinstance(value, list | tuple) else [value]))


def check_range(images: np.ndarray, known: Sidecar, flag: str) -> None:
  """Raises where images do not fit the range of a model's training images.

  Args:
    images: an array of numbers.
    known: the model's sidecar; without a range, nothing is checked.
    flag: the flag that names the images, for the error.

  Raises:
    ValueError: the values leave the range by a tenth of it or more, or take up
      half of it or less.
  """
  if known.pixel_range is None or images.dtype.kind not in "fiub" or (
      not images.size):
    return  # `check_images` raises the error.
  low, high = known.pixel_range
  least, most = float(images.min()), float(images.max())
  slack = (high - low) / 10
  if least < low - slack or most > high + slack or (
      most - least <= (high - low) / 2):
    raise ValueError(
        f"{flag} holds numbers of {least:g}..{most:g}, but the model takes "
        f"{low:g} for black and {high:g} for white, says {str(known.path)!r}: "
        "bring them to that range.")
