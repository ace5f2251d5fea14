"""Instance-wise linearization: a model's affine form around one image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_attr_preserve.attribution.bias_terms import bias_terms
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.gradient_rules import (
  STRAIGHT_THROUGH,
  gradient_rules,
)
from keras_attr_preserve.models.inputs import ImageInput
from keras_attr_preserve.models.running import run_model

__all__ = ["Linearization", "linearize"]


class _Affine(NamedTuple):
  """The fields of `Linearization`."""

  weights: np.ndarray
  offset: np.ndarray
  scores: np.ndarray
  residual: np.ndarray


class Linearization(_Affine):
  """The affine form of a model at each image.

      scores = sum(weights * images) + offset + residual

  Attributes:
    weights: W, float32 `[images, classes, height, width, channels]`, or with
      the images' own axes if they have others.
    offset: b, the sum of the biases' terms, float32 `[images, classes]`.
    scores: the logits themselves, float32 `[images, classes]`.
    residual: the affine form's error, float32 `[images, classes]`. It is only
      rounding where the model is piecewise linear (convolutions, dense layers,
      ReLU, ReLU6, leaky ReLU, pooling, inference-mode normalization).
  """

  # The model's input layout; None means [height, width, channels] in floats.
  _taken: ImageInput | None = None

  def contributions(self, images: np.ndarray) -> np.ndarray:
    """Returns each pixel's share in every score.

    Args:
      images: the linearized images.

    Returns:
      W x summed over channels, float32 `[images, classes, height, width]`.
    """
    if self._taken is None:
      return np.einsum("ikhwc,ihwc->ikhw", self.weights, images)
    shares = self.weights * self._taken.check(images)[:, None]
    count, classes = shares.shape[:2]
    shares = self._taken.pixels(shares.reshape(-1, *shares.shape[2:])).sum(-1)
    return shares.reshape(count, classes, *shares.shape[1:])


def linearize(
    model: keras.Model,
    images: np.ndarray,
    classes: Sequence[int] | None = None,
    *,
    batch_size: int = 16,
) -> Linearization:
  """Reads the exact affine form F(x) = W x + b of a model at each image.

  W is the gradient of each score. b is the sum of the model's own bias terms,
  not the remainder, so `residual` is a check.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    classes: numbers of the scores to read, in this order; None for all.
    batch_size: images per batch.

  Returns:
    The affine forms.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Li et al. 2023, https://arxiv.org/abs/2310.16295.
  """
  check_keras(model)
  tap = KnownTap(model)
  images = tap.pixels(images)
  numbers = np.arange(tap.classes) if classes is None else np.asarray(classes)
  if (numbers.ndim != 1 or not len(numbers)
      or numbers.dtype.kind not in "iu"
      or (numbers.min() < 0 or numbers.max() >= tap.classes)):
    raise ValueError(
        f"classes must be numbers of scores in 0..{tap.classes - 1}; got "
        f"{classes}.")

  def read(batch):
    batch = tf.identity(batch)
    logits = tap(batch).logits
    rows, offsets = [], []
    for number in numbers:
      seed = tf.zeros_like(logits) + tf.one_hot(
          number, tap.classes, dtype=logits.dtype)
      with gradient_rules(STRAIGHT_THROUGH):
        gradient, = tf.gradients(logits, batch, grad_ys=seed,
                                 unconnected_gradients="zero")
        terms = [_by_image(term)
                 for _, term in bias_terms(batch, logits, seed)]
      rows.append(tf.cast(gradient, tf.float32))
      offsets.append(tf.add_n(terms) if terms else tf.zeros_like(
          logits[:, 0], tf.float32))
    return (tf.stack(rows, 1), tf.stack(offsets, 1),
            tf.cast(tf.gather(logits, numbers, axis=1), tf.float32))

  weights, offset, scores = run_model(
      model, ("linearize", *numbers.tolist()), read, images,
      batch_size=batch_size)
  count = len(images)
  reached = np.einsum(
      "ikp,ip->ik", weights.reshape(*offset.shape, -1).astype(np.float64),
      images.reshape(count, -1)) + offset
  laid_out = tap.input.own(weights.reshape(-1, *weights.shape[2:]))
  form = Linearization(
      laid_out.reshape(count, -1, *laid_out.shape[1:]), offset, scores,
      (scores - reached).astype(np.float32))
  form._taken = tap.input
  return form


def _by_image(tensor: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tensor, list(range(1, tensor.shape.rank)))

