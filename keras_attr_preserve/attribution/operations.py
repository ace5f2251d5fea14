"""The operations of a forward pass that depend on the images.

Use these functions while the forward pass is traced into a graph.
"""

from collections.abc import Iterator

from keras_attr_preserve.compat import tf
from keras_attr_preserve.models.inputs import ImageInput

__all__ = ["BOUNDS", "CHANNELWISE", "bounds", "channelwise_terms", "folded",
           "laid_out_as_taken", "operations_between"]

CHANNELWISE = frozenset({
    "Add", "AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "RealDiv", "Sub"})
# The winner of two tensors at each place, or a tensor within a bound.
BOUNDS = frozenset({"Maximum", "Minimum"})


def operations_between(
    images: tf.Tensor, scores: tf.Tensor) -> list[tf.Operation]:
  """Lists the operations from the images to the scores, in running order."""
  ancestors, stack = set(), [scores.op]
  while stack:
    op = stack.pop()
    if op in ancestors or op is images.op:
      continue
    ancestors.add(op)
    stack.extend(tensor.op for tensor in op.inputs)
  # A graph lists its operations in the order of their creation.
  active, order = {images.ref()}, []
  for op in scores.graph.get_operations():
    if op in ancestors and any(
        tensor.ref() in active for tensor in op.inputs):
      floats = [tensor for tensor in op.outputs if tensor.dtype.is_floating]
      if floats:
        order.append(op)
        active.update(tensor.ref() for tensor in floats)
  return order


def laid_out_as_taken(
    images: tf.Tensor, scores: tf.Tensor, taken: ImageInput) -> set:
  """Finds the tensors without an axis of channels, or with it first.

  Args:
    images: the tensor where the forward pass started, channels last.
    scores: the tensor where it ends.
    taken: the layout of the model's input.

  Returns:
    References of these tensors, from `taken.own(images)` on.
  """
  references: set = set()
  if taken.pixels(images) is images:
    return references
  for op in operations_between(images, scores):
    first = not references and op.inputs[0] is images
    goes_on = op.type != "Transpose" and any(
        tensor.ref() in references and tensor.shape.as_list() ==
        op.outputs[0].shape.as_list() for tensor in op.inputs)
    if first or goes_on:
      references.add(op.outputs[0].ref())
  return references


def channelwise_terms(
    order: list[tf.Operation], images: tf.Tensor
) -> Iterator[tuple[tf.Operation, tf.Tensor]]:
  """Lists the terms that operations add to an input from the images.

  Args:
    order: from `operations_between`.
    images: the tensor where the forward pass started.

  Yields:
    Operations with one input that depends on the images, and their terms.
  """
  active = {images.ref()} | {
      output.ref() for op in order for output in op.outputs}
  for op in order:
    dependent = [tensor for tensor in op.inputs if tensor.ref() in active]
    if op.type == "FusedBatchNormV3" and op.get_attr("is_training"):
      continue  # Normalization by the batch's own statistics is not affine.
    if op.type in CHANNELWISE - {"Mul", "RealDiv"} and len(dependent) == 1:
      yield op, folded([op], active)[1]


def bounds(
    order: list[tf.Operation], images: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor]]:
  """Lists the values at which a constant bound replaced numbers.

  Args:
    order: from `operations_between`.
    images: the tensor where the forward pass started.

  Returns:
    For each minimum or maximum of a tensor and a bound, the output, and its
    values where the bound replaced them, float32, 0 elsewhere.
  """
  active = {images.ref()} | {
      output.ref() for op in order for output in op.outputs}
  bounded = []
  for op in order:
    dependent = [tensor for tensor in op.inputs if tensor.ref() in active]
    if op.type in BOUNDS and len(dependent) == 1:
      output = op.outputs[0]
      bounded.append((output, tf.cast(
          tf.where(output == dependent[0], tf.zeros_like(output), output),
          tf.float32)))
  return bounded


def folded(
    chain: list[tf.Operation], active: set) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the joint scale and shift of channelwise operations.

  Args:
    chain: the operations, in running order.
    active: references of the tensors that depend on the images.

  Returns:
    Scale and shift, float32: outputs = scale * inputs + shift.

  Raises:
    ValueError: an operation is not a scaling and shift.
  """
  scale, shift = tf.constant(1.0), tf.constant(0.0)
  for op in chain:
    if op.type == "FusedBatchNormV3" and op.get_attr("is_training"):
      raise ValueError(
          "model: no relevance rule is known for a normalization by what it "
          f"is given ({op.name}).")
    if op.type in ("BiasAdd", "FusedBatchNormV3") and (
        op.get_attr("data_format") != b"NHWC"):
      raise ValueError(
          f"model must have its channels last; {op.name} has them first.")
    if op.type == "FusedBatchNormV3":
      _, gamma, beta, mean, variance = (
          tf.cast(tensor, tf.float32) for tensor in op.inputs)
      factor = gamma * tf.math.rsqrt(variance + op.get_attr("epsilon"))
      scale, shift = scale * factor, (shift - mean) * factor + beta
      continue
    first, second = op.inputs
    is_second = first.ref() in active
    other = tf.cast(second if is_second else first, tf.float32)
    if op.type == "Mul":
      scale, shift = scale * other, shift * other
    elif op.type == "RealDiv" and is_second:
      scale, shift = scale / other, shift / other
    elif op.type == "Sub":
      sign = 1.0 if is_second else -1.0
      scale, shift = scale * sign, (shift - other) * sign
    elif op.type in ("Add", "AddV2", "BiasAdd"):
      shift = shift + other
    else:
      raise ValueError(
          f"model: no relevance rule is known for {op.type} ({op.name}).")
  return scale, shift
