"""Sends relevance back through the blocks of a forward pass.

All relevance methods walk from the score back to the image. Each block hands
its relevance to its inputs; a tensor adds up its relevance from several blocks.
The methods differ in how a linear block shares relevance out (see `rules`).

The walk reads TensorFlow's own graph of the forward pass, so wrapped, nested
and subclassed models need no extra code. A `Linear` block is a convolution or
dense layer and the channelwise operations that follow it. Its bias and an
inference-mode batch normalization are such operations. Relevance methods treat
a block as one layer with folded weights. Relevance is float32 for every model.
"""

from collections.abc import Callable, Iterable

from keras_attr_preserve.attribution.operations import (
    BOUNDS,
    CHANNELWISE,
    folded,
    operations_between,
)
from keras_attr_preserve.attribution.relevance.linear_blocks import (
    CORES,
    QUIET,
    Linear,
    average_block,
    inside,
    layer_block,
    scaling_block,
)
from keras_attr_preserve.compat import tf

__all__ = ["Rule", "Share", "send_back"]

# Activations and quantizers pass relevance on unchanged.
_PASS = frozenset({
    "Elu", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel", "HardSwish", "Identity", "IdentityN",
    "LeakyRelu", "Neg", "Relu", "Relu6", "Selu", "Sigmoid", "Softplus",
    "Softsign", "StopGradient", "Tanh",
})
# These move or choose numbers; their gradients move relevance back.
_MOVE = frozenset({
    "BatchToSpaceND", "Cast", "ConcatV2", "DepthToSpace", "ExpandDims",
    "GatherV2", "Max", "MaxPool", "MirrorPad", "Pack", "Pad", "PadV2",
    "Reshape", "ResizeBilinear", "ResizeNearestNeighbor", "SelectV2", "Slice",
    "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV", "Squeeze",
    "StridedSlice", "Tile", "Transpose", "Unpack",
})
_AVERAGE = frozenset({"AvgPool", "Mean", "Sum"})
_GATES = frozenset({"Erf", "Erfc", "Maximum", "Minimum", "Relu6", "Tanh"})

Rule = Callable[[Linear, tf.Tensor], tf.Tensor]
Share = Callable[[list[tf.Tensor], tf.Tensor], list[tf.Tensor]]


def send_back(
    images: tf.Tensor,
    scores: tf.Tensor,
    relevance: tf.Tensor,
    wanted: tf.Tensor,
    linear: Rule,
    share: Share,
    scaling: Rule | None = None,
) -> tf.Tensor:
  """Sends relevance from scores back to a tensor on the way.

  Call this while the forward pass is traced into a graph.

  Args:
    images: the tensor where the forward pass started.
    scores: the tensor where the relevance starts, `[batch, classes]`.
    relevance: the scores' relevance, in their shape.
    wanted: the tensor whose relevance is returned: the images, or features.
    linear: how a linear block shares its relevance out: `(block, relevance of
      its outputs) -> relevance of its inputs`.
    share: how a sum shares its relevance out: `(summands, relevance of the sum)
      -> relevance of each summand`, all of one shape.
    scaling: how a scaling and shift of single channels hands relevance on, such
      as a batch normalization that follows no layer; None to pass on all of it.

  Returns:
    Relevance of `wanted`'s shape.

  Raises:
    ValueError: an operation has no known rule.
  """
  return _Walk(images, scores, wanted, linear, share, scaling).run(relevance)


