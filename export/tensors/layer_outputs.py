"""The outputs of all layers of a Keras model, nested models included."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import at_least_float32, keras, tf
from keras_attr_preserve.models.layers import layer_output, unwrapped_name

__all__ = ["LayerOutputs"]


class LayerOutputs:
  """Runs a model and returns the output of each of its layers.

  Layers that run more than once, or give several tensors or integers, are left
  out. Layers of the same name in two nested models are "first/name" and
  "second/name".

  Attributes:
    names: the names of the layers, without wrapper prefixes, the input side
      first.
  """

  def __init__(self, model: keras.Model):
    """Builds the graph that reads layer outputs; does not change the model.

    Args:
      model: a Functional or Sequential `tf_keras` model.
    """
    self._root = _Graph(model)
    places = [*self._root.places()]
    plain = [name for _, name in places]
    self._names = {
        (path, name): name if plain.count(name) == 1 else f"{path}{name}"
        for path, name in places}
    self.names = tuple(self._names.values())
    tensors = self._root.tensors()
    self._tensors = {self._names[place]: tensors[place] for place in places}
    self._layers = self._root.layers()

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the model as for inference.

    Args:
      images: a batch that the model takes.

    Returns:
      The output of each layer, float32 `[images, ...]`.
    """
    values = self._root.run(tf.convert_to_tensor(images))
    return {self._names[place]: tf.cast(
        at_least_float32(value), tf.float32).numpy()
            for place, value in values.items()}

  def rank(self, name: str) -> int:
    """Returns the number of dimensions of a layer's output, with the batch."""
    return len(self._tensors[name].shape)

  def following(self, name: str) -> Iterator[str]:
    """Yields the layers that a layer's output flows into, the nearest first."""
    reached, seen = [self._tensors[name]], {name}
    named = {id(tensor): other for other, tensor in self._tensors.items()}
    while reached:
      tensor = reached.pop(0)
      for inputs, output in self._layers:
        if not any(source is tensor for source in inputs):
          continue
        other = named.get(id(output))
        if other is None or other in seen:
          continue
        seen.add(other)
        reached.append(output)
        yield other


class _Graph:
  """A graph of layers: the outputs to read, and the graphs inside it."""

  def __init__(self, model: keras.Model, path: str = ""):
    self._path = path
    self._outputs, self._inner, self._edges = {}, [], []
    for layer in model.layers:
      if isinstance(layer, keras.layers.InputLayer):
        continue
      try:
        output = layer_output(model, layer)
      except ValueError:  # It runs more than once: its output is ambiguous.
        continue
      node = next(i for i in range(len(layer.inbound_nodes))
                  if layer.get_output_at(i) is output)
      inputs = layer.get_input_at(node)
      if isinstance(layer, keras.Model):
        self._inner.append((_Graph(layer, f"{path}{layer.name}/"), inputs))
      if getattr(getattr(output, "dtype", None), "is_floating", False):
        self._outputs[unwrapped_name(layer.name)] = output
        self._edges.append((tf.nest.flatten(inputs), output))
    self._wide = keras.Model(
        model.input, [self._outputs, [inputs for _, inputs in self._inner]])

  def places(self) -> Iterator[tuple[str, str]]:
    """Yields path and name of each layer, outer layers before inner."""
    yield from ((self._path, name) for name in self._outputs)
    for graph, _ in self._inner:
      yield from graph.places()

  def tensors(self) -> dict[tuple[str, str], Any]:
    """Returns each layer's Keras tensor."""
    tensors = {(self._path, name): output
             for name, output in self._outputs.items()}
    for graph, _ in self._inner:
      tensors.update(graph.tensors())
    return tensors

  def layers(self) -> list[tuple[list, Any]]:
    """Returns the inputs and the output of each layer."""
    return sum((graph.layers() for graph, _ in self._inner), [*self._edges])

  def run(self, images: Any) -> dict[tuple[str, str], tf.Tensor]:
    """Runs this graph, then the graphs inside it on their inputs."""
    outputs, inner = self._wide(images, training=False)
    values = {(self._path, name): value for name, value in outputs.items()}
    for (graph, _), inputs in zip(self._inner, inner):
      values.update(graph.run(inputs))
    return values
