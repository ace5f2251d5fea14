"""Images in the forms that TensorFlow's own tools take them, as one array."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np

__all__ = ["MOST", "gathered"]

MOST = 100_000
"""Images that a source may give; one that gives more is taken for endless."""
_NAMES = ("images", "image")  # Of the images among an element's parts.


def gathered(source: Any, rank: int, name: str = "images") -> np.ndarray:
  """Returns images as one array, wherever they come from.

  Args:
    source: an array, or what NumPy makes one of; or images that come in parts:
      a list of batches, a `tf.data.Dataset`, a `keras.utils.Sequence`, a
      generator, or a function without arguments that returns one, as TFLite's
      `representative_dataset` does. A part is an array, one image or a batch of
      them; a list that holds it alone; a mapping, where it is called "images",
      "image" or by the only name; or a tuple, whose first is it, before labels.
    rank: of a batch of images.
    name: the argument's name, for errors.

  Returns:
    An array; of parts their images, one after the other.

  Raises:
    TypeError: it gives no parts, or in one several arrays of which none is the
      images.
    ValueError: a part has another shape; there are none; or they do not end.
  """
  if not _in_parts(source, rank):
    return np.asarray(source)
  parts, count = [], 0
  for part in _parts(source, name):
    array = np.asarray(_images_of(part, name))
    array = array[None] if array.ndim == rank - 1 else array
    if array.ndim != rank or (
        parts and array.shape[1:] != parts[0].shape[1:]):
      raise ValueError(
          f"{name} must give images of one shape, alone or in batches; got "
          f"{[list(one.shape) for one in (*parts[:1], array)]}.")
    parts.append(array)
    count += len(array)
    if count > MOST:
      raise ValueError(
          f"{name} must end: it has given more than {MOST} images; take some "
          "of them, by .take(100) or itertools.islice.")
  if not parts:
    raise ValueError(
        f"{name} gave no image; a generator is empty once it was read, so give "
        "the function that makes it.")
  return np.concatenate(parts)


def _in_parts(source: Any, rank: int) -> bool:
  if isinstance(source, list | tuple):
    # Lists of numbers are arrays to NumPy, and so are lists of images.
    return bool(source) and (
        isinstance(source[0], Mapping) or _rank(source[0]) == rank)
  return callable(source) or not (
      hasattr(source, "__array__") or isinstance(source, str | bytes | Mapping)
      or not isinstance(source, Iterable | Sized))


def _rank(value: Any) -> int | None:
  """Of an array, a tensor, or the first that a list or tuple holds."""
  if isinstance(value, list | tuple) and value and hasattr(value[0], "shape"):
    value = value[0]
  return len(value.shape) if hasattr(value, "shape") else None


def _parts(source: Any, name: str) -> Iterator[Any]:
  if callable(source) and not isinstance(source, Iterable):
    source = source()
  if hasattr(source, "__getitem__") and isinstance(source, Sized):
    # A Keras Sequence may go round and round where it is iterated over.
    return (source[i] for i in range(len(source)))
  if not isinstance(source, Iterable):
    raise TypeError(
        f"{name} must be images, or a function without arguments that gives "
        f"them in parts; got {type(source).__name__}.")
  return iter(source)


def _images_of(part: Any, name: str) -> Any:
  """The images of one part: alone, named, or before their labels."""
  if isinstance(part, Mapping):
    found = [one for one in _NAMES if one in part] or list(part)
    if len(found) != 1 and found[0] not in _NAMES:
      raise TypeError(
          f"{name} gives mappings of {sorted(map(str, part))}, none of which "
          f"is called {' or '.join(_NAMES)}.")
    return part[found[0]]
  if isinstance(part, tuple) and part:
    return _images_of(part[0], name)
  if isinstance(part, list) and part and hasattr(part[0], "shape"):
    if len(part) == 1:
      return part[0]
    if _rank(part[0]) != _rank(part[1]):  # Labels, as Keras's generators do.
      return part[0]
    raise TypeError(
        f"{name} gives lists of {len(part)} arrays; a model of one input takes "
        "lists of one.")
  return part
