"""Relevance and linearization of small models with blocks of larger ones.

The blocks come from the models in tf_keras.applications and their kin, cut
down until a test is cheap.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution.full_grad import full_grad
from keras_attr_preserve.attribution.linearize import linearize
from keras_attr_preserve.attribution.relevance.lrp import lrp, lrp_conservation
from keras_attr_preserve.attribution.relevance.rap import (
    relative_attributing_propagation as rap,
)
from keras_attr_preserve.attribution.saliency import gradient_x_input
from tests import channel_nets, tiny

_layers = keras.layers
_EVEN = ("z_plus_even", "epsilon_plus_even")


def _conv(x, name, filters=6, **settings):
  return channel_nets.conv(x, filters, name, **settings)


def _squeeze_excite(x, gate):
  x = _conv(x, "a", activation="relu6")
  y = _layers.GlobalAveragePooling2D(keepdims=True)(x)
  y = _layers.Conv2D(6, 1, activation=gate)(y)
  return _layers.Multiply()([x, y])


def _pool_of_negative_numbers(x):
  x = _layers.ZeroPadding2D(1)(_conv(x, "a", activation=None))
  return _conv(_layers.MaxPool2D(3, 2)(x), "b")


def _split(x):
  first, second = _layers.Lambda(lambda x: tf.split(x, 2, -1))(_conv(x, "a"))
  return _layers.Concatenate()([second, _conv(first, "b", 3)])


def _depthwise(x):
  """As MobileNets are: padded, with outputs that no input supports."""
  x = _conv(_layers.ZeroPadding2D(1)(x), "a", strides=2, activation="relu6")
  for name in "bc":
    x = _layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = _layers.ReLU(6.0)(_layers.BatchNormalization()(x))
    x = _conv(x, name, size=1, activation="relu6")
  return x


_NETS = {
    "depthwise": _depthwise,
    "bottleneck": lambda x: _layers.Add()([
        _conv(x, "a", activation=None), _conv(x, "b", activation=None)]),
    "swish": lambda x: _conv(x, "a", activation=tf.nn.silu),
    "gelu": lambda x: _conv(x, "a", activation=keras.activations.gelu),
    "hard_swish": lambda x: _layers.Lambda(
        lambda x: x * tf.nn.relu6(x + 3) / 6)(_conv(x, "a", activation=None)),
    "gate": lambda x: _squeeze_excite(x, "sigmoid"),
    "hard_gate": lambda x: _squeeze_excite(x, "hard_sigmoid"),
    "norm_first": lambda x: _conv(_layers.ReLU()(
        _layers.BatchNormalization()(_conv(x, "a", activation=None))), "b"),
    "pool_of_negative_numbers": _pool_of_negative_numbers,
    "global_maximum": lambda x: _layers.GlobalMaxPooling2D(keepdims=True)(
        _conv(x, "a")),
    "upsampled": lambda x: _layers.UpSampling2D(
        2, interpolation="bilinear")(_conv(x, "a")),
    "average_of_padding": lambda x: _layers.AveragePooling2D(3, 2)(
        _layers.ZeroPadding2D(1)(_conv(x, "a", 3))),
    "split": _split,
    "clipped": lambda x: _layers.ReLU(max_value=0.5)(
        _conv(x, "a", activation=None)),
    "threshold": lambda x: _layers.ReLU(threshold=0.2)(
        _conv(x, "a", activation=None)),
    "prelu": lambda x: _layers.PReLU(shared_axes=[1, 2])(
        _conv(x, "a", activation=None)),
    "maximum": lambda x: _layers.Maximum()([_conv(x, "a"), _conv(x, "b")]),
    "positions": lambda x: _layers.Lambda(
        lambda x: x + tf.reshape(tf.range(64.0) / 64, [1, 8, 8, 1]))(
            _conv(x, "a")),
    "dilated": lambda x: _layers.DepthwiseConv2D(
        3, dilation_rate=2, padding="same", activation="relu")(_conv(x, "a")),
    "convolutional_head": lambda x: _layers.Conv2D(4, 1)(
        _layers.GlobalAveragePooling2D(keepdims=True)(_conv(x, "a"))),
}
# Piecewise linear: the affine form is the model.
_LINEAR = ("depthwise", "bottleneck", "norm_first", "pool_of_negative_numbers",
           "global_maximum", "upsampled", "split", "clipped", "threshold",
           "prelu", "maximum", "positions", "dilated", "convolutional_head")
_QUICK_LINEAR = ("depthwise", "pool_of_negative_numbers", "split", "clipped",
                 "prelu", "maximum")


@functools.cache
def _net(name: str) -> keras.Model:
  return channel_nets.net(_NETS[name], seed=3)


def _pictures() -> np.ndarray:
  return tiny.images(3, size=8)


# Others are made of the same operations, or have fewer.
_QUICK = ("depthwise", "bottleneck", "swish", "hard_gate",
          "pool_of_negative_numbers", "average_of_padding", "split",
          "threshold", "positions")


class ConservationTest(parameterized.TestCase):

  @parameterized.parameters(
      *[(net, "z_plus_even") for net in _QUICK],
      ("depthwise", "epsilon_plus_even"))
  def test_even_presets_lose_nothing(self, net, preset):
    self._check_even(net, preset)

  @parameterized.parameters(
      *[(net, "z_plus_even") for net in _NETS if net not in _QUICK],
      ("split", "epsilon_plus_even"))
  @pytest.mark.slow("explaining")
  def test_even_presets_lose_nothing_of_others(self, net, preset):
    self._check_even(net, preset)

  def _check_even(self, name, preset):
    report = lrp_conservation(
        _net(name), _pictures(), preset=preset, bias=False)
    # A score near 0 would make rounding a large share of itself.
    self.assertGreater(np.abs(report.sent).min(), 1e-3)
    # Float32 sums through several layers, over scores of 1e-3 and more.
    np.testing.assert_allclose(report.share, 1, atol=1e-3)

  def test_what_z_plus_loses(self):
    # This model was made to lose relevance. Measured: .96 at most.
    share = lrp_conservation(_net("depthwise"), _pictures(),
                             preset="z_plus").share
    # The even presets keep 1.
    self.assertLess(share.max(), 0.98)

  def test_even_is_z_plus_where_all_is_supported(self):
    model = channel_nets.net(lambda x: _layers.MaxPool2D(2)(
        channel_nets.conv(channel_nets.conv(x, 16, "a"), 16, "b")))
    pictures = np.abs(_pictures())
    for preset, even_preset in zip(("z_plus", "epsilon_plus_flat"), _EVEN):
      # Float32 divisions and sums; the even rules spread what these leave.
      np.testing.assert_allclose(
          lrp(model, pictures, preset=preset),
          lrp(model, pictures, preset=even_preset), rtol=1e-4, atol=1e-5)

  @parameterized.parameters("depthwise", "gate")
  def test_rap_loses_the_last_bias_alone(self, net):
    self._check_rap(net)

  @parameterized.parameters(
      "bottleneck", "norm_first", "pool_of_negative_numbers")
  @pytest.mark.slow("explaining")
  def test_rap_loses_the_last_bias_of_others(self, net):
    self._check_rap(net)

  def _check_rap(self, name):
    model = _net(name)
    sent = lrp_conservation(model, _pictures(), preset="z_plus_even").sent
    bias = model.get_layer("logits").bias.numpy()[
        model(_pictures()).numpy().argmax(1)]
    # Float32 sums of relevance of both signs, larger than the score.
    np.testing.assert_allclose(
        rap(model, _pictures()).sum((1, 2)), sent - bias, atol=2e-3)

  def test_epsilon_is_gradient_times_input(self):
    # So it is for ReLU models; a normalization ahead of its layer is one, too.
    for name in ("norm_first", "bottleneck", "split"):
      # Float32 divisions by sums that may be near 0, which only cancel but for
      # rounding.
      np.testing.assert_allclose(
          lrp(_net(name), _pictures(), preset="epsilon", epsilon=1e-9),
          gradient_x_input(_net(name), _pictures()), rtol=1e-3, atol=1e-4)

  def test_a_head_that_is_a_convolution_of_one_place_follows_its_rule(self):
    # As MobileNet's does: a convolution, to which a preset gives z+.
    x = inputs = keras.Input((8, 8, 2))
    x = _layers.GlobalAveragePooling2D(keepdims=True)(_conv(x, "a"))
    as_conv = keras.Model(
        inputs, _layers.Flatten()(_layers.Conv2D(3, 1, name="logits")(x)))
    as_dense = keras.Model(
        inputs, _layers.Dense(3, name="logits")(_layers.Flatten()(x)))
    channel_nets.settle(as_conv)
    kernel, bias = as_conv.get_layer("logits").get_weights()
    as_dense.get_layer("logits").set_weights([kernel[0, 0], bias])
    # Float32 sums of a convolution and of a Dense layer.
    np.testing.assert_allclose(
        lrp(as_conv, _pictures(), 1, preset="epsilon_plus"),
        lrp(as_dense, _pictures(), 1, preset="z_plus"), rtol=1e-4, atol=1e-6)

  def test_padding_takes_nothing(self):
    # Flat and box in the first layer, behind explicit padding.
    for preset in ("epsilon_plus_flat", "epsilon_plus_box"):
      model = channel_nets.net(
          lambda x: _conv(_layers.ZeroPadding2D(1)(x), "a", 8))
      share = lrp_conservation(
          model, _pictures(), preset=preset, bias=False).share
      # Float32 sums of relevance over the positions, as a share of the score.
      np.testing.assert_allclose(share, 1, atol=1e-3)

  def test_two_gates_or_none(self):
    inputs = keras.Input((4, 4, 2))
    for activation in ("relu", "sigmoid"):
      x = _layers.Multiply()([
          _layers.Conv2D(2, 1, activation=activation)(inputs),
          _layers.Conv2D(2, 1, activation=activation)(inputs)])
      model = keras.Model(inputs, _layers.Dense(2)(_layers.Flatten()(x)))
      with self.assertRaisesRegex(ValueError, "the product .*unless one is"):
        lrp(model, tiny.images(1, size=4))


class PrecisionTest(absltest.TestCase):

  def test_half_and_double_precision(self):
    self._check({
        "lrp": lambda model: lrp(model, _pictures(), 1)})

  @pytest.mark.slow("explaining")
  def test_half_and_double_precision_of_others(self):
    self._check({
        "rap": lambda model: rap(model, _pictures(), 1),
        "full_grad": lambda model: full_grad(model, _pictures(), 1)})

  def _check(self, methods):
    # The residual that is allowed, and how far maps may be from float32's.
    # Float16 keeps 11 bits: each operation rounds by up to 5e-4 of a number.
    limits = {"float32": (1e-5, 0), "mixed_float16": (1e-2, 5e-3),
              "float64": (1e-5, 1e-5)}
    want, weights = {}, None
    for policy, (residual, most) in limits.items():
      keras.mixed_precision.set_global_policy(policy)
      try:
        model = channel_nets.net(lambda x: _layers.MaxPool2D(2)(
            _conv(x, "a", 4)))
      finally:
        keras.mixed_precision.set_global_policy("float32")
      # Float64's moving variances come without Bessel's correction.
      weights = weights or model.get_weights()
      model.set_weights(weights)
      form = linearize(model, _pictures())
      np.testing.assert_allclose(form.residual, 0, atol=residual)
      for name, got in {
          "weights": form.weights, "offset": form.offset,
          **{name: method(model) for name, method in methods.items()}}.items():
        self.assertEqual(got.dtype, np.float32)
        self.assertLessEqual(tiny.relative_error(
            got, want.setdefault(name, got)), most, (policy, name))


class LinearizationTest(parameterized.TestCase):

  @parameterized.parameters(*_QUICK_LINEAR)
  def test_the_affine_form_is_the_net(self, net):
    self._check_affine(net)

  @parameterized.parameters(*sorted({*_LINEAR} - {*_QUICK_LINEAR}))
  @pytest.mark.slow("explaining")
  def test_the_affine_form_is_the_net_of_others(self, net):
    self._check_affine(net)

  def _check_affine(self, name):
    model = _net(name)
    form = linearize(model, _pictures())
    self.assertLess(np.abs(form.residual).max(),
                    1e-5 * max(1, np.abs(form.offset).max()))
    # Float32 sums of a graph and of an eager run.
    np.testing.assert_allclose(form.scores, model(_pictures()), atol=1e-5)

  def test_weights_are_slopes(self):
    for name in ("depthwise", "clipped", "prelu"):
      model, pictures = _net(name), _pictures()[:1]
      form, way = linearize(model, pictures), tiny.images(1, 9, 8)
      for step in (1e-4, -1e-4):
        slope = (model(pictures + step * way).numpy() - form.scores) / step
        # Float32 scores of size 1 over a step of 1e-4 are off by some 1e-3; a
        # kink within the step adds to it.
        np.testing.assert_allclose(
            slope, np.einsum("ikhwc,ihwc->ik", form.weights, way), rtol=2e-2,
            atol=5e-3)

  def test_a_norm_of_what_it_is_given_has_a_residual(self):
    model = channel_nets.net(
        lambda x: _layers.LayerNormalization()(_conv(x, "a")))
    form = linearize(model, _pictures())
    # Far more than the 1e-5 of a piecewise linear model.
    self.assertGreater(np.abs(form.residual).max(), 1e-2)
    # Float32 sums of a graph and of an eager run.
    np.testing.assert_allclose(form.scores, model(_pictures()), atol=1e-5)


if __name__ == "__main__":
  absltest.main()
