"""Keeping the teacher's maps and scores, so that it runs once on each image."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

__all__ = ["TeacherCache", "flat", "identify"]

Look = Callable[[], tf.Tensor]


class TeacherCache:
  """A table from an image to the teacher's maps and scores.

  Its keys are 64-bit hashes of the images' content. Images may therefore come
  in any order and batch: NumPy arrays, tf.data and generators. They must not
  change from epoch to epoch, or they are never found again.

  Attributes:
    looked: how many images the teacher was run on since `reset`.
    found: how many images were in the table since `reset`.
  """

  def __init__(self, width: int, path: str | os.PathLike | None = None):
    """Creates an empty table.

    Args:
      width: numbers kept for an image; each takes 4 bytes.
      path: the file that `save` writes and `load` reads. A missing folder is
        created. None keeps the table only in memory.

    Raises:
      OSError: the file's folder cannot be written to.
    """
    self._width = width
    self.path = None if path is None else Path(path)
    if self.path is not None:
      make_folder(self.path.absolute().parent, "cache")
    # The first number of an entry is 1; without an entry it is 0.
    self._table = tf.lookup.experimental.MutableHashTable(
        tf.int64, tf.float32, tf.zeros([1 + width]))
    # Each replica counts for itself.
    self._counts = tf.Variable(
        [0, 0], dtype=tf.int64, trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM)

  def __call__(self, pictures: Any, look: Look) -> tf.Tensor:
    """Looks up a batch, or runs the teacher on it and keeps the result.

    Args:
      pictures: the batch of images, a tensor or a structure of tensors, each
        `[batch, ...]`; with labels if the result depends on them.
      look: returns the teacher's `[batch, width]` for it.

    Returns:
      `[batch, width]`, float32.
    """
    keys = _keys(pictures)
    rows = self._table.lookup(keys)
    known = tf.reduce_all(rows[:, 0] > 0)

    def look_and_keep():
      values = tf.cast(look(), tf.float32)
      rows = tf.concat([tf.ones_like(values[:, :1]), values], axis=1)
      with tf.control_dependencies([self._table.insert(keys, rows)]):
        return tf.identity(values)

    count = tf.cast(tf.size(keys), tf.int64)
    self._counts.assign_add(
        count * tf.cast([~known, known], tf.int64))
    return tf.ensure_shape(
        tf.cond(known, lambda: rows[:, 1:], look_and_keep),
        [None, self._width])

  @property
  def looked(self) -> int:
    """How many images the teacher was run on since the last `reset`."""
    return int(tf.convert_to_tensor(self._counts)[0])

  @property
  def found(self) -> int:
    """How many images were in the table since the last `reset`."""
    return int(tf.convert_to_tensor(self._counts)[1])

  def reset(self) -> None:
    """Sets both counts to 0; the table stays."""
    self._counts.assign(tf.zeros([2], tf.int64))

  def save(self, identity: str) -> None:
    """Writes the table to its file, whole or not at all.

    Args:
      identity: of the teacher and settings; `load` needs the same.
    """
    keys, rows = (tensor.numpy() for tensor in self._table.export())
    header = json.dumps({"identity": identity, "width": self._width,
                         "entries": len(keys)}).encode()
    write_whole(self.path, b"\n".join(
        [header, keys.astype("<i8").tobytes() + rows.astype("<f4").tobytes()]))

  def load(self, identity: str) -> int:
    """Reads the file, if there is one.

    Args:
      identity: as given to `save`.

    Returns:
      The number of entries read.

    Raises:
      ValueError: the file is damaged, or is of another teacher or settings.
    """
    if not self.path.exists():
      return 0
    header, _, content = self.path.read_bytes().partition(b"\n")
    try:
      header = json.loads(header)
      count, row = header["entries"], 4 * (1 + header["width"])
      if len(content) != count * (8 + row):
        raise ValueError(f"{len(content)} bytes for {count} entries")
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
          f"cache {str(self.path)!r} is damaged ({error}); delete it."
      ) from error
    if (header["identity"], header["width"]) != (identity, self._width):
      raise ValueError(
          f"cache {str(self.path)!r} is of another teacher or other settings; "
          "delete it, or give another path.")
    self._table.insert(
        np.frombuffer(content, "<i8", count),
        np.frombuffer(content, "<f4", offset=8 * count).reshape(
            count, 1 + self._width))
    return count


def identify(teacher: keras.Model, *settings: Any) -> str:
  """Hashes a teacher's weights and the settings of its entries."""
  digest = hashlib.sha256(repr(settings).encode())
  for weight in teacher.get_weights():
    digest.update(np.ascontiguousarray(weight).tobytes())
  return digest.hexdigest()


def flat(tensor: tf.Tensor) -> tf.Tensor:
  """Flattens each element of a batch, `[batch, numbers]`.

  The batch may be empty, as on a replica when the data end.
  """
  shape = tf.shape(tensor)
  return tf.reshape(tensor, [shape[0], tf.reduce_prod(shape[1:])])


def _keys(pictures: Any) -> tf.Tensor:
  """Hashes each element of a batch to an int64, `[batch]`."""
  hashes = [
      tf.fingerprint(flat(tensor)) for tensor in tf.nest.flatten(pictures)]
  if len(hashes) > 1:
    hashes = [tf.fingerprint(tf.concat(hashes, axis=1))]
  return tf.bitcast(hashes[0], tf.int64)
