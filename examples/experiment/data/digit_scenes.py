"""Digit scenes: real handwritten digits over real photographs, with masks.

The data set needs no download. The digits are scikit-learn's (UCI ML
hand-written digits). The backgrounds are crops of its two sample photographs.
Every scene is 64x64 RGB and shows one to three digits of random size and
colour.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn import datasets

__all__ = ["CLASS_IDS", "SIZE", "Scenes", "make_scenes"]

SIZE = 64
CLASSES = 10
BACKGROUND, VOID = 0, 255
CLASS_IDS = np.arange(1, CLASSES + 1)
"""The label of each digit in the label maps: digit + 1."""

# Shares of the digits and of the photographs' width. The parts share no digit
# and no photo region.
_PARTS = {"train": (0.0, 0.5), "validation": (0.5, 0.65), "test": (0.65, 1.0)}


class Scenes(NamedTuple):
  """A set of scenes.

  Attributes:
    images: float32 `[scenes, 64, 64, 3]`, in 0..1.
    labels: float32 `[scenes, 10]`, multi-hot.
    label_maps: uint8 `[scenes, 64, 64]`: 0 background, digit + 1, and 255
      (void) for the soft edge of a stroke.
  """

  images: np.ndarray
  labels: np.ndarray
  label_maps: np.ndarray


def make_scenes(part: str, count: int, seed: int = 0) -> Scenes:
  """Draws scenes.

  Args:
    part: "train", "validation" or "test".
    count: the number of scenes.
    seed: equal seeds draw equal scenes.

  Returns:
    The scenes.

  Raises:
    ValueError: the part is unknown.
  """
  if part not in _PARTS:
    raise ValueError(f"part must be one of {[*_PARTS]}; got {part!r}.")
  rng = np.random.default_rng([seed, *part.encode()])
  digits, classes = _digits(part)
  photos = _photos(part)
  images = np.empty([count, SIZE, SIZE, 3], np.float32)
  labels = np.zeros([count, CLASSES], np.float32)
  label_maps = np.zeros([count, SIZE, SIZE], np.uint8)
  for i in range(count):
    images[i] = _background(rng, photos)
    for _ in range(rng.integers(1, 4)):
      which = rng.integers(len(digits))
      if _place(rng, digits[which], classes[which], images[i], label_maps[i]):
        labels[i, classes[which]] = 1
  return Scenes(images, labels, label_maps)


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the part's digits, `[digits, 8, 8]` in 0..1, and their classes."""
  data = datasets.load_digits()
  first, last = (int(share * len(data.images)) for share in _PARTS[split])
  order = np.random.default_rng(0).permutation(len(data.images))[first:last]
  return data.images[order].astype(np.float32) / 16, data.target[order]


def _photos(split: str) -> list[np.ndarray]:
  """Returns each photograph's strip, `[height, width, 3]` in 0..1."""
  first, last = _PARTS[split]
  return [
      photo[:, int(first * photo.shape[1]):int(last * photo.shape[1])].astype(
          np.float32) / 255
      for photo in datasets.load_sample_images().images]


def _background(rng: np.random.Generator, photos: list) -> np.ndarray:
  photo = photos[rng.integers(len(photos))]
  top = rng.integers(photo.shape[0] - SIZE + 1)
  left = rng.integers(photo.shape[1] - SIZE + 1)
  crop = photo[top:top + SIZE, left:left + SIZE]
  if rng.random() < 0.5:
    crop = crop[:, ::-1]
  return np.clip(crop * rng.uniform(0.6, 1.2), 0, 1)


def _place(
    rng: np.random.Generator,
    digit: np.ndarray,
    class_number: int,
    image: np.ndarray,
    label_map: np.ndarray,
) -> bool:
  """Paints a digit on a free place; False if 20 tries find no such place."""
  size = int(rng.integers(18, 31))
  stroke = np.asarray(Image.fromarray(digit).resize(
      (size, size), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
  for _ in range(20):
    top, left = rng.integers(SIZE - size + 1, size=2)
    place = np.s_[top:top + size, left:left + size]
    if not label_map[place].any():
      break
  else:
    return False
  behind = image[place].mean((0, 1))
  colour = rng.uniform(0, 1, 3)
  while np.abs(colour - behind).max() < 0.4:
    colour = rng.uniform(0, 1, 3)
  image[place] += stroke * (colour - image[place])
  soft, solid = stroke[..., 0] > 0.25, stroke[..., 0] > 0.5
  label_map[place] = np.where(
      solid, class_number + 1, np.where(soft, VOID, BACKGROUND))
  return True
