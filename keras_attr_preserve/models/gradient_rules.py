"""Other gradients for chosen operations, for the length of a `with` block.

Two jobs need them. Training through a sensitivity differentiates a gradient,
and TensorFlow's gradients of FakeQuant and of `tf.nn.moments` are not made for
that: one gives silently nothing, the other silently something wrong. And on the
device a backward pass must be written in operators that TFLite has.

TensorFlow offers no public way to name another gradient for an operation that a
tape has already recorded, nor to ask whether XLA will compile what is traced.
So this module, and no other, reaches into private ones (checked on TensorFlow
2.21; `gradient_rules_test.py` fails where they changed):
`tensorflow.python.framework.ops.gradient_registry` and
`tensorflow.python.ops.control_flow_util`. Outside a block every operation has
exactly the gradient TensorFlow gave it.
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
  """Hands the gradient to the first input as it is, and none to the others."""
  return [grad] + [None] * (len(op.inputs) - 1)


STRAIGHT_THROUGH: Mapping[str, Rule] = {
    "FakeQuantWithMinMaxArgs": _pass_first,
    "FakeQuantWithMinMaxVars": _pass_first,
    "FakeQuantWithMinMaxVarsPerChannel": _pass_first,
}
"""Rules under which a quantizer is transparent to a sensitivity.

A sensitivity under them (1) stays alive where a quantizer clips its score or
its features, as the map computed on the device does, and (2) holds no
`FakeQuant*Gradient` operation, so that it can be differentiated in its turn.
The quantizers keep their ordinary gradient in every pass outside the block.
"""


def _moments_difference(op: tf.Operation, grad: tf.Tensor):
  """Lets the mean inside a variance be differentiated.

  `tf.nn.moments` computes mean((x - stop_gradient(mean(x)))^2). That is right
  to first order, where the mean's share vanishes; a gradient of this gradient
  lacks it. Where y is the mean of x, the mean is computed anew, unstopped.
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
  # Sums over what was broadcast; unlike tf.where, XLA takes this.
  axes = tf.raw_ops.BroadcastGradientArgs(s0=shapes[0], s1=shapes[1])
  return [tf.reshape(tf.reduce_sum(one, over), shape)
          for one, over, shape in zip((grad, -grad), axes, shapes)]


MOMENTS: Mapping[str, Rule] = {"SquaredDifference": _moments_difference}
"""Rules under which a normalization of each image by its own statistics has an
exact second gradient."""


SENSITIVITY_RULES: Mapping[str, Rule] = {**STRAIGHT_THROUGH, **MOMENTS}
"""Rules for a sensitivity that is itself differentiated: quantizers are
transparent, and a normalization of each image by its own statistics is exact.
What a batch normalization does in training mode is no matter of operations but
of layers: see `batch_statistics.py`."""


@contextlib.contextmanager
def gradient_rules(rules: Mapping[str, Rule]) -> Iterator[None]:
  """Uses `rules` for the gradients that this thread computes in the block.

  Args:
    rules: for each operation type (such as "Relu"), a function of the operation
      and the gradients of its outputs that returns those of its inputs, as
      `tf.RegisterGradient` describes. NotImplemented leaves it to the block
      around this one, and in the end to TensorFlow.

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
  """Says whether XLA will compile what is traced now.

  XLA takes no sizes that only the data tell, nor the gradient of a loop over
  images whose number it learns after the trace.

  Returns:
    True inside a `tf.function` with `jit_compile=True`, and on a TPU.
  """
  return control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph())


def _install(op_type: str) -> None:
  """Lets `op_type` look for a rule of the running thread first, for good."""
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
          found = rules[op_type](op, *grads)
          if found is not NotImplemented:
            return found
      return usual(op, *grads)

    entry = registry._registry[op_type]  # pylint: disable=protected-access
    registry._registry[op_type] = {**entry, "type": gradient}
    _installed.add(op_type)
