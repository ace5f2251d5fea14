"""Relative attributing propagation."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.relevance import rules as rules
from keras_attr_preserve.attribution.relevance.linear_blocks import Linear
from keras_attr_preserve.attribution.relevance.relevance import relevance
from keras_attr_preserve.compat import keras, tf

__all__ = ["relative_attributing_propagation"]


def relative_attributing_propagation(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by each neuron's influence relative to the others'.

  The layer before the score shares it out by the magnitude of each input's
  contribution. Every earlier layer gives its inputs relevance for positive
  contributions. For negative contributions it gives relevance by their share in
  all influence. It then takes the surplus from all inputs evenly, so inputs of
  little influence end below zero:

      R_i = sum_j (z+_ij / sum_i z+_ij + |z-_ij| / sum_i |z_ij|) R_j - shift
      shift = (sum_i R_i - sum_j R_j) / (number of inputs that got any)

  The first layer shares by the box rule (see `rules`), and a sum by its
  summands' magnitude. The biases of the layer before the score keep their share
  of it; all other relevance arrives. Relevance of either sign grows from layer
  to layer. Its magnitudes sum to 2 to 5 times the score on a ResNet-8, to 30
  times on MLPerf's MobileNetV1 and to hundreds on ImageNet's.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: where the relevance is read, a layer's name; None for the image.
    batch_size: images per batch.

  Returns:
    Signed maps, float32 `[images, height, width]`.

  Raises:
    TypeError, ValueError: an argument is not as above, or an operation of the
      model has no rule.

  References:
    Nam et al. 2020, https://arxiv.org/abs/1904.00605, sections 3.2 to 3.4.
  """
  top: list[Linear] = []

  def linear(block, arrived):
    if not top:
      top.append(block)
      return _by_magnitude(block, arrived)
    if block.is_first:
      return rules.box(block, arrived)
    return _relative(block, arrived)

  def start(logits, seed):
    top.clear()  # Each trace starts a new walk.
    return seed

  maps, _ = relevance(
      model, images, targets, layer, "relative_attributing_propagation",
      start=start, linear=linear, share=rules.share_by_magnitude,
      batch_size=batch_size)
  return maps


def _by_magnitude(block: Linear, arrived: tf.Tensor) -> tf.Tensor:
  """Shares the score out by the magnitude of each input's contribution."""
  given = block.inputs * block.transposed(arrived, block.kernel)
  axes = list(range(1, given.shape.rank))
  size = tf.reduce_sum(tf.abs(given), axes, keepdims=True)
  total = tf.reduce_sum(given, axes, keepdims=True)
  return rules.divided(tf.abs(given), size) * total


def _relative(block: Linear, arrived: tf.Tensor) -> tf.Tensor:
  """Shares out by influence of both signs, then takes the surplus evenly."""
  sums = {}
  for positive in (True, False):
    above, over, below, under = rules.parts(block, positive)
    sums[positive] = block.apply(above, over) + block.apply(below, under)
  influence = sums[True] - sums[False]

  def sent(positive, share):
    above, over, below, under = rules.parts(block, positive)
    return (above * block.transposed(share, over)
            + below * block.transposed(share, under))

  heard = tf.where(sums[True] > 0, arrived, 0.0)
  given = sent(True, rules.divided(heard, sums[True])) - sent(
      False, rules.divided(arrived, influence))
  axes = list(range(1, given.shape.rank))
  # Relevance of outputs without any influence counts, so none is lost.
  surplus = tf.reduce_sum(given, axes, keepdims=True) - tf.reduce_sum(
      arrived, list(range(1, arrived.shape.rank)))[
          (..., *[tf.newaxis] * len(axes))]
  moved = tf.cast(given != 0, given.dtype)
  count = tf.reduce_sum(moved, axes, keepdims=True)
  return given - rules.divided(surplus, count) * moved
