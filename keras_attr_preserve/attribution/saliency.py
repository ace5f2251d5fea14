"""Gradients of a score by the pixels: saliency and gradient times input."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import (
    at_pictures,
    largest,
    no_layer,
    score_gradient,
)
from keras_attr_preserve.compat import keras, tf

__all__ = ["gradient_x_input", "saliency"]


def saliency(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by how strongly it reacts to each pixel.

      M = max_c |d score / dx_c|

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Simonyan et al. 2013, https://arxiv.org/abs/1312.6034, section 3.1.
  """
  no_layer(layer)
  def explain(tap, pictures, seed):
    return largest(tf.abs(score_gradient(tap, pictures, seed)))
  return at_pictures(model, images, targets, "saliency", explain, batch_size)


def gradient_x_input(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by each pixel's gradient times its value.

      M = sum_c x_c d score / dx_c

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes; 0
      is taken for "nothing there".
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Signed maps, float32 `[images, height, width]`, in units of the score.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713.
  """
  no_layer(layer)
  def explain(tap, pictures, seed):
    # A product with a vector of ones sums a few channels in half the time.
    return tf.linalg.matvec(pictures * score_gradient(tap, pictures, seed),
                            tf.ones([pictures.shape[-1]]))
  return at_pictures(model, images, targets, "gradient_x_input", explain,
                     batch_size)
