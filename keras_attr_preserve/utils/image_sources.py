"""Turns images in any form that TensorFlow's tools accept into one array."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np

__all__ = ["MOST", "gathered"]

MOST = 100_000
"""The most images of a source; a source with more counts as endless."""
_NAMES = ("images", "image")  # Keys of the images in an element.


def gathered(source: Any, rank: int, name: str = "images") -> np.ndarray:
  """Returns images from any source as one array.

  Args:
    source: an array, or a value that NumPy turns into one. Or a source of
      elements: a list of batches, a `tf.data.Dataset`, a
      `keras.utils.Sequence`, a generator, or a function without arguments that
      returns one of these, as TFLite's `representative_dataset` does. An
      element is one image or a batch, as an array or a list of one array. It
      may be a mapping with the key "images" or "image", or with only one key.
      It may also be a tuple that begins with the images, before labels.
    rank: the number of axes of a batch of images.
    name: the argument's name, for errors.

  Returns:
    An array of all images, in the source's order.

  Raises:
    TypeError: the source gives no elements, or an element has several arrays
      and none is known to be the images.
    ValueError: an element has another shape, there are no images, or the source
      does not end.
  """
  if not _in_parts(source, rank):
    return np.asarray(source)
  arrays, count = [], 0
  for element in _parts(source, name):
    array = np.asarray(_images_of(element, name))
    array = array[None] if array.ndim == rank - 1 else array
    if array.ndim != rank or (
        arrays and array.shape[1:] != arrays[0].shape[1:]):
      raise ValueError(
          f"{name} must give images of one shape, alone or in batches; got "
          f"{[list(batch.shape) for batch in (*arrays[:1], array)]}.")
    arrays.append(array)
    count += len(array)
    if count > MOST:
      raise ValueError(
          f"{name} must end: it has given more than {MOST} images; take some "
          "of them, by .take(100) or itertools.islice.")
  if not arrays:
    raise ValueError(
        f"{name} gave no image; a generator is empty once it was read, so give "
        "the function that makes it.")
  return np.concatenate(arrays)


def _in_parts(source: Any, rank: int) -> bool:
  if isinstance(source, list | tuple):
    # Lists of numbers are arrays to NumPy, and so are lists of images.
    return bool(source) and (
        isinstance(source[0], Mapping) or _rank(source[0]) == rank)
  return callable(source) or not (
      hasattr(source, "__array__") or isinstance(source, str | bytes | Mapping)
      or not isinstance(source, Iterable | Sized))


def _rank(value: Any) -> int | None:
  """Returns the rank of an array, or of the first array in a list or tuple."""
  if isinstance(value, list | tuple) and value and hasattr(value[0], "shape"):
    value = value[0]
  return len(value.shape) if hasattr(value, "shape") else None


def _parts(source: Any, name: str) -> Iterator[Any]:
  if callable(source) and not isinstance(source, Iterable):
    source = source()
  if hasattr(source, "__getitem__") and isinstance(source, Sized):
    # Iterating over a Keras Sequence may never end.
    return (source[i] for i in range(len(source)))
  if not isinstance(source, Iterable):
    raise TypeError(
        f"{name} must be images, or a function without arguments that gives "
        f"them in parts; got {type(source).__name__}.")
  return iter(source)


def _images_of(element: Any, name: str) -> Any:
  """Returns the images of one element: alone, named, or before labels."""
  if isinstance(element, Mapping):
    keys = [key for key in _NAMES if key in element] or list(element)
    if len(keys) != 1 and keys[0] not in _NAMES:
      raise TypeError(
          f"{name} gives mappings of {sorted(map(str, element))}, none of "
          f"which is called {' or '.join(_NAMES)}.")
    return element[keys[0]]
  if isinstance(element, tuple) and element:
    return _images_of(element[0], name)
  if isinstance(element, list) and element and hasattr(element[0], "shape"):
    if len(element) == 1:
      return element[0]
    if _rank(element[0]) != _rank(element[1]):  # A Keras generator's labels.
      return element[0]
    raise TypeError(
        f"{name} gives lists of {len(element)} arrays; a model of one input "
        "takes lists of one.")
  return element
