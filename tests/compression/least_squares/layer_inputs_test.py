"""Tests of layer_inputs.py: which windows count, and how often."""

import itertools
import warnings

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.compression.least_squares import layer_inputs
from keras_attr_preserve.compression.least_squares.layer_inputs import (
    input_moments,
    is_fittable,
    own_moments,
)
from tests import tiny

_layers = keras.layers
# Float64 sums of products; the damping is added to them and taken off again.
SUMS = 1e-9


def _whole(*shape, seed=0):
  """Draws whole numbers, whose sums of products have no rounding."""
  return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def _places(tall, wide):
  """An image in which each position has a channel of its own."""
  return np.eye(tall * wide, dtype=np.float32).reshape(1, tall, wide, -1)


def _own(moments):
  """Reads the sums of products of the student layer's inputs."""
  unit = np.eye(len(moments.diagonal))
  return moments.left(unit) - moments.damping * unit


def _cross(moments, teachers):
  """Reads the sums of student inputs times `teachers` teacher inputs."""
  return moments.right(
      np.eye(teachers), np.zeros([len(moments.diagonal), teachers]))


def _counts(batches):
  """Counts how often each position of one-hot images is taken."""
  moments = input_moments(batches, batches, _layers.Conv2D(1, 1))
  products = _cross(moments, len(moments.diagonal))
  counts = np.diag(products)
  np.testing.assert_array_equal(products, np.diag(counts))
  return counts


def _rows(inputs, layer):
  """All windows of a layer's inputs, by TensorFlow: `[rows, inputs]`."""
  if isinstance(layer, _layers.Dense):
    rows = inputs
  else:
    rows = tf.image.extract_patches(
        inputs, [1, *layer.kernel_size, 1], [1, *layer.strides, 1],
        [1, *layer.dilation_rate, 1], layer.padding.upper()).numpy()
  return rows.reshape(-1, rows.shape[-1]).astype(np.float64)


class WindowsTest(parameterized.TestCase):

  @parameterized.product(
      size=((9, 8), (7, 12)), span=(1, 3, (2, 3), (4, 1)))
  def test_are_what_a_convolution_multiplies(self, size, span):
    inputs = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("f")
    for settings, pad in itertools.product(
        ({}, {"strides": 2}, {"strides": (1, 3)}, {"dilation_rate": 2},
         {"dilation_rate": (1, 3)}), ("same", "valid")):
      layer = _layers.Conv2D(4, span, padding=pad, use_bias=False, **settings)
      outputs = layer(inputs).numpy()
      windows = layer_inputs._windows(inputs, layer)
      # Float32 sums of at most 27 products, in another order.
      np.testing.assert_allclose(
          np.einsum("bhwklc,klco->bhwo", windows, layer.kernel.numpy()),
          outputs, atol=1e-5, err_msg=f"{settings} {pad}")


  @parameterized.product(
      length=(9, 12), span=(1, 4), settings=(
          {}, {"strides": 2}, {"strides": 3}, {"dilation_rate": 2}),
      pad=("same", "valid", "causal"))
  def test_are_what_a_convolution_of_signals_multiplies(
      self, length, span, settings, pad):
    inputs = np.random.default_rng(0).normal(size=(2, length, 3)).astype("f")
    layer = _layers.Conv1D(4, span, padding=pad, use_bias=False, **settings)
    outputs = layer(inputs).numpy()
    windows = layer_inputs._windows(inputs, layer)
    # Float32 sums of at most 12 products, in another order.
    np.testing.assert_allclose(
        np.einsum("bhwklc,kco->bho", windows, layer.kernel.numpy()), outputs,
        atol=1e-5)


