"""Tests of left_whole.py and notices.py: layers left are named, and where."""

import contextlib
import inspect
import warnings

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.layer_sparsities import (
    _PRUNED,
    _pruned_by_tfmot,
)
from keras_attr_preserve.utils.left_whole import kernel_size
from tests import tiny

_layers = keras.layers


def _signals():
  """A model of 24 steps of 3: kernels of 30, 48, 12 + 8, 16 + 16 and 6."""
  inputs = keras.Input([24, 3])
  x = _layers.Conv1D(2, 5, padding="causal", name="first")(inputs)
  x = _layers.Conv1D(4, 6, 2, name="second")(x)
  x = _layers.SeparableConv1D(2, 3, name="apart")(x)
  x = _layers.LSTM(2, name="memory")(x)
  return keras.Model(inputs, _layers.Dense(3, name="logits")(x), name="signals")


def _nested():
  inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
  return keras.Model(inputs, _layers.Dense(2, name="top")(
      tiny.conv_net(name="base")(inputs)), name="outer")


class KernelSizeTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("convolution", lambda: _layers.Conv1D(2, 5), [9, 3], 30),
      ("of_1x1", lambda: _layers.Conv2D(1, 1), [9, 9, 1], 1),
      ("separable", lambda: _layers.SeparableConv1D(2, 3), [9, 4], 20),
      ("recurrent", lambda: _layers.LSTM(2), [9, 4], 48),
      ("both_ways", lambda: _layers.Bidirectional(_layers.LSTM(2)), [9, 4], 96),
      ("embedding", lambda: _layers.Embedding(7, 2), [9], 14),
      ("einsum", lambda: _layers.EinsumDense("ab,bc->ac", 5), [3], 15),
      ("normalization", lambda: _layers.BatchNormalization(), [9, 9, 4], 0),
      ("slopes", lambda: _layers.PReLU(), [9, 9, 4], 0))
  def test_by_hand(self, make, shape, want):
    layer = make()
    layer.build((None, *shape))
    self.assertEqual(kernel_size(layer), want)


