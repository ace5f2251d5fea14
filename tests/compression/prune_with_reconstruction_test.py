"""Tests of prune_with_reconstruction.py: by hand, by least squares."""

import contextlib
import io
import itertools
from unittest import mock

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.least_squares import (
  moments as layer_moments,
)
from keras_attr_preserve.compression.least_squares import sparse_fit
from keras_attr_preserve.compression.least_squares.sparse_fit import (
  prune_linear,
)
from tests import tiny

_LAYERS = keras.layers
# In float64: conjugate gradients end where 1e-9 of the residual is left.
FITTED = 1e-6


def _sums(seen, expected=None):
  """The sums that a layer taking these rows is refitted by."""
  rows = layer_moments.MomentsOfRows()
  rows.add(seen, expected)
  return rows.moments()


def _rows(count=200, inputs=5, seed=0):
  random = np.random.default_rng(seed)
  return random.normal(size=(count, inputs)) @ random.normal(
      size=(inputs, inputs))


class PruneLinearTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(layer_moments, "DAMPING", 1e-12))

  def test_a_twin_takes_over_what_goes(self):
    # Both inputs are equal, so that either serves for 3 + 1.
    seen = np.array([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    with mock.patch.object(layer_moments, "DAMPING", 1e-6):
      fitted = prune_linear(np.array([[3.0], [1.0]]), _sums(seen), kept=1)
    self.assertEqual(np.count_nonzero(fitted), 1)
    # The damping of 1e-6 holds the sum back by a share like it.
    np.testing.assert_allclose(fitted.sum(), 4.0, rtol=1e-5)

  def test_apart_from_each_other_the_smallest_go_and_others_stay(self):
    weights = np.array([[3.0, -0.1], [0.2, -2.0], [-1.0, 0.5]])
    fitted = prune_linear(weights, _sums(np.eye(3)), kept=3)
    np.testing.assert_allclose(
        fitted, [[3, 0], [0, -2], [-1, 0]], rtol=FITTED)

  def test_what_an_input_carries_counts(self):
    # .5 on an input ten times as large moves the output more than 3 does.
    seen = np.diag([1.0, 10.0])
    fitted = prune_linear(np.array([[3.0], [0.5]]), _sums(seen), kept=1)
    np.testing.assert_allclose(fitted, [[0], [0.5]], rtol=FITTED)

  @parameterized.parameters(*range(5))
  def test_that_goes_which_the_others_best_make_up_for(self, seed):
    seen = _rows(seed=seed)
    weights = np.random.default_rng(seed + 1).normal(size=(5, 1))

    def refitted(some):
      return np.linalg.lstsq(seen[:, some], seen @ weights, rcond=None)[0]

    left = min(itertools.combinations(range(5), 4),  # By trying each.
               key=lambda columns: np.linalg.norm(
                   seen @ weights - seen[:, columns] @ refitted(columns)))
    fitted = prune_linear(weights, _sums(seen), kept=4)
    self.assertEqual(tuple(np.flatnonzero(fitted)), left)
    # The condition of the inputs' products multiplies the residual of 1e-9.
    np.testing.assert_allclose(
        fitted[list(left)], refitted(left), rtol=1e-5)

  def test_refits_to_the_teacher_from_the_students_inputs(self):
    seen, expected = _rows(seed=1), _rows(seed=2)
    weights = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    fitted = prune_linear(weights, _sums(seen, expected), kept=9)
    self.assertEqual(fitted.dtype, np.float32)
    self.assertEqual(np.count_nonzero(fitted), 9)
    for column in range(4):
      rows = fitted[:, column] != 0
      # The same with weights of float32, which round once more.
      np.testing.assert_allclose(
          fitted[rows, column], np.linalg.lstsq(
              seen[:, rows], expected @ weights[:, column], rcond=None)[0],
          rtol=1e-4)

  def test_all_of_them_kept_nothing_changes(self):
    weights = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        prune_linear(weights, _sums(_rows()), kept=15), weights, rtol=FITTED)

  def test_inputs_that_are_always_zero(self):
    seen = _rows()
    seen[:, 2] = 0
    weights = np.random.default_rng(0).normal(size=(5, 3))
    weights[2] = 100.0
    np.testing.assert_allclose(
        prune_linear(weights, _sums(seen), kept=15)[2], 100, rtol=FITTED)
    self.assertFalse(prune_linear(weights, _sums(seen), kept=12)[2].any())

  def test_of_equals_the_first_go(self):
    fitted = prune_linear(np.ones([60, 1]), _sums(np.eye(60)), kept=50)
    np.testing.assert_array_equal(fitted[:, 0] != 0, np.arange(60) >= 10)

  def test_a_column_without_weights_leaves_the_others(self):
    weights = np.random.default_rng(0).normal(size=(5, 3))
    alone = prune_linear(weights[:, [0, 2]], _sums(_rows()), kept=8)
    weights[:, 1] = 0
    # Its five zeros cost nothing and go first.
    fitted = prune_linear(weights, _sums(_rows()), kept=8)
    np.testing.assert_array_equal(fitted[:, 1], 0)
    self.assertEqual(np.count_nonzero(fitted), np.count_nonzero(alone))
    for column, old in zip(fitted.T, weights.T, strict=True):
      there = column != 0
      # The condition of the inputs' products multiplies the residual of 1e-9.
      np.testing.assert_allclose(column[there], np.linalg.lstsq(
          _rows()[:, there], _rows() @ old, rcond=None)[0], rtol=1e-4)

  def test_columns_that_are_solved_take_no_step(self):
    np.full(2, np.nan).sum()  # Memory that is free again may hold anything.
    np.testing.assert_array_equal(sparse_fit._ratio(
        np.array([1.0, 0.0]), np.array([2.0, 0.0])), [0.5, 0.0])

  @parameterized.parameters(1e-6, 1e6)
  def test_units_do_not_matter(self, unit):
    seen = _rows(inputs=20)
    weights = np.random.default_rng(3).normal(size=(20, 4))
    fitted = prune_linear(weights, _sums(seen), kept=30)
    for weight, row in ((unit, 1), (1, unit)):
      # Both within the tolerance of their last refits.
      np.testing.assert_allclose(
          prune_linear(weight * weights, _sums(row * seen), kept=30) / weight,
          fitted, rtol=1e-4)

  def test_each_round_starts_from_weights_refitted_after_the_last(self):
    seen = _rows(count=400, inputs=30, seed=5)
    weights = np.random.default_rng(6).normal(size=(30, 6))
    moments, errors = _sums(seen), []
    for tolerance in (sparse_fit.ROUND_TOLERANCE, 1e-9, 1e9):
      # The last as if no round but the last were refitted.
      with mock.patch.object(sparse_fit, "ROUND_TOLERANCE", tolerance):
        fitted = prune_linear(weights, moments, kept=40)
      errors.append(np.linalg.norm(seen @ (fitted - weights)))
    # Measured over seven seeds: .66 to .83 of it, and between them .96 to 1.09.
    self.assertLess(errors[1], 0.9 * errors[2])
    self.assertBetween(errors[0], 0.9 * errors[1], 1.1 * errors[1])

  def test_inputs_that_are_all_zero_leave_the_largest(self):
    weights = np.array([[3.0, -0.1], [0.2, -2.0]])
    fitted = prune_linear(weights, _sums(np.zeros((1, 2))), kept=2)
    np.testing.assert_array_equal(fitted, [[3, 0], [0, -2]])


def _dense_net():
  return tiny.shake(keras.Sequential([
      keras.Input([tiny.SIZE, tiny.SIZE, 2]),
      _LAYERS.Conv2D(6, 3, strides=2, activation="relu", name="conv"),
      _LAYERS.Flatten(),
      _LAYERS.Dense(12, activation="relu", name="hidden"),
      _LAYERS.Dense(3, activation="softmax", name="logits")]), seed=1)


_NETS = {
    "block": lambda: tiny.conv_net(tail="block", width=8),
    "residual": lambda: tiny.conv_net(
        tail="depthwise", head="softmax", width=8),
    "flatten": lambda: tiny.conv_net(tail="flatten", head="sigmoid", width=8),
    "dense": _dense_net,
}


def _magnitude(model, shares):
  """Prunes the smallest weights and leaves the others as they are."""
  copy = kap.clone_model(model)
  for name, share in shares.items():
    kernel, *rest = copy.get_layer(name).get_weights()
    flat = kernel.flatten()
    flat[np.argsort(np.abs(flat))[:round(share * flat.size)]] = 0
    copy.get_layer(name).set_weights([flat.reshape(kernel.shape), *rest])
  return copy


class PruneWithReconstructionTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_nearer_to_the_teacher_than_without(self, name):
    teacher = _NETS[name]()
    before = teacher.get_weights()
    shares = kap.layer_sparsities(teacher, 0.6)
    student = kap.prune_with_reconstruction(
        teacher, shares, tiny.images(400), batch_size=96)
    self.assertTrue(tiny.weights_equal(before, teacher.get_weights()))
    unseen = tiny.images(64, seed=5)
    expected = teacher(unseen).numpy()
    errors = [np.linalg.norm(version(unseen).numpy() - expected)
              for version in (student, _magnitude(teacher, shares))]
    self.assertLess(errors[0], 0.8 * errors[1])

  def test_as_many_weights_as_asked_go_and_nothing_else_changes(self):
    teacher = _dense_net()
    shares = {"conv": 0.25, "hidden": 0.9, "logits": 0.0}
    student = kap.prune_with_reconstruction(teacher, shares, tiny.images(8))
    for layer in teacher.layers:
      other = student.get_layer(layer.name)
      self.assertTrue(tiny.weights_equal(
          layer.get_weights()[1:], other.get_weights()[1:]))
      if shares.get(layer.name):
        kernel = other.get_weights()[0]
        self.assertEqual(np.sum(kernel == 0),
                         round(shares[layer.name] * kernel.size))
      else:
        self.assertTrue(tiny.weights_equal(
            layer.get_weights(), other.get_weights()))

  def test_a_layer_is_refitted_from_what_the_pruned_ones_before_it_give(self):
    teacher = _dense_net()
    pictures = tiny.images(40)
    student = kap.prune_with_reconstruction(
        teacher, {"conv": 0.7, "hidden": 0.5}, pictures)
    seen, expected = (
        keras.Model(version.inputs, version.get_layer("hidden").input)(
            pictures).numpy().astype(np.float64)
        for version in (student, teacher))
    # Control: "hidden" takes other inputs than before, which a refit must see.
    self.assertGreater(np.abs(seen - expected).max(), 0.1)
    old, new = (version.get_layer("hidden").get_weights()[0].astype(np.float64)
                for version in (teacher, student))
    # Where least squares ends: the slope is nothing but the damping's.
    damping = layer_moments.DAMPING * np.mean(np.square(seen)) * len(seen)
    slope = seen.T @ (seen @ new - expected @ old) + damping * (new - old)
    # Weights are stored in float32: their rounding times sums over 40 images.
    np.testing.assert_allclose(slope[new != 0], 0, atol=1e-3)
    self.assertGreater(np.abs(slope[new == 0]).max(), 1)

  def test_at_least_one_weight_stays(self):
    student = kap.prune_with_reconstruction(
        _dense_net(), {"logits": 0.999}, tiny.images(20))
    self.assertEqual(
        np.count_nonzero(student.get_layer("logits").get_weights()[0]), 1)

  def test_too_few_pictures_for_a_layer(self):
    with self.assertWarnsRegex(
        UserWarning, "'hidden' has 24 inputs and sees 23 positions") as warned:
      kap.prune_with_reconstruction(
          _dense_net(), {"hidden": 0.5}, tiny.images(23))
    self.assertEqual(warned.filename, __file__)  # The line that asked for it.

  def test_is_the_same_again_and_takes_one_picture(self):
    teacher, shares = tiny.conv_net(tail="block"), {"conv": 0.5, "conv2": 0.5}
    shares = kap.layer_sparsities(teacher, 0.5)
    for count in (1, 5):
      first, second = (kap.prune_with_reconstruction(
          teacher, shares, tiny.images(count)) for _ in range(2))
      self.assertTrue(
          tiny.weights_equal(first.get_weights(), second.get_weights()))
      self.assertTrue(all(np.isfinite(x).all() for x in first.get_weights()))

  def test_says_how_far_it_is(self):
    model, images, calls = _dense_net(), tiny.images(30), []
    kap.prune_with_reconstruction(
        model, {"conv": 0.5, "hidden": 0.0, "logits": 0.5}, images,
        progress=lambda *counts: calls.append(counts))
    self.assertEqual(calls, [(1, 2), (2, 2)])
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      kap.prune_with_reconstruction(
          model, {"conv": 0.5}, images, progress=True)
    self.assertIn("1 of 1 layers refitted\n", said.getvalue())

  def test_a_model_stripped_of_pruning(self):
    # Its layers were called in the wrapped model as well.
    shares = {"conv": 0.5, "hidden": 0.5}
    pruned = kap.prune_with_reconstruction(
        _dense_net(), shares, tiny.images(8))
    stripped = tfmot.sparsity.keras.strip_pruning(kap.hold_zeros(pruned))
    self.assertLen(stripped.get_layer("conv").inbound_nodes, 2)
    again = kap.prune_with_reconstruction(stripped, shares, tiny.images(8))
    self.assertTrue(tiny.weights_equal(
        again.get_weights(), kap.prune_with_reconstruction(
            pruned, shares, tiny.images(8)).get_weights()))

  @parameterized.parameters(
      (lambda x: _LAYERS.DepthwiseConv2D(3, name="wrong")(x), "one group"),
      (lambda x: _LAYERS.Conv2D(4, 3, groups=2, name="wrong")(x), "one group"),
      (lambda x: _LAYERS.Conv2DTranspose(4, 3, name="wrong")(x), "Transpose"))
  def test_layers_that_it_cannot_refit(self, make, text):
    inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
    x = _LAYERS.GlobalAveragePooling2D()(make(inputs))
    model = keras.Model(inputs, _LAYERS.Dense(3)(x))
    with self.assertRaisesRegex(ValueError, f"Conv2D.*'wrong'.*|{text}"):
      kap.prune_with_reconstruction(model, {"wrong": 0.5}, tiny.images(2))

  def test_a_layer_used_twice(self):
    inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
    layer = _LAYERS.Conv2D(2, 3, padding="same", name="twice")
    x = _LAYERS.GlobalAveragePooling2D()(layer(layer(inputs)))
    with self.assertRaisesRegex(ValueError, "each called once.*'twice'"):
      kap.prune_with_reconstruction(
          keras.Model(inputs, x), {"twice": 0.5}, tiny.images(2))

  @parameterized.parameters(
      ({"nowhere": 0.5}, {}, "has no 'nowhere'"),
      ({"logits": 1.0}, {}, "below 1; got 1.0"),
      ({"logits": 0.5}, {"batch_size": 0}, "batch_size must be"))
  def test_bad_settings(self, shares, settings, text):
    with self.assertRaisesRegex(ValueError, text):
      kap.prune_with_reconstruction(
          tiny.conv_net(), shares, tiny.images(2), **settings)

  def test_bad_pictures_and_models(self):
    shares = {"logits": 0.5}
    bad = tiny.images(2)
    bad[0, 0, 0, 0] = np.nan
    with self.assertRaisesRegex(ValueError, "1 of 2 hold NaN"):
      kap.prune_with_reconstruction(tiny.conv_net(), shares, bad)
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      kap.prune_with_reconstruction(
          tiny.conv_net(), shares, tiny.images(2, size=5))
    broken = tiny.conv_net()
    broken.layers[1].set_weights(
        [np.full_like(weight, np.inf)
         for weight in broken.layers[1].get_weights()])
    with self.assertRaisesRegex(ValueError, "'logits' takes.*not finite"):
      kap.prune_with_reconstruction(broken, shares, tiny.images(2))
    with self.assertRaisesRegex(TypeError, "model"):
      kap.prune_with_reconstruction("a path", shares, tiny.images(2))


class HoldZerosTest(parameterized.TestCase):

  @parameterized.parameters(0, 7)
  def test_zeros_stay_and_all_else_trains(self, step):
    teacher = tiny.conv_net(tail="block")
    pruned = kap.prune_with_reconstruction(
        teacher, kap.layer_sparsities(teacher, 0.7), tiny.images(8))
    before = pruned.get_weights()
    student = kap.hold_zeros(pruned)
    student.compile("sgd", tiny.cross_entropy(), run_eagerly=True)
    student.optimizer.iterations.assign(step)  # Going on with a training.
    student.fit(tiny.images(16), tiny.labels(16), epochs=2, batch_size=8,
                verbose=0, callbacks=[kap.PreserveAttribution(
                    teacher, kap.WCAM("act2"), hints=kap.Hints())])
    stripped = tfmot.sparsity.keras.strip_pruning(student)
    self.assertTrue(tiny.weights_equal(before, pruned.get_weights()))
    for layer in pruned.layers:
      if "kernel" in "".join(weight.name for weight in layer.weights):
        old = layer.get_weights()[0]
        new = stripped.get_layer(layer.name).get_weights()[0]
        np.testing.assert_array_equal(old == 0, new == 0)
        # Control: a kernel that does not train stays to the last bit.
        self.assertGreater(np.abs(old - new).max(), 1e-4)

  def test_nothing_to_hold(self):
    with self.assertRaisesRegex(ValueError, "no zeros in a kernel"):
      kap.hold_zeros(tiny.conv_net())


if __name__ == "__main__":
  absltest.main()
