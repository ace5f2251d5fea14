"""Gradients of a model's tail, written in operators that TFLite has.

TensorFlow's own gradients of ReLU, batch normalization, pooling and depthwise
convolution are separate operations, unknown to TFLite. Each rule here
computes the same numbers from ordinary operators, for one image and known
sizes. A mask selects between a tensor and a number, which converts to
SELECT_V2. Three tensors of one shape would become SELECT, which TFLite Micro
lacks. Nothing divides at run time, so that int8 kernels can follow.

A tape keeps an operation's inputs and outputs only if TensorFlow's own gradient
needs them. So a rule takes sizes from the incoming gradient.

`MatMul`, `BiasAdd`, additions, reshapes, padding and concatenation need no
rule: TensorFlow's gradients of them convert.
"""

from collections.abc import Mapping

import numpy as np

from keras_attr_preserve.compat import tf
from keras_attr_preserve.models.gradient_rules import Rule

__all__ = ["BUILTIN_GRADIENTS"]


def _relu(op, grad):
  return tf.where(op.outputs[0] > 0, grad, 0.0)


def _relu6(op, grad):
  output = op.outputs[0]
  inside = tf.logical_and(output > 0, output < 6)
  return tf.where(inside, grad, 0.0)


def _leaky_relu(op, grad):
  return grad * tf.where(op.inputs[0] > 0, 1.0, op.get_attr("alpha"))


def _elu(op, grad):
  output = op.outputs[0]
  return grad * tf.where(output > 0, 1.0, output + 1)


def _sigmoid(op, grad):
  output = op.outputs[0]
  return grad * output * (1 - output)


def _softsign(op, grad):
  return grad * (1 - tf.abs(tf.nn.softsign(op.inputs[0]))) ** 2


def _tanh(op, grad):
  return grad * (1 - op.outputs[0] ** 2)


def _batch_norm(op, grad, *_):
  x, gamma, _, _, variance = op.inputs
  if not op.get_attr("is_training"):
    factor = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
    return grad * factor, None, None, None, None
  # tf_keras computes a LayerNormalization by this operation: on a tensor
  # [1, groups, values, 1], with statistics of each group and gamma 1. A
  # BatchNormalization runs in inference mode here.
  if op.get_attr("data_format") != b"NCHW" or x.shape[0] != 1:
    raise ValueError("batch normalization must run in inference mode here.")
  centred = x - tf.reduce_mean(x, 2, keepdims=True)
  variance = tf.reduce_mean(centred * centred, 2, keepdims=True)
  factor = tf.math.rsqrt(variance + op.get_attr("epsilon"))
  unit = centred * factor
  grad = (grad - tf.reduce_mean(grad, 2, keepdims=True)
          - unit * tf.reduce_mean(grad * unit, 2, keepdims=True))
  return grad * factor, None, None, None, None


def _mean(op, grad):
  size = op.inputs[0].shape.as_list()
  axes = np.atleast_1d(tf.get_static_value(op.inputs[1])) % len(size)
  # A function inside the model does not know the batch size: -1 stands for it.
  shape = [1 if axis in axes else -1 if length is None else length
          for axis, length in enumerate(size)]
  spread = [length if axis in axes else 1 for axis, length in enumerate(size)]
  share = np.full(spread, 1 / np.prod(spread), np.float32)
  return tf.reshape(grad, shape) * share, None


def _max_pool(op, grad):
  """Sends each gradient to the first largest element, as TensorFlow does."""
  image, pooled = op.inputs[0], op.outputs[0]
  pool = _Window(op, image, pooled, op.get_attr("ksize")[1:3])
  padded = pool.pad(image)
  inside = pool.pad(np.ones([1, *pool.image, 1], np.float32)) > 0
  total, left = [], grad
  for offset in np.ndindex(*pool.size):
    largest = pool.seen_from(padded, offset) >= pooled
    if pool.padded:
      largest = tf.logical_and(largest, pool.seen_from(inside, offset))
    share = tf.where(largest, left, 0.0)
    left = tf.where(largest, 0.0, left)
    total.append(pool.placed(share, offset))
  return pool.crop(tf.add_n(total))


def _average_pool(op, grad):
  image = op.inputs[0]
  pool = _Window(op, image, grad, op.get_attr("ksize")[1:3])
  if pool.size == pool.image and not pool.padded:
    return grad * np.full(
        [1, *pool.size, 1], 1 / np.prod(pool.size), np.float32)
  # Padding does not count: an output at the edge averages fewer pixels.
  inside = pool.pad(np.ones([1, *pool.image, 1], np.float32))
  counts = sum(pool.seen_from(inside, offset)
               for offset in np.ndindex(*pool.size))
  kernel = np.ones([*pool.size, image.shape[3]], np.float32)
  return pool.transposed(grad * (1 / np.asarray(counts)), kernel)


def _convolution(op, grad):
  image, kernel = op.inputs
  settings = {name: op.get_attr(name) for name in (
      "strides", "padding", "dilations", "explicit_paddings")}
  # TFLite's transposed convolution has no groups, so each has its own call.
  groups = image.shape[3] // kernel.shape[2]
  # Keras runs groups in a function that does not know the batch size.
  size = [tf.shape(image)[0] if image.shape[0] is None else image.shape[0],
          *image.shape[1:3], kernel.shape[2]]
  gradients = [
      tf.raw_ops.Conv2DBackpropInput(
          input_sizes=size, filter=filters, out_backprop=group_grad, **settings)
      for filters, group_grad in zip(tf.split(kernel, groups, 3),
                               tf.split(grad, groups, 3))]
  return tf.concat(gradients, 3) if groups > 1 else gradients[0], None


