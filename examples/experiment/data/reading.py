"""Reading pictures and label maps, one size for all, or not at all."""

import io
import os
import struct
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

__all__ = ["BACKGROUND", "VOID", "Part", "Picture", "Source", "read"]

BACKGROUND, VOID = 0, 255


class Picture(NamedTuple):
  """A picture that is not read yet.

  Attributes:
    name: what errors call it.
    image: a file's path, its content, or uint8 pixels.
    label_map: a file's path or uint8 `[height, width]`; None where there is
      none.
    object_id: where the label map is a mask of one object, the label that the
      object gets; 0 without a label map where there is no object to mark.
  """

  name: str
  image: Path | bytes | np.ndarray
  label_map: Path | np.ndarray | None = None
  object_id: int | None = None


class Part(NamedTuple):
  """Pictures and float32 `[pictures, classes]`: 1 where a class is there."""

  pictures: list[Picture]
  labels: np.ndarray


class Source(NamedTuple):
  """What a source of pictures holds, before any is read.

  Attributes:
    parts: by "train", "validation" and "test".
    class_names: of the columns of the labels.
    class_ids: the label of each class in the label maps; 0 where it has none.
    multi_label: whether a picture may hold several classes, or none.
    cut: the parts that were not the source's own, but cut off here; no other
      part may repeat a picture of theirs.
    map_ids: all labels that the label maps may hold beside 0 and 255; None
      where that is not known.
  """

  parts: dict[str, Part]
  class_names: tuple[str, ...]
  class_ids: np.ndarray
  multi_label: bool
  cut: tuple[str, ...] = ()
  map_ids: tuple[int, ...] | None = None


def read(
    pictures: Sequence[Picture],
    size: int,
    title: str = "pictures",
) -> tuple[np.ndarray, np.ndarray | None]:
  """Reads pictures, several at a time.

  Args:
    pictures: what to read.
    size: each is squashed to this height and width: images by a filter that
      averages, label maps by their nearest pixel.
    title: what the progress bar says.

  Returns:
    Images, uint8 `[pictures, size, size, 3]`, and label maps, uint8
    `[pictures, size, size]`, or None where no picture has one; all background
    where there is no object to mark. Pictures are turned as their EXIF data
    say; what is transparent is white.

  Raises:
    ValueError: one is damaged, is no picture, or only some have label maps.
    OSError: a file is missing.
  """
  masked = not pictures or any(
      one.label_map is not None for one in pictures)
  without = [one.name for one in pictures
             if one.label_map is None and one.object_id != BACKGROUND]
  if masked and without:
    raise ValueError(
        f"{title}: all pictures or none must have a mask; {len(without)} of "
        f"{len(pictures)} have none, the first is {without[0]}.")
  images = np.empty([len(pictures), size, size, 3], np.uint8)
  label_maps = np.full(
      images.shape[:3], BACKGROUND, np.uint8) if masked else None

  def read_one(i):
    image = _image(pictures[i])
    if pictures[i].label_map is not None:
      label_map = _label_map(pictures[i], image.size)
      label_maps[i] = label_map.resize((size, size), Image.Resampling.NEAREST)
    images[i] = image.resize((size, size), Image.Resampling.BILINEAR)

  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    # An error ends the loop, and what has not begun is not read.
    for _ in tqdm(pool.map(read_one, range(len(pictures))), desc=title,
                  total=len(pictures), delay=1, disable=None, leave=False):
      pass
  return images, label_maps


def _open(content: Path | bytes | np.ndarray, name: str) -> Image.Image:
  """The whole picture, the right way up."""
  if isinstance(content, np.ndarray):
    return Image.fromarray(content)
  data = content if isinstance(content, bytes) else content.read_bytes()
  try:
    image = Image.open(io.BytesIO(data))
    return ImageOps.exif_transpose(image)
  except (OSError, SyntaxError, ValueError, EOFError, struct.error,
          Image.DecompressionBombError) as error:
    raise ValueError(
        f"{name} cannot be read as a picture: {error}") from error


def _image(picture: Picture) -> Image.Image:
  """The picture in RGB."""
  image = _open(picture.image, picture.name)
  if image.mode.startswith("I"):  # 16 bits of grey; PIL would cut, not scale.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
      raise ValueError(
          f"{picture.name} must have 8 or 16 bits a pixel; its values are "
          f"{values.min()}..{values.max()}.")
    image = Image.fromarray((values // 257).astype(np.uint8))
  if image.mode == "F":
    raise ValueError(
        f"{picture.name} must have 8 or 16 bits a pixel; it has floats.")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def _label_map(picture: Picture, size: tuple[int, int]) -> Image.Image:
  """The label map, whose size must be the picture's."""
  name = f"The mask of {picture.name}"
  image = _open(picture.label_map, name)
  if image.mode == "1":
    image = image.convert("L")
  if image.mode not in ("L", "P"):
    raise ValueError(
        f"{name} must have one channel of 8 bits (a palette is fine); its mode "
        f"is {image.mode!r}.")
  if image.size != size:
    raise ValueError(
        f"{name} must be of the picture's size, {size[0]} x {size[1]} as it is "
        f"shown; got {image.size[0]} x {image.size[1]}.")
  labels = np.asarray(image)
  if picture.object_id is not None:
    labels = _one_object(labels, picture.object_id)
  return Image.fromarray(labels)


def _one_object(mask: np.ndarray, object_id: int) -> np.ndarray:
  """The object's label where a mask is not 0; 255 beside others is void."""
  objects = mask > 0
  void = mask == VOID
  if void.sum() == objects.sum():  # 0 and 255 alone: 255 is the object.
    void[:] = False
  return np.where(void, VOID, np.where(objects, object_id, 0)).astype(np.uint8)
