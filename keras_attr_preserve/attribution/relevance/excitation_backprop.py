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
  """Explains a class by the chance that a winner-take-all walk visits a place.

  The walk starts at the class and goes from a neuron to one of its inputs with
  the chance x_i w+_ij / sum_i x_i w+_ij, over excitatory connections alone:

      P_i = sum_j x_i w+_ij / sum_i x_i w+_ij  P_j

  It is the z+ rule of relevance, started from 1 instead of from the score.
  Where inputs can be negative (pictures), a product of two negatives excites,
  too.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`; with weights of the logits, a walk from each,
      weighted: (1, -1) is the contrastive map of a class against another.
    layer: where the walk ends, a layer's name; None for the image.
    batch_size: images per batch.

  Returns:
    Maps, float32 `[images, height, width]`, in 0..1 for a class: a map's sum is
    the chance that the walk gets there, 1 but for neurons without excitation,
    where it ends, as the paper has it. Behind depthwise layers they are many:
    of the walks on ImageNet's MobileNetV1 0.25 .02 arrive.

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
