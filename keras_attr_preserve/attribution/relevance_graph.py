"""A forward pass as a graph of blocks that relevance is sent back through.

Relevance methods share one walk: from the score back to the image, each block
hands its relevance to its inputs, and what several blocks send to one tensor
is added. They differ in how a linear block shares out (`relevance_rules`).

The walk reads TensorFlow's own graph of the forward pass, so that wrapped,
nested and subclassed models need nothing of their own. A convolution or dense
layer and all that follows it channel by channel, the bias and an inference-mode
batch normalization among it, is one `Linear` block: relevance methods treat
them as one layer with folded weights.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from keras_attr_preserve.compat import tf

__all__ = ["Linear", "channelwise_terms", "operations_between", "send_back"]

# Relevance goes through as it is: activations, and quantizers.
_PASS = frozenset({
    "Elu", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel", "HardSwish", "Identity", "LeakyRelu",
    "Relu", "Relu6", "Selu", "Sigmoid", "Softplus", "Softsign", "StopGradient",
    "Tanh",
})
# What moves numbers or chooses among them; its gradient moves relevance back.
_MOVE = frozenset({
    "Cast", "ConcatV2", "ExpandDims", "MaxPool", "MirrorPad", "Pad", "PadV2",
    "Reshape", "Squeeze", "StridedSlice", "Transpose",
})
_AVERAGE = frozenset({"AvgPool", "Mean", "Sum"})
_CORES = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul"})
_CHANNELWISE = frozenset({
    "Add", "AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "RealDiv", "Sub"})
_GATES = frozenset({"Sigmoid", "HardSigmoid"})


@dataclasses.dataclass(frozen=True)
class Linear:
  """A linear layer, with what follows it channel by channel folded in.

      outputs = apply(inputs, kernel) + bias

  Attributes:
    inputs: float `[batch, ...]`.
    kernel: as TensorFlow has it, scaled by output channel.
    bias: a tensor to be added to the outputs.
    is_dense: whether it is a matrix product.
    is_first: whether its inputs are the images, but for scaling and padding.
    is_average: whether it averages or sums, all weights equal and positive.
    apply: `(inputs, kernel) -> outputs` without the bias.
    transposed: `(outputs, kernel) -> inputs`, the gradient of `apply`.
  """

  inputs: tf.Tensor
  kernel: tf.Tensor
  bias: tf.Tensor
  is_dense: bool
  is_first: bool
  is_average: bool
  apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
  transposed: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


Rule = Callable[[Linear, tf.Tensor], tf.Tensor]
Share = Callable[[list[tf.Tensor], tf.Tensor], list[tf.Tensor]]


def send_back(
    images: tf.Tensor,
    scores: tf.Tensor,
    relevance: tf.Tensor,
    wanted: tf.Tensor,
    linear: Rule,
    share: Share,
) -> tf.Tensor:
  """Sends relevance from scores back to a tensor on the way.

  To be called where the forward pass is being traced into a graph.

  Args:
    images: where the forward pass started.
    scores: where the relevance starts, `[batch, classes]`.
    relevance: of the scores' shape.
    wanted: the tensor whose relevance is asked for: the images, or features.
    linear: how a linear block shares its relevance out: `(block, relevance of
      its outputs) -> relevance of its inputs`.
    share: how a sum shares its relevance out: `(summands, relevance of the sum)
      -> relevance of each summand`, all of one shape.

  Returns:
    Relevance of `wanted`'s shape.

  Raises:
    ValueError: an operation that no rule is known for.
  """
  return _Walk(images, scores, wanted, linear, share).run(relevance)


class _Walk:
  """One walk from the scores back."""

  def __init__(self, images, scores, wanted, linear, share):
    self._images = images
    self._scores = scores
    self._wanted = wanted
    self._linear = linear
    self._share = share
    self._order = operations_between(images, scores)
    self._active = {images.ref()} | {
        output.ref() for op in self._order for output in op.outputs
        if output.dtype.is_floating}
    self._users: dict = {}
    for op in self._order:
      for one in self._inputs(op):
        self._users.setdefault(one.ref(), []).append(op)

  def run(self, relevance):
    wanted = self._wanted
    sums = {self._scores.ref(): [relevance]}
    # What a block has folded in never receives relevance, and is passed over.
    for op in reversed(self._order):
      received = sums.get(op.outputs[0].ref())
      if received is None or op.outputs[0] is wanted:
        continue
      for source, part in self._send(op, tf.add_n(received)):
        sums.setdefault(source.ref(), []).append(part)
    if wanted.ref() not in sums:
      raise ValueError(
          "layer: the class scores do not depend on it in a way that relevance "
          "can be sent along.")
    return tf.add_n(sums[wanted.ref()])

  def _inputs(self, op) -> list[tf.Tensor]:
    """The inputs of an operation that hang on the images."""
    return [one for one in op.inputs if one.ref() in self._active]

  def _send(self, op, relevance) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
    inputs = self._inputs(op)
    kind = op.type
    if kind in _PASS:
      return [(inputs[0], relevance)]
    if kind in _MOVE:
      return self._moved(op, inputs, relevance)
    if kind in _AVERAGE:
      return [(inputs[0], self._linear(
          _average(op, inputs[0], self._is_first(inputs[0])), relevance))]
    if len(inputs) == 1 and kind in _CORES | _CHANNELWISE:
      source, block = self._block(op)
      # A scaling of each channel alone has one input, which takes all.
      return [(source, relevance if block is None
               else self._linear(block, relevance))]
    if kind in ("Add", "AddV2", "AddN") and all(
        one.shape.rank == op.outputs[0].shape.rank for one in inputs):
      return zip(inputs, self._shared(inputs, relevance))
    if kind == "Mul" and len(inputs) == 2:
      return [(self._signal(op, inputs), relevance)]
    raise ValueError(
        f"model: no relevance rule is known for the operation {kind} "
        f"({op.name}); known are convolutions, dense layers, batch "
        "normalization, pooling, sums, concatenation, reshaping and "
        "activations.")

  def _moved(self, op, inputs, relevance):
    gradients = tf.gradients(
        op.outputs[0], inputs, grad_ys=relevance,
        stop_gradients=inputs, unconnected_gradients="zero")
    return zip(inputs, gradients)

  def _shared(self, inputs, relevance):
    """A sum's parts; a summand that is broadcast gets the sum of its parts."""
    shape = tf.shape(relevance)
    parts = self._share([tf.broadcast_to(one, shape) for one in inputs],
                        relevance)
    for one, part in zip(inputs, parts):
      axes = [axis for axis, (small, large) in enumerate(
          zip(one.shape, relevance.shape)) if small == 1 and large != 1]
      yield tf.reduce_sum(part, axes, keepdims=True) if axes else part

  def _signal(self, op, inputs):
    """Of a gated product the factor that is not the gate: it takes it all."""
    gates = [self._is_gate(one) for one in inputs]
    if sum(gates) != 1:
      raise ValueError(
          f"model: no relevance rule is known for the product {op.name} of two "
          "tensors that hang on the image, unless one is a gate, the output of "
          "a sigmoid.")
    return inputs[gates.index(False)]

  def _is_gate(self, tensor) -> bool:
    op = tensor.op
    while op.type in ("Identity", "Reshape") or (
        op.type == "Mul" and len(self._inputs(op)) == 1):
      # Hard sigmoid: relu6(x + 3) / 6.
      op = self._inputs(op)[0].op
    return op.type in _GATES or op.type == "Relu6"

  def _is_first(self, tensor) -> bool:
    """Whether only scaling and moving lies between the images and a tensor."""
    while tensor is not self._images:
      inputs = self._inputs(tensor.op)
      if len(inputs) != 1 or tensor.op.type not in (
          _CHANNELWISE | _MOVE | _PASS) - {"MaxPool"}:
        return False
      tensor = inputs[0]
    return True

  def _block(self, last) -> tuple[tf.Tensor, Linear | None]:
    """Collects the linear block that ends with `last`; None for a scaling."""
    chain, op = [], last
    while op.type not in _CORES:
      source, = self._inputs(op)
      if op.type in _CHANNELWISE:
        chain.append(op)
      below = source.op
      if source is self._images or source is self._wanted or (
          len(self._users[source.ref()]) > 1) or (
              below.type not in _CORES | _CHANNELWISE | _QUIET) or (
                  len(self._inputs(below)) != 1):
        _folded(chain[::-1], self._active)  # Refuses what is no scaling.
        return source, None
      op = below
    source, = self._inputs(op)
    if source is not op.inputs[0]:
      raise ValueError(
          f"model: no relevance rule is known for {op.name}, whose kernel "
          "hangs on the image.")
    scale, shift = _folded(chain[::-1], self._active)
    return source, _layer(op, scale, shift, self._is_first(source))


