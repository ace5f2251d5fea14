"""Tests of batch_statistics.py: constants to sensitivities, and no others."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.models.batch_statistics import (
    StillStatistics,
    still_statistics,
)
from keras_attr_preserve.models.tap import Tap, feature_gradients
from tests import tiny

_layers = keras.layers
# Float32 statistics of a batch, fused or by formula, and gradients through
# them.
FLOAT32 = 1e-4


def _model(layer, shape):
  """A model of one layer, with its outputs and both gradients."""
  inputs = keras.Input(shape[1:])
  model = keras.Model(inputs, layer(inputs))
  statistics = StillStatistics(model)

  def run(x):
    with statistics.on():
      return model(x, training=True)

  return model, run


class BatchNormalizationTest(parameterized.TestCase):
  """In training mode, as if its statistics stood still."""

  def _layer(self, kind):
    if kind == "dense":
      return _layers.BatchNormalization(), (7, 4), [0]
    settings = {"fused": {}, "unfused": {"fused": False},
                "synchronized": {"synchronized": True},
                "unscaled": {"scale": False},
                "small epsilon": {"epsilon": 1e-7}}[kind]
    return _layers.BatchNormalization(**settings), (5, 3, 3, 2), [0, 1, 2]

  @parameterized.parameters("fused", "unfused", "synchronized", "dense",
                            "unscaled", "small epsilon")
  def test_equal_to_a_model_with_these_statistics_frozen(self, kind):
    layer, shape, axes = self._layer(kind)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), tf.float32)
    kernel = tf.constant(rng.normal(size=shape), tf.float32)
    _, run = _model(layer, shape)
    gamma = 1.0
    if layer.scale:
      layer.gamma.assign(rng.uniform(0.5, 2, shape[-1:]))
      gamma = layer.gamma

    def score(normalized):
      return tf.reduce_sum(tf.tanh(normalized) * kernel, axis=[
          *range(1, len(shape))])

    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      mean, variance = tf.nn.moments(x, axes)
      factor = gamma / tf.sqrt(variance + layer.epsilon)
      got_score = score(run(x))
      want_score = score((x - mean) * factor + layer.beta)
      still = score((x - tf.stop_gradient(mean)) * tf.stop_gradient(factor)
                    + layer.beta)
    np.testing.assert_allclose(got_score, want_score, atol=FLOAT32)
    with still_statistics():
      got = tape.gradient(got_score, x)
    np.testing.assert_allclose(got, tape.gradient(still, x), atol=FLOAT32)
    # And outside the block the images are mixed.
    mixed = tape.gradient(want_score, x)
    np.testing.assert_allclose(tape.gradient(got_score, x), mixed, atol=FLOAT32)
    # Far more than FLOAT32.
    self.assertGreater(np.abs(got - mixed).max(), 0.05)

  @parameterized.parameters(1e-3, 1e-7)
  def test_the_epsilon_of_a_fused_layer(self, epsilon):
    """Of a channel that does not vary it is all that divides."""
    layer, shape = _layers.BatchNormalization(epsilon=epsilon), (4, 2, 2, 1)
    _, run = _model(layer, shape)
    x = tf.zeros(shape)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      y = run(x)
    with still_statistics():
      got = tape.gradient(y, x)
    least = 1.001e-5  # TensorFlow's least epsilon, of its fused operation.
    # One float32 square root and division.
    np.testing.assert_allclose(got, max(epsilon, least) ** -0.5, rtol=1e-5)

  def test_one_image_alone(self):
    """The sensitivity of an image does not depend on the others' scores."""
    _, run = _model(_layers.BatchNormalization(), (4, 3, 3, 2))
    x = tf.random.stateless_normal([4, 3, 3, 2], [0, 1])
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      scores = tf.reduce_sum(run(x)**2, [1, 2, 3])
      first = scores[0]
    with still_statistics():
      together, alone = tape.gradient(scores, x), tape.gradient(first, x)
    # Float32 sums of one score's gradient; the other scores add nothing.
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    self.assertEqual(np.abs(alone[1:]).max(), 0)

  def test_how_a_sensitivity_depends_on_the_weights(self):
    """The outer gradient moves the statistics: against finite differences."""
    with tiny.float64():
      inputs = keras.Input((3, 3, 2))
      first = _layers.Dense(2, use_bias=False)
      norm = _layers.BatchNormalization()
      model = keras.Model(inputs, norm(first(inputs)))
      statistics = StillStatistics(model)
      rng = np.random.default_rng(0)
      x = tf.constant(rng.normal(size=(4, 3, 3, 2)))
      along = tf.constant(rng.normal(size=(4, 3, 3, 2)))
      kernel = first.kernel
      kernel.assign(rng.normal(size=(2, 2)))

      def total():
        with tf.GradientTape() as tape:
          tape.watch(x)
          with statistics.on():
            score = tf.reduce_sum(tf.tanh(model(x, training=True)))
        with still_statistics():
          return tf.reduce_sum(along * tape.gradient(score, x))

      with tf.GradientTape() as outer:
        value = total()
      got = outer.gradient(value, kernel)
      want = tiny.slopes(total, kernel, 1e-4)
    # A stencil of four points in float64: its error is of order 1e-12.
    np.testing.assert_allclose(np.ravel(got), want, rtol=1e-7)

  def test_a_replica_without_images(self):
    model, run = _model(_layers.BatchNormalization(fused=False), (4, 3, 3, 2))
    x = tf.zeros([0, 3, 3, 2])
    with tf.GradientTape() as outer:
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(run(x))
      with still_statistics():
        total = tf.reduce_sum(tape.gradient(y, x))
    gamma = outer.gradient(total, model.layers[1].gamma)
    np.testing.assert_array_equal(gamma, [0, 0])

  @parameterized.parameters(
      (False, True), (True, False))  # Not training, and frozen.
  def test_moving_statistics_are_left_to_keras(self, training, trainable):
    layer, shape = _layers.BatchNormalization(), (4, 3, 3, 2)
    model, _ = _model(layer, shape)
    layer.trainable = trainable
    statistics = StillStatistics(model)
    x = tf.random.stateless_normal(shape, [0, 1])
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      with statistics.on():
        got = model(x, training=training)
    np.testing.assert_array_equal(got, model(x, training=False))
    with still_statistics():
      np.testing.assert_array_equal(
          tape.gradient(got, x), np.full(shape, 1 / np.sqrt(1 + 1e-3),
                                         np.float32))

  def test_statistics_of_another_kind_are_refused(self):
    layer = _layers.BatchNormalization(name="norm", virtual_batch_size=2)
    inputs = keras.Input((3, 3, 2))
    model = keras.Model(inputs, layer(inputs))
    with StillStatistics(model).on(), self.assertRaisesRegex(
        ValueError, "layer 'norm' normalizes with a mask, renorm or virtual"):
      model(tf.zeros([4, 3, 3, 2]), training=True)

  def test_the_model_is_left_as_it_was(self):
    model, run = _model(_layers.BatchNormalization(), (4, 3, 3, 2))
    run(tf.zeros([4, 3, 3, 2]))
    self.assertNotIn("call", vars(model.layers[1]))


