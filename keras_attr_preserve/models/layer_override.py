"""Replaces a layer's `call` inside a `with` block."""

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
  """Replaces a layer's `call` inside a block, only in this thread.

  Replicas run in threads that wait for each other, and servers explain in
  several threads. So each thread has its own swaps. The last thread to leave
  restores the layer's own `call`. Of several swaps the innermost runs, and gets
  the next outer swap as its `own_call`.
  """

  def __init__(self, layer: keras.layers.Layer, call: Call):
    """Takes the layer and the new `call`.

    Args:
      layer: any Keras layer or model.
      call: `(own_call, *args, **kwargs) -> outputs`, where `own_call` is the
        layer's `call` outside the block.
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
  """A layer's replaced `call`, which runs the swaps of the current thread."""

  def __init__(self, layer: keras.layers.Layer):
    self.users = 0
    self._layer = layer
    self._had_its_own = "call" in vars(layer)
    self._own_call = own_call = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
      swaps = _swaps_of_thread().get(id(layer), ())
      return _run(tuple(swaps), own_call, *args, **kwargs)

    # tfmot's wrappers look for `training` in the signature.
    call.__signature__ = inspect.signature(own_call)
    layer.call = tf.autograph.experimental.do_not_convert(call)

  def remove(self) -> None:
    """Restores the layer's own `call`."""
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
