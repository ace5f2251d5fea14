"""What stands in a model for the length of a `fit`, and lets go by itself.

A callback is not told when a `fit` dies. So the model's train function is
replaced by one that puts another step into the model only while it runs, and
only when the very `fit` runs it that announced a batch to the callbacks.
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
    model: the model they are installed in.
    step: what trains when called, and judges by its `test`.
  """

  model: keras.Model
  step: Any

  def uninstall(self) -> None:
    """Gives the model back."""


class StepFunction:
  """A train or test function that has the model's step only while it runs.

  Keras announces each batch to the callbacks of a `fit` first. A call without
  that comes from a callback that trains or evaluates for itself, and gets the
  model's own step; or it comes after a `fit` that died, and ends what that
  left.
  """

  def __init__(self, owner: StepOwner, kind: str):
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
      self.owner.uninstall()
      return self._keras_function()(*args)
    return self._function(False)(*args)

  def _call_ours(self, *args: Any) -> Any:
    model, step = self.owner.model, self.owner.step
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
      self.owner.uninstall()
      raise
    finally:
      delattr(model, f"{self._kind}_step")
      model.distribute_reduction_method = reduction

  def _function(self, preserving: bool) -> Callable[..., Any]:
    """Has Keras make the function around the step, once for each step."""
    if preserving not in self._made:
      self._made[preserving] = self._keras_function()
      setattr(self.owner.model, f"{self._kind}_function", self)
    return self._made[preserving]

  def _keras_function(self) -> Callable[..., Any]:
    return getattr(self.owner.model, f"make_{self._kind}_function")(force=True)


def calling_list() -> keras.callbacks.CallbackList | None:
  """The list that is telling its callbacks something; None if called by hand.

  What is appended to it meanwhile is told as well, after all others.
  """
  for frame in filter(_tells_callbacks, _callers()):
    teller = frame.f_locals.get("self")
    if isinstance(teller, keras.callbacks.CallbackList):
      return teller
  return None


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
