"""Tests of tap.py: how a score rises with the features."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.models import tap
from keras_attr_preserve.models.scores import top_class_seed
from tests import tiny


class SensitivitiesTest(parameterized.TestCase):

  def _sensitivities(self, model, names, pictures, seed, training=False):
    reader = tap.Tap(model, names)
    with tf.GradientTape() as tape:
      pictures = tf.constant(pictures)
      tape.watch(pictures)
      tapped = reader(pictures, training=training)
    return tapped, [gradient.numpy() for gradient in tap.sensitivities(
        tape, tapped, seed)]

  def _differences(self, model, name, pictures, seed, step):
    """How seed . logits rises as a whole channel is raised."""
    layer = model.get_layer(name)
    features = keras.Model(model.inputs, layer.output)(pictures).numpy()
    tail = keras.Model(layer.output, model.output)
    rises = []
    for channel in np.eye(features.shape[-1], dtype=np.float32):
      up, down = (tail(features + sign * step * channel).numpy()
                  for sign in (1, -1))
      rises.append(((up - down) * seed).sum(1) / (2 * step))
    return np.stack(rises, axis=1)

  def test_by_hand(self):
    """A mean over two positions, then weights 1 and 3: each passes a half."""
    inputs = keras.Input((1, 2, 1))
    x = keras.layers.Conv2D(2, 1, name="conv")(inputs)
    y = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(y))
    model.get_layer("head").set_weights(
        [np.float32([[1, 7], [3, -5]]), np.zeros(2)])
    pictures = np.ones((2, 1, 2, 1), np.float32)
    seed = np.float32([[1, 0], [0, 2]])  # Class 0; twice class 1.
    tapped, (got,) = self._sensitivities(model, ["conv"], pictures, seed)
    # Halves and small whole numbers, which float32 holds exactly.
    np.testing.assert_allclose(
        got, [[[[1, 3]]], [[[14, -10]]]], rtol=1e-6)
    with tf.GradientTape() as tape:
      pictures = tf.constant(pictures)
      tape.watch(pictures)
      tapped = tap.Tap(model, ["conv"])(pictures)
    gradient, = tap.feature_gradients(tape, tapped, seed)
    # Halves and small whole numbers, which float32 holds exactly.
    np.testing.assert_allclose(
        gradient, [[[[0.5, 1.5]] * 2], [[[7, -5]] * 2]], rtol=1e-6)

  @parameterized.parameters(
      ("gap", "relu"), ("flatten", "relu"), ("flatten", "tanh"),
      ("block", "relu"), ("block", "softplus"), ("depthwise", "relu"))
  def test_against_finite_differences(self, tail, activation):
    model = tiny.conv_net(tail=tail, activation=activation)
    pictures = tiny.images(3)
    seed = np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32)
    _, (got,) = self._sensitivities(model, ["act"], pictures, seed)
    self.assertEqual(got.shape, (3, 1, 1, 4))
    want = self._differences(model, "act", pictures, seed, step=1e-2)
    # Float32 logits of size 1 over a step of 1e-2: 1e-5; where a ReLU's kink
    # lies within the step, its share of the sum is wrong by a part.
    self.assertLess(tiny.relative_error(got[:, 0, 0], want),
                    2e-2 if activation == "relu" and tail != "gap" else 1e-3)

  def test_several_layers_upstream_of_one_another(self):
    model = tiny.conv_net(tail="block", activation="softplus", head="softmax")
    linear = tiny.conv_net(tail="block", activation="softplus")
    pictures = tiny.images(3)
    seed = np.eye(3, dtype=np.float32)
    names = ["act2", "conv", "act", "conv2"]
    tapped, got = self._sensitivities(model, names, pictures, seed)
    self.assertLen(tapped.features, 4)
    for name, value in zip(names, got):
      _, (alone,) = self._sensitivities(model, [name], pictures, seed)
      # One backward pass for all layers or for each: float32 sums in another
      # order.
      np.testing.assert_allclose(value, alone, rtol=1e-5, atol=1e-6)
      # A central difference without kinks: round-off of 1e-5, truncation of
      # order 1e-4.
      self.assertLess(tiny.relative_error(value[:, 0, 0], self._differences(
          linear, name, pictures, seed, step=1e-2)), 1e-3)

  @parameterized.parameters(
      "softmax", "sigmoid", "softmax_layer", "activation_layer")
  def test_heads_do_not_matter(self, head):
    seed = np.eye(3, dtype=np.float32)
    _, (want,) = self._sensitivities(
        tiny.conv_net(), ["act"], tiny.images(3), seed)
    _, (got,) = self._sensitivities(
        tiny.conv_net(head=head), ["act"], tiny.images(3), seed)
    # Float32 gradients of one graph up to the logits.
    np.testing.assert_allclose(got, want, atol=1e-6)

  @parameterized.parameters("gap", "flatten", "block", "depthwise")
  def test_under_quantization_as_in_the_float_net(self, tail):
    model = tiny.conv_net(tail=tail)
    pictures, seed = tiny.images(3), np.eye(3, dtype=np.float32)
    _, (want,) = self._sensitivities(model, ["act"], pictures, seed)
    with tiny.fine_quantizers():
      _, (got,) = self._sensitivities(
          tiny.quantize(model), ["act"], pictures, seed)
    # 16 bits: steps of 2e-4 on weights of size 0.5, and a ReLU may flip.
    self.assertLess(tiny.relative_error(got, want), 2e-2)

  def test_alive_where_a_quantizer_clips_the_score(self):
    """Trap 2."""
    float_model = tiny.conv_net(head="softmax")
    float_model.get_layer("logits").bias.assign([50.0, -50.0, 0.0])
    model = tiny.quantize(float_model)
    pictures = tf.constant(tiny.images(3))
    reader = tap.Tap(model, ["act"])
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(pictures)
      tapped = reader(pictures)
    # The range -6..6 is moved onto whole steps of .05, by half a step.
    np.testing.assert_allclose(tapped.logits[:, :2], [[6, -6]] * 3, atol=0.1)
    seed = tf.constant([[1.0, 0, 0]] * 3)
    plain = tape.gradient(
        tapped.logits, tapped.features[0], output_gradients=seed)
    np.testing.assert_array_equal(plain, np.zeros_like(plain))  # The trap.
    got, = tap.sensitivities(tape, tapped, seed)
    # A mean over the positions: the quantized kernel's column, 8 bits of -6..6
    # before the first training step, so steps of 0.05.
    kernel = float_model.get_layer("logits").kernel.numpy()
    # Half a step, .024.
    np.testing.assert_allclose(
        got[:, 0, 0], [kernel[:, 0]] * 3, atol=0.03)

  def test_frozen_models_are_explained_too(self):
    model = tiny.conv_net()
    _, (want,) = self._sensitivities(
        model, ["act"], tiny.images(2), np.eye(2, 3, dtype=np.float32))
    model.trainable = False
    _, (got,) = self._sensitivities(
        model, ["act"], tiny.images(2), np.eye(2, 3, dtype=np.float32))
    np.testing.assert_array_equal(got, want)

  def test_a_tail_without_a_gradient(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="conv")(inputs)
    x = keras.layers.Lambda(tf.round)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    with self.assertRaisesRegex(ValueError, "layer: .*do not depend"):
      self._sensitivities(model, ["conv"], np.ones((1, 4, 4, 1), np.float32),
                          np.float32([[1, 0]]))


class TopClassSeedTest(absltest.TestCase):

  def test_one_hot_of_the_largest(self):
    np.testing.assert_array_equal(
        top_class_seed(tf.constant([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0]])),
        [[0, 1, 0], [1, 0, 0]])

  def test_one_logit_has_two_sides(self):
    np.testing.assert_array_equal(
        top_class_seed(tf.constant([[2.0], [-3.0], [0.0]])),
        [[1], [-1], [1]])


if __name__ == "__main__":
  absltest.main()
