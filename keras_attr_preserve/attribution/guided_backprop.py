"""Guided backpropagation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import (
    at_pictures,
    largest,
    no_layer,
    score_gradient,
)
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.gradient_rules import Rule, gradient_rules

__all__ = ["guided_backprop"]


def _relu(op, grad):
  return tf.where(op.outputs[0] > 0, tf.nn.relu(grad), 0.0)


def _relu6(op, grad):
  output = op.outputs[0]
  inside = tf.logical_and(output > 0, output < 6)
  return tf.where(inside, tf.nn.relu(grad), 0.0)


_GUIDED: Mapping[str, Rule] = {"Relu": _relu, "Relu6": _relu6}


def guided_backprop(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int | None = None,
) -> np.ndarray:
  """Explains a score by a gradient whose negative values are dropped.

  On the way back, each ReLU passes the positive gradients of positive
  activations only. The result sharpens edges. It is known to depend little on
  the class (Adebayo et al. 2018).

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: must be None, as the input is explained; every method takes it.
    batch_size: images per batch; None for 64, or more for images under 96x96.

  Returns:
    Maps, float32 `[images, height, width]`, not negative: the largest magnitude
    over the channels.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Springenberg et al. 2014, https://arxiv.org/abs/1412.6806, figure 1.
  """
  no_layer(layer)

  def explain(tap, pictures, seed):
    with gradient_rules(_GUIDED):
      gradient = score_gradient(tap, pictures, seed)
    return largest(tf.abs(gradient))

  return at_pictures(model, images, targets, "guided_backprop", explain,
                     batch_size)
