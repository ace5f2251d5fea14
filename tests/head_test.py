"""Tests of head.py: the sensitivities that a file's head weights hold."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.flatbuffer import read_model, signatures
from keras_attr_preserve.export.head import head_weights
from tests import export_helpers as helpers
from tests import tiny

# Channels enough for the converter to quantize the kernels in mode "dynamic".
CHANNELS, CLASSES = 16, 4

_layers = keras.layers
READABLE = {
    "gap": lambda: [_layers.GlobalAveragePooling2D(), _layers.Dense(CLASSES)],
    "global_max": lambda: [
        _layers.GlobalMaxPooling2D(), _layers.Dense(CLASSES)],
    "flatten": lambda: [_layers.Flatten(), _layers.Dense(CLASSES)],
    "max_flatten": lambda: [
        _layers.MaxPooling2D(), _layers.Flatten(), _layers.Dense(CLASSES)],
    "overlapping_max_flatten": lambda: [
        _layers.MaxPooling2D(3, 2), _layers.Flatten(), _layers.Dense(CLASSES)],
    "average_flatten": lambda: [
        _layers.AveragePooling2D(3, 2, "same"), _layers.Flatten(),
        _layers.Dense(CLASSES)],
    "conv_head": lambda: [
        _layers.Conv2D(CLASSES, 1), _layers.GlobalAveragePooling2D()],
    "conv_after_gap": lambda: [
        _layers.GlobalAveragePooling2D(keepdims=True),
        _layers.Conv2D(CLASSES, 1), _layers.Flatten()],
    "two_dense": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6, use_bias=False),
        _layers.Dense(CLASSES)],
    "dropout": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dropout(0.5),
        _layers.Dense(CLASSES)],
}
UNREADABLE = {
    "hidden_relu": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6, "relu"),
        _layers.Dense(CLASSES)],
    "hidden_tanh": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6, "tanh"),
        _layers.Dense(CLASSES)],
    "relu_conv_head": lambda: [
        _layers.Conv2D(CLASSES, 1, activation="relu"),
        _layers.GlobalAveragePooling2D()],
    "conv": lambda: [
        _layers.Conv2D(6, 3), _layers.GlobalAveragePooling2D(),
        _layers.Dense(CLASSES)],
    "depthwise": lambda: [
        _layers.DepthwiseConv2D(3), _layers.GlobalAveragePooling2D(),
        _layers.Dense(CLASSES)],
    "leaky": lambda: [
        _layers.LeakyReLU(), _layers.GlobalAveragePooling2D(),
        _layers.Dense(CLASSES)],
    "padding": lambda: [
        _layers.ZeroPadding2D(), _layers.Flatten(), _layers.Dense(CLASSES)],
}


def sensitivity_of(net, features, logits) -> np.ndarray:
  """Sums the gradient of each score over the positions, by Keras."""
  tapped = keras.Model(net.inputs, [features, logits])
  with tf.GradientTape(persistent=True) as tape:
    images = tf.constant(helpers.images(1))
    tape.watch(images)
    values, scores = tapped(images)
    scores = tf.unstack(scores, axis=1)
  return np.stack([
      tape.gradient(score, values).numpy().sum((0, 1, 2)) for score in scores])


class HeadTest(parameterized.TestCase):
  """One net with every head, so that a mode costs one conversion."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    images = keras.Input((helpers.SIZE, helpers.SIZE, 2))
    features = _layers.Conv2D(CHANNELS, 3, padding="same")(images)
    features = _layers.ReLU()(features)
    outputs = {"features": features}
    for name, build in (READABLE | UNREADABLE).items():
      outputs[name] = features
      for layer in build():
        outputs[name] = layer(outputs[name])
    cls.net = tiny.shake(keras.Model(images, outputs), 3)
    cls.sensitivity = {
        name: sensitivity_of(cls.net, features, outputs[name])
        for name in READABLE}
    cls.files = {}

  def head(self, mode: str, name: str):
    model = self.model(mode)
    outputs = signatures(model)["serve"].outputs
    return head_weights(
        model, 0, outputs[name].position, outputs["features"].position)

  def model(self, mode: str):
    if mode not in self.files:
      self.files[mode] = read_model(helpers.plainly_converted(self.net, mode))
    return self.files[mode]

  # The largest error of a sensitivity as a share of the largest sensitivity.
  # Measured at most: 9e-7, 5e-4, 9e-3, 9e-3.
  @parameterized.product(
      name=list(READABLE),
      mode_and_error=(("float32", 1e-5), ("float16", 1e-3), ("dynamic", 0.02),
                      ("int8", 0.02)))
  def test_is_keras_s_sensitivity(self, name, mode_and_error):
    mode, error = mode_and_error
    weights, want = self.head(mode, name), self.sensitivity[name]
    self.assertEqual(weights.shape, (CLASSES, CHANNELS))
    self.assertEqual(weights.dtype, np.float32)
    np.testing.assert_allclose(weights, want, 0, error * np.abs(want).max())

  @parameterized.product(name=list(UNREADABLE), mode=("float32", "int8"))
  def test_none_where_more_than_a_linear_head_follows(self, name, mode):
    self.assertIsNone(self.head(mode, name))

  def test_dynamic_stores_integers(self):
    types = {tensor.type for tensor in self.model(
        "dynamic").subgraphs[0].tensors if tuple(
            tensor.shape) == (CLASSES, 64 * CHANNELS)}
    self.assertEqual(types, {9})  # INT8 in the schema.

  def test_features_that_are_not_on_the_way(self):
    model = self.model("float32")
    outputs = signatures(model)["serve"].outputs
    self.assertIsNone(head_weights(
        model, 0, outputs["gap"].position, outputs["two_dense"].position))


if __name__ == "__main__":
  absltest.main()
