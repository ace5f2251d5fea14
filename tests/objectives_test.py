"""Tests of objectives.py: distillation of logits."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized
from scipy import special

from keras_attr_preserve import objectives


def _logits(count=5, classes=4, scale=3.0):
  rng = np.random.default_rng(0)
  return [(scale * rng.normal(size=(count, classes))).astype(np.float32)
          for _ in range(2)]


class SoftmaxDivergenceTest(parameterized.TestCase):

  def test_by_hand(self):
    teacher = tf.constant([[np.log(3.0), 0.0]], tf.float32)  # 3/4 and 1/4.
    student = tf.constant([[1.0, 1.0]])  # A half each.
    want = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(
        objectives.softmax_divergence(teacher, student, 1.0), [want], rtol=1e-6)
    # Twice the logits at twice the temperature: the same, times 4.
    np.testing.assert_allclose(
        objectives.softmax_divergence(2 * teacher, 2 * student, 2.0),
        [4 * want], rtol=1e-6)

  @parameterized.parameters(1.0, 4.0, 20.0)
  def test_against_scipy(self, temperature):
    teacher, student = _logits()
    p, q = (special.softmax(np.float64(one) / temperature, axis=1)
            for one in (teacher, student))
    want = temperature**2 * special.rel_entr(p, q).sum(1)
    # Differences of float32 logarithms of size 1, times T^2.
    np.testing.assert_allclose(
        objectives.softmax_divergence(teacher, student, temperature), want,
        rtol=1e-5, atol=1e-7 * temperature**2)

  def test_gradient_is_that_of_hinton(self):
    teacher, student = _logits()
    student = tf.constant(student)
    with tf.GradientTape() as tape:
      tape.watch(student)
      loss = objectives.softmax_divergence(teacher, student, 4.0)
    q, p = (special.softmax(np.asarray(one) / 4, axis=1)
            for one in (student, teacher))
    np.testing.assert_allclose(
        tape.gradient(loss, student), 4 * (q - p), atol=1e-5)

  def test_finite_for_extreme_logits(self):
    teacher = tf.constant([[1e4, -1e4], [0.0, 0.0]])
    student = tf.constant([[-1e4, 1e4], [0.0, 0.0]])
    got = objectives.softmax_divergence(teacher, student, 1.0)
    np.testing.assert_allclose(got, [2e4, 0], rtol=1e-6)


class SigmoidDivergenceTest(parameterized.TestCase):

  def test_by_hand(self):
    teacher = tf.constant([[np.log(3.0), 0.0]], tf.float32)  # 3/4; a half.
    student = tf.constant([[0.0, 0.0]])
    # Of the first class that of 3/4 from a half, of the second nothing.
    want = (0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2
    np.testing.assert_allclose(
        objectives.sigmoid_divergence(teacher, student, 1.0), [want], rtol=1e-6)

  @parameterized.product(temperature=[1.0, 4.0], classes=[1, 4])
  def test_against_scipy(self, temperature, classes):
    teacher, student = _logits(classes=classes)
    p, q = (special.expit(np.float64(one) / temperature)
            for one in (teacher, student))
    want = temperature**2 * (
        special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).mean(1)
    np.testing.assert_allclose(
        objectives.sigmoid_divergence(teacher, student, temperature), want,
        rtol=1e-5, atol=1e-7 * temperature**2)

  def test_finite_for_extreme_logits(self):
    got = objectives.sigmoid_divergence(
        tf.constant([[1e4], [0.0]]), tf.constant([[-1e4], [0.0]]), 1.0)
    np.testing.assert_allclose(got, [1e4, 0], rtol=1e-6)


class DistillationTest(parameterized.TestCase):

  @parameterized.parameters(
      ("softmax", objectives.softmax_divergence),
      ("sigmoid", objectives.sigmoid_divergence))
  def test_kinds(self, kind, function):
    teacher, student = _logits()
    setting = objectives.Distillation(kind=kind, temperature=3.0)
    np.testing.assert_array_equal(
        setting.divergence(teacher, student), function(teacher, student, 3.0))

  def test_the_paper_values_by_default(self):
    setting = objectives.Distillation()
    self.assertEqual((setting.alpha, setting.temperature, setting.kind),
                     (0.9, 4.0, "softmax"))

  def test_half_precision_is_computed_in_float32(self):
    teacher, student = (one.astype(np.float16) for one in _logits())
    got = objectives.Distillation().divergence(teacher, student)
    self.assertEqual(got.dtype, tf.float32)

  @parameterized.parameters(
      ({"alpha": -0.1}, r"alpha must be in 0\.\.1; got -0.1"),
      ({"alpha": 1.1}, r"alpha must be in 0\.\.1; got 1.1"),
      ({"alpha": float("nan")}, r"alpha must be in 0\.\.1; got nan"),
      ({"temperature": 0}, "temperature must be above 0; got 0"),
      ({"temperature": float("nan")}, "temperature must be above 0; got nan"),
      ({"kind": "tanh"}, "kind must be one of .*softmax.*sigmoid.*got 'tanh'"))
  def test_errors(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.Distillation(**settings)


if __name__ == "__main__":
  absltest.main()