class SmallMapTest(parameterized.TestCase):
  """Of 100 positions or fewer each counts."""

  @parameterized.parameters(
      (3, {}), (1, {}), (3, {"padding": "same"}), ((2, 4), {"strides": 2}),
      (2, {"strides": (3, 1), "padding": "same"}),
      (1, {"strides": 2, "padding": "same"}),
      (3, {"dilation_rate": (2, 1)}),
      ((3, 2), {"dilation_rate": 2, "padding": "same"}))
  def test_convolution(self, span, settings):
    layer = _layers.Conv2D(4, span, **settings)
    students = [_whole(4, 11, 9, 2, seed=1), _whole(3, 11, 9, 2, seed=2)]
    teachers = [_whole(4, 11, 9, 3, seed=3), _whole(3, 11, 9, 3, seed=4)]
    student_rows, teacher_rows = (
        np.concatenate([_rows(batch, layer) for batch in batches])
        for batches in (students, teachers))
    moments = input_moments(students, teachers, layer)
    np.testing.assert_allclose(
        _own(moments), student_rows.T @ student_rows, rtol=SUMS, atol=SUMS)
    np.testing.assert_array_equal(
        _cross(moments, teacher_rows.shape[1]), student_rows.T @ teacher_rows)

  @parameterized.parameters((4,), (9, 4), (10, 10, 4))
  def test_dense(self, *shape):
    inputs, other = _whole(5, *shape, seed=1), _whole(5, *shape, seed=2)
    moments = input_moments([inputs], [other], _layers.Dense(3))
    inputs, other = inputs.reshape(-1, 4), other.reshape(-1, 4)
    np.testing.assert_allclose(
        _own(moments), inputs.T @ inputs, rtol=SUMS, atol=SUMS)
    np.testing.assert_array_equal(_cross(moments, 4), inputs.T @ other)

  def test_a_hundred_positions_are_all_of_them(self):
    np.testing.assert_array_equal(
        _counts([np.repeat(_places(10, 10), 2, axis=0)]), np.full(100, 2))

  def test_layers_of_a_model_in_one_pass(self):
    inputs = keras.Input((11, 9, 2))
    x = _layers.Conv2D(3, 3, 2, name="first")(inputs)
    x = _layers.BatchNormalization()(x)
    x = _layers.Conv2D(4, 2, padding="same", name="second")(x)
    x = _layers.Dense(5, name="each")(x)
    model = tiny.shake(keras.Model(inputs, _layers.Dense(3, name="flat")(
        _layers.Flatten()(_layers.AveragePooling2D(4)(x)))))
    images = np.random.default_rng(0).normal(size=(6, 11, 9, 2)).astype("f")
    layers = [model.get_layer(name)
              for name in ("second", "first", "each", "flat")]
    for layer, moments in zip(
        layers, own_moments(model, layers, images, 4), strict=True):
      # In the same batches, so that float32 rounds alike.
      taken = keras.Model(inputs, layer.input)
      rows = np.concatenate([
          _rows(taken(batch, training=False).numpy(), layer)
          for batch in (images[:4], images[4:])])
      np.testing.assert_allclose(
          _own(moments), rows.T @ rows, rtol=SUMS, atol=SUMS)


class LargeMapTest(parameterized.TestCase):
  """Of more than 100 positions 100 are drawn."""

  @parameterized.parameters((12, 12), (1, 101), (101, 1), (9, 40))
  def test_a_hundred_of_each_image(self, tall, wide):
    ones = np.ones([3, tall, wide, 1], np.float32)
    layer = _layers.Conv2D(1, 1)
    for batches, count in (([ones], 3), ([ones, ones[:2]], 5)):
      self.assertEqual(
          _cross(input_moments(batches, batches, layer), 1), 100 * count)

  def test_none_twice_and_others_in_each_batch(self):
    two = np.repeat(_places(12, 12), 2, axis=0)
    first, both = _counts([two]), _counts([two, two])
    second = both - first
    for counts in (first, second):
      # Both images of a batch at the same positions.
      self.assertEqual(set(counts), {0, 2})
      self.assertEqual(counts.sum(), 2 * 100)
    self.assertFalse(np.array_equal(first, second))

  def test_the_same_in_the_teacher(self):
    layer = _layers.Conv2D(1, 2, padding="same")
    batches = [_whole(2, 12, 12, 3, seed=seed) for seed in range(4)]
    moments = input_moments(batches, [2 * batch for batch in batches], layer)
    once = _cross(input_moments(batches, batches, layer), 12)
    np.testing.assert_array_equal(_cross(moments, 12), 2 * once)
    # At other positions they would not be the student's own.
    np.testing.assert_allclose(_own(moments), once, rtol=SUMS, atol=SUMS)

  def test_no_part_of_the_map_is_favoured(self):
    batches = 200
    counts = _counts([_places(12, 12)] * batches)
    share = 100 / 144
    # Each is a binomial count; beyond six standard deviations lies less than
    # one of 3e8 draws, and there are 144.
    spread = 6 * np.sqrt(batches * share * (1 - share))
    self.assertLess(np.abs(counts - batches * share).max(), spread)
    # A draw that is the same in each batch gives 0 and 200.
    self.assertLess(counts.max() - counts.min(), batches / 2)

  def test_the_same_in_a_model_whatever_else_is_asked_for(self):
    inputs = keras.Input((12, 12, 144))
    both = [_layers.Conv2D(1, 1, name=name) for name in ("one", "other")]
    model = keras.Model(inputs, _layers.Add()(
        [layer(inputs) for layer in both]))
    images = np.repeat(_places(12, 12), 5, axis=0)
    first, second = own_moments(model, both, images, 2)
    counts = _counts([images[:2], images[2:4], images[4:]])
    self.assertEqual(counts.sum(), 5 * 100)
    for moments in (first, second):
      np.testing.assert_allclose(
          _own(moments), np.diag(counts), rtol=SUMS, atol=SUMS)


