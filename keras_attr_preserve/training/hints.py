"""Hints: matching the whole features of inner layers beside the maps.

An attribution map shows where a layer responds, not its features there. A
student may match the maps of one layer by other features. Methods that use the
whole model, such as integrated gradients or occlusion, notice the difference.
Hints match the features, too.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_attr_preserve import map_formulas
from keras_attr_preserve.compat import at_least_float32, keras, tf
from keras_attr_preserve.models.layers import stage_ends
from keras_attr_preserve.training.wcam import (
    Schedule,
    check_weight,
    layer_pairs,
)

__all__ = ["Hints", "feature_distance"]

POSITIONS = 14
"""Features are pooled to this height and width before positions are compared.
It is the size of the last stage but one of an ImageNet model."""


class Hints:
  """Settings of hints: which layers' features to match, and how strongly.

      PreserveAttribution(teacher, WCAM("relu5"), hints=Hints())

  The loss term is `weight * mean over layers of feature_distance`. Channels are
  compared with channels if teacher and student have equally many. This is so
  after weight pruning, quantization and clustering. For a student without some
  filters, `channels` names the remaining channels:

      student, channels = prune_filters(teacher, 0.5, return_channels=True)
      PreserveAttribution(
          teacher, WCAM("relu5"), hints=Hints(channels=channels))

  In any other thinner student, positions are compared with positions.

  It holds no state: one instance may serve several models.

  References:
    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets",
    https://arxiv.org/abs/1412.6550. They use a squared distance through a
    learned regressor; here it is a cosine without one.
  """

  agreement = None  # `Weighting` reads it: hints have no agreement to reach.

  def __init__(
      self,
      layer: str | Sequence[str] | None = None,
      *,
      weight: float | str | Schedule = "auto",
      student_layer: str | Sequence[str] | None = None,
      channels: Mapping[str, Sequence[int]] | None = None,
  ):
    """Checks and keeps the settings.

    Args:
      layer: the teacher's layer, or several. None takes the last layer of each
        of the four smallest sizes of maps; see `stage_ends`.
      weight: factor of the distance in the loss, 0 or more. "auto" is the
        weight of the maps in the same step. Without maps, "auto" is in
        proportion to the rest of the loss. Or a Keras learning rate schedule,
        called with the number of the step.
      student_layer: the student's layers, where their names differ.
      channels: by name of the teacher's layer, the numbers, from 0, of the
        channels that the student still has, in order; as `prune_filters` gives.
        Other layers have all their channels, or different channels.

    Raises:
      TypeError, ValueError: a setting is not as above.
    """
    if layer is None and student_layer is not None:
      raise ValueError(
          "student_layer needs layer, the teacher's layers that it stands for.")
    self._layers, self._student_layers = (
        ((), ()) if layer is None else layer_pairs(layer, student_layer))
    self.weight = check_weight(weight)
    self._channels = _checked({} if channels is None else channels)

  def layers(self, teacher: keras.Model) -> tuple[str, ...]:
    """Names the teacher's layers."""
    return self._layers or stage_ends(teacher)

  def student_layers(self, teacher: keras.Model) -> tuple[str, ...]:
    """Names the student's layers, in the order of the teacher's."""
    return self._student_layers or stage_ends(teacher)

  def check(
      self, layers: Sequence[str], teacher: Sequence[tuple],
      student: Sequence[tuple]) -> None:
    """Raises a ValueError if shapes of features do not fit each other.

    Args:
      layers: names of the teacher's layers.
      teacher: for each of them `(None, height, width, channels)`.
      student: the same for the student; channels may differ.
    """
    for name, shape, other in zip(layers, teacher, student, strict=True):
      if tuple(shape[1:3]) != tuple(other[1:3]):
        raise ValueError(
            "hints need layers of the same height and width in teacher and "
            f"student; got {tuple(shape[1:3])} and {tuple(other[1:3])}. Name "
            "others with layer and student_layer.")
      numbers = self._channels.get(name)
      if numbers is not None and (
          len(numbers) != other[-1]
          or np.max(numbers, initial=0) >= shape[-1]):
        raise ValueError(
            f"channels must name, of layer {name!r}, {other[-1]} of "
            f"{shape[-1]} channels, as many as the student has; got "
            f"{len(numbers)}, up to number {np.max(numbers, initial=0)}.")

  def distance(
      self, layers: Sequence[str], teacher: Sequence[tf.Tensor],
      student: Sequence[tf.Tensor]) -> tf.Tensor:
    """Compares the features of two models on the same images.

    Args:
      layers: names of the teacher's layers.
      teacher: for each of them `[batch, height, width, channels]`.
      student: the same for the student; channels may differ.

    Returns:
      The mean distance over the layers, `[batch]`, in 0..2.
    """
    distances = []
    for name, features, other in zip(layers, teacher, student, strict=True):
      numbers = self._channels.get(name)
      distances.append(feature_distance(
          features if numbers is None
          else tf.gather(features, numbers, axis=-1), other))
    return tf.add_n(distances) / len(distances)


def feature_distance(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
  """Computes 1 - cosine of the whole features of each image.

  With equally many channels, the features are compared as one long vector.
  Otherwise `A A^T` is compared: the products of every two positions of
  `A [positions, channels]`. Its size does not depend on the channels. The
  distance is then 0 for features that differ by a rotation of the channels and
  a factor. Features above 14x14 are averaged down to 14x14 first.

  Args:
    teacher: `[batch, height, width, channels]`; no gradient comes from it.
    student: `[batch, height, width, channels]`, of the same height and width.

  Returns:
    `[batch]`, in 0..2; for features that are all zero see `map_distance`.

  References:
    Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, section 2: the
    cosine of the two products is their linear CKA without centering.
  """
  teacher, student = (
      at_least_float32(features)
      for features in (tf.stop_gradient(teacher), student))
  prepare = (_as_map if teacher.shape[-1] == student.shape[-1]
             else _products)
  return map_formulas.map_distance(
      tf.cast(prepare(teacher), student.dtype), prepare(student))


def _as_map(features: tf.Tensor) -> tf.Tensor:
  shape = tf.shape(features)
  return tf.reshape(features, [shape[0], shape[1], shape[2] * shape[3]])


def _products(features: tf.Tensor) -> tf.Tensor:
  sides = [-(-(length or 1) // POSITIONS) for length in features.shape[1:3]]
  if max(sides) > 1:
    features = tf.nn.avg_pool2d(features, sides, sides, "SAME")
  shape = tf.shape(features)
  rows = tf.reshape(features, [shape[0], shape[1] * shape[2], shape[3]])
  return tf.matmul(rows, rows, transpose_b=True)


def _checked(channels: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
  """Checks and copies the numbers of channels."""
  if not isinstance(channels, Mapping):
    raise TypeError(
        "channels must map names of layers to numbers of channels; got "
        f"{type(channels)}.")
  checked = {}
  for name, numbers in channels.items():
    array = np.array(numbers)
    if (array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)
        or np.min(array, initial=0) < 0
        or len(np.unique(array)) < len(array)):
      raise ValueError(
          "channels must have, for each layer, a list of different integers "
          f"from 0 up; got {numbers!r} for {name!r}.")
    checked[name] = array
  return checked
