"""The settings of map matching: layers, method, explained class, weight."""

import contextlib
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras_attr_preserve import map_formulas
from keras_attr_preserve.compat import at_least_float32, tf
from keras_attr_preserve.models.gradient_rules import compiled_by_xla
from keras_attr_preserve.models.scores import top_class_seed
from keras_attr_preserve.models.tap import Tapped, sensitivities

__all__ = ["WCAM", "Guide", "Match", "Schedule", "Seeds", "check_wcam",
           "check_weight", "layer_pairs"]

_METHODS = ("swa", "ewa")
_TARGETS = ("teacher", "top_k", "label", "present", "all", "score")

Schedule = Callable[[tf.Tensor], Any]


class Guide(NamedTuple):
  """A teacher's logits, maps and features for a batch, without gradients.

  Attributes:
    logits: `[batch, classes]`.
    maps: of each layer, `[slots, batch, height, width]`; see `Seeds`. Empty
      slots at the end may be left out.
    features: of each layer of hints, `[batch, height, width, channels]`.
  """

  logits: tf.Tensor
  maps: list[tf.Tensor]
  features: Sequence[tf.Tensor] = ()


class Seeds(NamedTuple):
  """The explained scores of a batch: one class per image and slot.

  An image with fewer classes than slots fills its first slots.

  Attributes:
    numbers: the class, `[batch, slots]`, integers.
    weights: 1; -1 for the negative of a logit; 0 for an empty slot;
      `[batch, slots]`, float32.
    classes: the number of logits.
  """

  numbers: tf.Tensor
  weights: tf.Tensor
  classes: int

  @property
  def slots(self) -> int:
    """The most classes that an image may have."""
    return self.numbers.shape[1]

  def seed(self, k: Any) -> tf.Tensor:
    """Returns a slot's scores as weights of the logits, `[batch, classes]`."""
    return tf.stop_gradient(tf.one_hot(
        self.numbers[:, k], self.classes) * self.weights[:, k, None])

  def explain(
      self, one_slot: Callable[[tf.Tensor], Sequence[tf.Tensor]],
      specs: Sequence[tf.TensorSpec]) -> list[tf.Tensor]:
    """Calls a function for each slot that an image of the batch fills.

    The time depends on the number of filled slots; the graph has one size for
    any number of slots. XLA takes no sizes from the data, so there both depend
    on the number of all slots.

    Args:
      one_slot: takes a slot's weights of the logits, `[batch, classes]`, and
        returns tensors.
      specs: of the tensors.

    Returns:
      Each tensor, with the slots as another first dimension. Empty slots at the
      end may be left out.
    """
    if self.slots == 1 or compiled_by_xla():
      each = [one_slot(self.seed(k)) for k in range(self.slots)]
      return [tf.stack(tensors) for tensors in zip(*each)]
    filled = tf.reduce_max(
        tf.math.count_nonzero(self.weights, axis=1, dtype=tf.int32))
    # A loop, since tf.vectorized_map is traced anew in each eager step and
    # lacks depthwise convolutions.
    # At least one slot, also for an empty batch or one without classes.
    return tf.map_fn(
        lambda k: [*one_slot(self.seed(k))], tf.range(tf.maximum(filled, 1)),
        fn_output_signature=[*specs])


class Match(NamedTuple):
  """The comparison of a student's maps with the teacher's, image by image.

  Each is `[batch, layers]`, a mean over the explained classes.

  Attributes:
    distance: the term for the loss: 1 - cosine, or a baseline's multiple of it.
    agreement: cosine; 0 if only the student's map is all zero.
    dead: share of the student's maps that are all zero.
    valid: share of the teacher's maps that are not all zero. Only these count
      for agreement and dead.
    explained: 1, or 0 if the image has no explained class.
  """

  distance: tf.Tensor
  agreement: tf.Tensor
  dead: tf.Tensor
  valid: tf.Tensor
  explained: tf.Tensor


def check_wcam(wcam: Any) -> "WCAM":
  """Returns `wcam` if it is a WCAM, and raises TypeError if it is not."""
  if not isinstance(wcam, WCAM):
    raise TypeError(f"wcam must be a WCAM; got {wcam!r}.")
  return wcam


