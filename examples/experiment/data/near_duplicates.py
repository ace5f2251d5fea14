"""Finds images that are in a data set twice, exactly or nearly."""

import numpy as np
from PIL import Image

__all__ = ["repeats"]

THUMBNAIL = 16
# Measured on 2,599 photographs of animals and 5,500 small images of CIFAR-10.
# The closest different images are at .087 and .074. Seven pairs of CIFAR-10 are
# one image in another crop or colour, at .027 to .086: four are below BOUND.
BOUND = 0.06
_BLOCK = 1000


def repeats(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Finds images that nearly repeat an image of another set.

  Two images match if their thumbnails' squared difference is below 6 % of the
  sum of their variances. A match is a copy that was saved again, made smaller,
  or cut a little at its borders. Images without contrast never match.

  Args:
    images: uint8 `[images, size, size, 3]`.
    others: the other set, of any number of images.

  Returns:
    bool `[images]`, True for a repeat.
  """
  thumbnails, other_thumbnails = _thumbnails(images), _thumbnails(others)
  repeated = np.zeros(len(thumbnails), bool)
  contrast = _contrast(other_thumbnails)
  squares = (other_thumbnails ** 2).sum(1)
  for first in range(0, len(thumbnails), _BLOCK):
    block = thumbnails[first:first + _BLOCK]
    distance = (
        (block ** 2).sum(1)[:, None] + squares - 2 * block @ other_thumbnails.T)
    bound = BOUND * (_contrast(block)[:, None] + contrast)
    repeated[first:first + _BLOCK] = (distance < bound).any(1)
  return repeated


def _thumbnails(images: np.ndarray) -> np.ndarray:
  """Returns float32 `[images, values]`; small images are enlarged."""
  return np.stack([
      np.asarray(Image.fromarray(image).resize(
          (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
      for image in images]).astype(np.float32) / 255


def _contrast(thumbnails: np.ndarray) -> np.ndarray:
  """Returns the sum of squares about each channel's mean."""
  channels = thumbnails.reshape(len(thumbnails), -1, 3)
  return channels.var(1).sum(1) * channels.shape[1]
