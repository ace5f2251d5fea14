"""Pruning in rounds, a share of what is left in each."""

import numbers
from typing import Any

import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import keras, tf

__all__ = ["IterativePruning"]


@keras.utils.register_keras_serializable("keras_attr_preserve")
class IterativePruning(tfmot.sparsity.keras.PruningSchedule):
  """Removes a share of the weights that are left in each of several rounds.

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

  The masks are made anew once a round, at its first step, so that every round
  ends in training. Steps are counted as tfmot counts them: the first training
  step is number 1, and a second `fit` goes on counting.

  What is pruned stays pruned in a `fit` with `PreserveAttribution`, which sets
  it to zero after every step. By tfmot alone it does where the rounds begin
  with an epoch, that is where `begin_step` and `steps_per_round` are multiples
  of the steps of an epoch. `UpdatePruningStep` sets the pruned weights to zero
  when an epoch ends; inside an epoch the last optimizer step has moved them
  when tfmot compares magnitudes, and one that came to exceed a surviving weight
  takes its place.

  A saved model loads within `tfmot.sparsity.keras.prune_scope()` once this
  module is imported; the schedule is registered with Keras.

  Attributes:
    rounds: how many.
    share: of the remaining weights, removed in each.
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
      share: of the weights that are left, removed in each round; between 0 and
        1, both excluded.
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
    """Makes the schedule that reaches a sparsity in so many rounds.

    Args:
      sparsity: after the last round, between 0 and 1, both excluded.
      rounds: how many, 1 or more.
      steps_per_round: as above.
      begin_step: as above.

    Returns:
      A schedule; each of its rounds removes the same share of what is left.

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
    """Says whether a step begins a round, and its round's sparsity.

    Args:
      step: the training step, from 1 on; an integer or a scalar tensor.

    Returns:
      Whether the masks are made anew in it, bool; and the sparsity, float32,
      0 before the first round and the last round's after it.
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
