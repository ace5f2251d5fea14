"""The callback that adds attribution preservation to `model.fit`."""

import inspect
import os
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.layers import graphs_in
from keras_attr_preserve.objectives import Distillation
from keras_attr_preserve.regularizer import WCAM
from keras_attr_preserve.training import TrainStep

__all__ = ["PreserveAttribution"]


class PreserveAttribution(keras.callbacks.Callback):
  """Holds a model's attribution maps to its teacher's while `fit` runs.

      model.fit(train, validation_data=val,
                callbacks=[PreserveAttribution(teacher, WCAM("relu5"))])

  Works on a plain model, a smaller student, and models made by
  `prune_low_magnitude`, `cluster_weights`, `quantize_model` and the schemes
  that combine them. Pruning's `UpdatePruningStep` is added where it was
  forgotten. The place among the callbacks does not matter.

  The logs gain `attr_loss`, `attr_agreement` and `attr_dead` (with a
  distillation `distill_loss`, with a weight that moves `attr_weight`), and
  their `val_` twins; see `TrainStep`. Maps that are dead, and an agreement that
  is not reached, are warned of once.

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
      output: str | None = None,
      cache: bool | str | os.PathLike = False,
  ):
    """Keeps the settings.

    Args:
      teacher: the net whose maps are kept; never changed.
      wcam: what to match; None for distillation alone.
      distillation: what to learn from the teacher's scores as well.
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
        "distillation": distillation, "output": output, "cache": cache}
    self._step: TrainStep | None = None
    self._pruning: keras.callbacks.Callback | None = None
    self._epochs = 0
    self._warned: set[str] = set()
    self._begun = False

  def set_model(self, model: keras.Model) -> None:
    """Installs the step; Keras calls it before it builds its functions."""
    super().set_model(check_keras(model))
    self._uninstall()
    other = getattr(model.train_function, "owner", None)
    if other is not None:
      begun = other._begun
      other._uninstall()
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
    if self._settings["cache"] is not False and model.jit_compile:
      raise ValueError(
          "cache: XLA takes no table; compile the model without jit_compile, "
          "or leave cache= out.")
    self._step = TrainStep(
        model, self._teacher, self._wcam, **self._settings)
    self._begun = False
    self._pruning = _pruning_callback(model)
    if self._step.state is not None:
      # For checkpoints, such as those of BackupAndRestore. By tf.Module, for
      # what Keras's own models delete stays in their checkpoints.
      tf.Module.__setattr__(model, _STATE, self._step.state)
    model.train_function = _Function(self, "train")
    model.test_function = _Function(self, "test")

  def on_train_begin(self, logs: Any = None) -> None:
    """Notes that training began."""
    self._begun = True
    self._epochs = 0
    self._warned = set()
    if self._pruning is not None:
      self._pruning.on_train_begin()

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    self.model.train_function.expect()

  def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    if self._step is not None:
      self.model.test_function.expect()

  def on_test_begin(self, logs: Any = None) -> None:
    """Starts the means of a validation pass."""
    self._reset_metrics()

  def on_test_end(self, logs: Any = None) -> None:
    """Gives the model back where `evaluate` was called with this callback."""
    if not self._begun:
      self._uninstall()

  def on_predict_end(self, logs: Any = None) -> None:
    """Gives the model back where `predict` was called with this callback."""
    if not self._begun:
      self._uninstall()

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    """Starts the means of an epoch."""
    self._epochs += 1
    if self._step is not None and self._step.cache is not None:
      self._step.cache.reset()
    self._reset_metrics()

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    """Warns of what the epoch gives cause to mend, of each thing once."""
    if self._pruning is not None:
      self._pruning.on_epoch_end(epoch)
    if self._step is None:
      return
    found, cache = self._step.warnings(), self._step.cache
    if cache is not None and self._epochs > 1 and cache.looked > cache.found:
      found.append((
          "cache", "the cache did not know most of the pictures of a second "
          "epoch; are they augmented? Then leave cache= out."))
    for kind, sentence in found:
      if kind not in self._warned:
        self._warned.add(kind)
        warnings.warn(f"PreserveAttribution: {sentence}", stacklevel=2)

  def on_train_end(self, logs: Any = None) -> None:
    """Gives the model its own steps back."""
    if self._step is not None:
      self._step.save_cache()
    self._uninstall()

  def _reset_metrics(self) -> None:
    for metric in self._step.metrics if self._step is not None else ():
      metric.reset_state()

  def _uninstall(self) -> None:
    if self._step is None:
      return
    model, self._step, self._begun = self._step.model, None, False
    model.train_function = None
    model.test_function = None
    if hasattr(model, _STATE):
      tf.Module.__delattr__(model, _STATE)


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


class _Function:
  """A train or test function that has the model's step only while it runs.

  Keras announces each batch to the callbacks of a `fit` first. A call without
  that comes from a callback that trains or evaluates for itself, and gets the
  model's own step; or it comes after a `fit` that died, and ends what that
  left.
  """

  def __init__(self, owner: PreserveAttribution, kind: str):
    self.owner = owner
    self._kind = kind
    self._expected_by: FrameType | None = None
    self._made: dict[bool, Callable[..., Any]] = {}

  def expect(self) -> None:
    """Says that whoever now calls the callbacks will call for a batch."""
    self._expected_by = _caller_of_callbacks()

  def __call__(self, *args: Any) -> Any:
    expected_by, self._expected_by = self._expected_by, None
    frames = _callers()
    # Who announced a batch and died before it is no longer there.
    if expected_by in frames:
      return self._call_ours(*args)
    if not any(map(_tells_callbacks, frames)):
      self.owner._uninstall()
      return self._keras_function()(*args)
    return self._function(False)(*args)

  def _call_ours(self, *args: Any) -> Any:
    model, step = self.owner.model, self.owner._step
    setattr(model, f"{self._kind}_step",
            step if self._kind == "train" else step.test)
    # A step's logs are means over all replicas already, not parts of a sum.
    reduction = model.distribute_reduction_method
    model.distribute_reduction_method = "first"
    try:
      return self._function(True)(*args)
    except (StopIteration, tf.errors.OutOfRangeError):
      raise  # The end of the data, an epoch's ordinary end.
    except BaseException:
      self.owner._uninstall()
      raise
    finally:
      delattr(model, f"{self._kind}_step")
      model.distribute_reduction_method = reduction

  def _function(self, ours: bool) -> Callable[..., Any]:
    """Has Keras make the function around the step, once for each step."""
    if ours not in self._made:
      self._made[ours] = self._keras_function()
      setattr(self.owner.model, f"{self._kind}_function", self)
    return self._made[ours]

  def _keras_function(self) -> Callable[..., Any]:
    return getattr(self.owner.model, f"make_{self._kind}_function")(force=True)


def _callers() -> list[FrameType]:
  """The frames that are running, those of this module apart."""
  frames, frame = [], inspect.currentframe()
  while frame is not None:
    if frame.f_globals is not globals():
      frames.append(frame)
    frame = frame.f_back
  return frames


def _tells_callbacks(frame: FrameType) -> bool:
  return (frame.f_globals.get("__name__")
          == keras.callbacks.CallbackList.__module__)


def _caller_of_callbacks() -> FrameType:
  """The frame that is telling its callbacks something, such as `fit`'s."""
  frames = _callers()
  tells = [*map(_tells_callbacks, frames)]
  if not any(tells):
    return frames[0]  # Someone who calls this one callback by hand.
  return frames[tells.index(False, tells.index(True))]
