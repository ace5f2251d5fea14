"""Bringing a file's class scores to its teacher's classes."""

import dataclasses

import numpy as np

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.export.tensors.file_tensors import FileTensors
from keras_attr_preserve.export.third_party.class_scores import (
  ClassScores,
  find_scores,
  follow,
  likely_preprocess,
)
from keras_attr_preserve.models.tap import Tap

__all__ = ["SharedScores", "other_range", "shared_scores"]

# Measured on MLPerf Tiny's nets: of files that are the teacher's .9 or more,
# int8 too; of another training of one net above .5; of wrong classes below .3.
# A wrong range can stay as high as .96: `other_range` looks for that.
_LEAST = 0.4
_HIT = 0.8  # The correlation that says which range is meant,
_BETTER = 0.1  # and by how much another range must be better to be meant.
_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class SharedScores:
  """A file's scores, in the classes that it shares with its teacher.

  Attributes:
    file: where they are in the file.
    classes: how many there are.
    offset: the file's class that is class 0.
    correlation: with the teacher's, as `follow` says; NaN without one.
  """

  file: ClassScores
  classes: int
  offset: int = 0
  correlation: float = float("nan")

  def __str__(self):
    text = str(self.file)
    if self.classes != self.file.classes:
      text += (f", classes {self.offset}..{self.offset + self.classes - 1} of "
               f"{self.file.classes}")
    if not np.isnan(self.correlation):
      text += f", correlation with the teacher's {self.correlation:.2f}"
    return text

  def shared(self, values: np.ndarray) -> np.ndarray:
    """Cuts the shared classes out of the file's, `[images, classes]`."""
    flat = values.reshape(len(values), -1)
    return flat[:, self.offset:self.offset + self.classes]

  def whole(self, weights: np.ndarray) -> np.ndarray:
    """Turns weights of the shared classes into weights of the file's."""
    rest = self.file.classes - self.offset - self.classes
    return np.pad(weights, [(0, 0), (self.offset, rest)])


def shared_scores(
    file: FileTensors,
    teacher: keras.Model | None,
    images: np.ndarray | None,
    output: int | str | None,
    class_offset: int | None,
) -> SharedScores:
  """Finds a file's class scores and holds them against the teacher's.

  Args:
    file: the file.
    teacher: a `tf_keras` model, or None.
    images: in the teacher's range; the first ones are used.
    output: see `find_scores`.
    class_offset: the file's class that is the teacher's class 0; None to find
      out.

  Returns:
    The scores.

  Raises:
    TypeError, ValueError: they are not found; the file has fewer classes, or
      several more; or they do not follow the teacher's.
  """
  if teacher is None:
    scores = find_scores(file, None, output)
    if class_offset:
      raise ValueError("class_offset needs a teacher; got one without.")
    return SharedScores(scores, scores.classes)
  tap = Tap(check_model(teacher, "teacher"))
  images = tap.input.check(images)[:_IMAGES]
  scores = find_scores(file, tap.classes, output)
  spare = scores.classes - tap.classes
  most = 1 if tap.classes > 1 else 0  # A sigmoid's score is no softmax's.
  if (class_offset is None and not 0 <= spare <= most) or (
      class_offset is not None and not 0 <= class_offset <= spare):
    raise ValueError(
        f"tflite_model has {scores.classes} classes and the teacher "
        f"{tap.classes}: the file must have as many, or one more for "
        "'background', or class_offset must say where the teacher's begin; "
        f"got class_offset={class_offset!r}.")
  reference = tap(tf.convert_to_tensor(images)).logits.numpy()
  try:
    logits = _read(file, scores, images)
  except ValueError as error:
    better = _better_range(file, scores, spare if class_offset is None
                           else class_offset, images, reference, _HIT)
    raise ValueError(f"{error}{better}") from error
  offsets = range(spare + 1) if class_offset is None else [class_offset]
  found = {offset: follow(logits[:, offset:offset + tap.classes], reference)
           for offset in offsets}
  offset = max(found, key=lambda one: np.nan_to_num(found[one], nan=-1))
  if len(found) > 1 and not found[offset] >= 0.1 + min(found.values()):
    raise ValueError(
        f"class_offset must be given: tflite_model has {scores.classes} "
        f"classes, the teacher {tap.classes}, and the scores do not tell which "
        f"of the file's is the teacher's first; correlations {found}.")
  if found[offset] < _LEAST:
    raise ValueError(_unlike(
        file, scores, offset, images, reference, found[offset]))
  return SharedScores(scores, tap.classes, offset, found[offset])


def other_range(
    file: FileTensors, shared: SharedScores, teacher: keras.Model,
    images: np.ndarray,
) -> str:
  """Says whether a file's scores follow a teacher's better in another range.

  Args:
    file: the file.
    shared: its scores.
    teacher: a `tf_keras` model.
    images: in the teacher's range; the first ones are used.

  Returns:
    A sentence, or nothing.
  """
  images = images[:_IMAGES]
  reference = Tap(teacher)(tf.convert_to_tensor(images)).logits.numpy()
  return _better_range(file, shared.file, shared.offset, images, reference,
                       shared.correlation + _BETTER)


def _better_range(file, scores, offset, images, reference, least) -> str:
  def run(changed):
    logits = _read(file, scores, changed)
    return logits[:, offset:offset + reference.shape[1]]
  better = likely_preprocess(run, images, reference, least)
  if not better:
    return ""
  first = ", before the one you gave" if file.preprocess else ""
  return (" They follow the teacher's better with "
          f"preprocess=lambda images: {better}{first}.")


def _read(file, scores, images) -> np.ndarray:
  index = scores.logits.index
  return file.read(images, [index])[index].reshape(len(images), -1)


def _unlike(file, scores, offset, images, reference, correlation) -> str:
  """Says what is amiss where scores do not follow the teacher's."""
  return (
      "tflite_model is not this teacher's, or takes images of another range, "
      f"or has its classes in another order: its scores ({scores}) correlate "
      f"with the teacher's by {correlation:.2f} only, on {len(images)} images."
      + _better_range(file, scores, offset, images, reference, _HIT))
