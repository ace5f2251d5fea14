"""The teacher's maps, scores and features: computed, or from a cache."""

import os
from collections.abc import Sequence
from typing import Any

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.logits import output_names
from keras_attr_preserve.models.tap import Tap
from keras_attr_preserve.training.teacher_cache import (
  TeacherCache,
  flat,
  identify,
)
from keras_attr_preserve.training.wcam import WCAM, Guide

__all__ = ["Guidance"]


class Guidance:
  """Gives a teacher's maps, scores and features for a batch.

  Attributes:
    classes: the number of the teacher's scores.
    hint_shapes: the shapes of the features of `hint_layers`.
    cache: the `TeacherCache`, or None.
  """

  def __init__(
      self,
      teacher: keras.Model,
      wcam: WCAM | None,
      output: str | None = None,
      cache: bool | str | os.PathLike = False,
      hint_layers: Sequence[str] = (),
  ):
    """Finds the layers; arguments as for `TrainStep`.

    Args:
      teacher: the model.
      wcam: which maps to compute.
      output: the output of the class scores.
      cache: whether to keep maps and scores.
      hint_layers: layers whose whole features are returned, too.

    Raises:
      ValueError: a layer is missing, or the settings forbid a cache.
    """
    self._wcam = wcam
    if hint_layers and cache is not False:
      raise ValueError(
          "cache: hints hold whole features, which are too large to keep; "
          "leave cache= or hints= out.")
    self._map_layers = wcam.layers if wcam else ()
    tap = Tap(teacher, (*self._map_layers, *hint_layers),
              _own_output(teacher, output))
    self._tap, self.classes = tap, tap.classes
    self.hint_shapes = tap.shapes[len(self._map_layers):]
    self._slots = wcam.slots(tap.classes) if wcam else 0
    self.cache = None
    if cache is not False:
      self._sizes = self._map_sizes()
      width = tap.classes + self._slots * sum(
          height * width for height, width in self._sizes)
      self.cache = TeacherCache(width, None if cache is True else cache)
      if self.cache.path is not None:
        self._identity = identify(
            teacher, type(wcam).__name__, *((
                wcam.layers, wcam.method, wcam.target, wcam.top_k)
                if wcam else ()), output,
            # Older files have a layer's maps of one class side by side.
            *(["by slots"] if self._slots > 1 else []))
        self.cache.load(self._identity)

  def __call__(
      self, x: Any, labels: Any = None, drop_seed: tf.Tensor | None = None
  ) -> Guide:
    """Computes the teacher's `Guide` for a batch.

    Args:
      x: the images.
      labels: their labels, if the target needs them.
      drop_seed: for stochastic matching.

    Returns:
      A `Guide`.
    """
    if self.cache is None:
      return self._look(x, labels, drop_seed)
    needs_labels = self._wcam is not None and self._wcam.needs_labels
    return self._unpacked(self.cache(
        (x, labels) if needs_labels else x,
        lambda: self._packed(self._look(x, labels))))

  def save(self) -> None:
    """Writes the cache to its file, if it has one."""
    if self.cache is not None and self.cache.path is not None:
      self.cache.save(self._identity)

  def _look(
      self, x: Any, labels: Any, drop_seed: tf.Tensor | None = None) -> Guide:
    if self._wcam is None:
      tapped = self._tap(x)
      return Guide(tf.stop_gradient(tapped.logits), [], tapped.features)
    x = self._tap.floats(x)
    with self._wcam.tape() as tape:
      count = len(self._map_layers)
      tapped, features = self._tap(
          x, training=False, tape=tape, watched=count).split(count)
    return self._wcam.guide(tape, tapped, labels, drop_seed)._replace(
        features=features)

  def _map_sizes(self) -> list[tuple[int, int]]:
    if self._wcam is None:
      return []
    if self._wcam.drop_rate:
      raise ValueError(
          "cache: drop_rate draws the teacher's channels anew in each step, so "
          "its maps cannot be kept; set drop_rate=0 or leave cache= out.")
    for shape in self._tap.shapes:
      if None in shape[1:3]:
        raise ValueError(
            f"cache: the teacher must take pictures of one size; its features "
            f"are {shape}.")
    return [self._wcam.map_size(*shape[1:3]) for shape in self._tap.shapes]

  def _unpacked(self, values: tf.Tensor) -> Guide:
    logits, rest = values[:, :self.classes], values[:, self.classes:]
    maps = []
    for height, width in self._sizes:
      numbers = self._slots * height * width
      maps.append(tf.transpose(tf.reshape(
          rest[:, :numbers], [-1, self._slots, height, width]), [1, 0, 2, 3]))
      rest = rest[:, numbers:]
    return Guide(logits, maps)

  def _packed(self, guide: Guide) -> tf.Tensor:
    """Concatenates a batch's logits and maps, `[batch, numbers]`."""
    tensors = [guide.logits]
    for maps in guide.maps:
      empty = self._slots - tf.shape(maps)[0]
      tensors.append(tf.pad(tf.transpose(maps, [1, 0, 2, 3]), [
          [0, 0], [0, empty], [0, 0], [0, 0]]))
    return tf.concat([
        tf.cast(flat(tensor), tf.float32) for tensor in tensors], axis=1)


def _own_output(teacher: keras.Model, output: str | None) -> str | None:
  """Returns the output's name; a teacher with one may name it differently."""
  if output is not None and len(getattr(teacher, "outputs", None) or ()) == 1:
    return output if output in output_names(teacher) else None
  return output
