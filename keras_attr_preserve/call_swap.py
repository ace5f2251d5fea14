"""Another `call` for a layer, while a block runs."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_attr_preserve.compat import keras

__all__ = ["CallSwap"]


class CallSwap:
  """Has a layer compute something else inside a block.

  Replicas run in threads that wait for each other half way, so the last one to
  leave puts the layer's own `call` back.
  """

  def __init__(
      self, layer: keras.layers.Layer, call: Callable[..., Any]):
    self._layer, self._call = layer, call
    self._lock = threading.Lock()
    self._inside = 0

  @contextlib.contextmanager
  def on(self) -> Iterator[None]:
    """Swaps the layer's `call` inside the block."""
    with self._lock:
      self._inside += 1
      self._layer.call = self._call
    try:
      yield
    finally:
      with self._lock:
        self._inside -= 1
        if not self._inside:
          del self._layer.call