class ToldTest(parameterized.TestCase):

  @contextlib.contextmanager
  def told(self, want):
    """Layers left in the block, by name, with the weights; and where."""
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      yield
    caught = [warning for warning in caught
              if isinstance(warning.message, kap.LayersLeftWhole)]
    self.assertEqual({name: left.weights for warning in caught
                      for name, left in warning.message.layers.items()}, want)
    for warning in caught:
      self.assertEqual(warning.filename, __file__)
      for name, left in warning.message.layers.items():
        self.assertIn(f"{name!r} ({left.kind}, {left.weights}: {left.why})",
                      str(warning.message))

  def test_layer_sparsities(self):
    with self.told({"apart": 20, "memory": 32}):
      shares = kap.layer_sparsities(_signals(), 0.5)
    self.assertIs(type(shares), dict)
    self.assertEqual([*shares], ["first", "second", "logits"])
    with self.told({}):
      kap.layer_sparsities(_signals(), 0.5, exclude=["apart", "memory"])
    with self.told({"base": 72 + 12}):
      kap.layer_sparsities(_nested(), 0.5)

  def test_the_whole_of_the_sentence(self):
    with self.assertWarnsRegex(
        kap.LayersLeftWhole, "^layer_sparsities leaves 84 of 90 weights in "
        "kernels of model 'outer' as they are: 'base' .Functional, 84: a "
        "model; kap.unnest puts its layers in its place.\\.$"):
      kap.layer_sparsities(_nested(), 0.5)

  def test_prune_layers(self):
    with self.told({"depthwise": 36}):
      kap.prune_layers(
          tiny.conv_net(tail="depthwise"), {"conv": 0.5},
          lambda share: tfmot.sparsity.keras.ConstantSparsity(share, 0))
    with self.assertRaisesRegex(
        ValueError, r"\['depthwise'\] must be 0 or left out: .*DepthwiseConv"):
      kap.prune_layers(
          tiny.conv_net(tail="depthwise"), {"depthwise": 0.5}, None)

  def test_prune_with_reconstruction_of_signals(self):
    """Refitted, layers of smooth signals come nearer than cut by magnitude."""
    model = _signals()
    signals = np.cumsum(np.random.default_rng(0).normal(
        size=[64, 24, 3]).astype("f"), axis=1)
    with self.told({"apart": 20, "memory": 32}):
      student = kap.prune_with_reconstruction(
          model, {"first": 0.5, "second": 0.5}, signals)
    cut = kap.clone_model(model)
    for name in ("first", "second"):
      layer = cut.get_layer(name)
      kernel, bias = layer.get_weights()
      layer.set_weights(
          [kernel * (abs(kernel) > np.median(abs(kernel))), bias])
      self.assertEqual(
          np.mean(student.get_layer(name).get_weights()[0] == 0), 0.5)
    expected, refitted, plain = (
        keras.Model(version.inputs, version.get_layer("second").output)(signals)
        for version in (model, student, cut))
    # Measured: .20. At 1 nothing would be won.
    self.assertLess(tiny.relative_error(refitted, expected),
                    0.5 * tiny.relative_error(plain, expected))
    with self.told({}):
      kap.prune_with_reconstruction(
          model, {"apart": 0, "memory": 0}, signals[:1])

  def test_hold_zeros(self):
    model = tiny.conv_net(tail="depthwise")
    for name in ("conv", "depthwise"):
      weight = model.get_layer(name).weights[0]
      weight.assign(np.where(weight.numpy() > 0, weight, 0))
    with self.told({"depthwise": 36}):
      kap.hold_zeros(model)

  def test_filters(self):
    inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
    x = _layers.Conv2D(4, 1, name="free")(inputs)
    x = _layers.Conv2D(4, 1, name="held")(x)
    x = _layers.Conv2D(4, 1, groups=2, name="groups")(x)
    x = _layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, _layers.Dense(3, name="logits")(x))
    want = {"held": 16, "groups": 8}
    with self.told(want):
      shares = kap.filter_sparsities(model, 0.5, tiny.images(40))
    self.assertIs(type(shares), dict)
    self.assertEqual([*shares], ["free"])
    with self.told(want):
      kap.prune_filters(model, 0.5)
    with self.told({}):
      kap.prune_filters(model, shares)
      kap.prune_filters(model, 0.5, exclude=["held", "groups"])

  def test_equalize_kernels(self):
    with self.told({"depthwise": 36}):
      kap.equalize_kernels(tiny.conv_net(tail="depthwise"))
    with self.told({"hidden": 144 * 5}):
      kap.equalize_kernels(tiny.conv_net(tail="flatten"))

  def test_calibrate_quantizers(self):
    quantization = tfmot.quantization.keras
    model = quantization.quantize_apply(keras.models.clone_model(
        tiny.conv_net(), clone_function=lambda layer: (
            quantization.quantize_annotate_layer(layer)
            if layer.name == "logits" else layer)))
    with self.told({"conv": 72}):
      kap.calibrate_quantizers(model, tiny.images(4))

  @parameterized.parameters(True, False)
  def test_recalibrate_batch_norm(self, trainable):
    model = tiny.conv_net()
    model.get_layer("bn").trainable = trainable
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      kap.recalibrate_batch_norm(model, tiny.images(4))
    self.assertEqual([str(warning.message).endswith("not trainable: bn")
                      for warning in caught], [True] * (not trainable))

  def test_what_tfmot_prunes(self):
    """The table of kinds is tfmot's own."""
    for layer, shape in (
        (_layers.Conv1D(2, 1), [4, 2]), (_layers.Dense(2), [4]),
        (_layers.SeparableConv2D(2, 1), [4, 4, 2]), (_layers.GRU(2), [4, 2]),
        (_layers.DepthwiseConv2D(1), [4, 4, 2]), (_layers.PReLU(), [4]),
        (_layers.Conv1DTranspose(2, 1), [4, 2]),
        (_layers.EinsumDense("ab,bc->ac", 5), [4])):
      want = type(layer) in _PRUNED
      self.assertEqual(_pruned_by_tfmot(layer), want)
      try:
        wrapped = tfmot.sparsity.keras.prune_low_magnitude(layer)
      except ValueError:
        self.assertFalse(want, layer)
        continue
      wrapped.build((None, *shape))
      self.assertEqual(bool(wrapped.pruning_vars), want, layer)
      # As in a model stripped of pruning.
      self.assertEqual(_pruned_by_tfmot(layer), want)


class PlaceTest(absltest.TestCase):

  def test_a_warning_from_deep_inside(self):
    model = tiny.conv_net(tail="flatten")
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      line = inspect.currentframe().f_lineno + 1
      kap.filter_sparsities(model, 0.5, tiny.images(2))
    caught = [warning for warning in caught
              if "positions" in str(warning.message)]
    self.assertNotEmpty(caught)
    for warning in caught:
      self.assertEqual((warning.filename, warning.lineno), (__file__, line))

  def test_a_warning_inside_fit(self):
    model = tiny.smooth_net(1)
    for weight in model.get_layer("conv").weights:
      weight.assign(np.full(weight.shape, -1e4))  # A dead map.
    model.compile(keras.optimizers.SGD(0.0), tiny.cross_entropy(),
                  run_eagerly=True)
    model.get_layer("bn").gamma.assign(tf.zeros(3))
    model.get_layer("bn").beta.assign(tf.fill([3], -1e4))
    with self.assertWarnsRegex(UserWarning, "all zero") as caught:
      model.fit(tiny.images(4, size=4), tiny.labels(4), verbose=0, callbacks=[
          kap.PreserveAttribution(tiny.smooth_net(0), kap.WCAM("act"))])
    self.assertEqual(caught.filename, __file__)


if __name__ == "__main__":
  absltest.main()
