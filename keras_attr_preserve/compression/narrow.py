"""The same architecture with fewer channels, to be trained from scratch."""

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.compression.channel_graph import BORDER, ChannelGraph
from keras_attr_preserve.compression.channel_slicing import slice_model

__all__ = ["narrow"]


def narrow(model: keras.Model, width: float) -> keras.Model:
  """Builds a fresh copy of an architecture whose hidden layers are narrower.

  Park et al. 2020 distill to such students: a VGG with a half, a quarter or an
  eighth of the teacher's channels.

      student = narrow(teacher, 1 / 4)

  Args:
    model: a built `tf_keras` model, channels last; it is not changed.
    width: factor of the number of filters of each hidden convolution and of the
      units of each hidden Dense layer, above 0 and at most 1. The product is
      rounded and at least 1. The input and the classes stay.

  Returns:
    A new, uncompiled model with the old layer names. Each layer's initializers
    draw its weights. Only the mean and variance of `Normalization` layers,
    measured on the data, are copied.

  Raises:
    TypeError, ValueError: an argument is not as above, or a layer's width
      depends on an unknown layer: a Lambda, a custom layer, a nested model, a
      convolution in groups, a Reshape that splits channels.

  References:
    Park et al. 2020, https://arxiv.org/abs/2010.15054, the experiments.
  """
  if (isinstance(width, bool) or not isinstance(width, (int, float))
      or not 0 < width <= 1):
    raise ValueError(
        f"width must be a number above 0 and at most 1; got {width!r}.")
  graph = ChannelGraph(model)
  for name, why in graph.held.items():
    if why not in BORDER:
      raise ValueError(
          f"model {model.name!r}: layer {name!r} cannot be made narrower, "
          f"since its channels {why}.")
  for layer in model.layers:
    if layer.trainable_weights and layer.name not in graph.uses:
      raise ValueError(
          f"model {model.name!r}: layer {layer.name!r} "
          f"({type(layer).__name__}) has weights, and how to make it narrower "
          "is not known.")
  if not graph.groups:
    raise ValueError(f"model {model.name!r} has no hidden layer to narrow.")
  removed = np.zeros(graph.count, bool)
  for group in graph.groups:
    filters = max(1, round(width * len(group.channels)))
    removed[group.channels[filters:]] = True
  narrowed = slice_model(model, graph, removed)
  for layer in model.layers:
    if isinstance(layer, keras.layers.Normalization):
      narrowed.get_layer(layer.name).set_weights(layer.get_weights())
  return narrowed
