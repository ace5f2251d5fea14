"""Tests of inner_functions.py: earlier calls change no gradient."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny

_layers = keras.layers


class _Compiled(_layers.Layer):
  """A quantizer and a ReLU in a separate function."""

  @tf.function
  def call(self, inputs):
    return tf.nn.relu(tf.quantization.fake_quant_with_min_max_args(
        inputs, -1.0, 1.0))


def _model(kind):
  keras.utils.set_random_seed(0)
  inputs = keras.Input((8, 8, 2))
  x = _layers.Conv2D(8, 3, activation="relu", name="act")(inputs)
  x = (_layers.Conv2D(8, 3, groups=2, activation="relu")(x)
       if kind == "groups" else _Compiled()(_layers.Conv2D(8, 3)(x)))
  x = _layers.GlobalAveragePooling2D()(x)
  return tiny.shake(keras.Model(inputs, _layers.Dense(3)(x)), 3)


class OrderTest(parameterized.TestCase):

  def test_a_grouped_convolution_converts_after_grad_cam(self):
    self.check_a_grouped_convolution("grad_cam")

  @parameterized.parameters("nothing", "a tape", "convert")
  @pytest.mark.slow("files")
  def test_a_grouped_convolution_converts(self, before):
    self.check_a_grouped_convolution(before)

  def check_a_grouped_convolution(self, before):
    model, images, classes = _model("groups"), helpers.images(), [0, 1] * 4
    wcam = kap.WCAM("act")
    want = tiny.plain_grad_cam(_model("groups"), images, classes)
    if before == "grad_cam":
      kap.attribution.grad_cam(model, images, classes, "act")
    elif before == "a tape":
      tiny.plain_grad_cam(model, images, classes)
    elif before == "convert":
      kap.export.convert(model, wcam, mode="float32")
    content = kap.export.convert(model, wcam, mode="float32")
    maps = kap.export.Interpreter(content).explain(images, classes).maps
    # Float32 sums in another order.
    np.testing.assert_allclose(maps, want, rtol=1e-4, atol=1e-5)

  def test_rules_reach_into_a_function(self):
    """Quantizers are transparent to a sensitivity after any earlier call."""
    images = 9 * helpers.images()  # Beyond the quantizer's range.
    plain, asked = _model("compiled"), _model("compiled")
    tiny.plain_grad_cam(asked, images, [1] * 8)  # Its gradient is clipped.
    first, second = (kap.attribution.grad_cam(model, images, 1, "act")
                     for model in (plain, asked))
    np.testing.assert_array_equal(first, second)
    # Clipping has no gradient, so the plain tape has another map: far more
    # than rounding.
    self.assertGreater(
        np.abs(first - tiny.plain_grad_cam(plain, images, [1] * 8)).max(), 1e-3)

  def test_functions_are_functions_again(self):
    self.assertFalse(tf.config.functions_run_eagerly())
    kap.attribution.grad_cam(_model("compiled"), helpers.images(), 1, "act")
    self.assertFalse(tf.config.functions_run_eagerly())


if __name__ == "__main__":
  absltest.main()
