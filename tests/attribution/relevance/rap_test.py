"""Tests of rap.py."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest

from keras_attr_preserve.attribution.relevance.rap import (
    relative_attributing_propagation as rap,
)
from tests import channel_nets, tiny

_layers = keras.layers


class RapTest(absltest.TestCase):

  def test_the_last_layer_shares_by_magnitude(self):
    # Contributions 6 and -2: shares 6/8 and 2/8 of their sum, 4.
    model = keras.Sequential([
        _layers.Flatten(input_shape=(1, 2, 1)), _layers.Dense(1)])
    model.set_weights([np.float32([[2], [-2]]), np.float32([5])])
    image = np.float32([[[[3], [1]]]])
    # Float32 products and quotients of a few small numbers.
    np.testing.assert_allclose(rap(model, image, 1), [[[3, 1]]], rtol=1e-5)

  def test_a_middle_layer_by_hand(self):
    # Features of the first layer: 1, 2, 1 and 0. A hidden neuron reads them
    # by 2, 1, -1 and 5: contributions 2, 2, -1 and 0, of 5 in all. It holds 3,
    # all of it the score's. Positive: 3 (2, 2) / 4; negative: 3 (1) / 5; that
    # is 3.6, of which .2 is taken from each of the three that got any.
    inputs = keras.Input([1, 4, 1])
    x = _layers.ReLU(name="features")(
        _layers.Conv2D(1, 1, use_bias=False)(inputs))
    x = _layers.ReLU()(_layers.Dense(1, use_bias=False)(_layers.Flatten()(x)))
    model = keras.Model(inputs, _layers.Dense(1, use_bias=False)(x))
    model.set_weights([np.ones([1, 1, 1, 1], np.float32),
                       np.float32([[2], [1], [-1], [5]]), np.float32([[1]])])
    image = np.float32([1, 2, 1, 0]).reshape(1, 1, 4, 1)
    # Float32 products and quotients of a few small numbers.
    np.testing.assert_allclose(
        rap(model, image, 1, "features"), [[[1.3, 1.3, 0.4, 0]]], rtol=1e-5)

  def test_relevance_is_kept(self):
    model = channel_nets.net(lambda x: _layers.MaxPool2D(2)(
        channel_nets.conv(channel_nets.conv(x, 16, "a"), 16, "b")))
    pictures = np.abs(tiny.images(4, size=8))
    features = keras.Model(
        model.input, model.get_layer("pool").output)(pictures).numpy()
    kernel, _ = model.get_layer("logits").get_weights()
    for target in (0, 1):
      maps = rap(model, pictures, target)
      self.assertTrue((maps < 0).any())
      # Float32: relevance of either sign is some times the score and cancels in
      # the sum over the pixels.
      np.testing.assert_allclose(
          maps.sum((1, 2)), (features @ kernel)[:, target], rtol=1e-3,
          atol=1e-4)


if __name__ == "__main__":
  absltest.main()
