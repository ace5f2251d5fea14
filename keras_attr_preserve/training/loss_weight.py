"""The weight of the maps in the loss, and how it adapts.

A weight that suits one loss is wrong for another. A softmax cross-entropy, for
example, is ten times a mean over ten binary cross-entropies. So a weight may be
in units of the rest of the loss. It may also move until the maps reach a given
agreement.
"""

import math
from typing import Any

from keras_attr_preserve.compat import tf

__all__ = ["AUTO", "AgreementConstraint", "TaskScale", "Weighting"]

AUTO = 8.0
"""The weight "auto", in units of the task's loss; see docs/training.md."""

MEMORY = 0.99
"""Decay of the running mean of the task's loss: about 100 steps."""

RATE = 0.02
"""The largest change of the weight's logarithm in one step: x2 in 35 steps."""

SPAN = 100.0
"""The largest factor between the weight and its start, up or down."""


class Weighting:
  """The factor of the maps in the loss, step by step.

  Create it under the model's distribution strategy.

  Attributes:
    moves: whether it changes from step to step.
    state: its variables by name. Save them with the model to resume a run.
  """

  def __init__(self, settings: Any, what: str = "the maps"):
    """Reads the weight and the agreement of the settings.

    Args:
      settings: a `WCAM`, or another object with its `weight` and `agreement`.
      what: the name of the weighted term, for the warnings.
    """
    self._settings, self._what = settings, what
    self._scale = TaskScale() if settings.weight == "auto" else None
    self._constraint = (None if settings.agreement is None
                        else AgreementConstraint(settings.agreement))
    self.moves = callable(settings.weight) or bool(
        self._scale or self._constraint)
    self.state: dict[str, tf.Variable] = {}
    if self._scale is not None:
      self.state["task_loss"] = self._scale.sums
    if self._constraint is not None:
      self.state["log_weight"] = self._constraint.log_weight

  def weight(self, step: Any, task_loss: tf.Tensor, training: bool) -> Any:
    """Returns the weight of a step.

    Args:
      step: its number, for a schedule.
      task_loss: the loss without the maps, a scalar.
      training: whether this loss enters the running mean.

    Returns:
      A number or a scalar tensor; no gradient comes from it.
    """
    weight = self._settings.weight
    if self._scale is not None:
      if training:
        self._scale.update(task_loss)
      weight = AUTO * self._scale.mean(task_loss)
    elif callable(weight):
      weight = tf.cast(weight(step), tf.float32)
    if self._constraint is not None:
      weight *= self._constraint.factor()
    return weight

  def update(self, agreement: tf.Tensor, valid: tf.Tensor) -> None:
    """Moves the weight after a step; see `AgreementConstraint.update`."""
    if self._constraint is not None:
      self._constraint.update(agreement, valid)

  def warnings(self) -> list[tuple[str, str]]:
    """Returns a warning for each problem: its kind, and a sentence."""
    messages = []
    if self._constraint is not None and self._constraint.at_ceiling:
      messages.append((
          "ceiling",
          f"agreement={self._settings.agreement} is not held although the "
          "weight is at its ceiling; ask for less, compress less, or train "
          "longer."))
    if self._scale is not None and self._scale.is_zero:
      messages.append((
          "no task",
          "weight='auto' goes by the rest of the loss, which is 0, so that "
          f"{self._what} do not count; give weight= a number."))
    return messages


class TaskScale:
  """A running mean of the task's loss, as the unit of a weight.

  Attributes:
    sums: the weighted sum of the losses, and of their weights.
  """

  def __init__(self):
    """Starts with an empty mean."""
    self.sums = tf.Variable(
        [0.0, 0.0], trainable=False, name="attr_task_loss",
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

  def mean(self, task_loss: tf.Tensor) -> tf.Tensor:
    """Returns the mean so far; before the first step, the given loss."""
    total, count = tf.unstack(tf.convert_to_tensor(self.sums))
    now = tf.stop_gradient(tf.abs(tf.cast(task_loss, tf.float32)))
    return tf.where(count > 0, tf.math.divide_no_nan(total, count), now)

  @property
  def is_zero(self) -> bool:
    """Whether every loss so far was 0."""
    total, count = tf.unstack(tf.convert_to_tensor(self.sums))
    return bool(count > 0) and not float(total)

  def update(self, task_loss: tf.Tensor) -> None:
    """Adds a step's loss, the mean over replicas."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    loss = _over_replicas(tf.abs(tf.cast(task_loss, tf.float32))) / replicas
    # A loss that is not finite must not stay in the mean.
    finite = tf.math.is_finite(loss)
    new = (1 - MEMORY) * tf.stack([tf.where(finite, loss, 0.0), 1.0])
    self.sums.assign(tf.where(finite, MEMORY * self.sums + new, self.sums))


class AgreementConstraint:
  """The multiplier of the constraint `mean cosine >= agreement`.

  A step minimizes `task + weight * (1 - cosine)`. Then a factor of the weight
  moves, by dual ascent in its logarithm:

      log factor += RATE * clip((agreement - cosine) / (1 - agreement), -1, 1)

  The missing agreement is in units of the allowed distance, so one rate serves
  0.8 and 0.99. The logarithm makes it serve losses of any size.

  Attributes:
    log_weight: the logarithm of the factor.

  References:
    Platt and Barr 1987, "Constrained Differential Optimization": gradient
    ascent on the multiplier beside descent on the weights.
  """

  def __init__(self, agreement: float):
    """Starts with a factor of 1.

    Args:
      agreement: the cosine to reach, in 0..1.
    """
    self.agreement = agreement
    self._bounds = -math.log(SPAN), math.log(SPAN)
    self.log_weight = tf.Variable(
        0.0, trainable=False, name="attr_log_weight",
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

  def factor(self) -> tf.Tensor:
    """Returns the factor for the next step."""
    return tf.exp(tf.convert_to_tensor(self.log_weight))

  def update(self, agreement: tf.Tensor, valid: tf.Tensor) -> None:
    """Moves the weight after a step.

    Args:
      agreement: each image's cosine, `[batch]`.
      valid: how much of it counts, `[batch]`. The weight stays if nothing
        counts on any replica.
    """
    total = _over_replicas(tf.stack(
        [tf.reduce_sum(agreement * valid), tf.reduce_sum(valid)]))
    cosine = tf.math.divide_no_nan(total[0], total[1])
    lack = (self.agreement - cosine) / (1 - self.agreement)
    move = RATE * tf.clip_by_value(lack, -1.0, 1.0)
    # Loss scaling skips a step with NaN; it must not stay in the weight.
    counts = (total[1] > 0) & tf.math.is_finite(total[0])
    move = tf.where(counts, tf.cast(move, tf.float32), 0.0)
    self.log_weight.assign(
        tf.clip_by_value(self.log_weight + move, *self._bounds))

  @property
  def at_ceiling(self) -> bool:
    """Whether the weight is at its upper bound."""
    now = float(tf.convert_to_tensor(self.log_weight))
    return now >= self._bounds[1] - 1e-6


def _over_replicas(value: Any) -> tf.Tensor:
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return value
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