class WCAM:
  """Settings of weighted collapsed attribution map matching.

      wcam = WCAM("relu5", method="swa", weight=4.0, drop_rate=0.3)

  It holds no state: one instance may serve several models.
  """

  def __init__(
      self,
      layer: str | Sequence[str],
      *,
      method: str = "swa",
      weight: float | str | Schedule = "auto",
      agreement: float | None = None,
      layer_weights: Sequence[float] | None = None,
      drop_rate: float = 0.0,
      student_layer: str | Sequence[str] | None = None,
      target: str = "teacher",
      top_k: int = 3,
  ):
    """Checks and keeps the settings.

    Args:
      layer: the teacher's layer, or several, whose maps are matched. Best is a
        late layer, after its activation. The student's layer of the same name
        is also found inside tfmot's wrappers and nested models.
      method: "swa", the features weighted by the sensitivity of a score (the
        map is Grad-CAM's), or "ewa", their mean square (needs no gradient).
      weight: factor of (1 - cosine) in the loss, 0 or more; 0 only observes.
        The paper's 100 on 7x7 maps is 4.08 here. "auto" is in proportion to the
        rest of the loss (see `loss_weight.AUTO`), and serves losses of any
        size. Or a Keras learning rate schedule, called with the number of the
        step.
      agreement: a cosine to reach, in 0..1, both excluded. `weight` is then
        only the start. The weight rises while the maps agree less and falls
        while they agree more; see `AgreementConstraint`. None keeps `weight`.
      layer_weights: how much each layer counts, in `layer`'s order; scaled to
        sum to 1. None counts all alike.
      drop_rate: share of the teacher's channels left out of its map, drawn anew
        each step; the paper uses 0.3 for its stochastic variant. In 0..1,
        1 excluded.
      student_layer: the student's layers, where their names differ.
      target: the explained class.
        "teacher": the teacher's top class.
        "top_k": each of the teacher's `top_k` top classes.
        "label": the label (class number or one-hot).
        "present": every class that a multi-hot label marks.
        "all": every class.
        "score": the score itself of a regression with one output.
        Each class of an image has its own map. The image with the most classes
        sets a batch's number of passes through the tail. If XLA compiles the
        step, every class takes a pass.
      top_k: how many classes "top_k" explains.

    Raises:
      TypeError, ValueError: a setting is not as above.
    """
    self.layers, self.student_layers = layer_pairs(layer, student_layer)
    if method not in _METHODS:
      raise ValueError(f"method must be one of {_METHODS}; got {method!r}.")
    if target not in _TARGETS:
      raise ValueError(f"target must be one of {_TARGETS}; got {target!r}.")
    if not isinstance(top_k, int) or top_k < 1:
      raise ValueError(f"top_k must be a number of 1 or more; got {top_k!r}.")
    if not 0 <= drop_rate < 1:
      raise ValueError(f"drop_rate must be in [0, 1); got {drop_rate}.")
    self.weight = check_weight(weight, agreement)
    self.agreement = agreement
    self.layer_weights = _layer_weights(layer_weights, len(self.layers))
    self.method = method
    self.drop_rate = float(drop_rate)
    self.target = target
    self.top_k = top_k

  @property
  def needs_labels(self) -> bool:
    """Whether the explained class comes from the labels."""
    return self.target in ("label", "present")

  @property
  def needs_gradient(self) -> bool:
    """Whether the map needs the gradient of a score."""
    return self.method != "ewa"

  def tape(self) -> contextlib.AbstractContextManager[tf.GradientTape | None]:
    """Returns a tape for the forward pass, for `guide` and `match`.

    The tape records from the features on (see `Tap.__call__`). It is persistent
    to serve several classes. It is None if no gradient is needed.
    """
    if not self.needs_gradient:
      return contextlib.nullcontext()
    # Other recorded operations would run, as zeros, in each turn of a loop.
    return tf.GradientTape(persistent=True, watch_accessed_variables=False)

  def slots(self, classes: int) -> int:
    """Returns the most maps of one layer that one image may have.

    Args:
      classes: the number of scores of both models.

    Returns:
      How many classes are explained at most.

    Raises:
      ValueError: the target does not fit so many classes.
    """
    if self.target == "score" and classes != 1:
      raise ValueError(
          f"target 'score' needs a model of one output; it has {classes}. For "
          "classes use 'teacher'.")
    if self.target == "top_k" and self.top_k > classes:
      raise ValueError(
          f"top_k must be at most the model's {classes} classes; got "
          f"{self.top_k}.")
    if not self.needs_gradient:
      return 1  # The map is the same for every class.
    return {"top_k": self.top_k, "present": classes,
            "all": classes}.get(self.target, 1)

  def seeds(self, teacher_logits: tf.Tensor, labels: Any) -> Seeds:
    """Returns the explained scores.

    A head of one logit has two classes: the score of class 0 is its negative.

    Args:
      teacher_logits: `[batch, classes]`.
      labels: the batch's labels; class numbers `[batch]` or `[batch, 1]`, or
        one-hot or multi-hot `[batch, classes]`.

    Returns:
      The classes, in `slots` slots.

    Raises:
      ValueError: the labels or the number of classes do not fit the target.
    """
    classes = teacher_logits.shape[-1]
    slots = self.slots(classes)
    batch = tf.shape(teacher_logits)[0]
    if self.target == "top_k" and classes > 1:
      numbers = tf.math.top_k(teacher_logits, slots).indices
    elif self.target in ("all", "score"):
      numbers = tf.tile(tf.range(slots)[None], [batch, 1])
    elif self.target == "present":
      marks = _marks(_labels(labels, self.target), classes)
      # Marked classes first, in order.
      marks, numbers = tf.math.top_k(marks, slots)
      return Seeds(numbers, marks, classes)
    else:
      seed = (top_class_seed(teacher_logits)
             if self.target in ("teacher", "top_k")
             else _label_seed(_labels(labels, self.target), classes))
      # The weights are one-hot, or a sign: take the position and the value.
      numbers = tf.argmax(tf.abs(seed), axis=-1, output_type=tf.int32)[:, None]
      return Seeds(
          numbers, tf.reduce_sum(seed, axis=-1, keepdims=True), classes)
    return Seeds(numbers, tf.ones(tf.stack([batch, slots])), classes)

  def guide(
      self,
      tape: tf.GradientTape | None,
      teacher: Tapped,
      labels: Any = None,
      drop_seed: tf.Tensor | None = None,
  ) -> Guide:
    """Computes a teacher's maps for its student to match.

    Args:
      tape: of the teacher's forward pass; see `tape`.
      teacher: its features and logits.
      labels: needed for the targets "label" and "present".
      drop_seed: two integers for stochastic matching; None matches every
        channel, as in evaluation.

    Returns:
      A `Guide`.
    """
    logits = tf.stop_gradient(teacher.logits)
    seeds = self.seeds(logits, labels)
    features = [at_least_float32(tensor) for tensor in teacher.features]
    if drop_seed is not None:
      features = [
          map_formulas.drop_channels(tensor, self.drop_rate, drop_seed + [0, i])
          for i, tensor in enumerate(features)]

    return Guide(logits, [
        tf.stop_gradient(maps)
        for maps in self._maps(tape, teacher, features, seeds)])

  def match(
      self,
      guide: Guide,
      tape: tf.GradientTape | None,
      student: Tapped,
      labels: Any = None,
  ) -> Match:
    """Compares a student's maps with the teacher's on one batch.

    Args:
      guide: the teacher's, of the same batch.
      tape: of the student's forward pass; see `tape`.
      student: the student's features and logits.
      labels: as for `guide`.

    Returns:
      A `Match`.

    Raises:
      ValueError: the guide is of other layers.
    """
    seeds = self.seeds(guide.logits, labels)
    if len(guide.maps) != len(self.layers):
      raise ValueError(
          f"guide must hold maps of {len(self.layers)} layers; got "
          f"{len(guide.maps)}.")
    features = [at_least_float32(tensor) for tensor in student.features]

    maps = self._maps(tape, student, features, seeds)
    slots = tf.shape(maps[0])[0]
    present = tf.transpose(tf.abs(seeds.weights))[:slots]
    # From layers x five figures [slots, batch] to five sums [batch, layers].
    present, distance, agreement, dead, valid = (
        tf.stack([tf.reduce_sum(values, axis=0) for values in figure], axis=-1)
        for figure in zip(*(
            self._compare(teacher_maps[:slots], student_maps, present)
            for teacher_maps, student_maps in zip(
                guide.maps, maps, strict=True))))
    return Match(
        tf.math.divide_no_nan(distance, present),
        tf.math.divide_no_nan(agreement, valid),
        tf.math.divide_no_nan(dead, valid),
        tf.math.divide_no_nan(valid, present),
        tf.cast(present > 0, present.dtype))

  def map_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns the size of the map for features of this size."""
    return height, width

  def _collapse(
      self, features: tf.Tensor, sensitivity: tf.Tensor) -> tf.Tensor:
    """Returns maps; sensitivity and maps have slots as a first dimension."""
    return map_formulas.sensitivity_weighted_map(features, sensitivity)

  def _loss(self, distance: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Returns the loss term for a distance of maps with so many positions."""
    del positions
    return distance

  def _maps(
      self,
      tape: tf.GradientTape | None,
      tapped: Tapped,
      features: Sequence[tf.Tensor],
      seeds: Seeds,
  ) -> list[tf.Tensor]:
    """Returns `[slots, batch, height, width]` maps for each layer."""
    if not self.needs_gradient:
      return [map_formulas.equal_weighted_map(tensor)[None]
              for tensor in features]
    weights = seeds.explain(
        lambda seed: sensitivities(tape, tapped, seed),
        [tf.TensorSpec([tensor.shape[0], 1, 1, tensor.shape[-1]], tensor.dtype)
         for tensor in features])
    return [self._collapse(tensor, weight)
            for tensor, weight in zip(features, weights)]

  def _compare(self, teacher_maps, student_maps, present):
    """Returns present, distance, agreement, dead and valid, by slot."""
    shape = tf.shape(student_maps)[:2]
    teacher_maps, student_maps = (
        tf.reshape(maps, tf.concat([[-1], tf.shape(maps)[2:]], 0))
        for maps in (tf.cast(teacher_maps, student_maps.dtype), student_maps))
    present = tf.reshape(tf.cast(present, student_maps.dtype), [-1])
    nothing = tf.zeros_like(present)
    alive = tf.where(_is_alive(teacher_maps), present, nothing)
    dead = tf.where(_is_alive(student_maps), nothing, alive)
    teacher_maps, student_maps = map_formulas.same_size(
        teacher_maps, student_maps)
    distance = map_formulas.map_distance(teacher_maps, student_maps)
    positions = tf.cast(
        tf.reduce_prod(tf.shape(student_maps)[1:]), distance.dtype)
    figures = (present, self._loss(distance, positions) * present,
               (alive - dead) * (1 - distance), dead, alive)
    return [tf.reshape(figure, shape) for figure in figures]


