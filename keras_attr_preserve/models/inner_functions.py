"""Runs each `tf.function` inside a model as part of the surrounding code.

A `tf.function` that a layer calls keeps the gradients of its first use. A
model's sensitivities would then depend on earlier computations, and gradient
rules would not reach inside. So these functions run in place, operation by
operation.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layer_override import CallSwap

__all__ = ["InnerFunctions"]

_lock = threading.Lock()
_inside = 0
_before = False


@contextlib.contextmanager
def _in_place() -> Iterator[None]:
  """Runs every `tf.function` in place until the last thread leaves.

  TensorFlow has one such setting for the whole process. Another thread's
  functions run eagerly meanwhile, with the same results.
  """
  global _inside, _before
  with _lock:
    if not _inside:
      _before = tf.config.functions_run_eagerly()
      tf.config.run_functions_eagerly(True)
    _inside += 1
  try:
    yield
  finally:
    with _lock:
      _inside -= 1
      if not _inside:
        tf.config.run_functions_eagerly(_before)


class InnerFunctions:
  """Runs the functions inside a model in place.

  Keras compiles convolutions of several groups, because TensorFlow cannot run
  them on a CPU otherwise. They stay functions where the model runs. Only the
  converter has gradient rules for the operations inside them.
  """

  def __init__(self, model: keras.Model, *, runs: bool = True):
    """Finds the convolutions.

    Args:
      model: any `tf_keras` model.
      runs: whether the model runs in TensorFlow; False where it is only traced,
        for the converter.
    """
    self._swaps = [
        CallSwap(layer, _as_a_function) for layer in model.submodules
        if runs and getattr(layer, "groups", 1) != 1
        and isinstance(layer, keras.layers.Layer)]

  @contextlib.contextmanager
  def in_place(self) -> Iterator[None]:
    """Runs the functions in place inside the block."""
    with contextlib.ExitStack() as stack:
      for swap in self._swaps:
        stack.enter_context(swap.on())
      stack.enter_context(_in_place())
      yield


def _as_a_function(own_call: Callable[..., Any], *args: Any, **kwargs: Any):
  """Runs a layer's `call` and keeps its functions compiled."""
  tf.config.run_functions_eagerly(False)
  try:
    return own_call(*args, **kwargs)
  finally:
    tf.config.run_functions_eagerly(True)
