"""How much a model's score, or its attribution map, depends on each channel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.compat import at_least_float32, keras, tf
from keras_attr_preserve.compression.channel_graph import MIXERS, ChannelGraph
from keras_attr_preserve.map_formulas import sensitivity_weighted_map, unit_map
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layers import last_spatial_layer
from keras_attr_preserve.models.running import run_batches
from keras_attr_preserve.models.scores import class_weights, top_class_seed
from keras_attr_preserve.models.tap import Tap, sensitivities

__all__ = ["map_contributions", "score_contributions"]

_DRAWS = 4


def score_contributions(
    model: keras.Model,
    graph: ChannelGraph,
    images: np.ndarray,
    targets: Any = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
  """Estimates how far a score moves when a channel is removed.

  Every channel has a gate g_c = 1 wherever a layer reads it:

      contribution_c = mean over images |d score / d g_c|
                     = mean over images |sum_{h,w} A_c * d score / dA_c|

  This is the first-order Taylor term of closing the gate, over all readers of
  the channel. It is exact if only mean pooling and a linear layer follow. It is
  then the channel's share in the sum of the (not rectified)
  sensitivity-weighted map, but for the number of positions.

  Args:
    model: a built `tf_keras` model of images; it is not changed.
    graph: its channels.
    images: `[images, height, width, colours]`, in the range the model takes.
    targets: the scores (logits), as for `attribution.grad_cam`. None explains
      each image's top class. Else a class number, class numbers `[images]`, or
      float weights of the logits `[images, classes]`.
    batch_size: images a batch.

  Returns:
    `[graph.count]`, by channel number, 0 or more, in units of the score.

  Raises:
    TypeError, ValueError: an argument is not as above, or a contribution is not
      finite.

  References:
    Molchanov et al. 2017, https://arxiv.org/abs/1611.06440, section 2.2 (the
    criterion; there the mean over positions). Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771 (gates, and channels tied by residual
    sums). Both use the training loss in place of the score.
  """
  gates = _Gates(graph.count)
  tap = _tap(model, graph, gates)

  def contributions(batch, *seed):
    gates.open(batch)
    with tf.GradientTape() as tape:
      tape.watch(gates.value)
      logits = at_least_float32(tap(batch).logits)
    seed, = seed or (top_class_seed(logits),)
    return (tf.abs(tape.gradient(
        logits, gates.value, output_gradients=tf.cast(seed, logits.dtype))),)

  return _mean(contributions, tap, images, targets, batch_size)


def map_contributions(
    model: keras.Model,
    graph: ChannelGraph,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
  """Estimates how far the attribution map turns when a channel is removed.

      contribution_c = mean over images |d u / d g_c|^2 / 2

  g are the gates of `score_contributions`; u is the layer's unit Grad-CAM map.
  The distance 1 - cos(u, u') has no slope at equal maps. This is therefore its
  second-order (Gauss-Newton) term for one channel.

  The norm of the Jacobian's column is estimated without the Jacobian. It is the
  variance of v . du/dg_c for directions v of a normal distribution. Each image
  has four directions (the same in every call), at one backward pass each. For n
  images the relative error is about 1 / sqrt(2 n).

  Args:
    model: as for `score_contributions`, and likewise `graph`, `images`,
      `targets` and `batch_size`.
    graph: see there.
    images: see there.
    targets: see there.
    layer: the map's layer; None for the last one with a spatial map.
    batch_size: see there.

  Returns:
    `[graph.count]`, by channel number, 0 or more, in units of 1 - cosine.

  Raises:
    TypeError, ValueError: see there.

  References:
    Molchanov et al. 2019, https://arxiv.org/abs/1906.10771 (squared gradients
    of gates); Park et al. 2020, https://arxiv.org/abs/2010.15054, equation 1
    (the distance of maps).
  """
  gates = _Gates(graph.count)
  tap = _tap(model, graph, gates, [layer or last_spatial_layer(model)])

  def contributions(batch, *seed):
    gates.open(batch)
    with tf.GradientTape(persistent=True) as outer:
      outer.watch(gates.value)
      with tf.GradientTape() as tape:
        tape.watch(gates.value)
        tapped = tap(batch)
      seed, = seed or (top_class_seed(tapped.logits),)
      sensitivity, = sensitivities(tape, tapped, seed)
      features, = tapped.features
      unit = unit_map(sensitivity_weighted_map(
          at_least_float32(features), at_least_float32(sensitivity)))
      along = [tf.reduce_sum(unit * tf.random.stateless_normal(
          tf.shape(unit), [draw, 0], dtype=unit.dtype), [1, 2])
          for draw in range(_DRAWS)]
    return (tf.add_n([tf.square(outer.gradient(product, gates.value))
                      for product in along]) / (2 * _DRAWS),)

  return _mean(contributions, tap, images, targets, batch_size)


def _tap(
    model: keras.Model, graph: ChannelGraph, gates: "_Gates",
    layers: Sequence[str] = ()) -> Tap:
  model_input(model)
  return Tap(_gated_copy(model, graph, gates), layers)


def _mean(
    contributions: Callable[..., Any], tap: Tap, images: np.ndarray,
    targets: Any, batch_size: int) -> np.ndarray:
  """Averages the contributions over all images."""
  images = tap.input.check(images)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)
  each, = run_batches(tf.function(contributions, reduce_retracing=True),
                      images, *weights, batch_size=batch_size)
  if not np.isfinite(each).all():
    raise ValueError(
        f"model {tap.model.name!r} has a score or gradient that is not finite "
        "on these images.")
  return each.mean(0)


class _Gates:
  """The gates of a model: `value` is [batch or 1, channels]."""

  def __init__(self, count: int):
    self._count = count
    self.value = tf.ones([1, count])

  def open(self, batch: tf.Tensor) -> None:
    self.value = tf.ones([tf.shape(batch)[0], self._count])


class _Gated(keras.layers.Wrapper):
  """A layer whose input channels are multiplied by their gates."""

  def __init__(
      self, layer: keras.layers.Layer, channels: np.ndarray, gates: _Gates):
    super().__init__(layer, name=layer.name, autocast=False)
    self._channels = channels
    self._gates = gates

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    gate = tf.gather(self._gates.value, self._channels, axis=-1)
    between = [1] * (len(inputs.shape) - 2)
    gate = tf.reshape(gate, [-1, *between, len(self._channels)])
    return self.layer(inputs * tf.cast(gate, inputs.dtype))


def _gated_copy(
    model: keras.Model, graph: ChannelGraph, gates: _Gates) -> keras.Model:
  """Copies a model and puts gates before each layer that mixes channels."""
  def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
    copy = type(layer).from_config(layer.get_config())
    if type(layer) in MIXERS and layer.name in graph.uses:
      return _Gated(copy, graph.uses[layer.name].inputs, gates)
    return copy

  gated = keras.models.clone_model(model, clone_function=clone)
  if not gated.built:
    gated.build(model.input_shape)
  for layer in model.layers:
    gated.get_layer(layer.name).set_weights(layer.get_weights())
  return gated
