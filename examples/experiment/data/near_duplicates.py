"""Pictures that are in a data set twice, not always pixel by pixel."""

import numpy as np
from PIL import Image

__all__ = ["repeats"]

THUMBNAIL = 16
# Of 2,599 photographs of animals and 5,500 small ones of CIFAR-10, the closest
# that are different pictures are at .087 and .074. Seven pairs of the latter
# are one picture in another crop or colour, at .027 to .086: four are below.
BOUND = 0.06
_BLOCK = 1000


def repeats(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Finds pictures that nearly repeat one of another set.

  Two are held to be one where their thumbnails' squared difference is below
  6 % of their variances' sum: a copy that was saved anew, made smaller, or
  cut a little at its borders. Plain pictures, without any contrast, are none.

  Args:
    images: uint8 `[pictures, size, size, 3]`.
    others: the same, of another number.

  Returns:
    bool `[pictures]`.
  """
  one, other = _thumbnails(images), _thumbnails(others)
  found = np.zeros(len(one), bool)
  contrast = _contrast(other)
  squares = (other ** 2).sum(1)
  for first in range(0, len(one), _BLOCK):
    some = one[first:first + _BLOCK]
    distance = (some ** 2).sum(1)[:, None] + squares - 2 * some @ other.T
    bound = BOUND * (_contrast(some)[:, None] + contrast)
    found[first:first + _BLOCK] = (distance < bound).any(1)
  return found


def _thumbnails(images: np.ndarray) -> np.ndarray:
  """float32 `[pictures, values]`; what is smaller than a thumbnail is grown."""
  return np.stack([
      np.asarray(Image.fromarray(image).resize(
          (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
      for image in images]).astype(np.float32) / 255


def _contrast(thumbnails: np.ndarray) -> np.ndarray:
  """The sum of squares about each channel's mean."""
  channels = thumbnails.reshape(len(thumbnails), -1, 3)
  return channels.var(1).sum(1) * channels.shape[1]
