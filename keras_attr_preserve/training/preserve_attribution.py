"""The callback that adds attribution preservation to `model.fit`."""

import os
from typing import Any

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.held_weights import (
  Lost,
  hold,
  masks_of,
  say_lost,
)
from keras_attr_preserve.models.layers import graphs_in
from keras_attr_preserve.training.hints import Hints
from keras_attr_preserve.training.objectives import Distillation
from keras_attr_preserve.training.step_function import (
  StepFunction,
  calling_list,
)
from keras_attr_preserve.training.train_step import TrainStep
from keras_attr_preserve.training.wcam import WCAM
from keras_attr_preserve.utils.notices import notice

__all__ = ["PreserveAttribution"]


class PreserveAttribution(keras.callbacks.Callback):
  """Holds a model's attribution maps to its teacher's while `fit` runs.

      model.fit(train, validation_data=val,
                callbacks=[PreserveAttribution(teacher, WCAM("relu5"))])

  Works on a plain model, a smaller student, and models made by
  `prune_low_magnitude`, `cluster_weights`, `quantize_model` and the schemes
  that combine them. Pruning's `UpdatePruningStep` is added where it was
  forgotten. The place among the callbacks does not matter: what is pruned when
  the last step ends is zero when `fit` returns, and clusters are clusters,
  whatever other callbacks restore and the optimizer averages; a warning says
  how much had been lost. What is pruned is zero after every step, too, so that
  no later mask wakes it.

  The logs gain `attr_loss`, `attr_agreement` and `attr_dead` (with a
  distillation `distill_loss`, with hints `hint_loss` and `hint_agreement`, with
  a weight that moves `attr_weight`), and their `val_` twins; see `TrainStep`.
  Maps that are dead, and an agreement that is not reached, are warned of once.

  For the length of a `fit` the model's `train_step` and `test_step` are a
  `TrainStep`'s. They are given back when `fit` ends, also when it is
  interrupted or fails. After an interruption between two steps what is left of
  it goes with the model's next use.
  """

  def __init__(
      self,
      teacher: keras.Model,
      wcam: WCAM | None,
      *,
      distillation: Distillation | None = None,
      hints: Hints | None = None,
      output: str | None = None,
      cache: bool | str | os.PathLike = False,
  ):
    """Keeps the settings.

    Args:
      teacher: the net whose maps are kept; never changed.
      wcam: what to match; None for distillation or hints alone.
      distillation: what to learn from the teacher's scores as well.
      hints: which of its features to hold whole as well.
      output: which output is the class scores, where there are several.
      cache: True has the teacher look at each picture but once and keeps what
        it says in memory; a path keeps it in a file too, for other runs. Not
        for pictures that change from epoch to epoch. See `TrainStep`.

    Raises:
      TypeError, ValueError: the teacher is no `tf_keras` model; what does not
        fit the model itself is said when `fit` starts, before any training.
    """
    super().__init__()
    self._teacher = check_keras(teacher, "teacher")
    self._wcam = wcam
    self._settings = {
        "distillation": distillation, "hints": hints, "output": output,
        "cache": cache}
    self.step: TrainStep | None = None
    self._pruning: keras.callbacks.Callback | None = None
    self._masks: dict[int, Any] | None = None
    self._epochs = 0
    self._warned: set[str] = set()
    self._begun = False

  def set_model(self, model: keras.Model) -> None:
    """Installs the step; Keras calls it before it builds its functions."""
    super().set_model(check_keras(model))
    self.uninstall()
    other = getattr(model.train_function, "owner", None)
    if other is not None:
      begun = other._begun
      other.uninstall()
      if not begun:  # Else what a fit left behind that died.
        raise ValueError(
            "callbacks: the model has a PreserveAttribution already; give one, "
            "with several layers if need be.")
    for name in ("train_step", "test_step"):
      if (getattr(type(model), name) is not getattr(keras.Model, name)
          or name in vars(model)):
        raise ValueError(
            f"model {model.name!r} has a {name} of its own, which this "
            "callback would replace; call kap.TrainStep inside it instead.")
    self.step = TrainStep(
        model, self._teacher, self._wcam, **self._settings)
    self._begun = False
    self._pruning = _pruning_callback(model)
    if self.step.state is not None:
      # For checkpoints, such as those of BackupAndRestore. By tf.Module, for
      # what Keras's own models delete stays in their checkpoints.
      tf.Module.__setattr__(model, _STATE, self.step.state)
    model.train_function = StepFunction(self, "train")
    model.test_function = StepFunction(self, "test")

  def on_train_begin(self, logs: Any = None) -> None:
    """Notes that training began."""
    self._begun = True
    self._epochs = 0
    self._warned = set()
    self._masks = None
    if self._pruning is not None:
      self._pruning.on_train_begin()

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    self.model.train_function.expect()

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    """Notes what is pruned when an epoch's last step ends."""
    # Before another callback sets weights as the epoch ends.
    if batch + 1 == self.params.get("steps"):
      self._masks = masks_of(self.model)

  def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    if self.step is not None:
      self.model.test_function.expect()

  def on_test_begin(self, logs: Any = None) -> None:
    """Starts the means of a validation pass."""
    self._reset_metrics()

  def on_test_end(self, logs: Any = None) -> None:
    """Gives the model back where `evaluate` was called with this callback."""
    if not self._begun:
      self.uninstall()

  def on_predict_end(self, logs: Any = None) -> None:
    """Gives the model back where `predict` was called with this callback."""
    if not self._begun:
      self.uninstall()

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    """Starts the means of an epoch."""
    self._epochs += 1
    self._masks = None
    if self.step is not None and self.step.cache is not None:
      self.step.cache.reset()
    self._reset_metrics()

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    """Warns of what the epoch gives cause to mend, of each thing once."""
    if self._pruning is not None:
      self._pruning.on_epoch_end(epoch)
    if self._masks is None:
      self._masks = masks_of(self.model)
    if self.step is None:
      return
    messages, cache = self.step.warnings(), self.step.cache
    if cache is not None and self._epochs > 1 and cache.looked > cache.found:
      messages.append((
          "cache", "the cache did not know most of the pictures of a second "
          "epoch; are they augmented? Then leave cache= out."))
    for kind, sentence in messages:
      if kind not in self._warned:
        self._warned.add(kind)
        notice(f"PreserveAttribution: {sentence}")

  def on_train_end(self, logs: Any = None) -> None:
    """Gives the model its own steps back, with what is pruned zero."""
    step = self.step
    self.uninstall()  # First: the disk may be full.
    last = _HoldAtTheEnd(self.model, self._masks, calling_list())
    if last.callbacks is None:
      last.on_train_end()
    else:
      last.callbacks.append(last)
    if step is not None:
      step.save_cache()

  def _reset_metrics(self) -> None:
    for metric in self.step.metrics if self.step is not None else ():
      metric.reset_state()

  def uninstall(self) -> None:
    """Gives the model its own steps back; `fit` does so when it ends."""
    if self.step is None:
      return
    model, self.step, self._begun = self.step.model, None, False
    model.train_function = None
    model.test_function = None
    if hasattr(model, _STATE):
      tf.Module.__delattr__(model, _STATE)


class _HoldAtTheEnd(keras.callbacks.Callback):
  """Holds what is pruned and clustered, now and after all other callbacks."""

  def __init__(
      self, model: keras.Model, masks: dict[int, Any] | None,
      callbacks: keras.callbacks.CallbackList | None):
    super().__init__()
    self.callbacks = callbacks
    self._held_model, self._masks = model, masks
    self._lost: list[Lost] = hold(model, masks)

  def on_train_end(self, logs: Any = None) -> None:
    """Holds it again, and says what was lost."""
    if self.callbacks is not None:
      self.callbacks.callbacks.remove(self)
    model = self._held_model
    say_lost(
        "PreserveAttribution", model, self._lost + hold(model, self._masks))


_STATE = "attr_preserve_state"


def _pruning_callback(model: keras.Model) -> keras.callbacks.Callback | None:
  """Returns tfmot's callback for a pruned model.

  Two of them in one fit do no harm: each sets what the other has set.
  """
  if not any(hasattr(layer, "pruning_step")
             for graph in graphs_in(model) for layer in graph.layers):
    return None
  import tensorflow_model_optimization as tfmot
  update = tfmot.sparsity.keras.UpdatePruningStep()
  update.set_model(model)
  return update
