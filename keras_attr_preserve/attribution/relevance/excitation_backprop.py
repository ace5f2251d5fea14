"""Excitation backpropagation."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.relevance import rules as rules
from keras_attr_preserve.attribution.relevance.relevance import relevance
from keras_attr_preserve.compat import keras

__all__ = ["excitation_backprop"]


def excitation_backprop(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a class by the places that a winner-take-all walk visits.

  The walk starts at the class and follows excitatory connections only. From a
  neuron j it goes to input i with the chance x_i w+_ij / sum_i x_i w+_ij. It
  visits i with the chance

      P_i = sum_j x_i w+_ij / sum_i x_i w+_ij  P_j

  It is the z+ rule of relevance, started from 1 instead of from the score.
  Where inputs can be negative (images), a product of two negatives also
  excites.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`. Weights of the logits give a weighted sum of
      walks: (1, -1) is the contrastive map of a class against another.
    layer: where the walk ends, a layer's name; None for the image.
    batch_size: images per batch.

  Returns:
    Maps, float32 `[images, height, width]`, in 0..1 for a class. A map's sum is
    the chance that the walk arrives. A walk ends early at neurons without
    excitation, as in the paper; otherwise the chance is 1. Such neurons are
    frequent after depthwise layers: on ImageNet's MobileNetV1 0.25, a share of
    .02 arrives.

  Raises:
    TypeError, ValueError: an argument is not as above, or an operation of the
      model has no rule.

  References:
    Zhang et al. 2016, https://arxiv.org/abs/1608.00507, equations 3 and 5.
  """
  maps, _ = relevance(
      model, images, targets, layer, "excitation_backprop",
      start=lambda logits, seed: seed, linear=rules.z_plus,
      share=rules.share_positive, batch_size=batch_size)
  return maps
