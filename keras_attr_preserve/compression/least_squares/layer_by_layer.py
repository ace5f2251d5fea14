"""The inputs of one layer after another, without running the whole model."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import clone_model, keras, tf
from keras_attr_preserve.models.layer_calls import calls

__all__ = ["StagedInputs"]

KEPT = 2**28
"""Values kept for all images together, if the images have no more: 1 GB."""


class StagedInputs:
  """The inputs of a model's layers on some images, for layers in order.

      inputs = StagedInputs(model, images, batch_size=32)
      for layer in model.layers:
        for batch in inputs.batches(layer.name):
          ...
        inputs.set_weights(layer.name, changed)

  At many places a model computes everything from one tensor, between two blocks
  say. The values of the last such tensor before the requested layer are kept,
  for all images. The model runs from there on. The tensor must have no more
  values than the images, or than `KEPT`.
  """

  def __init__(
      self, model: keras.Model, images: np.ndarray, batch_size: int):
    """Copies the model.

    Args:
      model: of one input; it is not changed.
      images: its input, one image or more.
      batch_size: images a batch.
    """
    # A copy, since the models of parts add calls to the layers they run.
    self._net = clone_model(model)
    layer_calls = [*calls(self._net)]
    self._wanted = {layer.name: (place, node.keras_inputs[0])
                    for place, (layer, node) in enumerate(layer_calls)}
    self._start = self._net.inputs[0]
    self._values = [images[start:start + batch_size]
                    for start in range(0, len(images), batch_size)]
    self._ahead = _bottlenecks(
        self._net, layer_calls, max(images[0].size, KEPT // len(images)))

  def batches(self, name: str) -> Iterator[np.ndarray]:
    """Yields a layer's inputs, batch by batch.

    Args:
      name: of a layer called once. No layer requested or changed before may
        depend on it.
    """
    place, target = self._wanted[name]
    passed = [tensor for before, tensor in self._ahead if before < place]
    if passed:
      del self._ahead[:len(passed)]
      self._values = [*self._run(passed[-1])]
      self._start = passed[-1]
    return self._run(target)

  def set_weights(self, name: str, weights: list[np.ndarray]) -> None:
    """Changes a layer that no layer requested so far depends on."""
    self._net.get_layer(name).set_weights(weights)

  def _run(self, target: Any) -> Iterator[np.ndarray]:
    """Yields a tensor's values, batch by batch."""
    if target is self._start:
      yield from self._values
      return
    model = keras.Model(self._start, target)
    for batch in self._values:
      yield model(batch, training=False).numpy()


def _bottlenecks(
    model: keras.Model, layer_calls: list[tuple[keras.layers.Layer, Any]],
    most: int) -> list[tuple[int, Any]]:
  """Finds tensors from which alone all later calls are computed.

  Args:
    model: of one input.
    layer_calls: its calls, in order.
    most: how many values the tensor may have for one image.

  Returns:
    The number of each call that such a tensor follows, and the tensor.
  """
  last = {id(value): place for place, (_, node) in enumerate(layer_calls)
          for value in node.keras_inputs}
  last.update((id(value), len(layer_calls)) for value in model.outputs)
  bottlenecks, open_ = [], {id(value): value for value in model.inputs}
  for place, (_, node) in enumerate(layer_calls):
    open_.update((id(value), value) for value in tf.nest.flatten(node.outputs))
    open_ = {key: value for key, value in open_.items()
             if last.get(key, -1) > place}
    if len(open_) == 1:
      tensor, = open_.values()
      if (np.prod([size or np.inf for size in tensor.shape[1:]]) <= most
          and tensor is not model.inputs[0]):
        bottlenecks.append((place, tensor))
  return bottlenecks