def _depthwise(op, grad):
  image, kernel = op.inputs
  if list(op.get_attr("dilations")[1:3]) != [1, 1]:
    raise ValueError("a dilated depthwise convolution has no rule here.")
  conv = _Window(op, image, grad, kernel.shape[:2].as_list())
  multiplier = kernel.shape[3]
  return tf.add_n([
      conv.transposed(grad[..., i::multiplier], kernel[..., i])
      for i in range(multiplier)]), None


def _resize(op, grad):
  """Sends gradients back through the two matrices that resizing amounts to."""
  settings = {name: op.get_attr(name)
              for name in ("align_corners", "half_pixel_centers")}
  resize = getattr(tf.raw_ops, op.type)
  _, height, width, channels = op.inputs[0].shape
  _, tall, wide, _ = grad.shape
  with tf.init_scope():
    rows, columns = (
        resize(images=tf.eye(before)[..., None, None], size=[after, 1],
               **settings)[:, :, 0, 0].numpy()
        for before, after in ((height, tall), (width, wide)))
  grad = tf.matmul(rows, tf.reshape(grad, [tall, wide * channels]))
  grad = tf.matmul(columns, tf.reshape(grad, [height, wide, channels]))
  return tf.reshape(grad, [1, height, width, channels]), None


class _Window:
  """A window that slides over one image, and gradients through it."""

  def __init__(self, op, image, output, size):
    self.size = list(size)
    self.strides = list(op.get_attr("strides")[1:3])
    self.image = image.shape[1:3].as_list()
    self.output = output.shape[1:3].as_list()
    same = op.get_attr("padding") == b"SAME"
    missing = [
        max((out - 1) * stride + size - length, 0) if same else 0
        for out, stride, size, length in zip(
            self.output, self.strides, self.size, self.image)]
    self.before = [pixels // 2 for pixels in missing]
    self.after = [pixels - pixels // 2 for pixels in missing]
    self.padded = any(missing)

  def pad(self, image):
    """Surrounds an image with the zeros that the window may cover."""
    if not self.padded:
      return image
    rows, columns = zip(self.before, self.after)
    pad = np.pad if isinstance(image, np.ndarray) else tf.pad
    return pad(image, [(0, 0), rows, columns, (0, 0)])

  def crop(self, padded):
    """Undoes `pad`."""
    (top, left), (height, width) = self.before, self.image
    return padded[:, top:top + height, left:left + width]

  def seen_from(self, padded, offset):
    """Returns the pixels under a cell of the window, for all its positions."""
    (down, right), (height, width) = offset, self.output
    rows, columns = self.strides
    return padded[:, down:down + (height - 1) * rows + 1:rows,
                  right:right + (width - 1) * columns + 1:columns]

  def placed(self, part, offset):
    """Undoes `seen_from`: puts pixels back in place, zeros elsewhere."""
    dilated = self._dilated(part)
    spare = [length + before + after - start - size
             for length, before, after, start, size in zip(
                 self.image, self.before, self.after, offset,
                 dilated.shape[1:3])]
    rows, columns = zip(offset, spare)
    return tf.pad(dilated, [(0, 0), rows, columns, (0, 0)])

  def transposed(self, grad, kernel):
    """Sends gradients back through a kernel `[height, width, channels]`."""
    dilated = self._dilated(grad)
    first = [size - 1 - before for size, before in zip(self.size, self.before)]
    last = [length + size - 1 - start - have for length, size, start, have
            in zip(self.image, self.size, first, dilated.shape[1:3])]
    rows, columns = zip(first, last)
    padded = tf.pad(dilated, [(0, 0), rows, columns, (0, 0)])
    return tf.nn.depthwise_conv2d(
        padded, kernel[::-1, ::-1, :, None], [1, 1, 1, 1], "VALID")

  def _dilated(self, values):
    """Spreads pixels apart by the strides, zeros between them."""
    _, height, width, channels = values.shape
    rows, columns = self.strides
    if rows > 1:
      values = tf.reshape(values, [1, height, 1, width * channels])
      values = tf.pad(values, [(0, 0), (0, 0), (0, rows - 1), (0, 0)])
      values = tf.reshape(values, [1, height * rows, width, channels])
      values = values[:, :(height - 1) * rows + 1]
    height = values.shape[1]
    if columns > 1:
      values = tf.reshape(values, [1, height * width, 1, channels])
      values = tf.pad(values, [(0, 0), (0, 0), (0, columns - 1), (0, 0)])
      values = tf.reshape(values, [1, height, width * columns, channels])
      values = values[:, :, :(width - 1) * columns + 1]
    return values


BUILTIN_GRADIENTS: Mapping[str, Rule] = {
    "AvgPool": _average_pool,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Elu": _elu,
    "FusedBatchNormV3": _batch_norm,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Relu": _relu,
    "Relu6": _relu6,
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize,
    "Sigmoid": _sigmoid,
    "Softsign": _softsign,
    "Tanh": _tanh,
}
"""The gradient of each operation type; see `gradient_rules`."""
