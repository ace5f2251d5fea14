"""Pruning in rounds, a share of the remaining weights in each."""

import numbers
from typing import Any

import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import keras, tf

__all__ = ["IterativePruning"]


@keras.utils.register_keras_serializable("keras_attr_preserve")
class IterativePruning(tfmot.sparsity.keras.PruningSchedule):
  """Removes a share of the remaining weights in each of several rounds.

  After round r the sparsity of every prunable kernel is

      1 - (1 - share)^r

  The defaults are those of unstructured pruning in Park et al. (NeurIPS 2020,
  https://arxiv.org/abs/2010.15054): 16 rounds of 20 %, to 97.2 %.

      student = tfmot.sparsity.keras.prune_low_magnitude(
          kap.clone_model(teacher),
          pruning_schedule=IterativePruning(steps_per_round=steps_per_epoch))
      student.fit(train, epochs=16, callbacks=[
          tfmot.sparsity.keras.UpdatePruningStep(),
          PreserveAttribution(teacher, wcam)])

  The masks are computed once a round, at its first step, so every round ends in
  training. Steps are counted as in tfmot: the first training step is number 1,
  and a second `fit` goes on counting.

  `PreserveAttribution` sets pruned weights to zero after every step, so they
  stay pruned. tfmot alone sets them to zero when an epoch ends. Inside an epoch
  the optimizer moves them, and one may exceed a surviving weight. The next mask
  would then take it instead. Without `PreserveAttribution`, rounds must
  therefore begin with an epoch: make `begin_step` and `steps_per_round`
  multiples of the steps of an epoch.

  A saved model loads within `tfmot.sparsity.keras.prune_scope()` once this
  module is imported; the schedule is registered with Keras.

  Attributes:
    rounds: how many.
    share: of the remaining weights, removed in each round.
    steps_per_round: training steps from one round's start to the next.
    begin_step: training steps before the first round.
    end_step: the last step that belongs to a round.
  """

  def __init__(
      self,
      *,
      rounds: int = 16,
      share: float = 0.2,
      steps_per_round: int,
      begin_step: int = 0,
  ):
    """Checks and keeps the settings.

    Args:
      rounds: how many, 1 or more.
      share: of the remaining weights, removed in each round; between 0 and 1,
        both excluded.
      steps_per_round: training steps of a round, 1 or more.
      begin_step: training steps before the first round, 0 or more.

    Raises:
      TypeError: a number is of another type.
      ValueError: a number is out of its range.
    """
    self.rounds = _whole("rounds", rounds, 1)
    self.steps_per_round = _whole("steps_per_round", steps_per_round, 1)
    self.begin_step = _whole("begin_step", begin_step, 0)
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
      raise TypeError(f"share must be a number; got {share!r}.")
    if not 0 < share < 1:
      raise ValueError(
          f"share must be between 0 and 1, both excluded; got {share}.")
    self.share = float(share)

  @classmethod
  def reaching(
      cls, sparsity: float, *, rounds: int, steps_per_round: int,
      begin_step: int = 0) -> "IterativePruning":
    """Makes the schedule that reaches a sparsity in a number of rounds.

    Args:
      sparsity: after the last round, between 0 and 1, both excluded.
      rounds: how many, 1 or more.
      steps_per_round: as above.
      begin_step: as above.

    Returns:
      A schedule; each round removes the same share of the remaining weights.

    Raises:
      TypeError, ValueError: a setting is not one of the above.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
      raise TypeError(f"sparsity must be a number; got {sparsity!r}.")
    if not 0 < sparsity < 1:
      raise ValueError(
          f"sparsity must be between 0 and 1, both excluded; got {sparsity}.")
    share = 1 - (1 - sparsity) ** (1 / _whole("rounds", rounds, 1))
    return cls(rounds=rounds, share=share, steps_per_round=steps_per_round,
               begin_step=begin_step)

  @property
  def end_step(self) -> int:
    """The last training step of the last round."""
    return self.begin_step + self.rounds * self.steps_per_round

  def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Says whether a step begins a round, and the round's sparsity.

    Args:
      step: the training step, from 1 on; an integer or a scalar tensor.

    Returns:
      Whether the step computes new masks, bool; and the sparsity, float32. It
      is 0 before the first round and stays after the last.
    """
    step = tf.cast(step, tf.int64)
    since = step - 1 - self.begin_step
    begins = tf.logical_and(
        tf.logical_and(since >= 0, step <= self.end_step),
        tf.equal(since % self.steps_per_round, 0))
    number = tf.clip_by_value(
        since // self.steps_per_round + 1, 0, self.rounds)
    return begins, 1 - (1 - self.share) ** tf.cast(number, tf.float32)

  def get_config(self) -> dict[str, Any]:
    """Returns the settings as tfmot's pruning wrapper saves them."""
    return {
        "class_name": keras.utils.get_registered_name(type(self)),
        "config": {
            "rounds": self.rounds,
            "share": self.share,
            "steps_per_round": self.steps_per_round,
            "begin_step": self.begin_step,
        },
    }


def _whole(name: str, number: Any, least: int) -> int:
  if isinstance(number, bool) or not isinstance(number, numbers.Integral):
    raise TypeError(f"{name} must be an integer; got {number!r}.")
  if number < least:
    raise ValueError(f"{name} must be {least} or more; got {number}.")
  return int(number)
