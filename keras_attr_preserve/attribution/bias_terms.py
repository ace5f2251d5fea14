"""Where a net's score gets what it does not get from the pixels.

A net of linear layers and ReLUs is, around one picture, an affine function of
it: the score is the gradient times the pixels, plus what every bias on the way
adds by the gradient at its place. This module lists the second kind.
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
  """Lists what biases add to a score, layer by layer from the images on.

  Biases are those of layers, the shifts of inference-mode batch normalization
  and of preprocessing, and the bound of a ReLU6 or a clip where it is reached.
  To be called where the forward pass is being traced into a graph.

  Args:
    images: where the forward pass started.
    scores: `[batch, classes]`.
    seed: the score explained, as weights of the scores.

  Yields:
    For each bias the tensor that it is added to, and its gradient times its
    value, of that shape. Their sum is the score's part that is not in the
    pixels.
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
