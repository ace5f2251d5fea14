"""Replaces the gradients of chosen operations inside a `with` block.

Two tasks need this. Training through a sensitivity differentiates a gradient.
There TensorFlow's gradient of FakeQuant silently gives nothing, and its
gradient of `tf.nn.moments` is silently wrong. And a backward pass on the device
may only use operators that TFLite has.

TensorFlow has no public way to replace the gradient of an operation that a tape
has recorded. It also has no public way to ask whether XLA will compile a trace.
So this module, and no other, uses two private modules (checked on TensorFlow
2.21; `gradient_rules_test.py` fails where they changed):
`tensorflow.python.framework.ops.gradient_registry` and
`tensorflow.python.ops.control_flow_util`. Outside a block every operation has
exactly TensorFlow's gradient.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

__all__ = ["MOMENTS", "SENSITIVITY_RULES", "STRAIGHT_THROUGH",
           "compiled_by_xla", "gradient_rules"]

Rule = Callable[..., object]

_active = threading.local()
_installing = threading.Lock()
_installed: set[str] = set()


def _pass_first(op: tf.Operation, grad: tf.Tensor):
  """Passes the gradient unchanged to the first input, and none to the rest."""
  return [grad] + [None] * (len(op.inputs) - 1)


STRAIGHT_THROUGH: Mapping[str, Rule] = {
    "FakeQuantWithMinMaxArgs": _pass_first,
    "FakeQuantWithMinMaxVars": _pass_first,
    "FakeQuantWithMinMaxVarsPerChannel": _pass_first,
}
"""Rules that pass a sensitivity unchanged through quantizers.

Under these rules a sensitivity (1) is not zero where a quantizer clips its
score or its features, like the map on the device. It (2) holds no
`FakeQuant*Gradient` operation, so that it can be differentiated again. Outside
the block quantizers keep their usual gradient.
"""


def _moments_difference(op: tf.Operation, grad: tf.Tensor):
  """Differentiates the mean inside a variance too.

  `tf.nn.moments` computes mean((x - stop_gradient(mean(x)))^2). The first
  gradient is right, because the mean's part is zero there. The second gradient
  lacks that part. So where y is the mean of x, this computes the mean again,
  without stopping its gradient.
  """
  x, y = op.inputs
  axes = [axis for axis, (wide, narrow) in enumerate(zip(x.shape, y.shape))
          if narrow == 1 and wide != 1] if x.shape.rank == y.shape.rank else []
  if axes:
    mean = tf.reduce_mean(x, axes, keepdims=True)
    rounding = 1e-5 * tf.reduce_max(tf.abs(x), axes, keepdims=True)
    y = tf.where(tf.reduce_all(tf.abs(y - mean) <= rounding), mean, y)
  grad = 2 * grad * (x - y)
  shapes = tf.shape(op.inputs[0]), tf.shape(op.inputs[1])
  # Sums over the broadcast axes; XLA compiles this, but not tf.where.
  axes = tf.raw_ops.BroadcastGradientArgs(s0=shapes[0], s1=shapes[1])
  return [tf.reshape(tf.reduce_sum(gradient, over), shape)
          for gradient, over, shape in zip((grad, -grad), axes, shapes)]


MOMENTS: Mapping[str, Rule] = {"SquaredDifference": _moments_difference}
"""Rules that give a normalization of each image by its own statistics an exact
second gradient."""


SENSITIVITY_RULES: Mapping[str, Rule] = {**STRAIGHT_THROUGH, **MOMENTS}
"""Rules for a sensitivity that is differentiated again.

Quantizers pass it unchanged, and normalization of each image by its own
statistics is exact. For batch normalization in training mode see
`batch_statistics.py`, because it needs layers and not operations.
"""


@contextlib.contextmanager
def gradient_rules(rules: Mapping[str, Rule]) -> Iterator[None]:
  """Uses `rules` for the gradients that this thread computes in the block.

  Args:
    rules: for each operation type (such as "Relu") a gradient function, as
      `tf.RegisterGradient` describes. It takes the operation and the gradients
      of its outputs, and returns the gradients of its inputs. If it returns
      NotImplemented, the outer block applies, and finally TensorFlow's rule.

  Yields:
    Nothing.
  """
  for op_type in rules:
    _install(op_type)
  outer = getattr(_active, "rules", ())
  _active.rules = (rules, *outer)
  try:
    yield
  finally:
    _active.rules = outer


def compiled_by_xla() -> bool:
  """Says whether XLA will compile the current trace.

  XLA takes no sizes that depend on the data. It also takes no gradient of a
  loop over images whose number is unknown while tracing.

  Returns:
    True inside a `tf.function` with `jit_compile=True`, and on a TPU.
  """
  return control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph())


def _install(op_type: str) -> None:
  """Makes `op_type` look up the thread's rules first, permanently."""
  with _installing:
    if op_type in _installed:
      return
    registry = ops.gradient_registry
    usual = registry.lookup(op_type)
    if usual is None:
      raise ValueError(
          f"rules: {op_type!r} has no gradient that another could replace.")

    def gradient(op, *grads):
      for rules in getattr(_active, "rules", ()):
        if op_type in rules:
          result = rules[op_type](op, *grads)
          if result is not NotImplemented:
            return result
      return usual(op, *grads)

    entry = registry._registry[op_type]  # pylint: disable=protected-access
    registry._registry[op_type] = {**entry, "type": gradient}
    _installed.add(op_type)
