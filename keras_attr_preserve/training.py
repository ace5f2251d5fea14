"""The one train step of all compressions."""

from typing import Any

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.layers import Tap
from keras_attr_preserve.objectives import Distillation
from keras_attr_preserve.regularizer import WCAM, check_wcam

__all__ = ["TrainStep"]


class TrainStep:
  """Keras's train step with the maps, and if asked the scores, of a teacher.

  `PreserveAttribution` installs it for the length of a `fit`. It also serves a
  `train_step` of one's own:

      class Student(keras.Model):
        def train_step(self, data):
          return self.step(data)

      student.step = TrainStep(student, teacher, wcam)

  and a loop of one's own, through `loss`.

  One step is one forward pass of each net, one backward pass of the student and
  the tail of each net once more for its sensitivities.
  """

  def __init__(
      self,
      model: keras.Model,
      teacher: keras.Model,
      wcam: WCAM | None = None,
      *,
      distillation: Distillation | None = None,
  ):
    """Finds the layers and checks that the two nets fit each other.

    Args:
      model: the student, a built `tf_keras` model, wrapped by tfmot or not.
      teacher: its former self or a larger net, with the same classes. It is run
        with `training=False` and never changed.
      wcam: what to match; None matches no map.
      distillation: what to learn from the teacher's scores; None nothing.

    Raises:
      TypeError: one of them is not a `tf_keras` model.
      ValueError: a layer is missing, the classes differ, or the two nets share
        weights, so that training one would change the other.
    """
    if wcam is not None:
      check_wcam(wcam)
    if distillation is not None and not isinstance(distillation, Distillation):
      raise TypeError(
          f"distillation must be a Distillation or None; got "
          f"{type(distillation)}.")
    _check_apart(check_model(model), check_model(teacher, "teacher"))
    self.model = model
    self.wcam = wcam
    self.distillation = distillation
    self._teacher = Tap(teacher, wcam.layers if wcam else ())
    self._student = Tap(model, wcam.student_layers if wcam else ())
    if self._teacher.classes != self._student.classes:
      raise ValueError(
          f"teacher must have the model's {self._student.classes} classes; got "
          f"{self._teacher.classes}.")
    with model.distribute_strategy.scope():
      names = [] if wcam is None else ["attr_loss", "attr_agreement",
                                       "attr_dead"]
      names += [] if distillation is None else ["distill_loss"]
      self._means = {name: keras.metrics.Mean(name) for name in names}

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """The means that a step updates; reset them where an epoch begins."""
    return list(self._means.values())

  def __call__(self, data: Any) -> dict[str, tf.Tensor]:
    """Trains on one batch, as `keras.Model.train_step`.

    Args:
      data: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
      The compiled metrics, and over the epoch so far: `attr_loss`, what the
      maps add to the loss; `attr_agreement`, the mean cosine of the maps;
      `attr_dead`, the share of the student's maps that are all zero; with a
      distillation `distill_loss`. `loss` stays the compiled loss.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
      loss, output = self.loss(x, y, weight, training=True)
    self.model.optimizer.minimize(
        loss, self.model.trainable_variables, tape=tape)
    return self._logs(x, y, output, weight)

  def test(self, data: Any) -> dict[str, tf.Tensor]:
    """Judges one batch, as `keras.Model.test_step`; the same logs."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    _, output = self.loss(x, y, weight, training=False)
    return self._logs(x, y, output, weight)

  def loss(
      self, x: Any, y: Any = None, sample_weight: Any = None, *,
      training: bool = True,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes what a step minimizes, and updates the step's metrics.

    Call it under a `tf.GradientTape`. The student runs once.

    Args:
      x: a batch of images.
      y: its labels, as the compiled loss takes them.
      sample_weight: None, `[batch]` or `[batch, 1]`; weighs every part of an
        image's loss alike.
      training: as in Keras; False matches every channel.

    Returns:
      The total loss, a scalar, and the student's output.
    """
    model = self.model
    x, y, sample_weight = tf.nest.map_structure(
        lambda one: one if one is None else tf.convert_to_tensor(one),
        (x, y, sample_weight))
    with tf.GradientTape(persistent=True) as teacher_tape:
      _watch(teacher_tape, x)
      teacher = self._teacher(x, training=False)
    with tf.GradientTape(persistent=True) as student_tape:
      _watch(student_tape, x)
      student = self._student(x, training=training)
    loss = model.compute_loss(x, y, student.output, sample_weight)

    if self.distillation is not None:
      divergence = self.distillation.divergence(
          tf.stop_gradient(teacher.logits), student.logits)
      divergence = _mean(divergence, sample_weight)
      self._means["distill_loss"].update_state(divergence)
      penalty = _replica_share(tf.add_n(model.losses)) if model.losses else 0.0
      alpha = self.distillation.alpha
      loss = ((1 - alpha) * (loss - penalty) + penalty
              + alpha * tf.cast(_replica_share(divergence), loss.dtype))

    if self.wcam is not None:
      match = self.wcam.match(
          teacher_tape, teacher, student_tape, student, y,
          self._drop_seed() if training and self.wcam.drop_rate else None)
      attr_loss = self.wcam.weight * _mean(match.distance, sample_weight)
      self._means["attr_loss"].update_state(attr_loss)
      self._means["attr_agreement"].update_state(match.agreement, match.valid)
      self._means["attr_dead"].update_state(match.dead, match.valid)
      loss += tf.cast(_replica_share(attr_loss), loss.dtype)
    return loss, student.output

  def _drop_seed(self) -> tf.Tensor:
    """A seed of this step's own, equal when a run is resumed or repeated."""
    step = tf.cast(self.model.optimizer.iterations, tf.int32)
    return tf.stack([step, 0])

  def _logs(self, x, y, output, sample_weight) -> dict[str, tf.Tensor]:
    logs = self.model.compute_metrics(x, y, output, sample_weight)
    return {**logs, **{name: mean.result()
                       for name, mean in self._means.items()}}


def _watch(tape: tf.GradientTape, x: Any) -> None:
  """Records from the images on, so that frozen nets are recorded too."""
  tape.watch([one for one in tf.nest.flatten(x) if one.dtype.is_floating])


def _mean(per_image: tf.Tensor, sample_weight: Any) -> tf.Tensor:
  if sample_weight is not None:
    per_image *= tf.cast(tf.reshape(sample_weight, [-1]), per_image.dtype)
  return tf.reduce_mean(per_image)


def _replica_share(loss: tf.Tensor) -> tf.Tensor:
  """Divides by the replicas, whose gradients the optimizer adds up."""
  return loss / tf.distribute.get_strategy().num_replicas_in_sync


def _check_apart(model: keras.Model, teacher: keras.Model) -> None:
  own = {variable.ref() for variable in model.variables}
  shared = [variable.name for variable in teacher.variables
            if variable.ref() in own]
  if shared:
    raise ValueError(
        "teacher must share no weights with the model, or training would "
        f"change it; they share {len(shared)}, such as {shared[0]!r}. tfmot "
        "wraps the layers it is given: compress kap.clone_model(teacher).")