class RefusalTest(parameterized.TestCase):

  @parameterized.product(bad=(np.nan, np.inf), teacher=(True, False))
  def test_what_is_not_finite(self, bad, teacher):
    batches = [_whole(2, 4, 4, 1), _whole(2, 4, 4, 1)]
    layer = _layers.Conv2D(1, 1, name="conv")
    input_moments(batches, batches, layer)
    broken = [batches[0], batches[1].copy()]
    broken[1][1, 2, 3] = bad
    with self.assertRaisesRegex(ValueError, "'conv' takes .* not finite"):
      input_moments(*(
          (batches, broken) if teacher else (broken, batches)), layer)

  def test_what_is_not_finite_in_a_model(self):
    model = tiny.conv_net()
    model.get_layer("conv").kernel.assign(
        np.nan * model.get_layer("conv").kernel)
    layers = [model.get_layer(name) for name in ("conv", "logits")]
    own_moments(model, layers[:1], tiny.images(), 2)
    with self.assertRaisesRegex(ValueError, "'logits' takes .* not finite"):
      own_moments(model, layers, tiny.images(), 2)

  def test_a_batch_that_one_lacks(self):
    batch = _whole(2, 4, 4, 1)
    for batches in ([batch], [batch, batch]), ([batch, batch], [batch]):
      with self.assertRaisesRegex(ValueError, "argument 2 is"):
        input_moments(*batches, _layers.Conv2D(1, 1))

  def test_fewer_positions_than_inputs_are_warned_of(self):
    layer = _layers.Dense(2, name="hidden")
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      input_moments([_whole(7, 7)], [_whole(7, 7)], layer)
    with self.assertWarnsRegex(
        UserWarning, "'hidden' has 7 inputs and sees 6 positions"):
      input_moments([_whole(6, 7)], [_whole(6, 7)], layer)


class FittableTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("convolution", lambda: _layers.Conv2D(4, 3), True),
      ("dense", lambda: _layers.Dense(4), True),
      ("in_groups", lambda: _layers.Conv2D(4, 3, groups=2), False),
      ("depthwise", lambda: _layers.DepthwiseConv2D(3), False),
      ("transposed", lambda: _layers.Conv2DTranspose(4, 3), False),
      ("without_kernel", lambda: _layers.ReLU(), False))
  def test_one_matrix(self, make, fittable):
    layer = make()
    layer(keras.Input((6, 6, 4)))
    self.assertEqual(is_fittable(layer), fittable)

  def test_channels_first(self):
    layer = _layers.Conv2D(4, 3, data_format="channels_first")
    layer(keras.Input((4, 6, 6)))
    self.assertFalse(is_fittable(layer))

  @parameterized.parameters((0, False), (1, True), (2, False))
  def test_called_once(self, calls, fittable):
    layer = _layers.Conv2D(4, 3)
    for _ in range(calls):
      layer(keras.Input((6, 6, 4)))
    self.assertEqual(is_fittable(layer), fittable)


if __name__ == "__main__":
  absltest.main()