_QUIET = frozenset({
    "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel", "Identity"})


def channelwise_terms(
    order: list[tf.Operation], images: tf.Tensor
) -> Iterator[tuple[tf.Operation, tf.Tensor]]:
  """Lists what operations add to their one input that hangs on the images.

  Args:
    order: from `operations_between`.
    images: where the forward pass started.

  Yields:
    Operations, and what they add.
  """
  active = {images.ref()} | {
      output.ref() for op in order for output in op.outputs}
  for op in order:
    hanging = [one for one in op.inputs if one.ref() in active]
    if op.type in _CHANNELWISE - {"Mul", "RealDiv"} and len(hanging) == 1:
      yield op, _folded([op], active)[1]


def operations_between(
    images: tf.Tensor, scores: tf.Tensor) -> list[tf.Operation]:
  """Lists the operations from the images to the scores, in running order."""
  ancestors, stack = set(), [scores.op]
  while stack:
    op = stack.pop()
    if op in ancestors or op is images.op:
      continue
    ancestors.add(op)
    stack.extend(one.op for one in op.inputs)
  # A graph lists its operations in the order they were made.
  active, order = {images.ref()}, []
  for op in scores.graph.get_operations():
    if op in ancestors and any(one.ref() in active for one in op.inputs):
      floats = [one for one in op.outputs if one.dtype.is_floating]
      if floats:
        order.append(op)
        active.update(one.ref() for one in floats)
  return order


