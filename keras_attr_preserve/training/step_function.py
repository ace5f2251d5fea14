"""Functions that replace a model's step during a `fit` and restore it after.

A callback is not told when a `fit` fails. So the model's train function is
replaced. The new function sets another step only while it runs, and only in the
`fit` that announced the batch to the callbacks.
"""

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from keras_attr_preserve.compat import keras, tf

__all__ = ["StepFunction", "StepOwner", "calling_list"]


class StepOwner(Protocol):
  """The callback that installs the functions.

  Attributes:
    model: the model with the functions.
    step: trains when called; its `test` evaluates.
  """

  model: keras.Model
  step: Any

  def uninstall(self) -> None:
    """Restores the model."""


class StepFunction:
  """A train or test function that replaces the model's step while it runs.

  Keras first announces each batch to the callbacks of a `fit`. A call without
  an announcement may come from a callback that itself trains or evaluates. It
  gets the model's own step. Otherwise it comes after a failed `fit`, and
  restores the model.
  """

  def __init__(self, owner: StepOwner, kind: str):
    self.owner = owner
    self._kind = kind
    self._expected_by: FrameType | None = None
    self._made: dict[bool, Callable[..., Any]] = {}

  def expect(self) -> None:
    """Announces a batch: the caller of the callbacks will call this next."""
    self._expected_by = _caller_of_callbacks()

  def __call__(self, *args: Any) -> Any:
    expected_by, self._expected_by = self._expected_by, None
    frames = _callers()
    # A `fit` that failed after its announcement has no frame any more.
    if expected_by in frames:
      return self._call_ours(*args)
    if not any(map(_tells_callbacks, frames)):
      self.owner.uninstall()
      return self._keras_function()(*args)
    return self._function(False)(*args)

  def _call_ours(self, *args: Any) -> Any:
    model, step = self.owner.model, self.owner.step
    setattr(model, f"{self._kind}_step",
            step if self._kind == "train" else step.test)
    # A step's logs are already means over all replicas; do not sum them.
    reduction = model.distribute_reduction_method
    model.distribute_reduction_method = "first"
    try:
      return self._function(True)(*args)
    except (StopIteration, tf.errors.OutOfRangeError):
      raise  # The data end: an ordinary end of an epoch.
    except BaseException:
      self.owner.uninstall()
      raise
    finally:
      delattr(model, f"{self._kind}_step")
      model.distribute_reduction_method = reduction

  def _function(self, preserving: bool) -> Callable[..., Any]:
    """Returns Keras's function around a step, made once for each step."""
    if preserving not in self._made:
      self._made[preserving] = self._keras_function()
      setattr(self.owner.model, f"{self._kind}_function", self)
    return self._made[preserving]

  def _keras_function(self) -> Callable[..., Any]:
    return getattr(self.owner.model, f"make_{self._kind}_function")(force=True)


def calling_list() -> keras.callbacks.CallbackList | None:
  """Returns the list that now calls its callbacks; None if called by hand.

  It also calls callbacks appended meanwhile, after all others.
  """
  for frame in filter(_tells_callbacks, _callers()):
    teller = frame.f_locals.get("self")
    if isinstance(teller, keras.callbacks.CallbackList):
      return teller
  return None


def _callers() -> list[FrameType]:
  """Returns the running frames outside this module."""
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
  """Returns the frame that now calls its callbacks, such as `fit`'s."""
  frames = _callers()
  tells = [*map(_tells_callbacks, frames)]
  if not any(tells):
    return frames[0]  # The callback is called by hand.
  return frames[tells.index(False, tells.index(True))]
