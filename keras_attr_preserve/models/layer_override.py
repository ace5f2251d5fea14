"""Another `call` for a layer, while a block runs."""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_attr_preserve.compat import keras, tf

__all__ = ["CallSwap"]

Call = Callable[..., Any]

_lock = threading.Lock()
_installed: dict[int, "_Installed"] = {}
_of_thread = threading.local()


class CallSwap:
  """Has a layer compute something else inside a block, in this thread alone.

  Replicas run in threads that wait for each other half way, and servers explain
  in several threads: each has swaps of its own, and the last thread to leave
  puts the layer's own `call` back. Of several swaps the innermost runs, and the
  `call` that it is handed is that of the swap around it.
  """

  def __init__(self, layer: keras.layers.Layer, call: Call):
    """Takes the layer and what it is to compute.

    Args:
      layer: any Keras layer or model.
      call: `(own_call, *args, **kwargs) -> outputs`, where `own_call` is the
        layer's `call` as it is outside the block.
    """
    self._layer, self._call = layer, call

  @contextlib.contextmanager
  def on(self) -> Iterator[None]:
    """Swaps the layer's `call` inside the block."""
    layer = self._layer
    with _lock:
      if id(layer) not in _installed:
        _installed[id(layer)] = _Installed(layer)
      _installed[id(layer)].users += 1
    swaps = _swaps_of_thread().setdefault(id(layer), [])
    swaps.append(self._call)
    try:
      yield
    finally:
      swaps.pop()
      if not swaps:
        del _swaps_of_thread()[id(layer)]
      with _lock:
        _installed[id(layer)].users -= 1
        if not _installed[id(layer)].users:
          _installed.pop(id(layer)).remove()


class _Installed:
  """The `call` of a layer with swaps, which asks the running thread for one."""

  def __init__(self, layer: keras.layers.Layer):
    self.users = 0
    self._layer = layer
    self._had_its_own = "call" in vars(layer)
    self._own_call = own_call = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
      swaps = _swaps_of_thread().get(id(layer), ())
      return _run(tuple(swaps), own_call, *args, **kwargs)

    # tfmot's wrappers look there for whether a layer takes `training`.
    call.__signature__ = inspect.signature(own_call)
    layer.call = tf.autograph.experimental.do_not_convert(call)

  def remove(self) -> None:
    """Leaves the layer as it was."""
    if self._had_its_own:
      self._layer.call = self._own_call
    else:
      del self._layer.call


def _run(
    swaps: tuple[Call, ...], own_call: Call, *args: Any, **kwargs: Any) -> Any:
  if not swaps:
    return own_call(*args, **kwargs)
  *around, innermost = swaps
  return innermost(
      functools.partial(_run, tuple(around), own_call), *args, **kwargs)


def _swaps_of_thread() -> dict[int, list[Call]]:
  if not hasattr(_of_thread, "swaps"):
    _of_thread.swaps = {}
  return _of_thread.swaps
