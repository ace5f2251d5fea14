"""The train step for all kinds of compression."""

import contextlib
import os
from typing import Any

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.held_weights import mask_step
from keras_attr_preserve.models.layers import graphs_in
from keras_attr_preserve.models.logits import output_names
from keras_attr_preserve.models.tap import Tap, Tapped
from keras_attr_preserve.training.hints import Hints
from keras_attr_preserve.training.loss_weight import Weighting
from keras_attr_preserve.training.match_metrics import MatchMeter
from keras_attr_preserve.training.objectives import Distillation
from keras_attr_preserve.training.teacher import Guidance
from keras_attr_preserve.training.wcam import WCAM, Guide, check_wcam

__all__ = ["TrainStep"]


class TrainStep:
  """Keras's train step, matching a teacher's maps and, if set, its scores.

  `PreserveAttribution` installs it during a `fit`. It also serves a custom
  `train_step`:

      class Student(keras.Model):
        def train_step(self, data):
          return self.step(data)

      student.step = TrainStep(student, teacher, wcam)

  and, through `loss`, a custom loop. For several workers set the model's
  `distribute_reduction_method = "first"`: Keras would add up their logs.

  One step is one forward pass of each model and one backward pass of the
  student. The sensitivities take one more pass through the tail of each model.

  Attributes:
    model: the student.
    state: a checkpoint that a resumed run needs besides the model and its
      optimizer; None if it needs none.
    cache: the `TeacherCache`, or None.
  """

  def __init__(
      self,
      model: keras.Model,
      teacher: keras.Model,
      wcam: WCAM | None = None,
      *,
      distillation: Distillation | None = None,
      hints: Hints | None = None,
      output: str | None = None,
      cache: bool | str | os.PathLike = False,
  ):
    """Finds the layers and checks that the two models fit each other.

    Args:
      model: the student, a built `tf_keras` model, wrapped by tfmot or not; or
        a subclass around a model that returns its output.
      teacher: the model before compression or a larger model, with the same
        classes. It runs with `training=False` and never changes.
      wcam: which maps to match; None matches no map.
      distillation: settings for learning from the teacher's scores, or None.
      hints: settings for matching whole features, or None.
      output: the output of the class scores, by its name in the model; needed
        if there are several. The teacher has this output or only one.
      cache: True keeps the teacher's maps and scores of each image in memory, a
        path in a file as well. The teacher then runs only once on each image.
        For images that are the same in every epoch.

    Raises:
      TypeError: the model or the teacher is not a `tf_keras` model.
      ValueError: a layer is missing; the classes differ; the models share
        weights, so training would change both; heights or widths of hints
        differ; the model changes images at random (`RandomFlip` and others)
        after its first layers, or changes their size; or the model or the
        settings forbid a cache.
    """
    if wcam is not None:
      check_wcam(wcam)
    if distillation is not None and not isinstance(distillation, Distillation):
      raise TypeError(
          f"distillation must be a Distillation or None; got "
          f"{type(distillation)}.")
    if hints is not None and not isinstance(hints, Hints):
      raise TypeError(f"hints must be a Hints or None; got {type(hints)}.")
    _check_apart(check_keras(model), check_keras(teacher, "teacher"))
    if cache is not False and getattr(model, "jit_compile", False):
      raise ValueError(
          "cache: XLA takes no table; compile the model without jit_compile, "
          "or leave cache= out.")
    self.model = model
    self.wcam = wcam
    self.distillation = distillation
    self.hints = hints
    map_layers = wcam.student_layers if wcam else ()
    hint_layers = hints.student_layers(teacher) if hints else ()
    self._hint_layers = hints.layers(teacher) if hints else ()
    with model.distribute_strategy.scope():
      self._guidance = Guidance(
          teacher, wcam, output, cache, self._hint_layers)
      self._student = Tap(
          model, (*map_layers, *hint_layers), output, augmented=True)
      if cache is not False and self._student.augments:
        raise ValueError(
            "cache: the model changes pictures at random itself, so that the "
            "teacher sees others in every epoch; leave cache= out.")
      if hints is not None:
        hints.check(self._hint_layers, self._guidance.hint_shapes,
                    self._student.shapes[len(map_layers):])
      if self._guidance.classes != self._student.classes:
        raise ValueError(
            f"teacher must have the model's {self._student.classes} classes; "
            f"got {self._guidance.classes}.")
      self._weighting = None if wcam is None else Weighting(wcam)
      self._meter = None if wcam is None else MatchMeter(wcam)
      self._divergence = None if distillation is None else (
          keras.metrics.Mean("distill_loss"))
      # By default hints weigh as much as the maps.
      self._hinting = (
          None if hints is None or (wcam is not None and hints.weight == "auto")
          else Weighting(hints, "the hints"))
      self._hint_means = [] if hints is None else [
          keras.metrics.Mean(name) for name in ("hint_loss", "hint_agreement")]
    self._output = None if output is None else (
        output, output_names(self._student.core).index(output))
    self.cache = self._guidance.cache
    state = {} if self._weighting is None else dict(self._weighting.state)
    if self._hinting is not None:
      state |= {f"hint_{name}": value
                for name, value in self._hinting.state.items()}
    self.state = tf.train.Checkpoint(**state) if state else None

  @property
  def metrics(self) -> list[keras.metrics.Metric]:
    """The means that a step updates; reset them when an epoch begins."""
    means = [] if self._meter is None else self._meter.metrics
    return means + self._hint_means + (
        [] if self._divergence is None else [self._divergence])

  def __call__(self, data: Any) -> dict[str, tf.Tensor]:
    """Trains on one batch, as `keras.Model.train_step`.

    Args:
      data: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
      The compiled metrics, and means over the epoch so far:
      - `attr_loss`, the maps' term of the loss;
      - `attr_agreement`, the mean cosine of the maps;
      - `attr_dead`, the share of the student's maps that are all zero;
      - both also for each layer, if there are several;
      - `distill_loss`, with a distillation;
      - `hint_loss`, the hints' term of the loss, with hints;
      - `hint_agreement`, the mean cosine of the features, with hints.
      Also `attr_weight`, of the last step, unless it is a fixed number. `loss`
      stays the compiled loss.

    Raises:
      tf.errors.InvalidArgumentError: the loss is not finite. Without a
        distribution strategy the weights are then as before the step. XLA
        raises nothing: with `jit_compile=True` give `fit`
        keras.callbacks.TerminateOnNaN().
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
      loss, output, attr_weight = self._loss(x, y, weight, True, None)
    self.model.optimizer.minimize(
        loss, self.model.trainable_variables, tape=tape)
    mask_step(self.model)
    logs = self._logs(x, y, output, weight)
    if self._weighting is not None and self._weighting.moves:
      logs["attr_weight"] = attr_weight
    return logs

  def test(self, data: Any) -> dict[str, tf.Tensor]:
    """Evaluates one batch, as `keras.Model.test_step`; with the same logs."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    _, output = self.loss(x, y, weight, training=False)
    return self._logs(x, y, output, weight)

  def loss(
      self, x: Any, y: Any = None, sample_weight: Any = None, *,
      training: bool = True, step: Any = None,
  ) -> tuple[tf.Tensor, Any]:
    """Computes the loss of a step, and updates the step's metrics.

    Call it under a `tf.GradientTape`. The student runs once.

    Args:
      x: a batch of images, or the structure of inputs that the model takes.
      y: its labels, as the compiled loss takes them.
      sample_weight: None, `[batch]` or `[batch, 1]`; weighs all terms of an
        image's loss alike.
      training: as in Keras; False matches every channel.
      step: the number of this step, for schedules and stochastic matching; None
        takes the count of the model's own optimizer.

    Returns:
      The total loss, a scalar, and the student's output.
    """
    return self._loss(x, y, sample_weight, training, step)[:2]

  def _loss(
      self, x: Any, y: Any, sample_weight: Any, training: bool, step: Any
  ) -> tuple[tf.Tensor, Any, Any]:
    """Computes `loss` and the weight of the maps in it."""
    model = self.model
    _check_pruning(model)
    x, y, sample_weight = tf.nest.map_structure(
        lambda value: value if value is None else tf.convert_to_tensor(value),
        (x, y, sample_weight))
    labels, weights = self._of_output(y), self._of_output(sample_weight)
    count = step
    if step is None and model.optimizer is not None:
      count = model.optimizer.iterations
    seed = None
    if training and self.wcam is not None and self.wcam.drop_rate:
      # It differs by step, and is equal in a resumed or repeated run.
      seed = tf.stack([tf.cast(count, tf.int32), 0])
    old_values = self._kept(training)
    # Teacher and student must see the same augmented images.
    seen = self._student.floats(self._student.augment(x, training))
    guide = self._guidance(seen, labels, seed)
    with (contextlib.nullcontext() if self.wcam is None
          else self.wcam.tape()) as tape:
      maps = len(self.wcam.layers) if self.wcam else 0
      student, features = self._student(
          seen, training=training, tape=tape, watched=maps).split(maps)
    loss = model.compute_loss(x, y, student.output, sample_weight)
    if self.distillation is not None:
      loss = self._distilled(loss, guide, student, weights)
    weight, task = None, _whole(self._task_loss(loss))
    if self.wcam is not None:
      match = self.wcam.match(guide, tape, student, labels)
      distance, agreement, valid = self._meter.overall(match)
      weight = self._weighting.weight(count, task, training)
      attr_loss = _mean(distance, weights) * tf.cast(weight, distance.dtype)
      loss += tf.cast(_replica_share(attr_loss), loss.dtype)
      self._meter.update(match, attr_loss)
      if training:
        self._weighting.update(agreement, valid)
    if self.hints is not None:
      hint_weight = weight if self._hinting is None else self._hinting.weight(
          count, task, training)
      hint_loss = self._hinted(guide, features, weights, hint_weight)
      loss += tf.cast(_replica_share(hint_loss), loss.dtype)
    return (self._only_finite(loss, old_values, x, y, sample_weight),
            student.output, weight)

  def save_cache(self) -> None:
    """Writes the cache to its file, if it has one."""
    self._guidance.save()

  def warnings(self) -> list[tuple[str, str]]:
    """Returns warnings about the epoch so far.

    Returns:
      For each problem its kind, by which to warn only once, and a sentence.
    """
    messages = [] if self._meter is None else self._meter.warnings()
    for weighting in (self._weighting, self._hinting):
      if weighting is not None:
        messages += weighting.warnings()
    return messages

  def _of_output(self, structure: Any) -> Any:
    """Returns the labels or weights of the explained output."""
    if self._output is None:
      return structure
    name, position = self._output
    if isinstance(structure, dict):
      return structure.get(name)
    if isinstance(structure, (list, tuple)):
      return structure[position]
    return structure

  def _distilled(
      self, loss: tf.Tensor, guide: Guide, student: Tapped, sample_weight: Any
  ) -> tf.Tensor:
    """Replaces a share of the task's loss, without penalties, by divergence."""
    divergence = _mean(self.distillation.divergence(
        guide.logits, student.logits), sample_weight)
    self._divergence.update_state(divergence, _any(student.logits))
    penalty = self._penalty()
    alpha = self.distillation.alpha
    return ((1 - alpha) * (loss - penalty) + penalty
            + alpha * tf.cast(_replica_share(divergence), loss.dtype))

  def _hinted(
      self, guide: Guide, features: list[tf.Tensor], sample_weight: Any,
      weight: Any) -> tf.Tensor:
    """Returns the features' term of the loss."""
    distance = self.hints.distance(
        self._hint_layers, guide.features, features)
    hint_loss = _mean(distance, sample_weight) * tf.cast(weight, distance.dtype)
    loss_mean, agreement_mean = self._hint_means
    loss_mean.update_state(hint_loss, _any(distance))
    agreement_mean.update_state(1 - distance)
    return hint_loss

  def _penalty(self) -> Any:
    """Returns this replica's share of the model's regularization losses."""
    losses = self.model.losses
    return _replica_share(tf.add_n(losses)) if losses else 0.0

  def _task_loss(self, loss: tf.Tensor) -> tf.Tensor:
    """Returns the loss without penalties, as a measure of the task's loss."""
    return loss - tf.cast(self._penalty(), loss.dtype)

  def _kept(self, training: bool) -> list[tuple[tf.Variable, tf.Tensor]]:
    """Reads the variables before the forward pass, which may change some.

    It changes moving averages and, under tfmot, masks, masked kernels and
    ranges. Under a distribution strategy, even with one replica, nothing is
    read: replicas would have to agree on restoring.
    """
    if not training or tf.distribute.has_strategy():
      return []
    return [(variable, tf.convert_to_tensor(variable))
            for variable in self.model.variables]

  def _only_finite(
      self, loss: tf.Tensor, old_values: list[tuple[tf.Variable, tf.Tensor]],
      *batch: Any) -> tf.Tensor:
    """Stops before a loss that is not finite reaches a weight.

    Loss scaling skips such a step as a whole, without an error. XLA
    (`jit_compile=True`) has no assertions: there NaN reaches the weights, as in
    Keras.
    """
    skips = isinstance(self.model.optimizer,
                       keras.mixed_precision.LossScaleOptimizer)

    def stop():
      done = [variable.assign(value, read_value=False)
              for variable, value in old_values]
      with tf.control_dependencies([
          operation for operation in done if operation is not None]):
        if skips:
          return tf.constant(1, loss.dtype)
        check = tf.debugging.Assert(False, [
            "The loss is not finite, and the weights are left as they are. "
            "Values that are NaN or infinite in the pictures, the labels and "
            "the sample weights of the batch:", *map(_count_bad, batch)])
      with tf.control_dependencies([check]):
        return tf.constant(1, loss.dtype)

    factor = tf.cond(tf.math.is_finite(loss),
                     lambda: tf.constant(1, loss.dtype), stop)
    # The product makes every gradient wait for the check.
    return loss * tf.stop_gradient(factor)

  def _logs(self, x, y, output, sample_weight) -> dict[str, tf.Tensor]:
    logs = self.model.compute_metrics(x, y, output, sample_weight)
    means = {} if self._meter is None else dict(self._meter.means)
    if self._divergence is not None:
      means["distill_loss"] = self._divergence
    means |= {mean.name: mean for mean in self._hint_means}
    return {**logs, **{name: mean.result() for name, mean in means.items()}}


