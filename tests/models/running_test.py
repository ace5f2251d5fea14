"""Tests of running.py: explained classes and batches."""

import gc
import weakref

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from keras_attr_preserve.models.running import run_batches, run_model
from keras_attr_preserve.models.scores import class_weights
from tests import tiny


class ClassWeightsTest(parameterized.TestCase):

  def test_one_class_for_all(self):
    for target in (1, np.int64(1), np.array(1, np.uint8)):
      got = class_weights(target, 2, 3)
      np.testing.assert_array_equal(got, [[0, 1, 0], [0, 1, 0]])
      self.assertEqual(got.dtype, np.float32)

  def test_a_class_for_each(self):
    for targets in ([2, 0], (2, 0), np.array([2, 0], np.uint8)):
      np.testing.assert_array_equal(
          class_weights(targets, 2, 3), [[0, 0, 1], [1, 0, 0]])

  def test_weights(self):
    weights = np.array([[0.5, -1.5, 0], [1, 2, 3]])
    got = class_weights(weights, 2, 3)
    np.testing.assert_array_equal(got, weights)
    self.assertEqual(got.dtype, np.float32)

  def test_one_logit_has_two_sides(self):
    np.testing.assert_array_equal(
        class_weights([0, 1, 1], 3, 1), [[-1], [1], [1]])
    np.testing.assert_array_equal(class_weights(0, 2, 1), [[-1], [-1]])

  @parameterized.parameters(
      ([0, 1, 2], 2, 3, "got int64 of shape \\[3\\]"),
      ([0.0, 1.0], 2, 3, "got float64 of shape \\[2\\]"),
      ([[0, 1, 0], [1, 0, 0]], 2, 3, "got int64 of shape \\[2, 3\\]"),
      (["a", "b"], 2, 3, "got <U1 of shape \\[2\\]"))
  def test_another_shape(self, targets, count, classes, message):
    with self.assertRaisesRegex(
        ValueError, r"targets must be None, a class number, 2 class numbers, "
        r"or float weights \[2, 3\]; " + message):
      class_weights(targets, count, classes)

  @parameterized.parameters(np.nan, np.inf, 1e39)
  def test_weights_that_are_not_finite(self, weight):
    with self.assertRaisesRegex(
        ValueError,
        "targets must be finite weights of the logits; got (nan|inf)"):
      class_weights(np.array([[0, 1, 0], [weight, 0, 0]]), 2, 3)

  @parameterized.parameters(
      ([0, 3], 3, r"0\.\.2; got 0\.\.3"), (-1, 3, r"0\.\.2; got -1\.\.-1"),
      ([0, 2], 1, r"0\.\.1; got 0\.\.2"))
  def test_no_such_class(self, targets, classes, message):
    with self.assertRaisesRegex(
        ValueError, "targets must be class numbers in " + message):
      class_weights(targets, 2, classes)


class RunBatchesTest(parameterized.TestCase):

  @parameterized.parameters((1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5]))
  def test_joins_batches(self, batch_size, sizes):
    seen = []

    def double(one, other):
      seen.append(len(one))
      return one * 2, one + other

    first, second = np.arange(5.0), np.arange(5.0) * 10
    got = run_batches(double, first, second, batch_size=batch_size)
    self.assertEqual(seen, sizes)
    np.testing.assert_array_equal(got, [first * 2, first + second])

  def test_works_on_a_traced_function(self):
    double = tf.function(lambda x: (2 * x,), reduce_retracing=True)
    got, = run_batches(double, np.ones((5, 2)), batch_size=2)
    np.testing.assert_array_equal(got, np.full((5, 2), 2.0))

  @parameterized.parameters(0, -1)
  def test_no_batch(self, size):
    with self.assertRaisesRegex(
        ValueError, f"batch_size must be 1 or more; got {size}"):
      run_batches(lambda x: (x,), np.ones(2), batch_size=size)


class RunModelTest(absltest.TestCase):

  def _run(self, model, pictures, key="double", factor=2.0):
    self.traces += 1  # Undone where nothing is traced.
    before = self.traces

    def function(batch):
      self.traces += 1
      return (factor * model(batch),)
    got, = run_model(model, key, function, pictures, batch_size=3)
    return got, self.traces - before

  def setUp(self):
    super().setUp()
    self.traces = 0

  def test_one_graph_for_all_sizes_and_calls(self):
    model = tiny.conv_net()
    got, traces = self._run(model, tiny.images(5))
    self.assertEqual(traces, 1)
    # Batches of three in a graph: float32 sums in another order.
    np.testing.assert_allclose(
        got, 2 * model(tiny.images(5)).numpy(), rtol=1e-5)
    self.assertEqual(self._run(model, tiny.images(1))[1], 0)
    self.assertEqual(self._run(model, tiny.images(1), "other")[1], 1)

  def test_weights_are_read_as_they_are(self):
    model = tiny.conv_net()
    self._run(model, tiny.images(2))
    tiny.shake(model, 5)
    got, traces = self._run(model, tiny.images(2))
    self.assertEqual(traces, 0)
    # A graph and eager calls: float32 sums in another order.
    np.testing.assert_allclose(
        got, 2 * model(tiny.images(2)).numpy(), rtol=1e-5)

  def test_a_swapped_activation_is_seen(self):
    model = tiny.conv_net(activation="softplus")
    before, _ = self._run(model, tiny.images(2))
    model.get_layer("act").activation = tf.nn.relu
    got, traces = self._run(model, tiny.images(2))
    self.assertEqual(traces, 1)
    # Softplus is up to .69 above ReLU; the old graph would give equal numbers.
    self.assertGreater(np.abs(got - before).max(), 1e-2)

  def test_models_are_let_go(self):
    model = tiny.conv_net()
    attribution.grad_cam(model, tiny.images(2))
    attribution.lrp(model, tiny.images(2))
    gone = weakref.ref(model)
    del model
    gc.collect()
    self.assertIsNone(gone())


if __name__ == "__main__":
  absltest.main()
