"""Linear layers of a forward pass, in the form that relevance methods take."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_attr_preserve.compat import tf

__all__ = ["CORES", "QUIET", "Linear", "average_block", "inside",
           "layer_block", "scaling_block"]

CORES = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul"})
QUIET = frozenset({
    "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel", "Identity"})


@dataclasses.dataclass(frozen=True)
class Linear:
  """A linear layer, with the channelwise operations after it folded in.

      outputs = apply(inputs, kernel) + bias

  Attributes:
    inputs: float `[batch, ...]`.
    kernel: in TensorFlow's layout, scaled by output channel.
    bias: the tensor to add to the outputs.
    is_dense: whether it is a matrix product.
    is_first: whether its inputs are the images, up to scaling and padding.
    is_average: whether it averages or sums, with equal positive weights.
    apply: `(inputs, kernel) -> outputs` without the bias.
    transposed: `(outputs, kernel) -> inputs`, the gradient of `apply`.
    inside: 1 at true inputs, 0 at padding; None if nothing is padded.
  """

  inputs: tf.Tensor
  kernel: tf.Tensor
  bias: tf.Tensor
  is_dense: bool
  is_first: bool
  is_average: bool
  apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
  transposed: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
  inside: tf.Tensor | None = None


def layer_block(
    op: tf.Operation, scale: tf.Tensor, shift: tf.Tensor, first: bool
) -> Linear:
  """Makes the block of a convolution or dense layer, in float32."""
  inputs, kernel = (tf.cast(tensor, tf.float32) for tensor in op.inputs)
  if op.type == "MatMul":
    if op.get_attr("transpose_a") or op.get_attr("transpose_b"):
      raise ValueError(
          f"model: no relevance rule is known for the transposed product "
          f"{op.name}.")
    return Linear(inputs, kernel * scale, shift, True, first, False, tf.matmul,
                  lambda outputs, weights: tf.matmul(outputs, weights,
                                                     transpose_b=True))
  settings = {name: op.get_attr(name) for name in (
      "strides", "padding", "dilations", "explicit_paddings", "data_format")}
  if settings["data_format"] != b"NHWC":
    raise ValueError("model must have its channels last.")
  sizes = tf.shape(inputs)
  mask = inside(op.inputs[0].op)
  if op.type == "Conv2D":
    return Linear(
        inputs, kernel * scale, shift, False, first, False,
        lambda values, weights: tf.raw_ops.Conv2D(
            input=values, filter=weights, **settings),
        lambda outputs, weights: tf.raw_ops.Conv2DBackpropInput(
            input_sizes=sizes, filter=weights, out_backprop=outputs,
            **settings),
        mask)
  shape = kernel.shape
  if tf.convert_to_tensor(scale).shape.num_elements() > 1:
    scale = tf.reshape(scale, [1, 1, shape[2], shape[3]])
  return Linear(
      inputs, kernel * scale, shift, False, first, False,
      lambda values, weights: tf.raw_ops.DepthwiseConv2dNative(
          input=values, filter=weights, **settings),
      lambda outputs, weights: tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
          input_sizes=sizes, filter=weights, out_backprop=outputs, **settings),
      mask)


def scaling_block(
    source: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, first: bool
) -> Linear:
  """Makes the block of a scaling and shift in place."""
  return Linear(tf.cast(source, tf.float32), scale, shift, False, first, False,
                tf.multiply, tf.multiply)


def inside(op: tf.Operation) -> tf.Tensor | None:
  """Marks true inputs among padding; None if nothing is padded."""
  while op.type in QUIET:
    op = op.inputs[0].op
  if op.type not in ("Pad", "PadV2", "SpaceToBatchND"):
    return None
  ones = tf.ones_like(op.inputs[0], tf.float32)
  if op.type == "SpaceToBatchND":  # From a dilated convolution.
    return tf.raw_ops.SpaceToBatchND(
        input=ones, block_shape=op.inputs[1], paddings=op.inputs[2])
  return tf.pad(ones, op.inputs[1])


def average_block(
    op: tf.Operation, source: tf.Tensor, first: bool) -> Linear:
  """Makes the block of an average or sum, with equal positive weights."""
  source = tf.cast(source, tf.float32)

  def apply(one, kernel):
    if op.type == "AvgPool":
      settings = {name: op.get_attr(name) for name in (
          "ksize", "strides", "padding", "data_format")}
      return kernel * tf.raw_ops.AvgPool(value=one, **settings)
    reduce = tf.reduce_mean if op.type == "Mean" else tf.reduce_sum
    return kernel * reduce(
        one, op.inputs[1], keepdims=op.get_attr("keep_dims"))

  def transposed(one, kernel):
    probe = tf.zeros_like(source)
    return tf.gradients(apply(probe, kernel), probe, grad_ys=one)[0]

  axes = op.type != "AvgPool" and tf.get_static_value(op.inputs[1])
  if axes is None or (axes is not False and 0 in np.atleast_1d(axes)):
    raise ValueError(
        f"model: no relevance rule is known for {op.name}, a sum over images.")
  mask = inside(op.inputs[0].op) if op.type == "AvgPool" else None
  return Linear(source, tf.constant(1.0), tf.constant(0.0), False, first,
                True, apply, transposed, mask)
