"""What the methods share: targets, and running in batches."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import tf

__all__ = ["class_weights", "run_batches"]


def class_weights(targets: Any, count: int, classes: int) -> np.ndarray:
  """Says which score is explained, as weights of the logits.

  Args:
    targets: a class number for all images; class numbers `[count]`; or float
      weights of the logits `[count, classes]`. Of one logit, class 1 is its
      positive side and class 0 its negative.
    count: how many images.
    classes: how many logits.

  Returns:
    Weights, float32 `[count, classes]`.

  Raises:
    ValueError: the targets have another shape, or name no class.
  """
  targets = np.asarray(targets)
  if targets.shape == (count, classes) and targets.dtype.kind == "f":
    return targets.astype(np.float32)
  if targets.shape not in ((), (count,)) or targets.dtype.kind not in "iub":
    raise ValueError(
        f"targets must be None, a class number, {count} class numbers, or "
        f"float weights [{count}, {classes}]; got {targets.dtype} of shape "
        f"{list(targets.shape)}.")
  targets = np.broadcast_to(targets.astype(int), count)
  if targets.min() < 0 or targets.max() >= max(classes, 2):
    raise ValueError(
        f"targets must be class numbers in 0..{max(classes, 2) - 1}; got "
        f"{targets.min()}..{targets.max()}.")
  if classes == 1:
    return np.where(targets, 1, -1).astype(np.float32)[:, None]
  return np.eye(classes, dtype=np.float32)[targets]


def run_batches(
    function: Callable[..., Any], *arrays: np.ndarray, batch_size: int
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time.

  Args:
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: images a batch; the last batch may be smaller.

  Returns:
    What the function returned, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  parts = [function(*map(tf.convert_to_tensor, batch))
           for batch in _slices(arrays, batch_size)]
  return [np.concatenate([one.numpy() for one in column])
          for column in zip(*parts, strict=True)]


def _slices(arrays: tuple, size: int) -> Iterator[list[np.ndarray]]:
  for start in range(0, len(arrays[0]), size):
    yield [array[start:start + size] for array in arrays]