class _InsideABlock(_layers.Layer):
  """Holds its batch normalization, as blocks of layers do."""

  def __init__(self, **settings):
    super().__init__(**settings)
    self.norm = _layers.BatchNormalization()

  def call(self, inputs, training=None):
    return self.norm(inputs, training=training)


def _plus_mean_of_rows(x):
  """Takes a mean over an axis 0 that is no batch."""
  rows_first = tf.transpose(x, [1, 0, 2, 3])
  return x + tf.transpose(
      tf.reduce_mean(rows_first, 0, keepdims=True), [1, 0, 2, 3])


class OtherLayersTest(parameterized.TestCase):
  """Statistics of a single image keep their gradient."""

  @parameterized.parameters(
      _layers.LayerNormalization, _layers.UnitNormalization,
      lambda: _layers.GroupNormalization(2),
      lambda: _layers.LayerNormalization(axis=[1, 2, 3]),
      lambda: _layers.Lambda(_plus_mean_of_rows))
  def test_training_mode_is_inference_mode(self, make):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    features = _layers.Conv2D(4, 3, activation="relu", name="act")(inputs)
    x = _layers.Conv2D(4, 3, activation="tanh")(make()(features))
    x = _layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, _layers.Dense(3)(x))
    images = tf.constant(tiny.images(4))
    plain = keras.Model(inputs, [model.get_layer("act").output, model.output])
    with tf.GradientTape() as tape:
      features, logits = plain(images)
      score = tf.reduce_sum(logits[:, 1])
    want = tape.gradient(score, features)
    for training in (False, True):
      with tf.GradientTape() as tape:
        tapped = Tap(model, ["act"])(images, training=training)
      got, = feature_gradients(tape, tapped, tf.one_hot([1] * 4, 3))
      # The same operations in the same order.
      np.testing.assert_allclose(got, want, atol=1e-6)

  def test_a_normalization_inside_a_layer(self):
    inputs = keras.Input((3, 3, 2))
    model = keras.Model(inputs, _InsideABlock()(inputs))
    statistics = StillStatistics(model)
    x = tf.random.stateless_normal([4, 3, 3, 2], [0, 1])
    with tf.GradientTape() as tape:
      tape.watch(x)
      with statistics.on():
        first = tf.reduce_sum(model(x, training=True)[0]**2)
    with still_statistics():
      self.assertEqual(np.abs(tape.gradient(first, x)[1:]).max(), 0)


if __name__ == "__main__":
  absltest.main()
