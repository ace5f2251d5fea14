"""Tests of gradient_rules.py: other gradients inside a block, none outside."""

import threading
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from tensorflow.python.framework import ops

from keras_attr_preserve.models.gradient_rules import (
    MOMENTS,
    STRAIGHT_THROUGH,
    compiled_by_xla,
    gradient_rules,
)

# The first and last value lie outside the quantizers' range of -6..6.
VALUES = np.float32([[-9.0, -1.0], [2.0, 9.0]])
UPSTREAM = np.float32([[1.0, 2.0], [3.0, 4.0]])
CLIPPED = np.float32([[0.0, 2.0], [3.0, 0.0]])
# A few float64 roundings, of 1e-16 each.
FLOAT64 = 1e-12
# Float32 statistics of a batch, fused or by formula, and gradients through
# them.
FLOAT32 = 1e-4


def _with_args(x):
  return tf.quantization.fake_quant_with_min_max_args(x, -6.0, 6.0)


def _with_vars(x):
  return tf.quantization.fake_quant_with_min_max_vars(x, -6.0, 6.0)


def _per_channel(x):
  return tf.quantization.fake_quant_with_min_max_vars_per_channel(
      x, [-6.0, -6.0], [6.0, 6.0])


def _gradient(function, x=VALUES, rules=None):
  """The gradient of UPSTREAM . function(x), inside a block where rules."""
  x = tf.convert_to_tensor(x)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = function(x)
  if rules is None:
    return tape.gradient(y, x, output_gradients=UPSTREAM)
  with gradient_rules(rules):
    return tape.gradient(y, x, output_gradients=UPSTREAM)


QUANTIZERS = (
    ("args", _with_args), ("vars", _with_vars), ("per_channel", _per_channel))


class StraightThroughTest(parameterized.TestCase):

  @parameterized.named_parameters(*QUANTIZERS)
  def test_inside_the_gradient_passes_where_it_is_clipped(self, quantizer):
    np.testing.assert_array_equal(
        _gradient(quantizer, rules=STRAIGHT_THROUGH), UPSTREAM)

  @parameterized.named_parameters(*QUANTIZERS)
  def test_inside_a_traced_function(self, quantizer):
    gradient = tf.function(
        lambda x: _gradient(quantizer, x, STRAIGHT_THROUGH))
    np.testing.assert_array_equal(gradient(VALUES), UPSTREAM)

  @parameterized.named_parameters(*QUANTIZERS)
  def test_outside_it_is_clipped_before_and_after_a_block(self, quantizer):
    traced = tf.function(lambda x: _gradient(quantizer, x))
    np.testing.assert_array_equal(_gradient(quantizer), CLIPPED)
    _gradient(quantizer, rules=STRAIGHT_THROUGH)
    np.testing.assert_array_equal(_gradient(quantizer), CLIPPED)
    np.testing.assert_array_equal(traced(VALUES), CLIPPED)

  def test_outside_the_ranges_have_tensorflows_gradient(self):
    _gradient(_with_vars, rules=STRAIGHT_THROUGH)
    low, high = tf.Variable(-6.0), tf.Variable(6.0)
    with tf.GradientTape() as tape:
      y = tf.quantization.fake_quant_with_min_max_vars(VALUES, low, high)
    # By hand: cut values below go to the lower bound, above to the upper.
    self.assertEqual(
        [float(value) for value in tape.gradient(
            y, [low, high], output_gradients=UPSTREAM)], [1.0, 4.0])

  def test_the_ranges_get_nothing_inside(self):
    low, high = tf.Variable(-6.0), tf.Variable(6.0)
    with tf.GradientTape() as tape:
      y = tf.quantization.fake_quant_with_min_max_vars(VALUES, low, high)
    with gradient_rules(STRAIGHT_THROUGH):
      self.assertEqual(tape.gradient(y, [low, high]), [None, None])

  @parameterized.named_parameters(*QUANTIZERS[1:])
  def test_a_gradient_inside_has_a_gradient_of_its_own(self, quantizer):
    """Trap 1: outside, the second gradient is None, with no error."""
    def second(rules):
      x = tf.constant(VALUES)
      kernel = tf.constant(UPSTREAM)
      with tf.GradientTape() as outer:
        outer.watch(kernel)
        with tf.GradientTape() as tape:
          tape.watch(x)
          y = kernel * quantizer(x)
        with gradient_rules(rules):
          first = tape.gradient(y, x)  # The kernel, if nothing is clipped.
        total = tf.reduce_sum(first**2)
      return outer.gradient(total, kernel)

    np.testing.assert_array_equal(second(STRAIGHT_THROUGH), 2 * UPSTREAM)
    self.assertIsNone(second({}), "TensorFlow mended it: see trap 1.")

  def test_the_outer_pass_keeps_the_clipped_gradient(self):
    x = tf.constant(VALUES)
    with tf.GradientTape() as outer:
      outer.watch(x)
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = _with_vars(x)
        total = tf.reduce_sum(y * UPSTREAM)
      with gradient_rules(STRAIGHT_THROUGH):
        first = tape.gradient(total, x)
      both = total + 0 * tf.reduce_sum(first)
    np.testing.assert_array_equal(outer.gradient(both, x), CLIPPED)


