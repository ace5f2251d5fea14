"""Letting layers of a model give something else, for the length of a block."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layers import graphs_in, unwrapped_name

__all__ = ["Change", "changed", "layers_by_name"]

Change = Callable[[tf.Tensor], tf.Tensor]


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
  """Lists the layers of a model, those of nested ones too.

  Args:
    model: a `tf_keras` model.

  Returns:
    Each layer that has its name to itself and no layers inside, by its name
    without wrapper prefixes.
  """
  found = {}
  for graph in graphs_in(model):
    for layer in graph.layers:
      if not isinstance(layer, (keras.Model, keras.layers.InputLayer)):
        found.setdefault(unwrapped_name(layer.name), []).append(layer)
  return {name: layers[0] for name, layers in found.items()
          if len(layers) == 1}


@contextlib.contextmanager
def changed(
    changes: Mapping[keras.layers.Layer, Change]) -> Iterator[None]:
  """Lets layers hand on something else than what they compute.

  What a model gives inside the block, run eagerly, follows from it. Layers and
  models are afterwards as they were, whatever happens.

  Args:
    changes: for each layer a function from what it computed to what it gives.

  Yields:
    Nothing.
  """
  before = {layer: vars(layer).get("call") for layer in changes}
  try:
    for layer, change in changes.items():
      layer.call = _then(layer.call, change)
    yield
  finally:
    for layer, call in before.items():
      if call is not None:
        layer.call = call
      elif "call" in vars(layer):
        del layer.call


def _then(call: Callable, change: Change) -> Callable:
  @tf.autograph.experimental.do_not_convert
  def changed_call(*args, **kwargs):
    return change(call(*args, **kwargs))
  return changed_call
