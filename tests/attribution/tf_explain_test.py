"""Tests of tf_explain.py: its own numbers, a class an image."""

import functools
import sys
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized
from tf_explain.core.integrated_gradients import IntegratedGradients

from keras_attr_preserve import attribution
from keras_attr_preserve.attribution.tf_explain import integrated_gradients
from tests import export_helpers as helpers
from tests import tiny

# All tests share these models: leave them unchanged.
_net = functools.partial(helpers.net, size=tiny.SIZE, width=4)
# Float32 convolutions of batches of another size.
BATCHES = 1e-5


def _tf_explain(model, pictures, target, steps):
  path = IntegratedGradients.generate_interpolations(pictures, steps)
  gradients = IntegratedGradients.get_integrated_gradients(
      path, model, target, steps)
  return np.abs(gradients).sum(-1)


class IntegratedGradientsTest(parameterized.TestCase):

  def test_by_hand(self):
    """A score of x^2 + 3 x in each pixel, two colours, two steps."""
    inputs = keras.Input((1, 2, 2))
    x = keras.layers.Lambda(lambda x: x**2 + 3 * x)(inputs)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(
        2, use_bias=False, name="head")(x))
    model.get_layer("head").set_weights(
        [np.float32([[1, 0], [1, 0], [0, 1], [0, -1]])])
    image = np.float32([[[[1, 2], [3, 4]]]])
    # Class 0 sees the first pixel: gradients 2 x + 3, from x = 0 and x: their
    # mean x + 3, so 4 + 5. Class 1: 6 and -7, by magnitude 13.
    for target, want in ((0, [[[9, 0]]]), (1, [[[0, 13]]])):
      got = integrated_gradients(model, image, target, steps=2)
      # Small whole numbers, all but exact in float32.
      np.testing.assert_allclose(got, want, rtol=1e-6)
      self.assertEqual(got.dtype, np.float32)

  @parameterized.product(target=[0, 2], steps=[2, 7])
  def test_equals_tf_explain_on_one_class(self, target, steps):
    model = _net("block", activation="softplus")
    pictures = tiny.images(3)
    got = integrated_gradients(
        model, pictures, target, steps=steps, batch_size=2)
    self.assertEqual(got.shape, (3, 6, 6))
    np.testing.assert_allclose(
        got, _tf_explain(model, pictures, target, steps), atol=BATCHES)

  def test_a_class_for_each_image(self):
    model = _net()
    pictures = tiny.images(4)
    targets = [2, 0, 1, 2]
    want = [_tf_explain(model, pictures[[i]], k, 10)[0]
            for i, k in enumerate(targets)]
    np.testing.assert_allclose(
        integrated_gradients(model, pictures, targets), want, atol=BATCHES)
    np.testing.assert_allclose(
        integrated_gradients(model, pictures, np.eye(3)[targets]), want,
        atol=BATCHES)
    top = model(pictures).numpy().argmax(1)
    # The same float32 sums for classes found and given.
    np.testing.assert_allclose(
        integrated_gradients(model, pictures),
        integrated_gradients(model, pictures, top), atol=1e-6)

  @parameterized.parameters("softmax", "sigmoid", "activation_layer")
  def test_the_score_is_the_logit(self, head):
    """tf-explain itself takes the softmax, whose gradient fades."""
    pictures = tiny.images(3)
    # The same float32 sums, whatever follows the logits.
    np.testing.assert_allclose(
        integrated_gradients(_net(head=head), pictures, 1),
        integrated_gradients(_net(), pictures, 1), atol=1e-6)

  def test_alive_under_quantization(self):
    model = tiny.conv_net()
    pictures = tiny.images(3)
    want = integrated_gradients(model, pictures, 1)
    with tiny.fine_quantizers():
      got = integrated_gradients(tiny.quantize(model), pictures, 1)
    # 16 bits: steps of 2e-4 on weights of size 0.5, and a ReLU may flip.
    self.assertLess(tiny.relative_error(got, want), 2e-2)
    model.get_layer("logits").bias.assign([0.0, 50.0, 0.0])
    clipped = tiny.quantize(model)
    self.assertEqual(_tf_explain(clipped, pictures, 1, 3).max(), 0)  # The trap.
    self.assertTrue(
        integrated_gradients(clipped, pictures, 1).any(axis=(1, 2)).all())

  @parameterized.parameters(1, 3, 50)
  def test_the_batch_size_does_not_matter(self, batch_size):
    model, pictures = _net(), tiny.images(3)
    np.testing.assert_allclose(
        integrated_gradients(model, pictures, 0, batch_size=batch_size),
        integrated_gradients(model, pictures, 0), atol=BATCHES)

  @parameterized.parameters(
      ({"layer": "act"}, "layer must be None, the input is expl.*; got 'act'"),
      ({"steps": 1}, "steps must be 2 or more; got 1"),
      ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
      ({"targets": 3}, r"targets must be class numbers in 0\.\.2; got 3"),
      ({"images": np.zeros((2, 5, 5, 2))}, "images must have shape"))
  def test_errors(self, changed, message):
    settings = {"images": tiny.images(2), **changed}
    with self.assertRaisesRegex(ValueError, message):
      integrated_gradients(_net(), **settings)

  def test_what_is_no_model_is_said(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      integrated_gradients("net.h5", tiny.images(2))

  def test_without_tf_explain(self):
    with mock.patch.dict(sys.modules, {
        "tf_explain.core.integrated_gradients": None}), self.assertRaisesRegex(
            ImportError, "tf_explain"):
      integrated_gradients(_net(), tiny.images(2))

  def test_the_other_methods(self):
    model, pictures = _net("flatten"), tiny.images(4)
    targets = [2, 0, 1, 1]
    for method, times_input in (("vanilla_gradients", False),
                                ("gradients_inputs", True)):
      with tf.GradientTape() as tape:
        batch = tf.constant(pictures)
        tape.watch(batch)
        score = tf.reduce_sum(model(batch) * np.eye(3)[targets])
      want = tape.gradient(score, batch) * (pictures if times_input else 1)
      # Float32 gradients of a graph and of an eager run.
      np.testing.assert_allclose(
          attribution.tf_explain(model, pictures, targets, method=method),
          np.abs(want).sum(-1), rtol=1e-4, atol=1e-6)
    with self.assertRaisesRegex(ValueError, "method must be one of"):
      attribution.tf_explain(model, pictures, method="grad_cam")

  def test_tf_explain_is_what_was_checked(self):
    """The traced function's Python function is called; 0.3.1 has one."""
    self.assertTrue(callable(
        IntegratedGradients.get_integrated_gradients.python_function))
    self.assertIsInstance(
        tf.function(lambda: 0), type(
            IntegratedGradients.get_integrated_gradients))


if __name__ == "__main__":
  absltest.main()