def _folded(chain, active):
  """Scale and shift of all channelwise operations together."""
  scale, shift = tf.constant(1.0), tf.constant(0.0)
  for op in chain:
    if op.type == "FusedBatchNormV3":
      if op.get_attr("is_training"):
        raise ValueError(
            "model: no relevance rule is known for a normalization by what it "
            f"is given ({op.name}).")
      _, gamma, beta, mean, variance = op.inputs
      factor = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
      scale, shift = scale * factor, (shift - mean) * factor + beta
      continue
    first, second = op.inputs
    other = second if first.ref() in active else first
    if op.type == "Mul":
      scale, shift = scale * other, shift * other
    elif op.type == "RealDiv" and other is second:
      scale, shift = scale / other, shift / other
    elif op.type == "Sub":
      sign = 1.0 if other is second else -1.0
      scale, shift = scale * sign, (shift - other) * sign
    elif op.type in ("Add", "AddV2", "BiasAdd"):
      shift = shift + other
    else:
      raise ValueError(
          f"model: no relevance rule is known for {op.type} ({op.name}).")
  return scale, shift


def _layer(op, scale, shift, first) -> Linear:
  """The block of a convolution or dense layer."""
  inputs, kernel = op.inputs
  if op.type == "MatMul":
    if op.get_attr("transpose_a") or op.get_attr("transpose_b"):
      raise ValueError(
          f"model: no relevance rule is known for the transposed product "
          f"{op.name}.")
    return Linear(inputs, kernel * scale, shift, True, first, False, tf.matmul,
                  lambda one, weights: tf.matmul(one, weights,
                                                 transpose_b=True))
  settings = {name: op.get_attr(name) for name in (
      "strides", "padding", "dilations", "explicit_paddings", "data_format")}
  if settings["data_format"] != b"NHWC":
    raise ValueError("model must have its channels last.")
  sizes = tf.shape(inputs)
  if op.type == "Conv2D":
    return Linear(
        inputs, kernel * scale, shift, False, first, False,
        lambda one, weights: tf.raw_ops.Conv2D(
            input=one, filter=weights, **settings),
        lambda one, weights: tf.raw_ops.Conv2DBackpropInput(
            input_sizes=sizes, filter=weights, out_backprop=one, **settings))
  shape = kernel.shape
  if tf.convert_to_tensor(scale).shape.num_elements() > 1:
    scale = tf.reshape(scale, [1, 1, shape[2], shape[3]])
  return Linear(
      inputs, kernel * scale, shift, False, first, False,
      lambda one, weights: tf.raw_ops.DepthwiseConv2dNative(
          input=one, filter=weights, **settings),
      lambda one, weights: tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
          input_sizes=sizes, filter=weights, out_backprop=one, **settings))


def _average(op, source, first) -> Linear:
  """The block of an average or sum: a layer of equal positive weights."""
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
  return Linear(source, tf.constant(1.0), tf.constant(0.0), False, first,
                True, apply, transposed)
