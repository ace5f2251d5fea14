"""Where a model calls its layers, by the nodes of its graph."""

from collections.abc import Iterator
from typing import Any

from keras_attr_preserve.compat import keras, tf

__all__ = ["calls", "refuse_wrapped"]

_layers = keras.layers


def calls(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, Any]]:
  """Yields the model's layer calls, each after the calls it reads from.

  The walk goes back from the outputs, because a layer may also be called in
  other models. A call is Keras's `Node`. Keras does not document its attributes
  `outputs`, `keras_inputs`, `call_args`, `call_kwargs`; checked on tf_keras
  2.21.
  """
  makers, ends = {}, list(model.outputs)
  for layer in model.layers:
    for node in layer.inbound_nodes:
      for tensor in tf.nest.flatten(node.outputs):
        makers[id(tensor)] = layer, node
    if type(layer).__name__ in ("AddLoss", "AddMetric"):
      ends += tf.nest.flatten(layer.get_output_at(0))
  begun, done = set(), set()
  stack = [makers[id(tensor)] for tensor in reversed(ends)
           if id(tensor) in makers]
  while stack:
    layer, node = stack[-1]
    if id(node) in begun:
      stack.pop()
      if id(node) not in done and not isinstance(layer, _layers.InputLayer):
        yield layer, node
      done.add(id(node))
      continue
    begun.add(id(node))
    stack += [
        makers[id(tensor)] for tensor in reversed(node.keras_inputs)
        if id(tensor) in makers and id(makers[id(tensor)][1]) not in begun]


def refuse_wrapped(model: keras.Model) -> None:
  """Raises a ValueError where tfmot wraps a layer of the model."""
  for module in model.submodules:
    if type(module).__module__.startswith("tensorflow_model_optimization"):
      raise ValueError(
          f"model {model.name!r} is wrapped by tfmot, at {module.name!r}: "
          "strip it first (strip_pruning, strip_clustering), and prune filters "
          "before quantizing.")
