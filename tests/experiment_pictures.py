"""Tiny images and folders of them, for the tests of the experiments' data."""

import contextlib
import io
import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests import export_helpers as helpers

with contextlib.suppress(ImportError):  # Said by skip_without_data.
  from examples.experiment.data import data_sets

PARTS = ("train", "validation", "test")


def skip_without_data() -> None:
  """Skips the running module where the examples cannot run."""
  helpers.skip_without_examples()
  if "data_sets" not in globals():
    raise unittest.SkipTest("tqdm is not installed.")


def new_folder(test: unittest.TestCase) -> Path:
  """A folder that goes with the test."""
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return Path(folder.name)


def noise(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
  """An image that repeats no other."""
  return np.random.default_rng(seed).integers(
      0, 256, (height, width, 3), np.uint8)


def noises(count: int, seed: int = 0, size: int = 16) -> np.ndarray:
  return np.random.default_rng([seed, 1]).integers(
      0, 256, (count, size, size, 3), np.uint8)


def save(path: Path, picture: np.ndarray | Image.Image, **options) -> Path:
  """Writes an image, and its folder where that is missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(picture, np.ndarray):
    picture = Image.fromarray(picture)
  picture.save(path, **options)
  return path


def encoded(picture: np.ndarray | Image.Image, kind="PNG", **options) -> bytes:
  if isinstance(picture, np.ndarray):
    picture = Image.fromarray(picture)
  content = io.BytesIO()
  picture.save(content, kind, **options)
  return content.getvalue()


def write_text(path: Path, lines: Sequence[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines))


def same_pictures(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two stacks hold the same images, in any order."""
  return sorted(a.tobytes() for a in one) == sorted(b.tobytes() for b in other)


def refuses(
    test: unittest.TestCase, message: str, name: str | Path, **options
) -> Callable:
  """Checks that `load` raises a ValueError."""
  options.setdefault("size", 16)
  with test.assertRaisesRegex(ValueError, message):
    data_sets.load(str(name), **options)