def _count_bad(structure: Any) -> tf.Tensor:
  """Counts the values that are NaN or infinite."""
  return tf.add_n([tf.constant(0)] + [
      tf.reduce_sum(tf.cast(~tf.math.is_finite(tensor), tf.int32))
      for tensor in tf.nest.flatten(structure)
      if tensor is not None and tensor.dtype.is_floating])


def _mean(per_image: tf.Tensor, sample_weight: Any) -> tf.Tensor:
  if sample_weight is not None:
    per_image *= tf.cast(tf.reshape(sample_weight, [-1]), per_image.dtype)
  # A ragged last batch may leave a replica without images.
  return tf.math.divide_no_nan(
      tf.reduce_sum(per_image), tf.cast(tf.size(per_image), per_image.dtype))


def _any(per_image: tf.Tensor) -> tf.Tensor:
  """Returns the weight of a replica's mean: 1 with images, 0 without."""
  return tf.cast(tf.size(per_image) > 0, tf.float32)


def _replica_share(loss: tf.Tensor) -> tf.Tensor:
  """Divides by the number of replicas; the optimizer sums their gradients."""
  return loss / tf.distribute.get_strategy().num_replicas_in_sync


def _whole(share: tf.Tensor) -> tf.Tensor:
  """Undoes `_replica_share`."""
  return share * tf.distribute.get_strategy().num_replicas_in_sync


def _check_pruning(model: keras.Model) -> None:
  """Raises while tracing; tfmot's pruning would only fail inside the graph."""
  layers = [layer for graph in graphs_in(model) for layer in graph.layers
            if hasattr(layer, "pruning_step")]
  with tf.init_scope():
    if any(int(keras.backend.get_value(layer.pruning_step)) < 0
           for layer in layers):
      raise ValueError(
          f"model {model.name!r} is pruned, but its pruning step was never "
          "set; give fit tfmot.sparsity.keras.UpdatePruningStep(), or in a "
          "loop of your own call its set_model and on_train_begin first.")


def _check_apart(model: keras.Model, teacher: keras.Model) -> None:
  references = {variable.ref() for variable in model.variables}
  shared = [variable.name for variable in teacher.variables
            if variable.ref() in references]
  if shared:
    raise ValueError(
        "teacher must share no weights with the model, or training would "
        f"change it; they share {len(shared)}, such as {shared[0]!r}. tfmot "
        "wraps the layers it is given: compress kap.clone_model(teacher).")
