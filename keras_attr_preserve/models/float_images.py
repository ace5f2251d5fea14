"""Runs integer images through a model as floats, so that gradients reach them.

A model of `keras.Input(dtype="uint8")` casts its images to integers, and no
gradient passes through that cast. Here the layers that read the input get the
same images as floats. Their first cast to floats then changes nothing.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.compat import has_graph, keras, tf
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layer_calls import calls
from keras_attr_preserve.models.layer_override import CallSwap
from keras_attr_preserve.models.layers import core_of

__all__ = ["FloatImages"]

# Results may differ by the order of rounding, in float16 too.
_ROUNDING = (1e-3, 1e-3)


class FloatImages:
  """Runs a model on integer images as floats.

  Attributes:
    reason: a phrase that says why the model needs integers; "" if it does not.
  """

  def __init__(self, model: keras.Model):
    """Finds the layers, and tests whether floats give the same numbers.

    Args:
      model: a graph of layers, or a subclass around one.
    """
    self.reason = ""
    self._model, self._core = model, core_of(model)
    self._swaps: list[CallSwap] = []
    self._factor = 1.0
    self._given = threading.local()
    self._integer = len(self._core.inputs) == 1 and not (
        self._core.inputs[0].dtype.is_floating)
    if not self._integer:
      return
    self._input = model_input(model)
    ends: list[Any] = []
    self._follow(self._core, ends)
    self.reason = self._tried(ends)
    if self._core is not model:
      self._swaps.append(CallSwap(self._core, self._remembering(self._core)))

  def of(self, images: Any) -> Any:
    """Casts images to floats if the model takes integers."""
    if not self._integer or self.reason:
      return images
    if isinstance(images, Mapping):
      return {name: tf.cast(value, tf.float32) if name in self._input.names
              else value for name, value in images.items()}
    return tf.nest.map_structure(
        lambda value: tf.cast(value, tf.float32), images)

  @contextlib.contextmanager
  def flowing(self, images: Any) -> Iterator[None]:
    """Lets the model take floats without a cast inside the block.

    Args:
      images: the model's images; for integers nothing changes.
    """
    if not self._integer or self.reason:
      yield
      return
    images = self._input.entry(images)
    images = tf.convert_to_tensor(tf.nest.flatten(images)[0])
    if not images.dtype.is_floating:
      yield
      return
    with contextlib.ExitStack() as stack:
      for swap in self._swaps:
        stack.enter_context(swap.on())
      self._values()[id(self._core)] = images
      try:
        yield
      finally:
        self._values().clear()

  def _values(self) -> dict[int, tf.Tensor]:
    """Returns the input of each graph, in this thread."""
    if not hasattr(self._given, "values"):
      self._given.values = {}
    return self._given.values

  def _follow(self, graph: keras.Model, ends: list[Any] | None) -> None:
    """Swaps the `call` of the layers that read a graph's integers.

    Args:
      graph: a graph with one integer input.
      ends: collects the first float tensors; None for a nested graph.
    """
    hanging, swapped = {id(graph.inputs[0])}, set()
    for layer, node in calls(graph):
      if not any(id(tensor) in hanging for tensor in node.keras_inputs):
        continue
      reads = any(tensor is graph.inputs[0] for tensor in node.keras_inputs)
      outputs = tf.nest.flatten(node.outputs)
      if ends is not None:
        ends += [tensor for tensor in outputs if tensor.dtype.is_floating]
      hanging.update(id(tensor) for tensor in outputs
                     if not tensor.dtype.is_floating)
      nested = has_graph(layer) and len(layer.inputs) == 1
      if id(layer) in swapped or not (reads or nested):
        continue
      swapped.add(id(layer))
      if not nested:
        self._swaps.append(CallSwap(layer, self._handing(graph, scaled=True)))
        continue
      self._swaps.append(CallSwap(
          layer, self._remembering(layer, graph if reads else None)))
      if not layer.inputs[0].dtype.is_floating:
        self._follow(layer, None)

  def _handing(self, graph: keras.Model, scaled: bool = False):
    """Returns a layer's call that takes its graph's float input."""
    dtype = graph.inputs[0].dtype

    def call(own_call, *args, **kwargs):
      given = self._values().get(id(graph))
      if given is not None and scaled and self._factor != 1:
        given = given * tf.cast(self._factor, given.dtype)

      def handed(one):
        # Keras has cast the graph's input to integers; use the floats instead.
        return given if given is not None and tf.is_tensor(one) and (
            one.dtype == dtype and one.shape.rank == given.shape.rank) else one
      args, kwargs = tf.nest.map_structure(handed, (args, kwargs))
      return own_call(*args, **kwargs)
    return call

  def _remembering(self, graph: keras.Model, around: Any = None):
    """Returns a model's call that keeps its input for its layers."""
    handing = None if around is None else self._handing(around)

    def call(own_call, *args, **kwargs):
      def run(inputs, *rest, **settings):
        first = tf.nest.flatten(inputs)[0]
        if first.dtype.is_floating:
          self._values()[id(graph)] = first
        return own_call(inputs, *rest, **settings)
      return run(*args, **kwargs) if handing is None else handing(
          run, *args, **kwargs)
    return call

  def _tried(self, ends: list[Any]) -> str:
    """Compares the first float tensors for integer and for float images."""
    what = f"{self._input.whose} takes {self._input.dtype}"
    if not ends:
      return f"{what}, and makes no floats of it"
    model = keras.Model(self._core.input, ends)
    images = self._input.probes(2)
    expected = _numbers(
        model(tf.cast(images, self._input.dtype), training=False))
    try:
      slope, actual = self._flowed(model, images)
      if slope is not None and not np.allclose(expected, actual, *_ROUNDING):
        # `tf.image.convert_image_dtype` divides integers and leaves floats.
        self._factor = float(expected @ actual / (actual @ actual))
        _, actual = self._flowed(model, images)
    except (TypeError, ValueError, tf.errors.OpError):
      return f"{what}, and its first layers do not take floats in their place"
    if slope is None:
      return f"{what}, and its first layers have no gradient"
    return "" if np.allclose(expected, actual, *_ROUNDING) else (
        f"{what}, and its first layers make other numbers of the same floats")

  def _flowed(
      self, model: keras.Model, images: np.ndarray) -> tuple[Any, np.ndarray]:
    """Returns a gradient, or None, and a model's outputs for float images."""
    slopes = []

    def run(images):
      with self.flowing(images):
        floats = tf.nest.flatten(model(images, training=False))
      slopes.extend(tf.gradients(floats, images))
      return floats
    # Uses a graph, because a tape records nothing while a tap is built.
    graph = tf.function(run, autograph=False).get_concrete_function(
        tf.TensorSpec(images.shape))
    return slopes[0], _numbers(graph(tf.constant(images)))


def _numbers(values: Any) -> np.ndarray:
  """Joins all numbers of some tensors, float32 `[count]`."""
  return np.concatenate([
      tf.cast(tensor, tf.float32).numpy().ravel()
      for tensor in tf.nest.flatten(values)])
