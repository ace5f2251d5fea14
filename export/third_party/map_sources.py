"""The roads to a map of a third party's .tflite file."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.export.tensors.file_tensors import (
  FileTensor,
  FileTensors,
)
from keras_attr_preserve.export.tensors.find_tensor import find_tensor
from keras_attr_preserve.export.third_party.class_scores import ClassScores
from keras_attr_preserve.export.third_party.file_head import (
  file_head,
  last_features,
)
from keras_attr_preserve.export.third_party.shared_classes import (
  SharedScores,
  other_range,
)
from keras_attr_preserve.export.third_party.teacher_tail import TeacherTail
from keras_attr_preserve.models.layers import (
  last_spatial_layer,
  layer_output,
  locate,
  unwrapped_name,
)
from keras_attr_preserve.training.wcam import WCAM

__all__ = ["Road", "road_by_place", "road_by_teacher"]

_IMAGES = 16


@dataclasses.dataclass(frozen=True)
class Road:
  """How features become a map.

  Attributes:
    name: "features", "head" or "teacher's tail".
    features: the tensor.
    shape: height, width and channels of the features.
    sensitivity: maps features, weights of the logits in the shared classes, and
      images to `[images, channels]`; None where no class matters.
    source: the road in words.
  """

  name: str
  features: FileTensor
  shape: tuple[int, ...]
  sensitivity: Callable[..., np.ndarray] | None
  source: str


def road_by_teacher(
    file: FileTensors,
    scores: SharedScores,
    teacher: keras.Model,
    wcam: WCAM,
    images: np.ndarray,
    tensor: int | str | None,
) -> Road:
  """Chooses the road of a file that has a teacher.

  Args:
    file: the file.
    scores: its class scores.
    teacher: a `tf_keras` model.
    wcam: its layer and the method.
    images: images in the teacher's range; the first 16 identify the tensor.
    tensor: the tensor of the features; None to search for it.

  Returns:
    The road.

  Raises:
    ValueError: the features are not found, or no road leads from them.
  """
  layer, numbers = wcam.layers[0], ""
  try:
    match = find_tensor(file, teacher, layer, images[:_IMAGES])
  except ValueError as error:
    match, numbers = None, str(error)
  if tensor is not None:
    named = file.find(tensor)
    if match is None or match.tensor.index != named.index:
      return _by_own_head(file, scores, wcam.method, named, "given by number",
                          numbers)
  if match is None:
    return _at_the_same_place(file, scores, teacher, wcam, images, numbers)
  shape = tuple(layer_output(*locate(teacher, layer)).shape[1:])
  source = f"features: {match}"
  if wcam.method == "ewa":
    return Road("features", match.tensor, shape, None, source)
  head = file_head(file, match.tensor, scores.file.logits)
  if head is not None:
    return _head_road(match.tensor, head, scores, source)
  try:
    tail = TeacherTail(teacher, layer)
  except (TypeError, ValueError) as error:
    raise ValueError(
        f"no road leads from layer {layer!r} to a map: what follows it in the "
        f"file is more than pooling and linear layers, and {error} Ask for "
        "black_box='occlusion', for method 'ewa', or for a later layer."
    ) from error
  return Road(
      "teacher's tail", match.tensor, shape, tail.sensitivity,
      f"{source}; sensitivity: of the teacher's tail, in floats, at the file's "
      "features")


def road_by_place(
    file: FileTensors, scores: ClassScores, method: str,
    tensor: int | str | None,
) -> Road | None:
  """Chooses the road of a file without a teacher.

  Args:
    file: the file.
    scores: its class scores.
    method: "swa" or "ewa".
    tensor: the tensor of the features; None to search for it.

  Returns:
    The road; None where only a black box remains.

  Raises:
    ValueError: no road leads from the given tensor.
  """
  if tensor is not None:
    return _by_own_head(file, SharedScores(scores, scores.classes), method,
                        file.find(tensor), "given by number", "")
  features = last_features(file, scores.logits)
  if features is None:
    return None
  try:
    return _by_own_head(file, SharedScores(scores, scores.classes), method,
                        features, "the last before the head", "")
  except ValueError:  # The head cannot be read; only scores remain.
    return None


def _at_the_same_place(
    file, scores, teacher, wcam, images, why: str) -> Road:
  """Takes the last features of a file that comes from another training."""
  layer = unwrapped_name(wcam.layers[0])
  features = last_features(file, scores.file.logits)
  if layer != last_spatial_layer(teacher) or features is None:
    raise ValueError(
        f"{why} Give `tensor` to name the features, or ask for "
        "black_box='occlusion'.")
  if not scores.correlation > 0:
    raise ValueError(f"{why} Nor are there images enough to tell by the class "
                     "scores whether the file is of another training.")
  better = other_range(file, scores, teacher, images)
  if better:
    raise ValueError(f"{why} Its scores say that it takes another range of "
                     f"images.{better}")
  return _by_own_head(
      file, scores, wcam.method, features, f"the last before the head, as "
      f"layer {layer!r} is the teacher's; their numbers are not the teacher's, "
      "so the file is of another training, or takes another range", why)


def _by_own_head(file, scores, method, features, how: str, why: str) -> Road:
  """Chooses the road from features without a teacher: by the file's head."""
  shape = features.spec.shape[1:]
  source = f"features: {features}, {how}"
  if len(shape) != 3:
    raise ValueError(
        f"tensor must be [1, height, width, channels]; {features} is "
        f"{list(features.spec.shape)}.")
  if method == "ewa":
    return Road("features", features, shape, None, source)
  head = file_head(file, features, scores.file.logits)
  if head is None:
    raise ValueError(
        f"no road leads from {features} to a map: what follows it is more than "
        "pooling and linear layers, and without a teacher whose numbers match "
        f"nothing says how. Ask for black_box='occlusion'. {why}")
  return _head_road(features, head, scores, source)


def _head_road(features, head, scores, source: str) -> Road:
  def sensitivity(values, weights, images):
    del images
    return head.sensitivity(values, scores.whole(weights))
  return Road("head", features, features.spec.shape[1:], sensitivity,
              f"{source}; sensitivity: of the file's own head")
