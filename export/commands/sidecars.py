"""What stands beside a model's file: layer, pixels and classes it knows.

`examples.train_teacher` writes such a file beside its net, and sweeps beside
the students that they keep: `net.json` beside `net.h5`.
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
  """What a model's sidecar says; None of what it does not.

  Attributes:
    path: the file; it need not exist.
    layer: where the model is explained.
    pixel_range: what it takes for black and for white.
    class_names: of its scores, in their order.
    settings: flags of what made it.
    figures: what it was worth on "validation" and "test".
  """

  path: Path
  layer: str | None = None
  pixel_range: tuple[float, float] | None = None
  class_names: tuple[str, ...] | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_sidecar(model: str | os.PathLike) -> Sidecar:
  """Reads what stands beside a model.

  Args:
    model: its file or folder, `net.h5`; the sidecar is `net.json`.

  Returns:
    What it says; nothing where there is none.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no JSON, or an entry is not of its kind.
  """
  path = Path(model)
  path = path.with_name(
      (path.name if path.is_dir() else path.stem) + ".json")
  if not path.is_file():
    return Sidecar(path)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
        f"{str(path)!r} stands beside the model, but is no JSON: mend or move "
        f"it; {error}") from error
  if not isinstance(found, dict) or "pixel_range" not in found:
    return Sidecar(path)  # Of something else, such as `model.to_json`.
  names, pixels = found.get("class_names"), found["pixel_range"]
  for key, fits in (
      ("pixel_range", isinstance(pixels, list) and len(pixels) == 2 and all(
          type(one) in (int, float) for one in pixels)
       and pixels[0] < pixels[1]),
      ("class_names", names is None or (isinstance(names, list) and all(
          isinstance(one, str) for one in names))),
      ("layer", isinstance(found.get("layer"), str | None))):
    if not fits:
      raise ValueError(
          f"{str(path)!r} stands beside the model, but its {key!r} is not of "
          f"its kind: {found.get(key)!r}.")
  return Sidecar(
      path, found.get("layer"), (float(pixels[0]), float(pixels[1])),
      None if names is None else tuple(names),
      _mapping(found.get("settings")),
      {part: _mapping(found.get(part)) for part in ("validation", "test")})


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, dict) else {}


def settled(flag: str, given: Any, known: Any, source: Any) -> Any:
  """Returns what is given or known, and raises where the two differ.

  Args:
    flag: the flag's name, for the error.
    given: its value; None where it is not given.
    known: what a file says; None where it says nothing.
    source: which file.

  Raises:
    ValueError: both are there, and differ.
  """
  if given is not None and known is not None and given != known:
    raise ValueError(
        f"--{flag} is {_said(given)}, but {str(source)!r} says {_said(known)}: "
        "leave the flag out, or make the file say what is right.")
  return known if given is None else given


def _said(value: Any) -> str:
  return ",".join(
      f"{one:g}" if isinstance(one, float) else str(one)
      for one in (value if isinstance(value, list | tuple) else [value]))


def check_range(images: np.ndarray, known: Sidecar, flag: str) -> None:
  """Raises where images cannot be of the range that a model was trained on.

  Args:
    images: numbers.
    known: the model's sidecar; nothing is checked where it has no range.
    flag: which named the images, for the error.

  Raises:
    ValueError: they reach out of the range by a tenth of it or more, or take
      up half of it or less.
  """
  if known.pixel_range is None or images.dtype.kind not in "fiub" or (
      not images.size):
    return  # `check_images` says what is amiss.
  low, high = known.pixel_range
  least, most = float(images.min()), float(images.max())
  slack = (high - low) / 10
  if least < low - slack or most > high + slack or (
      most - least <= (high - low) / 2):
    raise ValueError(
        f"{flag} holds numbers of {least:g}..{most:g}, but the model takes "
        f"{low:g} for black and {high:g} for white, says {str(known.path)!r}: "
        "bring them to that range.")