def _is_alive(maps: tf.Tensor) -> tf.Tensor:
  return tf.reduce_any(maps != 0, [1, 2])


def layer_pairs(
    layer: str | Sequence[str], student_layer: str | Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the teacher's layers and equally many of the student's; see `WCAM`.

  Raises:
    TypeError, ValueError: they are not names, or their numbers differ.
  """
  layers = _names(layer, "layer")
  others = (layers if student_layer is None
            else _names(student_layer, "student_layer"))
  if len(layers) != len(others):
    raise ValueError(
        f"student_layer must name one layer for each of layer's {len(layers)}; "
        f"got {len(others)}.")
  return layers, others


def _names(layer: str | Sequence[str], argument: str) -> tuple[str, ...]:
  names = (layer,) if isinstance(layer, str) else layer
  names = tuple(names) if isinstance(names, Sequence) else ()
  if not names or not all(isinstance(name, str) and name for name in names):
    raise TypeError(
        f"{argument} must be a layer's name or a list of names; got {layer!r}.")
  return names


def check_weight(
    weight: Any, agreement: float | None = None) -> float | str | Schedule:
  """Returns a weight, or raises TypeError or ValueError; see `WCAM`."""
  if agreement is not None and not 0 < agreement < 1:
    raise ValueError(
        f"agreement must be a cosine between 0 and 1; got {agreement}.")
  if isinstance(weight, str) and weight == "auto":
    return weight
  if callable(weight) and agreement is None:
    return weight
  if not isinstance(weight, numbers.Real):
    kinds = "'auto', a number or a schedule" if agreement is None else (
        "'auto' or a number, where agreement= finds the rest")
    raise TypeError(f"weight must be {kinds}; got {weight!r}.")
  if not 0 <= weight < float("inf") or (agreement is not None and not weight):
    least = "0 or more" if agreement is None else "more than 0"
    raise ValueError(f"weight must be a number of {least}; got {weight}.")
  return float(weight)


def _layer_weights(
    weights: Sequence[float] | None, layers: int) -> tuple[float, ...]:
  if weights is None:
    return (1 / layers,) * layers
  if len(weights) != layers or min(weights) < 0 or not (
      0 < sum(weights) < float("inf")):
    raise ValueError(
        f"layer_weights must be {layers} numbers of 0 or more, not all 0; got "
        f"{weights!r}.")
  return tuple(weight / sum(weights) for weight in weights)


def _labels(labels: Any, target: str) -> tf.Tensor:
  if labels is None or isinstance(labels, dict):
    raise ValueError(
        f"target {target!r} needs labels, a tensor; got {type(labels)}.")
  return tf.cast(labels, tf.float32)


def _marks(labels: tf.Tensor, classes: int) -> tf.Tensor:
  if labels.shape.rank != 2 or labels.shape[-1] != classes:
    raise ValueError(
        f"target 'present' needs multi-hot labels [batch, {classes}]; got "
        f"labels of shape {labels.shape}. For class numbers use 'label'.")
  return tf.cast(labels > 0.5, tf.float32)


def _label_seed(labels: tf.Tensor, classes: int) -> tf.Tensor:
  if classes == 1:
    return tf.where(tf.reshape(labels, [-1, 1]) > 0.5, 1.0, -1.0)
  if labels.shape.rank == 2 and labels.shape[-1] == classes:
    return tf.one_hot(tf.argmax(labels, axis=-1), classes)
  return tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), classes)
