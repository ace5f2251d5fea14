"""The callback that adds attribution preservation to `model.fit`."""

from collections.abc import Callable
from typing import Any

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.objectives import Distillation
from keras_attr_preserve.regularizer import WCAM
from keras_attr_preserve.training import TrainStep

__all__ = ["PreserveAttribution"]


class PreserveAttribution(keras.callbacks.Callback):
  """Holds a model's attribution maps to its teacher's while `fit` runs.

      model.fit(train, validation_data=val,
                callbacks=[PreserveAttribution(teacher, WCAM("relu5"))])

  Works on a plain model, a smaller student, and models made by
  `prune_low_magnitude`, `quantize_model` and pruning-preserving quantization.
  The logs gain `attr_loss`, `attr_agreement` and `attr_dead` (with a
  distillation `distill_loss`), and their `val_` twins; see `TrainStep`.

  For the length of a `fit` the model's `train_step` and `test_step` are a
  `TrainStep`'s. They are given back when `fit` ends, also when it is
  interrupted or fails inside a step.
  """

  def __init__(
      self,
      teacher: keras.Model,
      wcam: WCAM | None,
      *,
      distillation: Distillation | None = None,
  ):
    """Keeps the settings.

    Args:
      teacher: the net whose maps are kept; never changed.
      wcam: what to match; None for distillation alone.
      distillation: what to learn from the teacher's scores as well.

    Raises:
      TypeError, ValueError: the teacher is no `tf_keras` model; what does not
        fit the model itself is said when `fit` starts, before any training.
    """
    super().__init__()
    self._teacher = check_model(teacher, "teacher")
    self._wcam = wcam
    self._distillation = distillation
    self._step: TrainStep | None = None

  def set_model(self, model: keras.Model) -> None:
    """Installs the step; Keras calls it before it builds its functions."""
    super().set_model(model)
    self._uninstall()
    owner = getattr(model.__dict__.get("train_step"), "__self__", None)
    if isinstance(owner, PreserveAttribution):
      owner._uninstall()
      raise ValueError(
          "callbacks: the model has a PreserveAttribution already; give one, "
          "with several layers if need be.")
    if (type(model).train_step is not keras.Model.train_step
        or "train_step" in model.__dict__):
      raise ValueError(
          f"model {model.name!r} has a train_step of its own, which this "
          "callback would replace; call kap.TrainStep inside it instead.")
    self._step = TrainStep(model, self._teacher, self._wcam,
                           distillation=self._distillation)
    model.train_step = self._train_step
    model.test_step = self._test_step
    _forget_functions(model)

  def _train_step(self, data: Any) -> dict[str, tf.Tensor]:
    return self._step(data)

  def _test_step(self, data: Any) -> dict[str, tf.Tensor]:
    return self._step.test(data)

  def on_train_begin(self, logs: Any = None) -> None:
    """Guards the function that Keras has built by now."""
    self.model.train_function = self._guarded(self.model.train_function)

  def on_test_begin(self, logs: Any = None) -> None:
    """Starts the means of a validation pass."""
    self._reset_metrics()
    if self._step is not None:
      self.model.test_function = self._guarded(self.model.test_function)

  def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
    """Starts the means of an epoch."""
    self._reset_metrics()

  def on_train_end(self, logs: Any = None) -> None:
    """Gives the model its own steps back."""
    self._uninstall()

  def _reset_metrics(self) -> None:
    for metric in self._step.metrics if self._step is not None else ():
      metric.reset_state()

  def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, giving the model back where it fails."""
    if isinstance(function, _Guard):
      return function
    return _Guard(function, self._uninstall)

  def _uninstall(self) -> None:
    if self._step is None:
      return
    model, self._step = self._step.model, None
    del model.train_step
    del model.test_step
    _forget_functions(model)


class _Guard:
  """Calls a train or test function, and `undo` if it does not return."""

  def __init__(
      self, function: Callable[..., Any], undo: Callable[[], None]):
    self._function = function
    self._undo = undo

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    try:
      return self._function(*args, **kwargs)
    except (StopIteration, tf.errors.OutOfRangeError):
      raise  # The end of the data, an epoch's ordinary end.
    except BaseException:
      self._undo()
      raise


def _forget_functions(model: keras.Model) -> None:
  """Makes Keras build its functions anew from the steps the model has now."""
  model.train_function = None
  model.test_function = None
