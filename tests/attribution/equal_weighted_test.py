"""Tests of equal_weighted.py."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution import equal_weighted
from tests import tiny


class EqualWeightedTest(parameterized.TestCase):

  def test_by_hand(self):
    model = keras.Sequential([
        keras.layers.Conv2D(2, 1, name="conv", input_shape=(1, 2, 1)),
        keras.layers.GlobalAveragePooling2D()])
    model.set_weights([np.float32([[[[2, -1]]]]), np.float32([0, 1])])
    # Images 1 and 3: channels (2, 0) and (6, -2).
    np.testing.assert_array_equal(
        equal_weighted(model, [[[[1], [3]]]]), [[[2, 20]]])

  @parameterized.parameters("plain", "prune", "quantize")
  def test_is_the_mean_square_of_the_features(self, wrap):
    model = {"plain": tiny.copy_of, "prune": tiny.prune,
             "quantize": tiny.quantize}[wrap](tiny.conv_net(tail="block"))
    pictures = tiny.images(5)
    layer, = (
        candidate for candidate in model.layers
        if candidate.name.endswith("act"))
    features = keras.Model(model.inputs, layer.output)(pictures).numpy()
    for batch_size in (2, 64):
      got = equal_weighted(
          model, pictures, layer="act", batch_size=batch_size)
      self.assertEqual((got.dtype, got.shape), (np.float32, (5, 6, 6)))
      # Where a quantizer's input lies half way, rounding picks one step.
      np.testing.assert_allclose(
          got, (features**2).mean(-1), rtol=1e-5,
          atol=0.05 if wrap == "quantize" else 1e-6)

  def test_the_class_does_not_matter(self):
    model, pictures = tiny.conv_net(), tiny.images(2)
    want = equal_weighted(model, pictures)
    for targets in (0, [1, 2], np.eye(2, 3)):
      np.testing.assert_array_equal(
          equal_weighted(model, pictures, targets), want)

  @parameterized.parameters(
      ({"layer": "logits"}, "layer 'logits' .* no spatial map"),
      ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
      ({"images": np.zeros((2, 5, 5, 2))}, "images must have shape"))
  def test_errors(self, changed, message):
    settings = {"images": tiny.images(2), **changed}
    with self.assertRaisesRegex(ValueError, message):
      equal_weighted(tiny.conv_net(), **settings)


if __name__ == "__main__":
  absltest.main()
