"""What a forward pass does to what hangs on the images, operation by operation.

To be used where the forward pass is being traced into a graph.
"""

from collections.abc import Iterator

from keras_attr_preserve.compat import tf
from keras_attr_preserve.models.inputs import ImageInput

__all__ = ["BOUNDS", "CHANNELWISE", "bounds", "channelwise_terms", "folded",
           "laid_out_as_taken", "operations_between"]

CHANNELWISE = frozenset({
    "Add", "AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "RealDiv", "Sub"})
# Of two tensors the one that wins at each place, or a tensor within a bound.
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


def laid_out_as_taken(
    images: tf.Tensor, scores: tf.Tensor, taken: ImageInput) -> set:
  """Finds tensors that have no axis of channels yet, or have it first.

  Args:
    images: where the forward pass started, channels last.
    scores: where it ends.
    taken: the layout that the model takes.

  Returns:
    References of the tensors, from `taken.own(images)` on.
  """
  found: set = set()
  if taken.pixels(images) is images:
    return found
  for op in operations_between(images, scores):
    first = not found and op.inputs[0] is images
    goes_on = op.type != "Transpose" and any(
        one.ref() in found and one.shape.as_list() == op.outputs[0].shape
        .as_list() for one in op.inputs)
    if first or goes_on:
      found.add(op.outputs[0].ref())
  return found


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
    if op.type == "FusedBatchNormV3" and op.get_attr("is_training"):
      continue  # A normalization by what it is given: curved.
    if op.type in CHANNELWISE - {"Mul", "RealDiv"} and len(hanging) == 1:
      yield op, folded([op], active)[1]


def bounds(
    order: list[tf.Operation], images: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor]]:
  """Lists what numbers are where a bound that stands still has replaced them.

  Args:
    order: from `operations_between`.
    images: where the forward pass started.

  Returns:
    Outputs of minima and maxima of a tensor and a bound, and their values where
    they are the bound's, float32, 0 elsewhere.
  """
  active = {images.ref()} | {
      output.ref() for op in order for output in op.outputs}
  found = []
  for op in order:
    hanging = [one for one in op.inputs if one.ref() in active]
    if op.type in BOUNDS and len(hanging) == 1:
      output = op.outputs[0]
      found.append((output, tf.cast(
          tf.where(output == hanging[0], tf.zeros_like(output), output),
          tf.float32)))
  return found


def folded(
    chain: list[tf.Operation], active: set) -> tuple[tf.Tensor, tf.Tensor]:
  """Gives the scale and shift of channelwise operations together.

  Args:
    chain: the operations, in running order.
    active: references of the tensors that hang on the images.

  Returns:
    Scale and shift, float32: outputs = scale * inputs + shift.

  Raises:
    ValueError: an operation is no scaling and shift.
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
          tf.cast(one, tf.float32) for one in op.inputs)
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
