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
  """Matches a model's attribution maps to its teacher's during `fit`.

      model.fit(train, validation_data=val,
                callbacks=[PreserveAttribution(teacher, WCAM("relu5"))])

  It works for a plain model, a smaller student, and models of
  `prune_low_magnitude`, `cluster_weights`, `quantize_model` and the schemes
  that combine them. It adds pruning's `UpdatePruningStep` if that is missing.

  Its place among the callbacks does not matter. When `fit` returns, pruned
  weights are zero and clustered weights are clustered. Other callbacks may
  restore weights, and the optimizer may average them; a warning says how much
  had been lost. Pruned weights are also zero after every step, so that no later
  mask restores them.

  It adds `attr_loss`, `attr_agreement` and `attr_dead` to the logs, and their
  `val_` twins. A distillation adds `distill_loss`. Hints add `hint_loss` and
  `hint_agreement`. A moving weight adds `attr_weight`. See `TrainStep`. Dead
  maps and an agreement that is not reached are warned of once.

  During a `fit` the model's `train_step` and `test_step` are a `TrainStep`'s.
  The model gets its own back when `fit` ends, fails or is interrupted. After an
  interruption between two steps, the model's next use restores them.
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
      teacher: the model whose maps are preserved; never changed.
      wcam: which maps to match; None for distillation or hints alone.
      distillation: settings for learning from the teacher's scores as well.
      hints: settings for matching whole features as well.
      output: the output of the class scores, if there are several.
      cache: True runs the teacher only once on each image and keeps its maps
        and scores in memory. A path also keeps them in a file, for other runs.
        Not for images that change from epoch to epoch. See `TrainStep`.

    Raises:
      TypeError, ValueError: the teacher is no `tf_keras` model. Errors about
        the model itself are raised when `fit` starts, before any training.
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
      if not begun:  # If begun, it is left over from a failed fit.
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
      # For checkpoints, such as BackupAndRestore's. Set by tf.Module, since
      # attributes that Keras's models delete stay in their checkpoints.
      tf.Module.__setattr__(model, _STATE, self.step.state)
    model.train_function = StepFunction(self, "train")
    model.test_function = StepFunction(self, "test")

  def on_train_begin(self, logs: Any = None) -> None:
    """Records that training began."""
    self._begun = True
    self._epochs = 0
    self._warned = set()
    self._masks = None
    if self._pruning is not None:
      self._pruning.on_train_begin()

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Announces the next step as one of this callback's `fit`."""
    self.model.train_function.expect()

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    """Records the pruned weights when an epoch's last step ends."""
    # Another callback may set weights at the end of the epoch.
    if batch + 1 == self.params.get("steps"):
      self._masks = masks_of(self.model)

  def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Announces the next step as one of this callback's `fit`."""
    if self.step is not None:
      self.model.test_function.expect()

  def on_test_begin(self, logs: Any = None) -> None:
    """Starts the means of a validation pass."""
    self._reset_metrics()

  def on_test_end(self, logs: Any = None) -> None:
    """Restores the model if `evaluate` was called with this callback."""
    if not self._begun:
      self.uninstall()

  def on_predict_end(self, logs: Any = None) -> None:
    """Restores the model if `predict` was called with this callback."""
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
    """Warns of the epoch's problems, of each kind once."""
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
    """Restores the model's own steps and sets pruned weights to zero."""
    step = self.step
    self.uninstall()  # First, since saving the cache may fail.
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
    """Restores the model's own steps; `fit` does so when it ends."""
    if self.step is None:
      return
    model, self.step, self._begun = self.step.model, None, False
    model.train_function = None
    model.test_function = None
    if hasattr(model, _STATE):
      tf.Module.__delattr__(model, _STATE)


class _HoldAtTheEnd(keras.callbacks.Callback):
  """Holds pruned and clustered weights, now and after all other callbacks."""

  def __init__(
      self, model: keras.Model, masks: dict[int, Any] | None,
      callbacks: keras.callbacks.CallbackList | None):
    super().__init__()
    self.callbacks = callbacks
    self._held_model, self._masks = model, masks
    self._lost: list[Lost] = hold(model, masks)

  def on_train_end(self, logs: Any = None) -> None:
    """Holds the weights again and warns of lost ones."""
    if self.callbacks is not None:
      self.callbacks.callbacks.remove(self)
    model = self._held_model
    say_lost(
        "PreserveAttribution", model, self._lost + hold(model, self._masks))


_STATE = "attr_preserve_state"


def _pruning_callback(model: keras.Model) -> keras.callbacks.Callback | None:
  """Returns tfmot's callback for a pruned model.

  Two of them in one fit do no harm: both set the same values.
  """
  if not any(hasattr(layer, "pruning_step")
             for graph in graphs_in(model) for layer in graph.layers):
    return None
  import tensorflow_model_optimization as tfmot
  update = tfmot.sparsity.keras.UpdatePruningStep()
  update.set_model(model)
  return update