class _Walk:
  """One walk from the scores back."""

  def __init__(self, images, scores, wanted, linear, share, scaling):
    self._images = images
    self._scores = scores
    self._wanted = wanted
    self._linear = linear
    self._share = share
    self._scaling = scaling
    self._order = operations_between(images, scores)
    self._active = {images.ref()} | {
        output.ref() for op in self._order for output in op.outputs
        if output.dtype.is_floating}
    self._users: dict = {}
    for op in self._order:
      for tensor in self._inputs(op):
        self._users.setdefault(tensor.ref(), []).append(op)

  def run(self, relevance):
    destination = self._wanted
    sums = {self._scores.ref(): [relevance]}
    # Operations folded into a block receive no relevance, so they are skipped.
    for op in reversed(self._order):
      received = [
          tf.add_n(sums[output.ref()]) if output.ref() in sums else None
          for output in op.outputs]
      if not any(value is not None for value in received) or any(
          output is destination for output in op.outputs):
        continue
      for source, source_relevance in self._send(op, *received):
        sums.setdefault(source.ref(), []).append(source_relevance)
    if destination.ref() not in sums:
      raise ValueError(
          "layer: the class scores do not depend on it in a way that relevance "
          "can be sent along.")
    return tf.add_n(sums[destination.ref()])

  def _inputs(self, op) -> list[tf.Tensor]:
    """Returns the inputs of an operation that depend on the images."""
    return [tensor for tensor in op.inputs if tensor.ref() in self._active]

  def _send(self, op, *received) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
    inputs, relevance = self._inputs(op), received[0]
    kind = op.type
    if kind == "IdentityN":
      return [(tensor, value) for tensor, value in zip(op.inputs, received)
              if value is not None]
    if kind in _PASS or (kind in BOUNDS and len(inputs) == 1):
      return [(inputs[0], relevance)]
    if kind in _MOVE | BOUNDS:
      return _moved(op, inputs, received)
    if kind in _AVERAGE:
      return [(inputs[0], self._linear(
          average_block(op, inputs[0], self._is_first(inputs[0])), relevance))]
    if len(inputs) == 1 and kind in CORES | CHANNELWISE:
      source, block, is_scaling = self._block(op)
      rule = self._linear
      if is_scaling:  # Its one input takes all relevance if it is pixels.
        rule = None if block.is_first else self._scaling
      return [(source, rule(block, relevance) if rule else relevance)]
    if kind in ("Add", "AddV2", "AddN") and all(
        tensor.shape.rank == op.outputs[0].shape.rank for tensor in inputs):
      return zip(inputs, self._shared(inputs, relevance))
    if kind == "Mul" and len(inputs) == 2:
      return [(self._signal(op, inputs), relevance)]
    raise ValueError(
        f"model: no relevance rule is known for the operation {kind} "
        f"({op.name}); known are convolutions, dense layers, batch "
        "normalization, pooling, sums, concatenation, reshaping and "
        "activations.")

  def _shared(self, inputs, relevance):
    """Shares a sum's relevance out; adds it up over broadcast axes."""
    shape = tf.shape(relevance)
    shares = self._share([tf.broadcast_to(tensor, shape) for tensor in inputs],
                         relevance)
    for tensor, share in zip(inputs, shares):
      axes = [axis for axis, (small, large) in enumerate(
          zip(tensor.shape, relevance.shape)) if small == 1 and large != 1]
      yield tf.reduce_sum(share, axes, keepdims=True) if axes else share

  def _signal(self, op, inputs):
    """Returns the factor of a gated product that takes all its relevance."""
    gates = [self._gate(tensor) for tensor in inputs]
    if gates[0] == gates[1]:
      raise ValueError(
          f"model: no relevance rule is known for the product {op.name} of two "
          "tensors that hang on the image, unless one is a gate, the output of "
          "a sigmoid.")
    return inputs[gates.index(min(gates))]

  def _gate(self, tensor) -> tuple[int, int]:
    """Ranks a factor as a gate: sigmoid, hard sigmoid, bounded number, none.

    If two factors tie, the broadcast factor is the gate.
    """
    op, is_scaled = tensor.op, False
    while op is not self._images.op and (op.type in ("Identity", "Reshape") or (
        op.type in CHANNELWISE and len(self._inputs(op)) == 1
        and all(constant.shape.num_elements() == 1 for constant in op.inputs
                if constant.ref() not in self._active))):
      # Hard sigmoid: relu6(x + 3) / 6.
      is_scaled |= op.type in ("Mul", "RealDiv")
      op = self._inputs(op)[0].op
    sure = 3 if op.type == "Sigmoid" else (
        1 + is_scaled if op.type in _GATES else 0)
    return sure, -(tensor.shape[1:].num_elements() or 0) if sure else 0

  def _is_first(self, tensor) -> bool:
    """Returns whether the images are only scaled and moved up to a tensor."""
    while tensor is not self._images:
      inputs = self._inputs(tensor.op)
      if len(inputs) != 1 or tensor.op.type not in (
          CHANNELWISE | _MOVE | _PASS) - {"Max", "MaxPool"}:
        return False
      tensor = inputs[0]
    return True

  def _block(self, last) -> tuple[tf.Tensor, Linear, bool]:
    """Returns the source, the block up to `last`, and if it only scales."""
    chain, op = [], last
    while op.type not in CORES:
      source, = self._inputs(op)
      if op.type in CHANNELWISE:
        chain.append(op)
      if not (self._is_by_channel(op) and self._goes_on(source)):
        block = scaling_block(source, *folded(chain[::-1], self._active),
                              self._is_first(source))
        return source, block, True
      op = source.op
    source, = self._inputs(op)
    if source is not op.inputs[0]:
      raise ValueError(
          f"model: no relevance rule is known for {op.name}, whose kernel "
          "hangs on the image.")
    scale, shift = folded(chain[::-1], self._active)
    return source, layer_block(op, scale, shift, self._is_first(source)), False

  def _goes_on(self, source) -> bool:
    """Returns whether the operation behind a block's tensor joins the block."""
    below = source.op
    return (source is not self._images and source is not self._wanted
            and len(self._users[source.ref()]) == 1
            and below.type in CORES | CHANNELWISE | QUIET
            and len(self._inputs(below)) == 1 and self._is_by_channel(below))

  def _is_by_channel(self, op) -> bool:
    """Returns whether an operation is equal at all places and in all images."""
    if op.type not in CHANNELWISE - {"BiasAdd", "FusedBatchNormV3"}:
      return True
    return all(constant.shape.rank is not None
               and set(constant.shape[:-1]) <= {1}
               for constant in op.inputs if constant.ref() not in self._active)


def _moved(op, sources, received):
  """Sends relevance back through operations that move or choose numbers."""
  inputs = sources
  pairs = [(output, tf.cast(value, output.dtype))
           for output, value in zip(op.outputs, received) if value is not None]
  outputs, relevance = zip(*pairs)
  mask = inside(op.inputs[0].op) if op.type == "MaxPool" else None
  if mask is not None:  # Padding wins no maximum, below zero or at a tie.
    least = tf.fill(tf.shape(inputs[0]), inputs[0].dtype.min)
    inputs = [tf.where(mask > 0, inputs[0], least)]
    outputs = tf.raw_ops.MaxPool(input=inputs[0], **{
        name: op.get_attr(name) for name in (
            "ksize", "strides", "padding", "explicit_paddings",
            "data_format")})
  gradients = tf.gradients(
      outputs, inputs, grad_ys=relevance,
      stop_gradients=inputs, unconnected_gradients="zero")
  return [(source, tf.cast(tf.convert_to_tensor(gradient), tf.float32))
          for source, gradient in zip(sources, gradients)]
