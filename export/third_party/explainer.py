"""Explains .tflite files of third parties.

Such a file has none of this library's signatures. This module finds its
features and class scores, and chooses the road to a map. `source` tells both.
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
  """Prepares to explain a classifier that a third party has converted.

      foreign = kap.export.explainer(
          "vww_96_int8.tflite", teacher=model, wcam=wcam, images=images)
      maps, logits = foreign.explain(images)
      print(foreign.source)

  The function takes the first road that is open:

  - With a teacher, it finds the tensor of the WCAM's layer by its numbers (see
    `find_tensor`). The map comes from the file's features and the weights of
    the file's head. Where other layers than pooling and linear ones follow, the
    sensitivity is the teacher's tail's, in floats, at the file's features.
  - Without a teacher, or for a file of another training, it takes the file's
    last features before the head, and the weights of that head.
  - Without a teacher and a readable head: black box, by occlusion.

  Args:
    tflite_model: the file's bytes or path.
    teacher: the `tf_keras` model to compare with; not changed.
    wcam: names the teacher's layer (the first one counts) and the method. None
      means the last features and "swa", only without a teacher. A file made by
      `convert` names layer and method, and no others may be given.
    images: `[images, ...]`, eight real images or more, in the teacher's range.
      Their numbers identify tensors; needed with a teacher.
    tensor: the number or name of the tensor with the features; replaces the
      search.
    output: the number or name of the output with the class scores; needed where
      several outputs fit.
    black_box: "occlusion" or "rise", to choose that road.
    preprocess: turns the caller's images into the file's; see `FileTensors`.
    class_offset: the file's class that is the teacher's class 0; None to search
      for it.
    runtime: see `Interpreter`.
    signature: the name of the file's signature; None for the only one.

  Returns:
    The file's explainer.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above; the runtime refuses the
      file; its class scores are not found or do not follow the teacher's; or no
      road is open.
    ImportError: runtime "tflm" needs the package tflite-micro.
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
  facts = file_metadata(tflite_model)
  if facts is not None and tensor is None and black_box is None:
    if wcam is None and teacher is None:
      raise ValueError(
          "tflite_model was made by kap.export.convert and says itself that it "
          f"explains layer {facts['layer']!r}: take kap.export.Interpreter, or "
          "name a tensor or a black_box.")
    wcam = known_wcam(facts, wcam)
  if wcam is None and teacher is not None and black_box is None:
    raise ValueError("wcam must say which of the teacher's layers is "
                     "explained; got None.")
  file = FileTensors(tflite_model, runtime=runtime, signature=signature,
                     preprocess=preprocess)
  file.load(file.outputs[:1])  # Raises now if the runtime refuses the file.
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
  """Explains a third party's file, floats in and out.

  `explainer` makes it. It has the methods of `Interpreter`.

  Attributes:
    source: the origin of maps and scores, in words.
    road: "head", "teacher's tail", "features" (of method "ewa") or
      "black box".
    method: "swa" or "ewa"; or "occlusion" or "rise".
    features: the tensor that the maps are made from; None for a black box.
    classes: the number of scores.
    logit_step: the value of a logit's last bit; 0 for a float logit.
    facts: mode, method, road, source, runtime and input range, for a report.
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
    """The file's input."""
    return self._file.image_input

  @property
  def input_shape(self) -> tuple[int | None, ...]:
    """The shape of one image; None where the file leaves a size open."""
    return self._file.image_shape

  def predict(self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Runs the file.

    Args:
      images: `[images, ...]`, in the teacher's range; without a teacher, in the
        file's.
      logits: whether to return the scores before a softmax or sigmoid.

    Returns:
      Scores, float32 `[images, classes]`; with a teacher, of its classes.

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
      Maps and logits. Maps have the size of the features; those of a black box,
      the size of the images.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    images = self.input.entry(images)
    indices = [self._scores.file.logits.index]
    if self._road is not None:
      indices.append(self._road.features.index)
    values = self._file.read(images, indices)
    for index, numbers in values.items():
      if not np.isfinite(numbers).all():
        raise ValueError(
            f"tflite_model computes NaN or infinity from these images, in "
            f"{self._file.tensors[index]}, so that there is no map of it.")
    logits = self._scores.shared(values[indices[0]])
    if targets is None:
      targets = top_classes(logits, True)
    weights = class_weights(targets, *logits.shape)
    if self._road is None:
      maps = BLACK_BOXES[self.method](
          functools.partial(self.predict, logits=True), images, weights,
          logits=True, data_format=self.input.data_format)
    else:
      maps = self._map(values[indices[1]], weights, images)
    return Explanation(np.maximum(maps, 0).astype(np.float32), logits)

  def _map(self, features, weights, images):
    if features.ndim != 4:  # The converter dropped a size of 1.
      features = features.reshape(len(features), *self._road.shape)
    if self.method == "ewa":
      return np.mean(features**2, axis=-1)
    sensitivity = self._road.sensitivity(features, weights, images)
    positions = np.prod(features.shape[1:3])
    return np.einsum("nhwc,nc->nhw", features, sensitivity / positions)
