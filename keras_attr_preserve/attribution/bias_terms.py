"""The share of a model's score that comes from biases, not from pixels.

A model of linear layers and ReLUs is an affine function around one image. Its
score is the gradient times the pixels, plus a term for every bias: the bias
times the gradient at its place. This module lists the terms of the biases.
"""

from collections.abc import Iterator

from keras_attr_preserve.attribution.operations import (
    bounds,
    channelwise_terms,
    operations_between,
)
from keras_attr_preserve.compat import tf

__all__ = ["bias_terms"]


def bias_terms(
    images: tf.Tensor, scores: tf.Tensor, seed: tf.Tensor
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
  """Lists the terms that biases add to a score, in order from the images.

  Biases include layers' biases, and the shifts of inference-mode batch
  normalization and of preprocessing. The bound of a ReLU6 or a clip counts as a
  bias where it is reached. Call this while the forward pass is traced into a
  graph.

  Args:
    images: the tensor where the forward pass started.
    scores: `[batch, classes]`.
    seed: the explained score, as weights of the scores.

  Yields:
    For each bias, the tensor to which it is added, and the bias times its
    gradient, in that tensor's shape. These products sum to the share of the
    score that does not come from the pixels.
  """
  order = operations_between(images, scores)
  shifts = [(op.outputs[0], shift) for op, shift in channelwise_terms(
      order, images)]
  shifts += [(op.outputs[0], 6.0 * tf.cast(op.outputs[0] >= 6, tf.float32))
             for op in order if op.type == "Relu6"]
  shifts += bounds(order, images)
  gradients = tf.gradients(
      scores, [output for output, _ in shifts], grad_ys=seed,
      unconnected_gradients="zero") if shifts else []
  for (output, shift), gradient in zip(shifts, gradients):
    yield output, tf.cast(gradient, tf.float32) * shift
