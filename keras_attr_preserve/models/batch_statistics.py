"""Takes a batch's statistics as constants in the sensitivities of its images.

In training mode each image contributes to a batch normalization's mean and
variance. The sensitivity of one image then depends on all the others. In use
the model runs on one image with fixed statistics. So a sensitivity is computed
with this batch's statistics frozen. Its derivative by the weights stays exact,
because the statistics depend on the weights.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layer_override import CallSwap

__all__ = ["StillStatistics", "still_statistics"]

_LEAST_EPSILON = 1.001e-5
"""TensorFlow's fused batch normalization raises a smaller epsilon to this."""

_pass = threading.local()


@contextlib.contextmanager
def still_statistics() -> Iterator[None]:
  """Takes batch statistics as constants in this thread's gradients.

  Yields:
    Nothing. Gradients computed in the block treat the mean and variance of a
    batch as constants, if the model ran inside `StillStatistics.on`.
  """
  before = getattr(_pass, "still", False)
  _pass.still = True
  try:
    yield
  finally:
    _pass.still = before


class StillStatistics:
  """Gives a model's BatchNormalization layers two gradients.

  Other layers stay unchanged. A LayerNormalization uses the same TensorFlow
  operation, but its statistics are the image's own.
  """

  def __init__(self, model: keras.Model):
    """Finds the layers at any depth of the model.

    Args:
      model: any `tf_keras` model.
    """
    self._swaps = [
        CallSwap(layer, _with_two_gradients(layer))
        for layer in model.submodules
        if isinstance(layer, keras.layers.BatchNormalization)]

  @contextlib.contextmanager
  def on(self) -> Iterator[None]:
    """Gives both gradients to what the model computes inside the block.

    Raises (when the layer runs):
      ValueError: a layer computes its statistics with a mask, renorm or virtual
        batches.
    """
    with contextlib.ExitStack() as stack:
      for swap in self._swaps:
        stack.enter_context(swap.on())
      yield


def _with_two_gradients(layer: keras.layers.BatchNormalization):
  """Returns a `call` with the layer's result and both gradients."""
  def call(
      own_call: Callable[..., tf.Tensor], inputs: tf.Tensor,
      training: Any = None, mask: Any = None) -> tf.Tensor:
    outputs = own_call(inputs, training=training, mask=mask)
    if not training or not layer.trainable:
      return outputs
    if mask is not None or getattr(layer, "renorm", False) or (
        getattr(layer, "virtual_batch_size", None) is not None):
      raise ValueError(
          f"model: layer {layer.name!r} normalizes with a mask, renorm or "
          "virtual batches, through which the sensitivity of an image cannot "
          "be told from that of its batch; use a plain BatchNormalization.")
    return _still(inputs, outputs, _factor(layer, inputs))

  return call


@tf.custom_gradient
def _still(inputs: tf.Tensor, outputs: tf.Tensor, factor: tf.Tensor):
  """Returns the outputs, with one of two gradients.

  The usual gradient passes through the layer's own computation. In a
  `still_statistics` block it goes directly to the inputs, without the
  statistics.
  """
  def gradient(upstream: tf.Tensor):
    if getattr(_pass, "still", False):
      return upstream * tf.cast(factor, upstream.dtype), None, None
    return None, upstream, None

  return tf.identity(outputs), gradient


def _factor(
    layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
  """Returns the factor by which the layer multiplies each channel.

  It is computed again, because TensorFlow's operation passes no gradient
  through its own statistics.
  """
  channels = {axis % inputs.shape.rank for axis in layer.axis}
  axes = [axis for axis in range(inputs.shape.rank) if axis not in channels]
  inputs = tf.cast(inputs, layer.variable_dtype)
  mean = _mean(layer, inputs, axes)
  variance = _mean(layer, tf.square(inputs - mean), axes)
  epsilon = layer.epsilon
  if layer.fused:
    epsilon = max(epsilon, _LEAST_EPSILON)
  factor = tf.math.rsqrt(variance + epsilon)
  if layer.gamma is not None:
    factor *= tf.reshape(layer.gamma, tf.shape(factor))
  return factor


def _mean(
    layer: keras.layers.BatchNormalization, values: tf.Tensor, axes: list[int],
) -> tf.Tensor:
  """Returns the mean over a batch, or over all replicas if the layer does so.

  A replica without images has a mean of zeros.
  """
  total = tf.reduce_sum(values, axes, keepdims=True)
  count = tf.cast(tf.reduce_prod(
      tf.gather(tf.shape(values), axes)), values.dtype)
  context = tf.distribute.get_replica_context()
  if layer.synchronized and context is not None:
    total, count = context.all_reduce(
        tf.distribute.ReduceOp.SUM, [total, count])
  return total / tf.maximum(count, 1)