class MomentsTest(parameterized.TestCase):
  """Trap 3: tf.nn.moments stops the gradient of its mean."""

  def _second(self, function, x, rules):
    """Gradient of v . f'(x), where v counts 1, 2, 3 and so on."""
    x = tf.constant(x)
    with tf.GradientTape() as outer:
      outer.watch(x)
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
      with gradient_rules(rules):
        first = tape.gradient(y, x)
      along = tf.reshape(tf.range(1, 1 + tf.size(x)), tf.shape(x))
      total = tf.reduce_sum(first * tf.cast(along, x.dtype))
    return first, outer.gradient(total, x)

  def test_the_variance_of_three_numbers_by_hand(self):
    x = np.array([[1.0], [2.0], [6.0]])
    def variance(x):
      return tf.nn.moments(x, [0])[1]
    for rules, want in (
        # d/dx_i of 2 (x_j - mean) v_j / 3 is 2 (v_i - mean of v) / 3.
        (MOMENTS, [[-2 / 3], [0], [2 / 3]]),
        ({}, [[2 / 3], [4 / 3], [6 / 3]])):  # The trap: as if nothing moved.
      first, second = self._second(variance, x, rules)
      np.testing.assert_allclose(first, [[-4 / 3], [-2 / 3], [2]], rtol=FLOAT64)
      np.testing.assert_allclose(second, want, atol=FLOAT64)

  @parameterized.parameters(((7, 4), [0]), ((3, 4, 5, 2), [0, 1, 2]),
                            ((6, 5), [-1]), ((3, 4, 5, 2), [1, 2]))
  def test_normalization_against_differences(self, shape, axes):
    x = np.random.default_rng(0).normal(size=shape)
    weights = np.random.default_rng(1).normal(size=shape)
    along = np.arange(1.0, 1 + x.size).reshape(shape)

    def score(x):
      mean, variance = tf.nn.moments(x, axes, keepdims=True)
      return tf.reduce_sum(
          weights * tf.tanh((x - mean) * tf.math.rsqrt(variance + 1e-3)))

    def total(x):
      return float((self._second(score, x, MOMENTS)[0].numpy()
                    * along).sum())

    _, second = self._second(score, x, MOMENTS)
    for entry in ((0,) * len(shape), tuple(size - 1 for size in shape)):
      moved = np.zeros(shape)
      moved[entry] = 1e-5
      want = (total(x + moved) - total(x - moved)) / 2e-5
      # Central differences in float64 of sums of size 1e3.
      self.assertAlmostEqual(second[entry] / want, 1, delta=1e-5)

  @parameterized.parameters(
      ((3,), (3,)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)),
      ((2, 3), ()), ((2, 3), (2, 1)), ((2, 3), (1, 1)), ((2, 3, 4), (3, 1)))
  def test_other_differences_keep_tensorflows_gradient(self, one, other):
    """Of operands that broadcast against each other in any way."""
    rng = np.random.default_rng(0)
    x, y = (tf.constant(rng.normal(size=shape)) for shape in (one, other))
    specs = [tf.TensorSpec([None] * len(shape), tf.float64)
             for shape in (one, other)]

    def gradients(x, y, rules):
      with tf.GradientTape() as tape:
        tape.watch([x, y])
        z = tf.math.squared_difference(x, y)
      with gradient_rules(rules):
        return tape.gradient(z, [x, y])

    want = gradients(x, y, {})
    traced = tf.function(
        lambda x, y: gradients(x, y, MOMENTS), input_signature=specs)
    for got in (gradients(x, y, MOMENTS), traced(x, y)):
      for a, b in zip(got, want):
        self.assertEqual(a.shape, b.shape)
        np.testing.assert_allclose(a, b, rtol=FLOAT64)


