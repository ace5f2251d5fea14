"""Tests of layer inputs, computed from the last bottleneck on."""

import collections
from typing import ClassVar
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve.compat import clone_model, keras, tf
from keras_attr_preserve.compression.least_squares import layer_by_layer
from keras_attr_preserve.compression.least_squares.layer_by_layer import (
  StagedInputs,
)

_layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=[5, 8, 8, 3]).astype(np.float32)


def conv(name, x, filters=4, **settings):
  return _layers.Conv2D(
      filters, 3, padding="same", name=name, **settings)(x)


def plain(x):
  """Where training would normalize by the batch and drop values."""
  x = _layers.ReLU()(_layers.BatchNormalization()(conv("a", x)))
  x = _layers.Dropout(0.5)(_layers.MaxPooling2D()(conv("b", x)))
  return conv("c", x)


def residual(x):
  x = conv("a", x)
  x = _layers.Add()([x, conv("c", _layers.ReLU()(conv("b", x)))])
  return conv("d", x)


def across(x):
  """A short cut from the images themselves, and one over two others."""
  first = conv("a", x, 3)
  second = _layers.Add()([x, conv("b", first, 3)])
  both = _layers.Concatenate()([first, conv("c", second), second])
  return conv("e", conv("d", both) * 0.5 + tf.nn.relu(1.0))


def shared(x):
  twice = _layers.Conv2D(3, 1, name="twice")
  return conv("b", twice(conv("a", twice(x), 3)))


def nested(x):
  inner = keras.Sequential([_layers.Conv2D(3, 1, input_shape=[8, 8, 3])])
  return conv("b", inner(conv("a", x, 3)))


def attended(x):
  x = _layers.Reshape([-1, 4])(conv("a", x))
  x = _layers.MultiHeadAttention(1, 2, name="heads")(x, value=x)
  return _layers.Dense(3, name="d")(_layers.Dense(4, name="c")(x))


class Counted(_layers.Layer):
  """Counts how often it sees values, by its name."""

  runs: ClassVar[collections.Counter] = collections.Counter()

  def call(self, inputs):
    self.runs[self.name] += tf.executing_eagerly()
    return inputs * 1.0


class StagedInputsTest(parameterized.TestCase):

  def net(self, build):
    inputs = keras.Input([8, 8, 3])
    keras.utils.set_random_seed(1)
    return keras.Model(inputs, build(inputs))

  @parameterized.product(
      build=(plain, residual, across, shared, nested, attended),
      kept=(0, layer_by_layer.KEPT))
  def test_as_from_the_start(self, build, kept):
    """Each layer changes after its inputs were read."""
    self.enter_context(mock.patch.object(layer_by_layer, "KEPT", kept))
    model = self.net(build)
    before = model.get_weights()
    changed, inputs = clone_model(model), StagedInputs(model, IMAGES, 2)
    random = np.random.default_rng(1)
    for layer in changed.layers:
      if layer.name not in "abcde":
        continue
      want = keras.Model(changed.inputs, layer.input)(IMAGES).numpy()
      got = [*inputs.batches(layer.name)]
      self.assertEqual([len(batch) for batch in got], [2, 2, 1])
      # Float32 sums in another order: batches of two images, not all five.
      np.testing.assert_allclose(np.concatenate(got), want, atol=1e-5)
      weights = [0.2 * random.normal(size=weight.shape)
                 for weight in layer.get_weights()]
      layer.set_weights(weights)
      inputs.set_weights(layer.name, weights)
    for old, new in zip(before, model.get_weights(), strict=True):
      np.testing.assert_array_equal(old, new)
    for layer in model.layers:
      self.assertLen(layer.inbound_nodes, 2 if layer.name == "twice" else 1)

  def test_one_image(self):
    model = self.net(plain)
    (taken,) = StagedInputs(model, IMAGES[:1], 4).batches("b")
    # Float32 sums in another order.
    np.testing.assert_allclose(taken, keras.Model(
        model.inputs, model.get_layer("b").input)(IMAGES[:1]), atol=1e-5)

  def test_a_gigabyte_is_kept(self):
    self.assertEqual(4 * layer_by_layer.KEPT, 1024 ** 3)  # Values of float32.

  @parameterized.parameters(
      (3, 0, [1, 1, 1]), (4, 0, [3, 2, 1]), (4, 4 * 64 * 5, [1, 1, 1]),
      (4, 4 * 64 * 5 - 1, [3, 2, 1]))
  def test_what_lies_before_a_bottleneck_runs_once(self, filters, kept, want):
    """Except maps of more values than the images, and than are kept in all."""
    self.enter_context(mock.patch.object(layer_by_layer, "KEPT", kept))
    def build(x):
      for name in "abc":
        x = Counted(name=f"after_{name}")(conv(name, x, filters))
      return conv("d", x)

    inputs = StagedInputs(self.net(build), IMAGES, len(IMAGES))
    Counted.runs.clear()
    for name in "abcd":
      for _ in inputs.batches(name):
        pass
    self.assertEqual(
        [Counted.runs[f"after_{name}"] for name in "abc"], want)


if __name__ == "__main__":
  absltest.main()
