"""Explaining .tflite files that others have made.

Such a file has no signatures of ours: where its features and class scores are
must be found, and the road that leads to a map be chosen. `source` tells both.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.occlusion import occlusion
from keras_attr_preserve.attribution.rise import rise
from keras_attr_preserve.compat import check_model, keras
from keras_attr_preserve.export.runtime.interpreter import Explanation
from keras_attr_preserve.export.runtime.known_facts import (
  file_metadata,
  known_wcam,
)
from keras_attr_preserve.export.tensors.file_tensors import (
  FileTensor,
  FileTensors,
)
from keras_attr_preserve.export.third_party.class_scores import ClassScores
from keras_attr_preserve.export.third_party.map_sources import (
  Road,
  road_by_place,
  road_by_teacher,
)
from keras_attr_preserve.export.third_party.shared_classes import (
  SharedScores,
  shared_scores,
)
from keras_attr_preserve.models.inputs import ImageInput, model_input
from keras_attr_preserve.models.scores import class_weights, top_classes
from keras_attr_preserve.training.wcam import WCAM, check_wcam

__all__ = ["BLACK_BOXES", "ForeignExplainer", "explainer"]

BLACK_BOXES = {
    "occlusion": occlusion,
    "rise": functools.partial(rise, masks=500, centred=True),
}


def explainer(
    tflite_model: bytes | str | os.PathLike,
    *,
    teacher: keras.Model | None = None,
    wcam: WCAM | None = None,
    images: np.ndarray | None = None,
    tensor: int | str | None = None,
    output: int | str | None = None,
    black_box: str | None = None,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    class_offset: int | None = None,
    runtime: str = "xnnpack",
    signature: str | None = None,
) -> "ForeignExplainer":
  """Prepares to explain a classifier that somebody else has converted.

      foreign = kap.export.explainer(
          "vww_96_int8.tflite", teacher=net, wcam=wcam, images=images)
      maps, logits = foreign.explain(images)
      print(foreign.source)

  Roads, the first that is open:

  - With a teacher, the tensor of the WCAM's layer is found by its numbers (see
    `find_tensor`), and the map is put together from the file's own features
    and the weights of its own head. Where more than pooling and linear layers
    follows, the sensitivity is that of the teacher's tail, in floats, at the
    file's features.
  - Without one, or if the file is of another training, the file's last features
    before its head are taken, with the weights of that head.
  - Without a teacher, where no head can be read: black box, by occlusion.

  Args:
    tflite_model: the file's bytes or path.
    teacher: the `tf_keras` model it is held against; not changed.
    wcam: the teacher's layer, the first one counts, and the method; None for
      the last features and "swa", only without a teacher. A file that `convert`
      made says layer and method itself, and no others may be given.
    images: `[images, ...]`, eight real ones or more, in the teacher's range, by
      whose numbers tensors are found; needed with a teacher.
    tensor: the number or name of the tensor with the features, in place of the
      search.
    output: the number or name of the output with the class scores; needed where
      several could be.
    black_box: "occlusion" or "rise", to ask for that road.
    preprocess: turns images as the caller has them into what the file stands
      for; see `FileTensors`.
    class_offset: which of the file's classes is the teacher's class 0; None to
      find it out.
    runtime: see `Interpreter`.
    signature: which way to call the file; None for the only one.

  Returns:
    What explains the file.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above; the runtime refuses the
      file; its class scores are not found or do not follow the teacher's; or no
      road is open.
    ImportError: runtime "tflm" without the package tflite-micro.
  """
  if black_box is not None and black_box not in BLACK_BOXES:
    raise ValueError(
        f"black_box must be one of {tuple(BLACK_BOXES)}; got {black_box!r}.")
  if (teacher is None) != (images is None):
    raise ValueError("teacher and images must be given together: tensors are "
                     "found by what both give of the same images.")
  if teacher is not None:
    images = model_input(check_model(teacher, "teacher")).check(images)
  if wcam is not None:
    check_wcam(wcam)
  if isinstance(tflite_model, (str, os.PathLike)):
    tflite_model = Path(tflite_model).read_bytes()
  ours = file_metadata(tflite_model)
  if ours is not None and tensor is None and black_box is None:
    if wcam is None and teacher is None:
      raise ValueError(
          "tflite_model was made by kap.export.convert and says itself that it "
          f"explains layer {ours['layer']!r}: take kap.export.Interpreter, or "
          "name a tensor or a black_box.")
    wcam = known_wcam(ours, wcam)
  if wcam is None and teacher is not None and black_box is None:
    raise ValueError("wcam must say which of the teacher's layers is "
                     "explained; got None.")
  file = FileTensors(tflite_model, runtime=runtime, signature=signature,
                     preprocess=preprocess)
  file.load(file.outputs[:1])  # A runtime that refuses the file says so now.
  scores = shared_scores(file, teacher, images, output, class_offset)
  method = "swa" if wcam is None else wcam.method
  if black_box is not None:
    road = None
  elif teacher is not None:
    road = road_by_teacher(file, scores, teacher, wcam, images, tensor)
  else:
    road = road_by_place(file, scores.file, method, tensor)
  if road is None and not file.image_input.is_picture:
    raise ValueError(
        "tflite_model must take pictures, of a height and a width, to be "
        f"explained as a black box; it takes {list(file.image_shape)}.")
  return ForeignExplainer(file, scores, road, method, black_box or "occlusion")


class ForeignExplainer:
  """Explains a file of somebody else's, floats in and out.

  Made by `explainer`; it has the methods of `Interpreter`.

  Attributes:
    source: where maps and scores come from, in words.
    road: "head", "teacher's tail", "features" (of method "ewa") or
      "black box".
    method: "swa" or "ewa"; or "occlusion" or "rise".
    features: the tensor the maps are made of; None for a black box.
    classes: how many scores there are.
    logit_step: what the last bit of a logit is worth; 0 where it is a float.
    facts: all of it, and what the file's input can hold, for a report.
  """

  def __init__(
      self, file: FileTensors, scores: SharedScores, road: Road | None,
      method: str, black_box: str):
    self._file, self._scores, self._road = file, scores, road
    self.method = black_box if road is None else method
    self.road = "black box" if road is None else road.name
    self.features: FileTensor | None = None if road is None else road.features
    self.classes = scores.classes
    self.logit_step = float(scores.file.logits.spec.scale)
    how = f"black box ({self.method})" if road is None else road.source
    self.source = f"{how}; scores: {scores}"
    self.facts = {
        "mode": (self.features or scores.file.logits).spec.dtype.name,
        "method": self.method,
        "road": self.road,
        "source": self.source,
        "runtime": file.kernels,
        "input_range": list(file.input.range) if file.input.scale else None,
    }

  @property
  def gives_logits(self) -> bool:
    """Whether `predict` gives logits, since no softmax or sigmoid is last."""
    return not self._scores.file.squash

  @property
  def input(self) -> ImageInput:
    """What the file takes."""
    return self._file.image_input

  @property
  def input_shape(self) -> tuple[int | None, ...]:
    """The shape of one image; None where the file leaves a size open."""
    return self._file.image_shape

  def predict(self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Runs the file.

    Args:
      images: `[images, ...]`, in the teacher's range, or else in the one that
        the file stands for.
      logits: whether to return the scores before a softmax or sigmoid.

    Returns:
      Scores, float32 `[images, classes]`: the teacher's classes, where there is
      one.

    Raises:
      TypeError, ValueError: images of another shape or range, or with NaN.
    """
    scores: ClassScores = self._scores.file
    index = (scores.logits if logits else scores.output).index
    return self._scores.shared(self._file.read(images, [index])[index])

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Explains each image's score.

    Args:
      images: as for `predict`.
      targets: None for the file's top class, a class number, class numbers
        `[images]`, or float weights of the logits `[images, classes]`.

    Returns:
      Maps, in the size of the features or, of a black box, of the images; and
      logits.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    images = self.input.entry(images)
    wanted = [self._scores.file.logits.index]
    if self._road is not None:
      wanted.append(self._road.features.index)
    values = self._file.read(images, wanted)
    for index, numbers in values.items():
      if not np.isfinite(numbers).all():
        raise ValueError(
            f"tflite_model computes NaN or infinity from these images, in "
            f"{self._file.tensors[index]}, so that there is no map of it.")
    logits = self._scores.shared(values[wanted[0]])
    if targets is None:
      targets = top_classes(logits, True)
    weights = class_weights(targets, *logits.shape)
    if self._road is None:
      maps = BLACK_BOXES[self.method](
          functools.partial(self.predict, logits=True), images, weights,
          logits=True, data_format=self.input.data_format)
    else:
      maps = self._map(values[wanted[1]], weights, images)
    return Explanation(np.maximum(maps, 0).astype(np.float32), logits)

  def _map(self, features, weights, images):
    if features.ndim != 4:  # A size of 1 that the converter took out.
      features = features.reshape(len(features), *self._road.shape)
    if self.method == "ewa":
      return np.mean(features**2, axis=-1)
    sensitivity = self._road.sensitivity(features, weights, images)
    positions = np.prod(features.shape[1:3])
    return np.einsum("nhwc,nc->nhw", features, sensitivity / positions)
