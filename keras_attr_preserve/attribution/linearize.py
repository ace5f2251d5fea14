"""Instance-wise linearization: what a net is, around one picture."""

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
  """The affine form that a net takes at each picture.

      scores = sum(weights * images) + offset + residual

  Attributes:
    weights: W, float32 `[images, classes, height, width, channels]`, or with
      the axes of images that have others.
    offset: b, what the net's biases add, float32 `[images, classes]`.
    scores: the logits themselves, float32 `[images, classes]`.
    residual: what the affine form misses, float32 `[images, classes]`: mere
      rounding where the net is piecewise linear (convolutions, dense layers,
      ReLU, ReLU6, leaky ReLU, pooling, inference-mode normalization).
  """

  # What the net takes: of images [height, width, channels] in floats no word.
  _taken: ImageInput | None = None

  def contributions(self, images: np.ndarray) -> np.ndarray:
    """Gives each pixel's share in every score.

    Args:
      images: those that were linearized.

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
  """Reads the exact affine form F(x) = W x + b of a net at each picture.

  W is the gradient of each score; b is added up from the net's own biases, not
  from what is left over, so that `residual` is a check.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    classes: the scores wanted, in this order; None for all.
    batch_size: images a batch.

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
  wanted = np.arange(tap.classes) if classes is None else np.asarray(classes)
  if wanted.ndim != 1 or not len(wanted) or wanted.dtype.kind not in "iu" or (
      wanted.min() < 0 or wanted.max() >= tap.classes):
    raise ValueError(
        f"classes must be numbers of scores in 0..{tap.classes - 1}; got "
        f"{classes}.")

  def read(batch):
    batch = tf.identity(batch)
    logits = tap(batch).logits
    rows, offsets = [], []
    for number in wanted:
      seed = tf.zeros_like(logits) + tf.one_hot(
          number, tap.classes, dtype=logits.dtype)
      with gradient_rules(STRAIGHT_THROUGH):
        gradient, = tf.gradients(logits, batch, grad_ys=seed,
                                 unconnected_gradients="zero")
        parts = [_by_image(one) for _, one in bias_terms(batch, logits, seed)]
      rows.append(tf.cast(gradient, tf.float32))
      offsets.append(tf.add_n(parts) if parts else tf.zeros_like(
          logits[:, 0], tf.float32))
    return (tf.stack(rows, 1), tf.stack(offsets, 1),
            tf.cast(tf.gather(logits, wanted, axis=1), tf.float32))

  weights, offset, scores = run_model(
      model, ("linearize", *wanted.tolist()), read, images,
      batch_size=batch_size)
  count = len(images)
  reached = np.einsum(
      "ikp,ip->ik", weights.reshape(*offset.shape, -1).astype(np.float64),
      images.reshape(count, -1)) + offset
  own = tap.input.own(weights.reshape(-1, *weights.shape[2:]))
  form = Linearization(
      own.reshape(count, -1, *own.shape[1:]), offset, scores,
      (scores - reached).astype(np.float32))
  form._taken = tap.input
  return form


def _by_image(tensor: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(tensor, list(range(1, tensor.shape.rank)))

