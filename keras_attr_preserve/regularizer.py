"""What to match: which layers, which map, for which class, how strongly."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_attr_preserve import wcam
from keras_attr_preserve.compat import at_least_float32, tf
from keras_attr_preserve.layers import Tapped, sensitivities, top_class_seed

__all__ = ["WCAM", "Match", "check_wcam"]

_METHODS = ("swa", "ewa")
_TARGETS = ("teacher", "label", "present")


class Match(NamedTuple):
  """How a student's maps stand against the teacher's, image by image.

  Attributes:
    distance: 1 - cosine, `[batch]`; the mean over layers and explained classes.
    agreement: cosine, `[batch]`; 0 where only the student's map is all zero.
    dead: share of the student's maps that are all zero, `[batch]`.
    valid: share of the teacher's maps that are alive, `[batch]`; agreement and
      dead speak of these alone.
  """

  distance: tf.Tensor
  agreement: tf.Tensor
  dead: tf.Tensor
  valid: tf.Tensor


def check_wcam(wcam: Any) -> "WCAM":
  """Returns `wcam` if it is a WCAM, and raises TypeError if it is not."""
  if not isinstance(wcam, WCAM):
    raise TypeError(f"wcam must be a WCAM; got {wcam!r}.")
  return wcam


class WCAM:
  """Settings of weighted collapsed attribution map matching.

      wcam = WCAM("relu5", method="swa", weight=4.0, drop_rate=0.3)

  It holds no state: one may serve several models.
  """

  def __init__(
      self,
      layer: str | Sequence[str],
      *,
      method: str = "swa",
      weight: float = 4.0,
      drop_rate: float = 0.0,
      student_layer: str | Sequence[str] | None = None,
      target: str = "teacher",
  ):
    """Checks and keeps the settings.

    Args:
      layer: the teacher's layer, or several, whose maps are held; best a late
        one, after its activation. In the student the layer of the same name is
        found also behind tfmot's wrappers.
      method: "swa", the features weighted by the sensitivity of a score (the
        map is Grad-CAM's), or "ewa", their mean square (needs no gradient).
      weight: factor of (1 - cosine) in the loss, 0 or more; 0 only observes.
        The paper's 100 on 7x7 maps is 4.08 here.
      drop_rate: share of the teacher's channels left out of its map, drawn anew
        each step; the paper uses 0.3 for its stochastic variant. In 0..1,
        1 excluded.
      student_layer: the student's layers, where their names differ.
      target: the class explained. "teacher": the teacher's top class. "label":
        the label (class number or one-hot). "present": every class that a
        multi-hot label marks, each with its own map; it costs a pass through
        the tail for every class, so mind a head of very many classes.

    Raises:
      TypeError, ValueError: a setting is not one of the above.
    """
    self.layers = _names(layer, "layer")
    self.student_layers = (
        self.layers if student_layer is None
        else _names(student_layer, "student_layer"))
    if len(self.layers) != len(self.student_layers):
      raise ValueError(
          f"student_layer must name one layer for each of layer's "
          f"{len(self.layers)}; got {len(self.student_layers)}.")
    if method not in _METHODS:
      raise ValueError(f"method must be one of {_METHODS}; got {method!r}.")
    if target not in _TARGETS:
      raise ValueError(f"target must be one of {_TARGETS}; got {target!r}.")
    if not 0 <= weight < float("inf"):
      raise ValueError(f"weight must be a number of 0 or more; got {weight}.")
    if not 0 <= drop_rate < 1:
      raise ValueError(f"drop_rate must be in [0, 1); got {drop_rate}.")
    self.method = method
    self.weight = float(weight)
    self.drop_rate = float(drop_rate)
    self.target = target

  def seeds(
      self, teacher_logits: tf.Tensor, labels: Any
  ) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Says which scores are explained.

    A head of one logit has two classes: the score of class 0 is its negative.

    Args:
      teacher_logits: `[batch, classes]`.
      labels: the batch's labels; class numbers `[batch]` or `[batch, 1]`, or
        one-hot or multi-hot `[batch, classes]`.

    Returns:
      A list, one entry per explained class: the score as weights of the logits
      `[batch, classes]`, and 1 or 0 `[batch]` for whether the image has it.

    Raises:
      ValueError: the labels do not fit the target.
    """
    classes = teacher_logits.shape[-1]
    everyone = tf.ones(tf.shape(teacher_logits)[:1])
    if self.target == "teacher":
      return [(top_class_seed(teacher_logits), everyone)]
    labels = _labels(labels, self.target)
    if self.target == "label":
      return [(_label_seed(labels, classes), everyone)]
    if labels.shape.rank != 2 or labels.shape[-1] != classes:
      raise ValueError(
          f"target 'present' needs multi-hot labels [batch, {classes}]; got "
          f"labels of shape {labels.shape}. For class numbers use 'label'.")
    present = tf.cast(labels > 0.5, tf.float32)
    return [(tf.broadcast_to(tf.one_hot(k, classes), tf.shape(teacher_logits)),
             present[:, k]) for k in range(classes)]

  def match(
      self,
      teacher_tape: tf.GradientTape,
      teacher: Tapped,
      student_tape: tf.GradientTape,
      student: Tapped,
      labels: Any = None,
      drop_seed: tf.Tensor | None = None,
  ) -> Match:
    """Compares the maps of two nets on one batch.

    Args:
      teacher_tape: the persistent tape of the teacher's forward pass.
      teacher: the teacher's features and logits.
      student_tape: the persistent tape of the student's forward pass.
      student: the student's features and logits.
      labels: needed for the targets "label" and "present".
      drop_seed: two integers for stochastic matching; None matches every
        channel, as when judging.

    Returns:
      A `Match`; gradients reach the student alone.
    """
    pairs = []
    for seed, present in self.seeds(tf.stop_gradient(teacher.logits), labels):
      teacher_maps = self._maps(teacher_tape, teacher, seed, drop_seed)
      student_maps = self._maps(student_tape, student, seed)
      pairs += [_compare(tf.stop_gradient(one), other, present)
                for one, other in zip(teacher_maps, student_maps)]
    present, distance, agreement, dead, valid = map(
        tf.add_n, zip(*pairs, strict=True))
    return Match(
        tf.math.divide_no_nan(distance, present),
        tf.math.divide_no_nan(agreement, valid),
        tf.math.divide_no_nan(dead, valid),
        tf.math.divide_no_nan(valid, present))

  def _maps(
      self,
      tape: tf.GradientTape,
      tapped: Tapped,
      seed: tf.Tensor,
      drop_seed: tf.Tensor | None = None,
  ) -> list[tf.Tensor]:
    """Returns one `[batch, height, width]` map for each layer."""
    features = [at_least_float32(one) for one in tapped.features]
    if drop_seed is not None:
      features = [wcam.drop_channels(one, self.drop_rate, drop_seed + [0, i])
                  for i, one in enumerate(features)]
    if self.method == "ewa":
      return [wcam.equal_weighted_map(one) for one in features]
    weights = sensitivities(tape, tapped, seed)
    return [wcam.sensitivity_weighted_map(one, at_least_float32(weight))
            for one, weight in zip(features, weights)]


def _compare(teacher_map, student_map, present):
  """Returns present, distance, agreement, dead and valid of one class."""
  teacher_map = tf.cast(teacher_map, student_map.dtype)
  present = tf.cast(present, student_map.dtype)
  alive = tf.where(
      tf.reduce_max(teacher_map, [1, 2]) > 0, present, tf.zeros_like(present))
  dead = tf.where(
      tf.reduce_max(student_map, [1, 2]) > 0, tf.zeros_like(alive), alive)
  distance = wcam.map_distance(teacher_map, student_map) * present
  return present, distance, (alive - dead) * (1 - distance), dead, alive


def _names(layer: str | Sequence[str], argument: str) -> tuple[str, ...]:
  names = (layer,) if isinstance(layer, str) else layer
  names = tuple(names) if isinstance(names, Sequence) else ()
  if not names or not all(isinstance(name, str) and name for name in names):
    raise TypeError(
        f"{argument} must be a layer's name or a list of names; got {layer!r}.")
  return names


def _labels(labels: Any, target: str) -> tf.Tensor:
  if labels is None or isinstance(labels, dict):
    raise ValueError(
        f"target {target!r} needs labels, a tensor; got {type(labels)}.")
  return tf.cast(labels, tf.float32)


def _label_seed(labels: tf.Tensor, classes: int) -> tf.Tensor:
  if classes == 1:
    return tf.where(tf.reshape(labels, [-1, 1]) > 0.5, 1.0, -1.0)
  if labels.shape.rank == 2 and labels.shape[-1] == classes:
    return tf.one_hot(tf.argmax(labels, axis=-1), classes)
  return tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), classes)
