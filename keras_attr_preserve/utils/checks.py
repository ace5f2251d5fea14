"""Checks images before any computation."""

from collections.abc import Sequence

import numpy as np

from keras_attr_preserve.utils.image_sources import gathered

__all__ = ["check_images"]


def check_images(
    images: np.ndarray, shape: Sequence[int | None], name: str = "images"
) -> np.ndarray:
  """Returns `images` as a float32 array of the shape a model takes.

  Args:
    images: `[count, height, width, channels]`, finite numbers in the range of
      the training images; or a source of batches, see `gathered`.
    shape: the model's input shape without the batch; None fits any size.
    name: the argument's name, for the error.

  Returns:
    A float32 array of the same shape.

  Raises:
    ValueError: no image, another shape, or a value that is not finite.
    TypeError: not numbers.
  """
  array = gathered(images, len(shape) + 1, name)
  if array.dtype.kind not in "fiub":
    raise TypeError(f"{name} must be numbers; got an array of {array.dtype}.")
  fits = array.ndim == len(shape) + 1 and all(
      want in (None, got) for want, got in zip(shape, array.shape[1:]))
  if not fits or not len(array):
    want = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(
        f"{name} must have shape [at least 1, {want}]; got "
        f"{list(array.shape)}.")
  array = array.astype(np.float32, copy=False)
  finite = np.isfinite(array)
  if not finite.all():
    bad = int((~finite).reshape(len(array), -1).any(1).sum())
    raise ValueError(
        f"{name} must be finite; {bad} of {len(array)} hold NaN or infinity.")
  return array