class GradientRulesTest(absltest.TestCase):

  def test_a_rule_of_ones_own(self):
    """Guided backpropagation: no gradient where it is negative either."""
    def guided(op, grad):
      return grad * tf.cast(op.outputs[0] > 0, grad.dtype) * tf.cast(
          grad > 0, grad.dtype)

    def gradient(rules):
      x = tf.constant([-1.0, 1.0, 2.0])
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.nn.relu(x)
      with gradient_rules(rules):
        return tape.gradient(
            y, x, output_gradients=tf.constant([5.0, -5.0, 5.0]))

    np.testing.assert_array_equal(gradient({"Relu": guided}), [0, 0, 5])
    np.testing.assert_array_equal(gradient({}), [0, -5, 5])
    np.testing.assert_array_equal(
        tf.function(lambda: gradient({"Relu": guided}))(), [0, 0, 5])

  def _relu_factor(self):
    """The gradient of relu at 1 under the rules in force: 1 by itself."""
    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = tf.nn.relu(x)
    return float(tape.gradient(y, x))

  def test_blocks_nest_and_give_back_what_was_before(self):
    double = {"Relu": lambda op, grad: 2 * grad}
    triple = {"Relu": lambda op, grad: 3 * grad}
    self.assertEqual(self._relu_factor(), 1)
    with gradient_rules(double):
      self.assertEqual(self._relu_factor(), 2)
      with gradient_rules(triple):
        self.assertEqual(self._relu_factor(), 3)
        with gradient_rules(STRAIGHT_THROUGH):  # Adds, and keeps the outer.
          self.assertEqual(self._relu_factor(), 3)
          np.testing.assert_array_equal(_gradient(_with_vars), UPSTREAM)
      self.assertEqual(self._relu_factor(), 2)
      np.testing.assert_array_equal(_gradient(_with_vars), CLIPPED)
    self.assertEqual(self._relu_factor(), 1)

  def test_what_a_rule_leaves_goes_to_the_block_around_it(self):
    leave = {"Relu": lambda op, grad: NotImplemented}
    with gradient_rules(leave):
      self.assertEqual(self._relu_factor(), 1)
      with gradient_rules({"Relu": lambda op, grad: 2 * grad}):
        with gradient_rules(leave):
          self.assertEqual(self._relu_factor(), 2)
        self.assertEqual(self._relu_factor(), 2)

  def test_gives_back_after_an_error(self):
    with self.assertRaisesRegex(KeyError, "mine"), gradient_rules(
        {"Relu": lambda op, grad: 2 * grad}):
      raise KeyError("mine")
    self.assertEqual(self._relu_factor(), 1)

    def broken(op, grad):
      raise ZeroDivisionError("in the rule")
    with self.assertRaisesRegex(
        ZeroDivisionError, "in the rule"), gradient_rules({"Relu": broken}):
      self._relu_factor()
    self.assertEqual(self._relu_factor(), 1)

  def test_other_threads_do_not_see_the_block(self):
    seen = []
    with gradient_rules(STRAIGHT_THROUGH):
      thread = threading.Thread(
          target=lambda: seen.append(_gradient(_with_vars).numpy()))
      thread.start()
      thread.join()
      np.testing.assert_array_equal(_gradient(_with_vars), UPSTREAM)
    np.testing.assert_array_equal(seen, [CLIPPED])

  def test_two_threads_have_rules_of_their_own(self):
    barrier = threading.Barrier(2, timeout=30)
    seen = {}

    def work(factor):
      with gradient_rules({"Relu": lambda op, grad: factor * grad}):
        barrier.wait()
        seen[factor] = self._relu_factor()
        barrier.wait()

    threads = [threading.Thread(target=work, args=[k]) for k in (2, 3)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEqual(seen, {2: 2.0, 3: 3.0})

  def test_an_operation_without_a_gradient_keeps_none_or_is_refused(self):
    op_type = "FakeQuantWithMinMaxArgsGradient"  # Registered as having none.
    def gradient():
      x = tf.constant(VALUES)
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.quantization.fake_quant_with_min_max_args_gradient(x, VALUES)
      return tape.gradient(y, x)
    self.assertIsNone(gradient())
    try:
      with gradient_rules({op_type: lambda op, grad: [grad, None]}):
        np.testing.assert_array_equal(gradient(), np.ones_like(VALUES))
    except ValueError as error:
      self.assertRegex(str(error), op_type)
    self.assertIsNone(gradient())
    self.assertIsNone(tf.function(gradient)())


class PrivateRegistryTest(absltest.TestCase):
  """Where TensorFlow changes its registry, this says so."""

  def test_its_entries_are_what_the_module_takes_them_for(self):
    registry = ops.gradient_registry
    self.assertIn("type", registry._registry["Softplus"])
    self.assertIs(registry.lookup("Softplus"),
                  registry._registry["Softplus"]["type"])

  def _enter(self, op_type):
    with gradient_rules({op_type: lambda op, grad: grad}):
      pass

  def test_an_operation_that_does_not_exist(self):
    with self.assertRaisesRegex(LookupError, "NoSuchOperation"):
      self._enter("NoSuchOperation")

  def test_no_registry_is_an_error_not_a_silence(self):
    with mock.patch.object(
        ops, "gradient_registry", object()), self.assertRaises(AttributeError):
      self._enter("Selu")

  def test_a_registry_of_another_shape_is_an_error_not_a_silence(self):
    other = mock.Mock(spec=["lookup"])
    with mock.patch.object(
        ops, "gradient_registry", other), self.assertRaises(AttributeError):
      self._enter("Selu")


class CompiledByXlaTest(absltest.TestCase):

  def test_where_a_function_says_so(self):
    """By a private function of TensorFlow, checked on 2.21."""
    said = []

    def say():
      said.append(compiled_by_xla())
      return tf.constant(0)

    say()
    tf.function(say)()
    tf.function(say, jit_compile=True)()
    # Also in a function that it calls, and in a branch.
    tf.function(lambda: tf.function(say)(), jit_compile=True)()
    tf.function(lambda: tf.cond(tf.constant(1.0) > 0, say, lambda: 0),
                jit_compile=True)()
    self.assertEqual(said, [False, False, True, True, True])


if __name__ == "__main__":
  absltest.main()
