"""Tests of moments.py: both forms against each other and by numpy."""

import functools
from unittest import mock

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.least_squares import (
  moments as layer_moments,
)
from keras_attr_preserve.compression.least_squares.moments import MomentsOfRows
from keras_attr_preserve.compression.least_squares.sparse_fit import (
  prune_linear,
)
from tests import channel_nets as nets

_layers = keras.layers
_INPUTS, _ALL, _OUTPUTS = 9, 11, 4


def _collected(inputs, other, size=3):
  rows = MomentsOfRows()
  for start in range(0, len(inputs), size):
    rows.add(inputs[start:start + size],
             None if other is None else other[start:start + size])
  assert rows.count == len(inputs)
  return rows.moments()


def _summed():
  """Has rows be summed however few they are."""
  return mock.patch.object(
      layer_moments, "_Listed", lambda inputs, other: layer_moments._Summed(
          inputs.T @ inputs, inputs.T @ other))


class MomentsTest(parameterized.TestCase):

  def draw(self, count):
    random = np.random.default_rng(count)
    self.own = random.normal(size=(count, _INPUTS))
    self.other = random.normal(size=(count, _ALL))
    self.weights = random.normal(size=(_ALL, _OUTPUTS))
    self.start = random.normal(size=(_INPUTS, _OUTPUTS))
    self.damped = self.own.T @ self.own
    self.damping = 0.01 * np.trace(self.damped) / _INPUTS
    self.damped += self.damping * np.eye(_INPUTS)
    return _collected(self.own, self.other)

  @parameterized.parameters(1, 3, 7, 8, 9, 10, 40)
  def test_are_what_they_say(self, count):
    moments = self.draw(count)
    self.assertIsInstance(
        moments, layer_moments._Listed if count < _INPUTS
        else layer_moments._Summed)
    # Float64 sums and solves; the damping, 1 % of the mean of nine squares,
    # keeps the condition to 901.
    close = functools.partial(
        np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    close(moments.damping, self.damping)
    close(moments.diagonal, np.diag(self.damped))
    close(moments.left(self.start), self.damped @ self.start)
    right = (self.own.T @ self.other @ self.weights
             + self.damping * self.start)
    close(moments.right(self.weights, self.start), right)
    fitted = moments.refitted(self.weights, self.start)
    close(self.damped @ fitted, right)
    close(moments.left(fitted), right)
    inverse = np.linalg.inv(self.damped)
    close(moments.inverse_diagonal(), np.diag(inverse))
    rows = np.array([4, 0, 7])
    close(moments.inverse().block(rows), inverse[np.ix_(rows, rows)])

  @parameterized.parameters(3, 8, 40)
  def test_those_that_stay_take_over_from_those_that_go(self, count):
    moments = self.draw(count)
    inverse, weights, left = moments.inverse(), self.start, np.arange(_INPUTS)
    for gone in ([2], [0, 5, 6]):  # One lot after another.
      there = np.isin(np.arange(len(left)), gone)
      inverse, weights = inverse.without(there, weights)
      left = left[~there]
    damped = self.damped[np.ix_(left, left)]
    # Float64 solves of a condition of 901 at most, one after another.
    np.testing.assert_allclose(
        inverse.block(np.arange(len(left))), np.linalg.inv(damped), rtol=1e-8)
    # The remaining inputs fit the output of all of them, with damping.
    np.testing.assert_allclose(weights, np.linalg.solve(
        damped, self.damped[left] @ self.start), rtol=1e-8)

  @parameterized.parameters(5, 40)
  def test_a_student_that_is_its_own_teacher(self, count):
    self.draw(count)
    moments = _collected(self.own, None)
    np.testing.assert_allclose(
        moments.right(self.start, self.start), self.damped @ self.start)
    np.testing.assert_allclose(
        moments.refitted(self.start, self.start), self.start)
    # Damping holds to the start, not to the teacher's weights.
    weights = self.weights[:_INPUTS]
    np.testing.assert_allclose(
        moments.right(weights, self.start),
        self.own.T @ self.own @ weights + self.damping * self.start)
    # Sums that are equal are kept once.
    self.assertIsNone(getattr(moments, "_cross", None))

  def test_the_batch_size_changes_nothing(self):
    self.draw(8)
    first, *others = (_collected(self.own, self.other, size).refitted(
        self.weights, self.start) for size in (1, 3, 8))
    for fitted in others:
      np.testing.assert_array_equal(fitted, first)

  @parameterized.parameters((3, True), (3, False), (20, True), (20, False))
  def test_finds_what_is_not_finite(self, count, own):
    self.draw(count)
    self.assertTrue(_collected(self.own, self.other).finite())
    (self.own if own else self.other)[1, 1] = np.nan
    self.assertFalse(_collected(self.own, self.other).finite())

  @parameterized.parameters(2, 20)
  def test_inputs_that_are_all_zero(self, count):
    self.draw(count)
    moments = _collected(np.zeros_like(self.own), self.other)
    self.assertEqual(moments.damping, 1.0)
    np.testing.assert_array_equal(
        moments.refitted(self.weights, self.start), self.start)
    np.testing.assert_array_equal(moments.inverse_diagonal(), 1)


def _flattened():
  """A Dense "fc1" that reads 72 values of 12 images or so."""
  def build(x):
    x = nets.conv(x, 6, "conv_a", norm=False)
    x = _layers.MaxPooling2D(name="pool")(nets.conv(x, 8, "conv_b"))
    x = _layers.MaxPooling2D(2, name="pool2")(x)
    x = _layers.Dense(10, "relu", name="fc1")(_layers.Flatten(name="flat")(x))
    return _layers.Dense(3, "softmax", name="predictions")(x)
  return nets.net(build, size=12, head=False)


class FewRowsTest(parameterized.TestCase):
  """Layers of more inputs than rows come out as by the sums."""

  def test_prune_linear(self):
    random = np.random.default_rng(0)
    inputs, other = random.normal(size=(2, 12, 30))
    weights = random.normal(size=(30, 7))
    listed = _collected(inputs, other)
    summed = layer_moments._Summed(inputs.T @ inputs, inputs.T @ other)
    first, second = (prune_linear(weights, moments, kept=50)
                     for moments in (listed, summed))
    self.assertEqual(np.count_nonzero(first), 50)
    # Both end their conjugate gradients at 1e-9 of the right side.
    np.testing.assert_allclose(first, second, atol=1e-6)

  @parameterized.parameters("weights", "filters")
  def test_a_dense_behind_a_flatten(self, what):
    model = _flattened()
    # "fc1" reads more than there are images.
    images = nets.pictures(model, 12)
    self.assertGreater(model.get_layer("fc1").input_shape[-1], 12)

    def prune():
      if what == "weights":
        return kap.prune_with_reconstruction(
            model, {"conv_b": 0.4, "fc1": 0.7}, images)
      shares = kap.filter_sparsities(model, 0.4, images)
      return kap.prune_filters(model, shares, criterion="obs",
                               reconstruct=True, images=images)

    with self.assertWarnsRegex(UserWarning, "'fc1' has .* inputs and sees 12"):
      listed = prune()
    with _summed(), self.assertWarns(UserWarning):
      summed = prune()
    for first, second in zip(
        listed.get_weights(), summed.get_weights(), strict=True):
      # Weights are rounded to float32 layer by layer; later layers are fitted
      # to features of those before them.
      np.testing.assert_allclose(first, second, atol=1e-4)
    unseen = nets.pictures(model, 4, 1)
    # A model that nothing was taken from would give the same scores but for
    # float32. Measured: .08 and .15.
    self.assertGreater(np.abs(listed(unseen) - model(unseen)).max(), 0.01)


if __name__ == "__main__":
  absltest.main()
