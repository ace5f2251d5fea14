"""Tests of map_formulas.py: the maps and their distance."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import map_formulas

# Float32 sums over unit maps, whose figures are 1 at most.
FLOAT32 = 1e-6


def _rng(seed=0):
  return np.random.default_rng(seed)


def _maps(seed, *shape, dtype=np.float32):
  """Random maps with some zeros, as a ReLU leaves them."""
  return np.maximum(_rng(seed).normal(size=shape) + 0.5, 0).astype(dtype)


def _distance(teacher, student):
  return map_formulas.map_distance(
      tf.constant(teacher), tf.constant(student)).numpy()


def _cosine(first, second):
  first, second = (np.float64(each).reshape(len(each), -1)
                   for each in (first, second))
  return (first * second).sum(1) / (
      np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))


def _shrink(maps, size):
  """Resizes by triangle kernels as wide as two of the larger pixels."""
  def matrix(source, target):
    ratio = source / target
    centre = (np.arange(target) + 0.5) * ratio
    distance = np.abs(np.arange(source) + 0.5 - centre[:, None])
    weights = np.maximum(0, 1 - distance / ratio)
    return weights / weights.sum(1, keepdims=True)
  return np.einsum("ih,bhw,jw->bij", matrix(maps.shape[1], size[0]), maps,
                   matrix(maps.shape[2], size[1]))


class EqualWeightedMapTest(absltest.TestCase):

  def test_by_hand(self):
    features = [[[[1.0, 2.0], [3.0, 0.0]]]]  # One row of two positions.
    np.testing.assert_array_equal(
        map_formulas.equal_weighted_map(tf.constant(features)), [[[2.5, 4.5]]])

  def test_is_the_mean_of_squares(self):
    features = _rng().normal(size=(3, 4, 5, 6)).astype(np.float32)
    got = map_formulas.equal_weighted_map(features)
    self.assertEqual(got.shape, (3, 4, 5))
    # Float32 sums of six squares.
    np.testing.assert_allclose(got, (features**2).mean(-1), rtol=1e-6)


class SensitivityWeightedMapTest(absltest.TestCase):

  def test_by_hand(self):
    features = [[[[1.0, 2.0], [3.0, 0.0]]]]
    sensitivity = [[[[2.0, -1.5]]]]
    # 2 * 1 - 1.5 * 2 = -1, cut to 0; 2 * 3 - 0 = 6.
    np.testing.assert_array_equal(
        map_formulas.sensitivity_weighted_map(
            tf.constant(features), tf.constant(sensitivity)),
        [[[0.0, 6.0]]])

  def test_is_the_positive_part_of_the_weighted_sum(self):
    features = _rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    sensitivity = _rng(1).normal(size=(3, 1, 1, 6)).astype(np.float32)
    got = map_formulas.sensitivity_weighted_map(features, sensitivity).numpy()
    want = np.maximum(
        np.einsum("bhwc,bc->bhw", features, sensitivity[:, 0, 0]), 0)
    self.assertEqual(got.shape, (3, 4, 5))
    self.assertTrue((want == 0).any() and (want > 0).any())
    # Float32 sums of six products of size 1.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  def test_every_image_has_weights_of_its_own(self):
    features = np.ones((2, 1, 1, 2), np.float32)
    sensitivity = np.float32([[[[1, 2]]], [[[10, 20]]]])
    np.testing.assert_array_equal(
        map_formulas.sensitivity_weighted_map(features, sensitivity),
        [[[3.0]], [[30.0]]])


class DropChannelsTest(parameterized.TestCase):

  def _dropped(self, channels, rate, seed, batch=1):
    features = np.ones((batch, 1, 1, channels), np.float32)
    got = map_formulas.drop_channels(features, rate, tf.constant(seed))
    return np.asarray(got)[:, 0, 0] == 0

  @parameterized.parameters(
      (10, 0.3, 3), (10, 0.0, 0), (3, 0.3, 0), (1, 0.99, 0), (7, 0.5, 3),
      (8, 0.999, 7), (512, 0.3, 153))
  def test_drops_the_share_rounded_down(self, channels, rate, count):
    self.assertEqual(count, int(rate * channels))
    for step in range(5):
      self.assertEqual(self._dropped(channels, rate, [step, 0]).sum(), count)

  def test_where_nothing_is_dropped_nothing_is_drawn(self):
    features = tf.ones([1, 1, 1, 3])
    self.assertIs(
        map_formulas.drop_channels(features, 0.3, tf.constant([0, 0])),
        features)

  def test_neither_rescales_nor_mixes(self):
    features = _rng().normal(size=(3, 4, 5, 10)).astype(np.float32)
    got = map_formulas.drop_channels(features, 0.3, tf.constant([1, 2])).numpy()
    dropped = ~got.any(axis=(0, 1, 2))
    self.assertEqual(dropped.sum(), 3)
    np.testing.assert_array_equal(got, np.where(dropped, 0, features))

  def test_the_same_channels_for_the_whole_batch(self):
    dropped = self._dropped(20, 0.5, [4, 0], batch=6)
    self.assertTrue((dropped == dropped[0]).all())

  def test_the_seed_alone_decides(self):
    first = self._dropped(50, 0.3, [7, 1])
    np.testing.assert_array_equal(first, self._dropped(50, 0.3, [7, 1]))
    tf.random.set_seed(99)
    np.testing.assert_array_equal(first, self._dropped(50, 0.3, [7, 1]))
    # 50 choose 15 subsets: equal ones would be no accident.
    self.assertFalse((first == self._dropped(50, 0.3, [8, 1])).all())
    self.assertFalse((first == self._dropped(50, 0.3, [7, 2])).all())

  def test_every_subset_is_equally_likely_over_the_steps(self):
    @tf.function
    def orders(steps):
      return tf.map_fn(lambda step: map_formulas.drop_channels(
          tf.ones([1, 1, 1, 4]), 0.5, tf.stack([step, 0]))[0, 0, 0], steps,
                       fn_output_signature=tf.float32)

    draws = 1200
    codes = orders(tf.range(draws)).numpy() @ [8, 4, 2, 1]
    subsets, counts = np.unique(codes, return_counts=True)
    np.testing.assert_array_equal(subsets, [3, 5, 6, 9, 10, 12])
    expected = draws / 6
    # Chi-square of 5 degrees of freedom is above 25.7 once in 10^4.
    self.assertLess(((counts - expected) ** 2 / expected).sum(), 25.7)

  def test_keeps_dtype_and_static_shape(self):
    features = tf.zeros([2, 3, 3, 4], tf.float64)
    got = map_formulas.drop_channels(features, 0.5, tf.constant([0, 0]))
    self.assertEqual(got.dtype, tf.float64)
    self.assertEqual(got.shape, features.shape)


class UnitMapTest(absltest.TestCase):

  def test_by_hand(self):
    # Float32 rounds the norm and each quotient.
    np.testing.assert_allclose(
        map_formulas.unit_map(tf.constant([[[3.0, 4.0]]])), [[[0.6, 0.8]]],
        rtol=1e-6)

  def test_norm_one_or_zero(self):
    maps = _maps(0, 3, 4, 5)
    maps[1] = 0
    norms = np.linalg.norm(
        map_formulas.unit_map(maps).numpy().reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1], atol=FLOAT32)


class MapDistanceTest(parameterized.TestCase):

  def test_by_hand(self):
    first = tf.constant([[[3.0, 4.0]], [[1.0, 0.0]], [[2.0, 2.0]]])
    second = tf.constant([[[4.0, 3.0]], [[0.0, 9.0]], [[5.0, 5.0]]])
    # 1 - 24/25; at a right angle; along each other.
    np.testing.assert_allclose(
        map_formulas.map_distance(first, second), [0.04, 1.0, 0.0], atol=1e-6)

  def test_is_one_minus_cosine(self):
    first, second = _maps(0, 5, 6, 7), _maps(1, 5, 6, 7)
    got = _distance(first, second)
    self.assertEqual(got.shape, (5,))
    # Float32 sums of 42 squares.
    np.testing.assert_allclose(got, 1 - _cosine(first, second), atol=1e-6)

  def test_opposite_signed_maps_are_two_apart(self):
    maps = _rng().normal(size=(1, 3, 3))
    # Float64 sums of nine squares.
    np.testing.assert_allclose(_distance(maps, -maps), [2], rtol=1e-12)

  def test_the_paper_term_and_its_weight_of_100(self):
    teacher, student = (_maps(seed, 4, 7, 7, dtype=np.float64)
                        for seed in (0, 1))
    def unit(maps):
      return maps / np.linalg.norm(maps.reshape(4, -1), axis=1)[:, None, None]
    paper = ((unit(teacher) - unit(student)) ** 2).mean((1, 2))
    distance = _distance(teacher, student)
    # Float64 sums of 49 squares.
    np.testing.assert_allclose(paper, 2 * distance / 49, rtol=1e-12)
    # 200 / 49 is 4.0816; the paper's weight is written as 4.08.
    np.testing.assert_allclose(100 * paper, 4.08 * distance, rtol=1e-3)

  @parameterized.parameters(1e-20, 1e-10, 1.0, 1e10, 1e20)
  def test_no_scale_matters(self, scale):
    teacher, student = _maps(0, 3, 5, 5), _maps(1, 3, 5, 5)
    want, slope = self._value_and_gradient(teacher, student)
    # The scales themselves round to float32, a relative 6e-8.
    got, got_slope = self._value_and_gradient(
        teacher, np.float32(scale) * student)
    np.testing.assert_allclose(got, want, atol=FLOAT32)
    self.assertTrue(np.isfinite(got_slope).all())
    np.testing.assert_allclose(
        np.float64(got_slope) * scale, slope, atol=FLOAT32)
    got, got_slope = self._value_and_gradient(
        np.float32(scale) * teacher, student)
    np.testing.assert_allclose(got, want, atol=FLOAT32)
    np.testing.assert_allclose(got_slope, slope, atol=FLOAT32)

  def _value_and_gradient(self, teacher, student):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
      tape.watch(student)
      distance = map_formulas.map_distance(tf.constant(teacher), student)
    return distance.numpy(), tape.gradient(distance, student).numpy()

  @parameterized.parameters(
      (True, False, 0.5), (False, True, 0.5), (True, True, 0.0))
  def test_dead_maps(self, teacher_dead, student_dead, value):
    teacher, student = _maps(0, 2, 3, 3), _maps(1, 2, 3, 3)
    if teacher_dead:
      teacher[0] = 0
    if student_dead:
      student[0] = 0
    got, slope = self._value_and_gradient(teacher, student)
    # A live map's norm rounds: 1/2 to float32's last digits.
    self.assertAlmostEqual(got[0], value, delta=1e-6)
    self.assertTrue(np.isfinite(slope).all())
    # A live student map against nothing: the square of a unit map is constant.
    # Its gradient is rounding alone.
    np.testing.assert_allclose(slope[0], 0, atol=0 if student_dead else 1e-6)
    self.assertGreater(np.abs(slope[1]).max(), 1e-3)  # Its neighbour lives.

  @parameterized.parameters("smooth", "signed", "one position")
  def test_gradient_against_finite_differences(self, kind):
    teacher = _maps(0, 2, 3, 4, dtype=np.float64)
    student = _rng(1).uniform(0.1, 1, (2, 3, 4))
    if kind == "signed":
      student = _rng(1).normal(size=(2, 3, 4))
    elif kind == "one position":  # Its peak is its norm: the guard's edge.
      student = np.zeros((2, 3, 4))
      student[:, 1, 2] = 0.7
    _, slope = self._value_and_gradient(teacher, student)
    step = 1e-5
    for position in np.ndindex(student.shape):
      moved = np.zeros_like(student)
      moved[position] = step
      rise = (_distance(teacher, student + moved)
              - _distance(teacher, student - moved)).sum()
      # Central differences in float64: of order step^2 = 1e-10.
      self.assertAlmostEqual(slope[position], rise / (2 * step), delta=1e-8)

  @parameterized.parameters(
      ((8, 8), (4, 4), (4, 4)), ((4, 4), (8, 8), (4, 4)),
      ((4, 9), (8, 3), (4, 3)), ((7, 7), (3, 7), (3, 7)))
  def test_the_larger_is_brought_to_the_smaller(self, one, other, common):
    teacher, student = _maps(0, 2, *one), _maps(1, 2, *other)
    want = 1 - _cosine(_shrink(teacher, common), _shrink(student, common))
    # tf.image.resize computes its kernels in float32.
    np.testing.assert_allclose(
        _distance(teacher, student), want, atol=1e-5)

  def test_double_precision_is_kept_where_sizes_differ(self):
    teacher, student = (_maps(seed, 2, size, size, dtype=np.float64)
                        for seed, size in enumerate((4, 8)))
    self.assertEqual(_distance(teacher, student).dtype, np.float64)

  def test_what_has_the_smaller_size_is_left_as_it_is(self):
    for size in (4, 8):
      small, large = tf.ones([2, 4, 4]), tf.ones([2, size, size])
      self.assertIs(map_formulas.same_size(small, large)[0], small)

  def test_sizes_unknown_while_tracing(self):
    maps = tf.TensorSpec([None, None, None])
    distance = tf.function(
        map_formulas.map_distance, input_signature=[maps, maps])
    for size in ((4, 4), (8, 8), (8, 3), (3, 9)):
      teacher, student = _maps(0, 2, 4, 6), _maps(1, 2, *size)
      # Of unknown sizes tf.image.resize stands in for its own float32 matrices.
      np.testing.assert_allclose(
          distance(tf.constant(teacher), tf.constant(student)),
          _distance(teacher, student), atol=1e-6)


if __name__ == "__main__":
  absltest.main()
