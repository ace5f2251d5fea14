"""Tests of lrp.py, graph.py and excitation_backprop.py."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution.relevance.excitation_backprop import (
    excitation_backprop,
)
from keras_attr_preserve.attribution.relevance.lrp import (
    PRESETS,
    lrp,
    lrp_conservation,
)
from tests import channel_nets, tiny

_layers = keras.layers
# Numbers by hand: float32 rounding, and a stabilizer of 1e-6 in denominators
# of 3 to 10.
BY_HAND = 1e-4
# Float32 sums in another order, of another graph or batch size.
FLOAT32 = 1e-5


def _matrix(layers, shape):
  """A chain of layers that is linear, as a matrix and a bias, float64."""
  size = int(np.prod(shape))
  basis = np.concatenate([np.zeros([1, size]), np.eye(size)])
  x = tf.constant(basis.reshape([-1, *shape]), tf.float32)
  for layer in layers:
    x = layer(x)
  rows = x.numpy().reshape(size + 1, -1).astype(np.float64)
  return rows[1:] - rows[0], rows[0], x.shape[1:]


def _by_matrices(model, image, target, rules):
  """LRP of a plain chain of linear stages with ReLUs between, in NumPy.

  Args:
    model: its layers end each stage but the last with a ReLU.
    image: `[height, width, channels]`.
    target: the class explained.
    rules: of each stage, from the first, (name, alpha, beta).

  Returns:
    The relevance of the image, of its shape.
  """
  stages, chain = [], []
  for layer in model.layers[1:]:
    if isinstance(layer, _layers.ReLU):
      stages.append(chain)
      chain = []
    else:
      chain.append(layer)
  stages.append(chain)
  shape, x, steps = image.shape, image.reshape(-1).astype(np.float64), []
  for number, chain in enumerate(stages):
    matrix, bias, shape = _matrix(chain, shape)
    steps.append((x, matrix, bias))
    x = x @ matrix + bias
    if number + 1 < len(stages):
      x = np.maximum(x, 0)
  relevance = x * np.eye(len(x))[target]
  for (x, matrix, bias), rule in zip(reversed(steps), reversed(rules)):
    z = x[:, None] * matrix
    plus, minus = np.maximum(z, 0), np.minimum(z, 0)
    def share(parts, total, arrived=relevance):
      safe = np.where(total == 0, 1, total)
      return (parts * np.where(total == 0, 0, arrived / safe)).sum(1)
    if rule == "epsilon":
      relevance = share(z, z.sum(0) + bias)
    elif rule == "z_plus":
      relevance = share(plus, plus.sum(0))
    elif rule == "alpha_beta":
      relevance = (
          2 * share(plus, plus.sum(0) + np.maximum(bias, 0))
          - share(minus, minus.sum(0) + np.minimum(bias, 0)))
    elif rule == "flat":
      ones = (matrix != 0).astype(float)
      relevance = share(ones, ones.sum(0))
  return relevance.reshape(image.shape)


def _chain(seed=0, strides=2, depthwise=False):
  """Conv-BN-ReLU twice, Flatten and two dense layers; ReLU as layers."""
  inputs = keras.Input([6, 6, 2])
  x = _layers.Conv2D(3, 3, padding="same")(inputs)
  x = _layers.BatchNormalization()(x)
  x = _layers.ReLU()(x)
  if depthwise:
    x = _layers.DepthwiseConv2D(3, strides, "same", depth_multiplier=2)(x)
  else:
    x = _layers.Conv2D(4, 3, strides, use_bias=False)(x)
  x = _layers.BatchNormalization(scale=False)(x)
  x = _layers.ReLU()(x)
  x = _layers.Flatten()(x)
  x = _layers.Dense(5)(x)
  x = _layers.ReLU()(x)
  x = _layers.Dense(3)(x)
  return tiny.shake(keras.Model(inputs, x), seed)


# The layers of each model, for images [8, 8, 2].
_SHAPES = {
    "residual": lambda x: _layers.ReLU()(_layers.Add()([
        channel_nets.conv(x, 4, "a"), channel_nets.conv(x, 4, "b")])),
    "concatenated": lambda x: _layers.Concatenate()([
        channel_nets.conv(x, 3, "a"), channel_nets.conv(x, 4, "b")]),
    "averaged": lambda x: _layers.AveragePooling2D(2)(
        channel_nets.conv(x, 6, "a")),
    "relu6": lambda x: channel_nets.conv(x, 6, "a", activation="relu6"),
    "maximum": lambda x: _layers.Reshape((1, 1, 6))(
        _layers.GlobalMaxPooling2D()(channel_nets.conv(x, 6, "a"))),
    "padded": lambda x: channel_nets.conv(
        _layers.ZeroPadding2D(1)(x), 6, "a", strides=2),
    "rescaled": lambda x: channel_nets.conv(
        _layers.Rescaling(2.0, 0.5)(x), 6, "a"),
}
# First rules that must leave padding out, and the rules of the layers behind.
_QUICK = ("z_plus", "epsilon_plus_flat", "epsilon_plus_even",
          "epsilon_plus_box")


class LrpTest(parameterized.TestCase):

  @parameterized.parameters(
      ("epsilon", False), ("z_plus", True), ("alpha_beta", False),
      ("epsilon_plus", True), ("epsilon_alpha2_beta1", True))
  def test_equals_matrices(self, preset, depthwise):
    self._check_matrices(preset, depthwise)

  @parameterized.parameters(
      ("epsilon", True), ("z_plus", False), ("alpha_beta", True),
      ("epsilon_plus", False), ("epsilon_alpha2_beta1", False))
  @pytest.mark.slow("explaining")
  def test_equals_matrices_of_the_other_convolution(self, preset, depthwise):
    self._check_matrices(preset, depthwise)

  def _check_matrices(self, preset, depthwise):
    model = _chain(depthwise=depthwise)
    # Scores are positive, so that z+ has something to share out.
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([np.abs(kernel), bias])
    image = tiny.images(1, size=6)[0]
    inner = {"epsilon_plus": "z_plus",
             "epsilon_alpha2_beta1": "alpha_beta"}.get(preset, preset)
    dense = preset if preset == inner else "epsilon"
    for target in (0, 2):
      want = _by_matrices(model, image, target, [inner, inner, dense, dense])
      got = lrp(model, image[None], target, preset=preset, epsilon=1e-9)
      # A relevance of nothing would agree with nothing: scores are of size 1.
      self.assertGreater(np.abs(want).max(), 1e-3)
      # The matrices are differences of float32 outputs, and denominators near
      # zero magnify their rounding.
      np.testing.assert_allclose(
          got[0], want.sum(-1), rtol=2e-3, atol=1e-4 * np.abs(want).max())

  def test_relevance_of_a_layer(self):
    model = _chain()
    image = tiny.images(1, size=6)
    name = model.layers[3].name  # The first ReLU.
    tail = keras.Model(model.layers[3].output, model.output)
    features = keras.Model(model.input, model.layers[3].output)(image).numpy()
    got = lrp(model, image, 1, name, preset="epsilon", epsilon=1e-9)
    want = _by_matrices(tail, features[0], 1, ["epsilon"] * 3).sum(-1)
    # As above: differences of float32 outputs, over small denominators.
    np.testing.assert_allclose(got[0], want, rtol=2e-3, atol=1e-5)

  @parameterized.parameters("z_plus", "epsilon_plus", "epsilon_plus_flat",
                            "epsilon_plus_box")
  def test_nothing_is_lost(self, preset):
    # Wide enough for every active neuron to have a positive input.
    model = channel_nets.net(lambda x: _layers.MaxPool2D(2)(
        channel_nets.conv(channel_nets.conv(x, 16, "a"), 16, "b")))
    pictures = np.abs(tiny.images(5, size=8))
    report = lrp_conservation(model, pictures, preset=preset, bias=False)
    # Stabilizers of 1e-9 and 1e-6 in denominators take a little, and float32
    # sums over the map round.
    np.testing.assert_allclose(report.share, 1, atol=1e-3)
    # The same scores, traced into a graph: float32 sums in another order.
    np.testing.assert_allclose(
        report.sent, model(pictures).numpy().max(1), rtol=1e-4)

  @parameterized.parameters(*_QUICK)
  def test_padding_is_no_pixel(self, preset):
    self._check_padding(preset)

  @parameterized.parameters(*sorted({*PRESETS} - {*_QUICK}))
  @pytest.mark.slow("explaining")
  def test_padding_is_no_pixel_of_other_presets(self, preset):
    self._check_padding(preset)

  def _check_padding(self, preset):
    # One model in two spellings. The border's relevance was once lost to zeros
    # that a layer of its own had put around the image, under flat and box.
    inputs = keras.Input([5, 5, 2])
    nets = []
    for before, how in ((lambda x: x, "same"),
                        (_layers.ZeroPadding2D(1), "valid")):
      x = _layers.ReLU()(_layers.Conv2D(4, 3, padding=how)(before(inputs)))
      x = _layers.Dense(3)(_layers.GlobalAveragePooling2D()(x))
      nets.append(tiny.shake(keras.Model(inputs, x)))
    pictures = 1 + np.abs(tiny.images(3, size=5))
    first, second = (lrp(model, pictures, preset=preset) for model in nets)
    # Float32 sums over the same pixels in another order.
    np.testing.assert_allclose(
        second, first, rtol=1e-4, atol=1e-5 * np.abs(first).max())

  def test_gamma_by_hand(self):
    # Contributions 1*2 = 2, 2*(-3) = -6, -1*(-5) = 5, bias 1: score 2, positive
    # ones are favoured twice (gamma 1): (4 - 6 + 10 + 2) = 10, score / 10 = .2.
    # Of class 1: 1*(-2), 2*1, -1*3, bias -1, score -4, negative ones twice:
    # (-4 + 2 - 6 - 2) = -10, -4 / -10 = .4.
    model = keras.Sequential([
        _layers.Flatten(input_shape=(1, 3, 1)), _layers.Dense(2)])
    model.set_weights([np.float32([[2, -2], [-3, 1], [-5, 3]]),
                       np.float32([1, -1])])
    image = np.float32([[[[1], [2], [-1]]]])
    for target, want in ((0, [0.8, -1.2, 2]), (1, [-1.6, 0.8, -2.4])):
      got = lrp(model, image, target, preset="gamma", gamma=1.0)
      np.testing.assert_allclose(got, [[want]], rtol=BY_HAND)
    # Without the bias: 2 / (4 - 6 + 10) = .25 of 1, and all of it arrives.
    got = lrp(model, image, 0, preset="gamma", gamma=1.0, bias=False)
    np.testing.assert_allclose(got, [[[1, -1.5, 2.5]]], rtol=BY_HAND)

  def test_gamma_lies_between_epsilon_and_z_plus(self):
    model = _chain()
    kernel, bias = model.layers[-1].get_weights()
    # Positive scores: of a negative one, gamma favours negative relevance.
    model.layers[-1].set_weights([np.abs(kernel), np.abs(bias)])
    pictures = np.abs(tiny.images(4, size=6))
    def maps(preset, gamma=0.25):
      return lrp(model, pictures, preset=preset, gamma=gamma, bias=False)
    # The same formula in two parts: denominators near zero magnify float32
    # rounding.
    np.testing.assert_allclose(
        maps("gamma", 0.0), maps("epsilon"), rtol=1e-3, atol=1e-4)
    # A gamma of 1e6 leaves a millionth of what z+ drops, besides float32
    # rounding over small denominators.
    np.testing.assert_allclose(
        maps("gamma", 1e6), maps("z_plus"), rtol=1e-3, atol=1e-4)

  def test_a_bias_absorbs(self):
    model = keras.Sequential([
        _layers.Flatten(input_shape=(1, 2, 1)), _layers.Dense(1)])
    model.set_weights([np.float32([[1], [2]]), np.float32([3])])
    image = np.float32([[[[1], [1]]]])
    np.testing.assert_allclose(
        lrp(model, image, 1, preset="epsilon"), [[[1, 2]]], rtol=BY_HAND)
    np.testing.assert_allclose(
        lrp(model, image, 1, preset="epsilon", bias=False),
        [[[2, 4]]], rtol=BY_HAND)

  @parameterized.parameters(*_SHAPES)
  def test_shapes_of_nets(self, name):
    model = channel_nets.net(_SHAPES[name])
    pictures = np.abs(tiny.images(3, size=8))
    report = lrp_conservation(
        model, pictures, preset="epsilon_plus", bias=False)
    # Stabilizers take more where few channels make a small sum; a branch left
    # out would take a large share.
    np.testing.assert_allclose(report.share, 1, atol=1e-2)
    # Each preset on some shape; on every one it is slow.
    self._check_finite(
        model, pictures, PRESETS[[*_SHAPES].index(name)::len(_SHAPES)])

  @parameterized.parameters(*_SHAPES)
  @pytest.mark.slow("explaining")
  def test_every_preset_on_every_shape(self, name):
    self._check_finite(channel_nets.net(_SHAPES[name]),
                       np.abs(tiny.images(3, size=8)), PRESETS)

  def _check_finite(self, model, pictures, presets):
    for preset in presets:
      maps = lrp(model, pictures, preset=preset, bias=False)
      self.assertEqual(maps.shape, (3, 8, 8))
      self.assertTrue(np.isfinite(maps).all())

  def test_wrapped_nets(self):
    model = tiny.conv_net(tail="block")
    pictures = tiny.images(3)
    plain = lrp(model, pictures, 1)
    pruned = tiny.prune(tiny.copy_of(model), 0.0)
    np.testing.assert_allclose(lrp(pruned, pictures, 1), plain, atol=FLOAT32)
    quantized = tiny.quantize(tiny.copy_of(model))
    for _ in range(3):
      quantized(pictures, training=True)
    close = lrp(quantized, pictures, 1)
    # Steps of 8 bits move each map, and so do moving statistics after three
    # batches of training. Measured: .9855 at worst.
    self.assertGreater(
        (tiny.unit(close) * tiny.unit(plain)).sum(1).min(), 0.97)

  @parameterized.parameters("softmax", "softmax_layer")
  def test_heads_are_seen_through(self, head):
    pictures = tiny.images(3)
    np.testing.assert_allclose(
        lrp(tiny.conv_net(head=head), pictures, 2),
        lrp(tiny.conv_net(), pictures, 2), atol=FLOAT32)

  def test_a_class_for_each_image(self):
    model, pictures = tiny.conv_net(), tiny.images(3)
    got = lrp(model, pictures, [2, 0, 1], batch_size=2)
    each = [lrp(model, pictures[[i]], k)[0] for i, k in enumerate([2, 0, 1])]
    np.testing.assert_allclose(got, each, atol=FLOAT32)

  def test_an_operation_without_a_rule(self):
    inputs = keras.Input([4, 4, 2])
    x = _layers.LayerNormalization()(inputs)
    x = _layers.Dense(2)(_layers.Flatten()(x))
    with self.assertRaisesRegex(ValueError, "no relevance rule"):
      lrp(keras.Model(inputs, x), tiny.images(1, size=4))

  def test_bad_settings(self):
    model, pictures = tiny.conv_net(), tiny.images(1)
    with self.assertRaisesRegex(ValueError, "preset must be one of"):
      lrp(model, pictures, preset="delta")
    with self.assertRaisesRegex(ValueError, "gamma must be 0 or more"):
      lrp(model, pictures, preset="gamma", gamma=-0.1)
    with self.assertRaisesRegex(ValueError, "alpha must be beta"):
      lrp(model, pictures, preset="alpha_beta", alpha=2.0, beta=2.0)
    with self.assertRaisesRegex(ValueError, "epsilon must be above 0"):
      lrp(model, pictures, epsilon=0.0)


class ExcitationBackpropTest(absltest.TestCase):

  def test_by_hand(self):
    # Class 0 reads pixels 1 and 2 by 1*2 and 3*1, not the third, negative one.
    model = keras.Sequential([
        _layers.Flatten(input_shape=(1, 3, 1)), _layers.Dense(2)])
    model.set_weights([np.float32([[2, 0], [1, 0], [-4, 1]]),
                       np.float32([9, 9])])
    image = np.float32([[[[1], [3], [2]]]])
    # Float32 rounding of three terms; the stabilizer is 1e-9.
    np.testing.assert_allclose(
        excitation_backprop(model, image, 0), [[[0.4, 0.6, 0]]], atol=1e-6)
    np.testing.assert_allclose(
        excitation_backprop(model, image, np.float32([[1, -1]])),
        [[[0.4, 0.6, -1]]], atol=1e-6)

  def test_equals_matrices(self):
    model, image = _chain(), tiny.images(1, size=6)[0]
    got = excitation_backprop(model, image[None], 1)
    score = model(image[None]).numpy()[0, 1]
    want = _by_matrices(model, image, 1, ["z_plus"] * 4).sum(-1) / score
    # The matrices are differences of float32 outputs; z+ sums have one sign,
    # so nothing cancels.
    np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-6)
    # Float32 sums over 36 pixels; no part of the walk ends on its way.
    self.assertAlmostEqual(float(got.sum()), 1, places=4)


if __name__ == "__main__":
  absltest.main()
