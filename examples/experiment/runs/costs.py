"""Counts a Keras model's parameters, multiplications and zeros."""

import math
from collections.abc import Iterator

import numpy as np

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.models.layers import layer_output, unwrapped_name

__all__ = ["count_macs", "count_parameters", "count_zeros", "kernel_sparsity"]

_layers = keras.layers
_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
_MULTIPLIERS = (_layers.Conv2D, _layers.Conv2DTranspose, _layers.Dense,
                _layers.DepthwiseConv2D, _layers.SeparableConv2D)
# A converter folds these few operations into neighbouring layers.
_FOLDED = (_layers.BatchNormalization, _layers.Normalization)


def count_parameters(model: keras.Model) -> int:
  """Counts the parameters of a model's layers.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.

  Returns:
    The number of weights, including moving statistics, as
    `model.count_params()`. Masks, steps, centroids and ranges of wrappers do
    not count.

  Raises:
    TypeError, ValueError: the model is not as above.
  """
  return sum(math.prod(weight.shape) for _, layer in _layers_of(
      check_model(model)) for weight in _weights(layer))


def count_zeros(model: keras.Model) -> tuple[int, int]:
  """Counts zeros among the kernels of convolutions and Dense layers.

  Args:
    model: a built `tf_keras` model. Strip pruning's wrappers first: between two
      steps, masked weights may not be zero.

  Returns:
    The number of zero kernel weights, and the number of all kernel weights.

  Raises:
    TypeError, ValueError: the model is not as above, or a layer of an unknown
      type has weights.
  """
  kernels = [kernel.numpy() for _, layer in _layers_of(check_model(model))
             for kernel in _kernels(layer)]
  return (sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels),
          sum(kernel.size for kernel in kernels))


def kernel_sparsity(model: keras.Model) -> float:
  """Returns the share of zeros among kernel weights, 0..1."""
  zeros, total = count_zeros(model)
  return zeros / total if total else 0.0


def count_macs(model: keras.Model) -> int:
  """Counts the multiply-accumulates of one image.

  As in the literature, only convolutions and Dense layers count, without bias,
  normalization, activation and pooling. Zero weights count like others, as in
  dense kernels.

  Args:
    model: a built `tf_keras` model with a fixed input size, channels last,
      wrapped by tfmot or not.

  Returns:
    The count.

  Raises:
    TypeError: the model is no `tf_keras` model.
    ValueError: a size is not fixed, a layer is called twice, or a layer of an
      unknown type has weights.
  """
  return sum(_layer_macs(graph, layer)
             for graph, layer in _layers_of(check_model(model)))


def _layers_of(
    model: keras.Model
) -> Iterator[tuple[keras.Model, keras.layers.Layer]]:
  """Yields all layers with their graphs, also from nested models."""
  for layer in model.layers:
    if isinstance(layer, keras.Model):
      yield from _layers_of(layer)
    # tfmot adds a QuantizeLayer behind the input.
    elif type(layer).__name__ != "QuantizeLayer":
      yield model, layer


def _wrapped(layer: keras.layers.Layer) -> bool:
  return unwrapped_name(layer.name) != layer.name and hasattr(layer, "layer")


def _weights(layer: keras.layers.Layer) -> list[tf.Variable]:
  """Returns the layer's weights, or a wrapped layer's for a wrapper."""
  # Some wrappers replace layer.layer.weights by tensors.
  if not _wrapped(layer):
    return layer.weights
  return [weight for weight in layer.weights
          if f"{layer.name}/" not in weight.name]


def _kernels(layer: keras.layers.Layer) -> list[tf.Variable]:
  plain, weights = layer, _weights(layer)
  while _wrapped(plain):
    plain = plain.layer
  if not isinstance(plain, _MULTIPLIERS):
    if weights and not isinstance(plain, _FOLDED):
      raise ValueError(
          f"layer {plain.name!r} has weights, and what a "
          f"{type(plain).__name__} costs is not known.")
    return []
  return [weight for weight in weights
          if weight.name.split("/")[-1].split(":")[0] in _KERNELS]


def _layer_macs(graph: keras.Model, layer: keras.layers.Layer) -> int:
  kernels = _kernels(layer)
  if not kernels:
    return 0
  output = layer_output(graph, layer)
  positions = output.shape[1:-1]
  if isinstance(layer, _layers.Conv2DTranspose):
    # Every position of the input meets the whole kernel.
    positions = layer.input_shape[1:-1]
  if None in positions:
    raise ValueError(
        f"model {graph.name!r} must have a fixed input size; layer "
        f"{layer.name!r} gives {[*output.shape]}.")
  # Every position uses the whole kernel. The kernel's shape accounts for groups
  # and for depthwise layers.
  return math.prod(positions) * sum(
      math.prod(kernel.shape) for kernel in kernels)
