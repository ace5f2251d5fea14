"""What one layer after another takes, without running a net from its start."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import clone_model, keras, tf
from keras_attr_preserve.models.layer_calls import calls

__all__ = ["StagedInputs"]

KEPT = 2**28
"""Values kept, of all pictures together, where these have no more: 1 GB."""


class StagedInputs:
  """What a model's layers take on some pictures, for layers asked for in order.

      inputs = StagedInputs(model, images, batch_size=32)
      for layer in model.layers:
        for batch in inputs.batches(layer.name):
          ...
        inputs.set_weights(layer.name, changed)

  All that a net computes goes through one tensor in many a place, between two
  blocks say. What it is on all pictures is kept at the last such place before
  the layer asked for, where it has no more values than the pictures or than
  `KEPT`, and the net is run from there on.
  """

  def __init__(
      self, model: keras.Model, images: np.ndarray, batch_size: int):
    """Copies the model.

    Args:
      model: of one input; it is left as it came.
      images: what it takes, of any number, but one or more.
      batch_size: how many to run at a time.
    """
    # Models of parts add calls to the layers they run.
    self._net = clone_model(model)
    made = [*calls(self._net)]
    self._wanted = {layer.name: (place, node.keras_inputs[0])
                    for place, (layer, node) in enumerate(made)}
    self._start = self._net.inputs[0]
    self._values = [images[start:start + batch_size]
                    for start in range(0, len(images), batch_size)]
    self._ahead = _bottlenecks(
        self._net, made, max(images[0].size, KEPT // len(images)))

  def batches(self, name: str) -> Iterator[np.ndarray]:
    """Yields what a layer takes, batch by batch.

    Args:
      name: of a layer called once, which no layer asked for before, or whose
        weights were set, hangs on.
    """
    place, wanted = self._wanted[name]
    passed = [one for before, one in self._ahead if before < place]
    if passed:
      del self._ahead[:len(passed)]
      self._values = [*self._run(passed[-1])]
      self._start = passed[-1]
    return self._run(wanted)

  def set_weights(self, name: str, weights: list[np.ndarray]) -> None:
    """Changes a layer that none of those asked for so far hangs on."""
    self._net.get_layer(name).set_weights(weights)

  def _run(self, wanted: Any) -> Iterator[np.ndarray]:
    """Yields a tensor's values, batch by batch."""
    if wanted is self._start:
      yield from self._values
      return
    net = keras.Model(self._start, wanted)
    for batch in self._values:
      yield net(batch, training=False).numpy()


def _bottlenecks(
    model: keras.Model, made: list[tuple[keras.layers.Layer, Any]], most: int
) -> list[tuple[int, Any]]:
  """Finds tensors that alone lead from the calls so far to those after.

  Args:
    model: of one input.
    made: its calls, in order.
    most: how many values a picture's may have.

  Returns:
    Numbers of calls and the tensor after each, where there is one.
  """
  last = {id(one): place for place, (_, node) in enumerate(made)
          for one in node.keras_inputs}
  last.update((id(one), len(made)) for one in model.outputs)
  found, open_ = [], {id(one): one for one in model.inputs}
  for place, (_, node) in enumerate(made):
    open_.update((id(one), one) for one in tf.nest.flatten(node.outputs))
    open_ = {key: one for key, one in open_.items()
             if last.get(key, -1) > place}
    if len(open_) == 1:
      tensor, = open_.values()
      if (np.prod([size or np.inf for size in tensor.shape[1:]]) <= most
          and tensor is not model.inputs[0]):
        found.append((place, tensor))
  return found
