"""FullGrad: the gradient of the input and of every bias."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.bias_terms import bias_terms
from keras_attr_preserve.attribution.gradient_maps import at_pictures, no_layer
from keras_attr_preserve.attribution.operations import laid_out_as_taken
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.gradient_rules import (
  STRAIGHT_THROUGH,
  gradient_rules,
)

__all__ = ["full_grad"]


def full_grad(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by pixels and biases, which add up to it.

      M = psi(x * d score / dx) + sum over layers and channels psi(b * g_b)
      psi(m) = |m|, scaled to 0..1 and enlarged to the image

  b is a convolution's bias, or the shift of a batch normalization at inference.
  g_b is the score's gradient at each position where b is added. Biases of dense
  layers have no place in an image, and are left out.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    batch_size: images per batch.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Srinivas and Fleuret 2019, https://arxiv.org/abs/1905.00780, equations 5
    and 6.
  """
  no_layer(layer)

  def explain(tap, pictures, seed):
    pictures = tf.identity(pictures)
    logits = tap(pictures).logits
    seed = tf.cast(seed, logits.dtype)
    with gradient_rules(STRAIGHT_THROUGH):
      gradient, = tf.gradients(logits, pictures, grad_ys=seed,
                               unconnected_gradients="zero")
      as_taken = laid_out_as_taken(pictures, logits, tap.input)
      biases = [tap.input.pixels(term) if tensor.ref() in as_taken else term
                for tensor, term in bias_terms(pictures, logits, seed)]
      biases = [bias for bias in biases if bias.shape.rank == 4]
    size = tf.shape(pictures)[1:3]
    products = tf.cast(gradient, tf.float32) * pictures
    total = tf.reduce_sum(_even(products, size), -1)
    for bias in biases:
      total += tf.reduce_sum(_even(bias, size), -1)
    return total

  return at_pictures(model, images, targets, "full_grad", explain, batch_size,
                     flat=True)


def _even(maps: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
  """Scales each channel's magnitudes to 0..1, at the image's size."""
  maps = tf.abs(maps)
  maps -= tf.reduce_min(maps, [1, 2], keepdims=True)
  maps = tf.math.divide_no_nan(maps, tf.reduce_max(maps, [1, 2], keepdims=True))
  return tf.image.resize(maps, size)
