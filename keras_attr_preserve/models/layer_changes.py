"""Changes the outputs of a model's layers inside a `with` block."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layers import graphs_in, unwrapped_name

__all__ = ["Change", "changed", "layers_by_name"]

Change = Callable[[tf.Tensor], tf.Tensor]


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
  """Lists the layers of a model and of its nested models.

  Args:
    model: a `tf_keras` model.

  Returns:
    Layers by name, without wrapper prefixes. A layer that shares its name, or
    holds layers, is left out.
  """
  by_name = {}
  for graph in graphs_in(model):
    for layer in graph.layers:
      if not isinstance(layer, (keras.Model, keras.layers.InputLayer)):
        by_name.setdefault(unwrapped_name(layer.name), []).append(layer)
  return {name: layers[0] for name, layers in by_name.items()
          if len(layers) == 1}


@contextlib.contextmanager
def changed(
    changes: Mapping[keras.layers.Layer, Change]) -> Iterator[None]:
  """Replaces the outputs of layers inside the block.

  A model that runs eagerly inside the block uses the new outputs. Afterwards
  layers and models are as they were, even after an error.

  Args:
    changes: for each layer a function from its output to the new output.

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
