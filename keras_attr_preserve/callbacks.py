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
    self._begun = False

  def set_model(self, model: keras.Model) -> None:
    """Installs the step; Keras calls it before it builds its functions."""
    super().set_model(check_model(model))
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
    self._step = TrainStep(model, self._teacher, self._wcam,
                           distillation=self._distillation)
    self._begun = False
    model.train_function = _Function(
        self, model, "train_step", model.make_train_function)
    model.test_function = _Function(
        self, model, "test_step", model.make_test_function)

  def on_train_begin(self, logs: Any = None) -> None:
    """Notes that training began."""
    self._begun = True

  def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    self.model.train_function.expected = True

  def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
    """Says that the next step is one of this callback's `fit`."""
    if self._step is not None:
      self.model.test_function.expected = True

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
    self._reset_metrics()

  def on_train_end(self, logs: Any = None) -> None:
    """Gives the model its own steps back."""
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


class _Function:
  """A train or test function that has the model's step only while it runs.

  Keras announces each batch to the callbacks of a `fit` first; a call without
  that comes from elsewhere (the callback's `fit` died, or someone evaluates
  during it) and gets the model's own step.
  """

  def __init__(
      self,
      owner: PreserveAttribution,
      model: keras.Model,
      name: str,
      make: Callable[..., Callable[..., Any]],
  ):
    self.owner = owner
    self.expected = False
    self._model = model
    self._name = name
    self._make = make
    self._made: dict[bool, Callable[..., Any]] = {}

  def __call__(self, *args: Any) -> Any:
    ours, self.expected = self.expected, False
    if ours:
      step = self.owner._step
      setattr(self._model, self._name,
              step if self._name == "train_step" else step.test)
    try:
      if ours not in self._made:
        self._made[ours] = self._make(force=True)
        setattr(self._model, self._name.replace("step", "function"), self)
      return self._made[ours](*args)
    except (StopIteration, tf.errors.OutOfRangeError):
      raise  # The end of the data, an epoch's ordinary end.
    except BaseException:
      if ours:
        self.owner._uninstall()
      raise
    finally:
      if ours:
        delattr(self._model, self._name)
