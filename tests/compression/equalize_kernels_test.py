"""Tests of equalize_kernels.py: the same model, with kernels of one size."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import channel_nets as nets
from tests import tiny

_layers = keras.layers
# Scaled kernels and norms round to float32 anew, in layer after layer.
FLOAT32 = 1e-4


def _nested():
  inner = nets.vgg(True)
  inputs = keras.Input(inner.input_shape[1:])
  return keras.Model(inputs, _layers.Activation("tanh")(inner(inputs)))


_NETS = {**nets.NETS, "separable": lambda: nets.separable(2), "nested": _nested}


def _uneven(factor=300.0):
  """Depthwise and pointwise, with channels of very different size."""
  def build(x):
    x = nets.conv(x, 6, "first")
    x = _layers.DepthwiseConv2D(
        3, padding="same", use_bias=False, name="depthwise")(x)
    x = _layers.BatchNormalization(name="depthwise_bn")(x)
    return nets.conv(_layers.ReLU(name="depthwise_act")(x), 4, "pointwise")
  model = nets.net(build)
  for name, axis in (("depthwise", -2), ("pointwise", -1)):
    (kernel,) = model.get_layer(name).get_weights()
    sizes = np.geomspace(1, factor, kernel.shape[axis])
    model.get_layer(name).set_weights(
        [kernel * (sizes[:, None] if axis == -2 else sizes)])
    norm = model.get_layer(f"{name}_bn")
    scale, offset, mean, variance = norm.get_weights()
    norm.set_weights([scale, offset, mean * sizes, variance * sizes ** 2])
  return model


def _sizes(model, name):
  kernel = model.get_layer(name).get_weights()[0]
  axes = 2 if isinstance(
      model.get_layer(name), _layers.DepthwiseConv2D) else 1
  return np.abs(kernel.reshape(
      -1, np.prod(kernel.shape[-axes:]))).max(axis=0)


class EqualizeKernelsTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_the_net_computes_the_same(self, name):
    model = _NETS[name]()
    before = model.get_weights()
    equal = kap.equalize_kernels(model)
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))
    self.assertFalse(tiny.weights_equal(before, equal.get_weights()))
    shape = [16, *model.input_shape[1:]]
    unseen = 3 * np.random.default_rng(7).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(
        equal(unseen), model(unseen), rtol=FLOAT32, atol=FLOAT32)

  def test_it_trains_from_the_same_place(self):
    images = nets.pictures(_uneven(), 64)
    # As one batch: its statistics are the moving ones.
    model = kap.recalibrate_batch_norm(_uneven(), images, batch_size=64)
    equal = kap.equalize_kernels(model)
    np.testing.assert_allclose(
        equal(images, training=True), model(images, training=True),
        atol=FLOAT32)

  def test_every_channel_has_the_size_of_the_largest(self):
    model = _uneven()
    equal = kap.equalize_kernels(model)
    for name in ("first", "depthwise", "pointwise"):
      sizes = _sizes(model, name)
      # Kernels are scaled in float64 and kept in float32.
      np.testing.assert_allclose(
          _sizes(equal, name), np.full(len(sizes), sizes.max()), rtol=1e-5)
    # Only a normalization can make up for it: the head has none.
    self.assertTrue(tiny.weights_equal(
        model.get_layer("logits").get_weights(),
        equal.get_layer("logits").get_weights()))

  def test_eight_bits_are_enough_then(self):
    model, images = _uneven(), nets.pictures(_uneven(), 64)
    errors = []
    for start in (kap.clone_model(model), kap.equalize_kernels(model)):
      student = tfmot.quantization.keras.quantize_model(start)
      kap.calibrate_quantizers(student, images)
      errors.append(np.linalg.norm(student(images) - model(images)))
    self.assertLess(errors[1], errors[0] / 3)

  def test_what_no_normalization_alone_takes_stays(self):
    def build(x):
      x = _layers.Conv2D(4, 3, activation="relu", name="active")(x)
      x = _layers.BatchNormalization(name="active_bn")(x)
      x = _layers.Conv2D(4, 3, padding="same", name="forked")(x)
      y = _layers.BatchNormalization(name="forked_bn")(x)
      x = _layers.Add(name="sum")([x, y])
      x = _layers.Conv2D(
          4, 1, kernel_constraint="unit_norm", name="constrained")(x)
      x = _layers.BatchNormalization(name="constrained_bn")(x)
      x = _layers.Conv2D(4, 1, name="unscaled")(x)
      return _layers.BatchNormalization(scale=False, name="unscaled_bn")(x)
    model = nets.net(build)
    self.assertTrue(tiny.weights_equal(
        model.get_weights(), kap.equalize_kernels(model).get_weights()))

  def test_channels_that_are_zero_stay(self):
    model = _uneven()
    layer = model.get_layer("pointwise")
    (kernel,) = layer.get_weights()
    kernel[..., 1] = 0
    layer.set_weights([kernel])
    equal = kap.equalize_kernels(model)
    self.assertEqual(_sizes(equal, "pointwise")[1], 0)
    images = nets.pictures(model, 8)
    np.testing.assert_allclose(equal(images), model(images), atol=FLOAT32)
    self.assertTrue(all(np.isfinite(x).all() for x in equal.get_weights()))
    layer.set_weights([0 * kernel])
    self.assertTrue(all(np.isfinite(x).all() for x in
                        kap.equalize_kernels(model).get_weights()))

  def test_what_it_does_not_take(self):
    model = _uneven()
    layer = model.get_layer("pointwise")
    layer.set_weights([np.nan * layer.get_weights()[0]])
    with self.assertRaisesRegex(ValueError, "'pointwise' has weights that are"):
      kap.equalize_kernels(model)
    with self.assertRaisesRegex(TypeError, "model"):
      kap.equalize_kernels("net.h5")
    with self.assertRaisesRegex(ValueError, "wrapped by tfmot"):
      kap.equalize_kernels(tiny.quantize(tiny.conv_net()))


if __name__ == "__main__":
  absltest.main()
