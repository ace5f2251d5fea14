"""Reads images and label maps, all in one size."""

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
  """An image that is not read yet.

  Attributes:
    name: its name in errors.
    image: a file's path, its content, or uint8 pixels.
    label_map: a file's path or uint8 `[height, width]`; None for no label map.
    object_id: the object's label, if the label map is a mask of one object. 0
      without a label map means that there is no object to mark.
  """

  name: str
  image: Path | bytes | np.ndarray
  label_map: Path | np.ndarray | None = None
  object_id: int | None = None


class Part(NamedTuple):
  """Unread images and float32 `[images, classes]`: 1 if a class is there."""

  pictures: list[Picture]
  labels: np.ndarray


class Source(NamedTuple):
  """A source of images, before any image is read.

  Attributes:
    parts: by "train", "validation" and "test".
    class_names: names of the columns of the labels.
    class_ids: the label of each class in the label maps; 0 for none.
    multi_label: whether an image may show several classes, or none.
    cut: names of the parts cut off here, which the source does not have. No
      other part may repeat their images.
    map_ids: all labels that the label maps may hold beside 0 and 255; None if
      unknown.
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
  """Reads images, several at a time.

  Args:
    pictures: the images to read.
    size: the new height and width, in any aspect ratio. Images use an averaging
      filter, label maps their nearest pixel.
    title: the text of the progress bar.

  Returns:
    Images, uint8 `[images, size, size, 3]`, and label maps, uint8
    `[images, size, size]`, or None if no image has one. A label map without an
    object is all background. Images follow their EXIF orientation; transparent
    pixels become white.

  Raises:
    ValueError: a file is damaged or no image, or only some have label maps.
    OSError: a file is missing.
  """
  masked = not pictures or any(
      entry.label_map is not None for entry in pictures)
  without = [entry.name for entry in pictures
             if entry.label_map is None and entry.object_id != BACKGROUND]
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
    # An error ends the loop, and pending reads do not start.
    for _ in tqdm(pool.map(read_one, range(len(pictures))), desc=title,
                  total=len(pictures), delay=1, disable=None, leave=False):
      pass
  return images, label_maps


def _open(content: Path | bytes | np.ndarray, name: str) -> Image.Image:
  """Opens an image and turns it the right way up."""
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


def _image(entry: Picture) -> Image.Image:
  """Opens the image in RGB."""
  image = _open(entry.image, entry.name)
  if image.mode.startswith("I"):  # 16-bit grey; PIL would clip.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
      raise ValueError(
          f"{entry.name} must have 8 or 16 bits a pixel; its values are "
          f"{values.min()}..{values.max()}.")
    image = Image.fromarray((values // 257).astype(np.uint8))
  if image.mode == "F":
    raise ValueError(
        f"{entry.name} must have 8 or 16 bits a pixel; it has floats.")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def _label_map(entry: Picture, size: tuple[int, int]) -> Image.Image:
  """Opens the label map, which must have the image's size."""
  name = f"The mask of {entry.name}"
  image = _open(entry.label_map, name)
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
  if entry.object_id is not None:
    labels = _one_object(labels, entry.object_id)
  return Image.fromarray(labels)


def _one_object(mask: np.ndarray, object_id: int) -> np.ndarray:
  """Labels the object where the mask is not 0; 255 may mean void."""
  objects = mask > 0
  void = mask == VOID
  if void.sum() == objects.sum():  # Only 0 and 255: 255 is the object.
    void[:] = False
  return np.where(void, VOID, np.where(objects, object_id, 0)).astype(np.uint8)
