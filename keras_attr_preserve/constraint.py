"""A weight that finds itself: hold an agreement, spend the rest on the task."""

import math
from typing import Any

from keras_attr_preserve.compat import tf

__all__ = ["AgreementConstraint"]

RATE = 0.02
"""The largest change of the weight's logarithm in one step: x2 in 35 steps."""

SPAN = 100.0
"""How far the weight may go from where it began, as a factor, either way."""


class AgreementConstraint:
  """The multiplier of the constraint `mean cosine >= agreement`.

  The step minimizes `task + weight * (1 - cosine)` and after it moves the
  weight, by dual ascent in its logarithm:

      log weight += RATE * clip((agreement - cosine) / (1 - agreement), -1, 1)

  What the maps lack is counted in units of what the constraint allows, so that
  one rate serves 0.8 and 0.99; the logarithm makes it serve losses of any size.

  Attributes:
    log_weight: the state; to be saved with the model so that a resumed run goes
      on as if it had not stopped.

  References:
    Platt and Barr 1987, "Constrained Differential Optimization": gradient
    ascent on the multiplier beside descent on the weights.
  """

  def __init__(self, agreement: float, start: float):
    """Begins.

    Args:
      agreement: the cosine to hold, in 0..1.
      start: the first weight, above 0.
    """
    self.agreement = agreement
    self._bounds = math.log(start / SPAN), math.log(start * SPAN)
    self.log_weight = tf.Variable(
        math.log(start), trainable=False, name="attr_log_weight",
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

  def weight(self) -> tf.Tensor:
    """The weight of the coming step."""
    return tf.exp(tf.convert_to_tensor(self.log_weight))

  def update(self, agreement: tf.Tensor, valid: tf.Tensor) -> None:
    """Moves the weight after a step.

    Args:
      agreement: each image's cosine, `[batch]`.
      valid: how much of it counts, `[batch]`; where nothing counts on any
        replica the weight stays.
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
    """Whether the weight has gone as high as it may."""
    now = float(tf.convert_to_tensor(self.log_weight))
    return now >= self._bounds[1] - 1e-6


def _over_replicas(value: Any) -> tf.Tensor:
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return value
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
