"""Selects a teacher's classes from a file's class scores."""

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

# Correlations measured on MLPerf Tiny's models: .9 or more for the teacher's
# own files, int8 too; above .5 for another training; below .3 for wrong
# classes. A wrong range can reach .96; `other_range` detects that.
_LEAST = 0.4
_HIT = 0.8  # This correlation identifies the right range.
_BETTER = 0.1  # The right range correlates better by this much.
_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class SharedScores:
  """A file's scores, in the classes that it shares with its teacher.

  Attributes:
    file: the file's class scores.
    classes: the number of shared classes.
    offset: the file's class that is class 0.
    correlation: correlation with the teacher's scores, by `follow`; NaN without
      a teacher.
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
    """Selects the shared classes from the file's, `[images, classes]`."""
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
  """Finds a file's class scores and compares them with the teacher's.

  Args:
    file: the file.
    teacher: a `tf_keras` model, or None.
    images: images in the teacher's range; the first 32 are used.
    output: see `find_scores`.
    class_offset: the file's class that is the teacher's class 0; None to search
      for it.

  Returns:
    The scores.

  Raises:
    TypeError, ValueError: the scores are not found, or do not follow the
      teacher's; or the file has fewer classes, or several more.
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
  most = 1 if tap.classes > 1 else 0  # A sigmoid has no spare class.
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
  correlations = {
      offset: follow(logits[:, offset:offset + tap.classes], reference)
      for offset in offsets}
  offset = max(correlations, key=lambda start: np.nan_to_num(
      correlations[start], nan=-1))
  if len(correlations) > 1 and not (
      correlations[offset] >= 0.1 + min(correlations.values())):
    raise ValueError(
        f"class_offset must be given: tflite_model has {scores.classes} "
        f"classes, the teacher {tap.classes}, and the scores do not tell which "
        f"of the file's is the teacher's first; correlations "
        f"{correlations}.")
  if correlations[offset] < _LEAST:
    raise ValueError(_unlike(
        file, scores, offset, images, reference, correlations[offset]))
  return SharedScores(scores, tap.classes, offset, correlations[offset])


def other_range(
    file: FileTensors, shared: SharedScores, teacher: keras.Model,
    images: np.ndarray,
) -> str:
  """Checks whether a file's scores follow a teacher's better in another range.

  Args:
    file: the file.
    shared: its scores.
    teacher: a `tf_keras` model.
    images: images in the teacher's range; the first 32 are used.

  Returns:
    A sentence that names the better range; "" for none.
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
  """Returns an error text for scores that do not follow the teacher's."""
  return (
      "tflite_model is not this teacher's, or takes images of another range, "
      f"or has its classes in another order: its scores ({scores}) correlate "
      f"with the teacher's by {correlation:.2f} only, on {len(images)} images."
      + _better_range(file, scores, offset, images, reference, _HIT))
