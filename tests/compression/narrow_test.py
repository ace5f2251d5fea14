"""Tests of narrow.py."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.narrow import narrow
from tests import channel_nets as nets
from tests import tiny

_layers = keras.layers


def widths(model):
  return {layer.name: layer.output_shape[-1] for layer in model.layers
          if isinstance(layer, (_layers.Conv2D, _layers.Dense))}


class NarrowTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("vgg_bn", lambda: nets.vgg(True), "predictions"),
      ("resnet_8", nets.resnet_8, "logits"),
      ("densenet", nets.densenet, "logits"),
      ("squeeze_excite", lambda: nets.squeeze_excite(True), "logits"),
      ("separable", lambda: nets.separable(1), "logits"))
  def test_every_hidden_width(self, build, head):
    self.check_widths(build(), head)

  @parameterized.named_parameters(
      ("vgg", lambda: nets.vgg(False), "predictions"),
      ("mobilenet_v1", lambda: keras.applications.MobileNet(
          (32, 32, 3), alpha=0.25, weights=None, classes=5), "conv_preds"),
      ("mobilenet_v2", lambda: keras.applications.MobileNetV2(
          (32, 32, 3), alpha=0.35, weights=None, classes=5), "predictions"))
  @pytest.mark.slow("pruning")
  def test_every_hidden_width_of(self, build, head):
    self.check_widths(build(), head)

  def check_widths(self, model, head):
    for width in (1 / 2, 1 / 8, 0.001):
      student = narrow(model, width)
      want = widths(model)
      for name, channels in want.items():
        if name != head and not isinstance(
            model.get_layer(name), _layers.DepthwiseConv2D):
          self.assertEqual(
              widths(student)[name], max(1, round(width * channels)), name)
      self.assertEqual(widths(student)[head], want[head])
      self.assertEqual([layer.name for layer in student.layers],
                       [layer.name for layer in model.layers])
      self.assertEqual(student.output_shape, model.output_shape)
      images = nets.pictures(model, 2)
      self.assertTrue(np.isfinite(student(images)).all())

  def test_the_map_layers_keep_their_size(self):
    student = narrow(nets.resnet_8(), 1 / 4)
    self.assertEqual(student.get_layer("s1_act").output_shape, (None, 4, 4, 3))

  def test_weights_are_fresh(self):
    model = nets.settle(tiny.conv_net(tail="block"))
    before = model.get_weights()
    keras.utils.set_random_seed(1)
    first, second = narrow(model, 1), narrow(model, 1)
    keras.utils.set_random_seed(1)
    again = narrow(model, 1)
    self.assertTrue(tiny.weights_equal(model.get_weights(), before))
    kernels = [version.get_layer("conv2").kernel.numpy()
               for version in (model, first, second, again)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
      # Kernels that were copied, or drawn alike, would differ by 0.
      self.assertGreater(np.abs(kernels[i] - kernels[j]).max(), 0.01)
    np.testing.assert_array_equal(kernels[1], kernels[3])
    norm = first.get_layer("bn")
    np.testing.assert_array_equal(norm.moving_mean, 0 * norm.moving_mean)

  def test_what_was_measured_on_the_data_stays(self):
    norm = _layers.Normalization(name="norm")
    norm.adapt(3 + tiny.images(16, size=8))
    inputs = keras.Input((8, 8, 2))
    x = _layers.GlobalAveragePooling2D()(nets.conv(norm(inputs), 8, "conv"))
    student = narrow(keras.Model(inputs, _layers.Dense(3)(x)), 1 / 2)
    images = 3 + tiny.images(2, size=8, seed=1)
    np.testing.assert_array_equal(
        student.get_layer("norm")(images), norm(images))
    # It takes off a mean of about 3; a norm that is not adapted takes nothing.
    self.assertGreater(np.abs(norm(images) - images).min(), 0.1)

  def test_is_taught(self):
    teacher = nets.settle(tiny.conv_net(width=8, tail="block"))
    student = narrow(teacher, 1 / 2)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True),
                    run_eagerly=True)
    history = student.fit(
        tiny.images(8), tiny.labels(8), verbose=0,
        callbacks=[kap.PreserveAttribution(
            teacher, kap.WCAM("act2"), distillation=kap.Distillation())])
    self.assertTrue(np.isfinite(history.history["attr_loss"]).all())

  def test_a_single_channel_that_gates_all_others(self):
    self.assertEqual(widths(narrow(nets.merges(), 1 / 2))["spot"], 1)

  def test_what_is_added_to_the_pictures_keeps_their_channels(self):
    def build(x):
      return nets.conv(_layers.Add()([x, nets.conv(x, 2, "tied")]), 8, "free")
    self.assertEqual(widths(narrow(nets.net(build), 1 / 2)),
                     {"tied": 2, "free": 4, "logits": 3})


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(0, -1, 1.5, float("nan"), "1/2", None, True)
  def test_width(self, width):
    with self.assertRaisesRegex(
        ValueError, "width must be a number above 0 and at most 1; got"):
      narrow(tiny.conv_net(), width)

  @parameterized.named_parameters(
      ("lambda", lambda x: _layers.Lambda(lambda maps: maps, name="l")(x),
       "'conv' cannot be made narrower.*layer 'l' .Lambda"),
      ("grouped", lambda x: _layers.Conv2D(8, 3, groups=2, name="g")(x),
       "'conv' cannot be made narrower.*'g', a convolution in 2 groups"),
      ("reshape", lambda x: _layers.Reshape((8, 16, 4), name="r")(x),
       "'conv' cannot be made narrower.*layer 'r' .Reshape"))
  def test_what_is_bound(self, act, message):
    with self.assertRaisesRegex(ValueError, message):
      narrow(nets.net(lambda x: act(nets.conv(x, 8, "conv"))), 1 / 2)

  def test_a_nested_model(self):
    inputs = keras.Input((tiny.SIZE, tiny.SIZE, 2))
    x = _layers.Dense(3)(tiny.conv_net()(inputs))
    with self.assertRaisesRegex(
        ValueError, "layer 'net' .Functional. has weights, and how to make it"):
      narrow(keras.Model(inputs, x), 1 / 2)

  def test_nothing_hidden(self):
    inputs = keras.Input((4,))
    with self.assertRaisesRegex(ValueError, "has no hidden layer to narrow"):
      narrow(keras.Model(inputs, _layers.Dense(3)(inputs)), 1 / 2)

  def test_wrapped(self):
    with self.assertRaisesRegex(ValueError, "is wrapped by tfmot"):
      narrow(tfmot.quantization.keras.quantize_model(tiny.conv_net()), 1 / 2)

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      narrow(keras.layers.Dense(2), 1 / 2)


if __name__ == "__main__":
  absltest.main()
