"""Tests of head.py: the sensitivities that a file's head weights hold."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.tflite.head import head_weights, read_head
from keras_attr_preserve.export.tflite.schema import read_model, signatures
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared

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
    "linear_then_flatten": lambda: [
        _layers.Conv2D(6, 1), _layers.Flatten(), _layers.Dense(CLASSES)],
    "dropout": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dropout(0.5),
        _layers.Dense(CLASSES)],
}
HIDDEN = {
    "hidden_gap": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6, "relu"),
        _layers.Dense(CLASSES)],
    "hidden_global_max": lambda: [
        _layers.GlobalMaxPooling2D(), _layers.Dense(30, "relu"),
        _layers.Dense(CLASSES)],
    "hidden_flatten": lambda: [
        _layers.Flatten(), _layers.Dropout(0.5), _layers.Dense(6, "relu"),
        _layers.Dropout(0.5), _layers.Dense(CLASSES)],
    "hidden_relu6": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Rescaling(8),
        _layers.Dense(6), _layers.ReLU(6), _layers.Dense(CLASSES)],
    "hidden_max_flatten": lambda: [
        _layers.MaxPooling2D(), _layers.Flatten(), _layers.Dense(6, "relu"),
        _layers.Dense(CLASSES)],
    "hidden_padded_max": lambda: [
        _layers.MaxPooling2D(3, 2, "same"), _layers.Flatten(),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
    "hidden_average_flatten": lambda: [
        _layers.AveragePooling2D(3, 2), _layers.Flatten(),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
    "hidden_normalized": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6),
        _layers.BatchNormalization(), _layers.ReLU(), _layers.Dense(CLASSES)],
    "hidden_conv": lambda: [
        _layers.GlobalAveragePooling2D(keepdims=True),
        _layers.Conv2D(6, 1, activation="relu"), _layers.Conv2D(CLASSES, 1),
        _layers.Flatten()],
    "linear_then_hidden": lambda: [
        _layers.Conv2D(5, 1), _layers.Flatten(), _layers.Dense(6, "relu"),
        _layers.Dense(7), _layers.Dense(CLASSES)],
}
UNREADABLE = {
    "two_hidden": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(6, "relu"),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
    "hidden_everywhere": lambda: [
        _layers.Conv2D(6, 1, activation="relu"), _layers.Flatten(),
        _layers.Dense(CLASSES)],
    "largest_of_linear": lambda: [
        _layers.Conv2D(6, 1), _layers.MaxPooling2D(), _layers.Flatten(),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
    "two_pools": lambda: [
        _layers.MaxPooling2D(), _layers.GlobalAveragePooling2D(),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
    "average_of_a_padded_edge": lambda: [
        _layers.AveragePooling2D(3, 2, "same"), _layers.Flatten(),
        _layers.Dense(6, "relu"), _layers.Dense(CLASSES)],
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


def sensitivity_of(net, features, logits, count: int = 1) -> tuple[
    np.ndarray, np.ndarray]:
  """Sums the gradient of each score over the positions, by Keras.

  Returns:
    `[images, classes, channels]`, and the features.
  """
  tapped = keras.Model(net.inputs, [features, logits])
  with tf.GradientTape(persistent=True) as tape:
    # Pale and strong ones, so that they turn different hidden units on.
    strength = np.geomspace(1, 20, count).reshape(-1, 1, 1, 1)
    images = tf.constant(np.float32(strength * helpers.images(count)))
    tape.watch(images)
    values, scores = tapped(images)
    scores = tf.unstack(scores, axis=1)
  return np.stack([
      tape.gradient(score, values).numpy().sum((1, 2))
      for score in scores], 1), values.numpy()


@functools.cache
def with_every_head() -> keras.Model:
  """Builds one model with every head, so that a mode costs one conversion."""
  return with_heads(READABLE | HIDDEN | UNREADABLE)


def with_heads(heads) -> keras.Model:
  images = keras.Input((helpers.SIZE, helpers.SIZE, 2))
  features = _layers.Conv2D(CHANNELS, 3, padding="same")(images)
  features = _layers.ReLU()(features)
  outputs = {"features": features}
  for name, build in heads.items():
    outputs[name] = features
    for layer in build():
      outputs[name] = layer(outputs[name])
  return tiny.shake(keras.Model(images, outputs), 3)


@shared
def converted(mode: str) -> bytes:
  return helpers.plainly_converted(with_every_head(), mode)


@functools.cache
def _read(mode: str):
  return read_model(converted(mode))


class HeadTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model = with_every_head()
    outputs = model.output
    cls.sensitivity = {
        name: sensitivity_of(model, outputs["features"], outputs[name])[0][0]
        for name in READABLE}
    cls.hidden = {
        name: sensitivity_of(model, outputs["features"], outputs[name], 16)
        for name in HIDDEN}

  def head(self, mode: str, name: str):
    model = self.model(mode)
    outputs = signatures(model)["serve"].outputs
    return head_weights(
        model, 0, outputs[name].position, outputs["features"].position)

  def model(self, mode: str):
    return _read(mode)

  # The largest error of a sensitivity as a share of the largest sensitivity.
  # Measured at most: 9e-7, 5e-4, 9e-3, 9e-3.
  @parameterized.product(
      name=list(READABLE),
      mode_and_error=(("float32", 1e-5), ("int8", 0.02)))
  def test_is_keras_s_sensitivity(self, name, mode_and_error):
    self.check_sensitivity(name, mode_and_error)

  @parameterized.product(
      name=list(READABLE),
      mode_and_error=(("float16", 1e-3), ("dynamic", 0.02)))
  @pytest.mark.slow("files")
  def test_is_keras_s_sensitivity_in_other_modes(self, name, mode_and_error):
    self.check_sensitivity(name, mode_and_error)

  def check_sensitivity(self, name, mode_and_error):
    mode, error = mode_and_error
    weights, want = self.head(mode, name), self.sensitivity[name]
    self.assertEqual(weights.shape, (CLASSES, CHANNELS))
    self.assertEqual(weights.dtype, np.float32)
    np.testing.assert_allclose(weights, want, 0, error * np.abs(want).max())

  @parameterized.product(name=list(UNREADABLE), mode=("float32", "int8"))
  def test_none_where_more_than_a_linear_head_follows(self, name, mode):
    self.assertIsNone(self.head(mode, name))
    model = self.model(mode)
    outputs = signatures(model)["serve"].outputs
    self.assertIsNone(read_head(
        model, 0, outputs[name].position, outputs["features"].position))

  # Measured at most: 8e-7, 4e-4, .009, below .05, but for images of which the
  # rounding of weights turns a hidden unit, whose whole share is then missing:
  # none, none, one, two of 16.
  @parameterized.product(
      name=list(HIDDEN),
      mode_error_turned=(("float32", 1e-5, 0), ("int8", 0.05, 2)))
  @pytest.mark.slow("files")
  def test_a_hidden_layer(self, name, mode_error_turned):
    self.check_hidden_layer(name, mode_error_turned)

  @parameterized.product(
      name=list(HIDDEN),
      mode_error_turned=(("float16", 2e-3, 0), ("dynamic", 0.05, 1)))
  @pytest.mark.slow("files")
  def test_a_hidden_layer_in_other_modes(self, name, mode_error_turned):
    self.check_hidden_layer(name, mode_error_turned)

  def check_hidden_layer(self, name, mode_error_turned):
    mode, error, turned = mode_error_turned
    model = self.model(mode)
    outputs = signatures(model)["serve"].outputs
    head = read_head(
        model, 0, outputs[name].position, outputs["features"].position)
    want, features = self.hidden[name]
    # Not every hidden unit is on, nor the same ones for every image.
    self.assertGreater(np.ptp(want, axis=0).max(), 0)
    wrong = np.zeros(len(want))
    for target in range(CLASSES):
      seed = np.eye(CLASSES, dtype=np.float32)[[target] * len(features)]
      got = head.sensitivity(features, seed)
      self.assertEqual(got.shape, (len(features), CHANNELS))
      wrong += np.abs(got - want[:, target]).max(1) > error * np.abs(want).max()
    self.assertLessEqual(np.count_nonzero(wrong), turned)
    self.assertIsNone(self.head(mode, name))  # It has no one sensitivity.

  def test_a_mixture_of_classes(self):
    model = self.model("float32")
    outputs = signatures(model)["serve"].outputs
    head = read_head(model, 0, outputs["hidden_flatten"].position,
                     outputs["features"].position)
    want, features = self.hidden["hidden_flatten"]
    seed = np.random.default_rng(0).normal(size=(len(features), CLASSES))
    # Float32 sums over 64 positions and the hidden units, in another order.
    np.testing.assert_allclose(
        head.sensitivity(features, seed), np.einsum("ik,ikc->ic", seed, want),
        atol=1e-4)

  def test_dynamic_stores_integers(self):
    model = read_model(helpers.plainly_converted(
        with_heads({"flatten": READABLE["flatten"]}), "dynamic"))
    types = {tensor.type for tensor in model.subgraphs[0].tensors
             if tuple(tensor.shape) == (CLASSES, 64 * CHANNELS)}
    self.assertEqual(types, {9})  # INT8 in the schema.

  def test_features_that_are_not_on_the_way(self):
    model = self.model("float32")
    outputs = signatures(model)["serve"].outputs
    self.assertIsNone(head_weights(
        model, 0, outputs["gap"].position, outputs["two_dense"].position))


if __name__ == "__main__":
  absltest.main()
