"""Tests of unnest.py: the same model in one graph, for every compression."""

import os
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import tiny

_layers = keras.layers
_SIZE = 8
_quantization = tfmot.quantization.keras
# Float32: a division becomes a product by the reciprocal, in a graph that
# sums in another order.
FLOAT32 = 1e-4


def _base(name="base", channels=2):
  """A model with residual sum and batch normalizations, as pretrained ones."""
  inputs = keras.Input((_SIZE, _SIZE, channels))
  x = _layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
  x = _layers.BatchNormalization(name="bn")(x)
  x = y = _layers.ReLU(name="act")(x)
  x = _layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv2")(x)
  x = _layers.BatchNormalization(name="bn2")(x)
  x = _layers.Add(name="sum")([x, y])
  return keras.Model(inputs, _layers.ReLU(name="act2")(x), name=name)


def _head(x):
  x = _layers.GlobalAveragePooling2D(name="pool")(x)
  return _layers.Dense(3, name="logits")(x)


def _transfer(training=False):
  """As in TensorFlow's guide to transfer learning."""
  inputs = keras.Input((_SIZE, _SIZE, 2), name="pictures")
  x = keras.Sequential([_layers.RandomFlip("horizontal", name="flip"),
                        _layers.RandomRotation(0.2, name="turn")])(inputs)
  x = x / 127.5 - 1
  x = _base()(x, training=training)
  return keras.Model(inputs, _head(x), name="transfer")


def _sequential():
  return keras.Sequential([
      keras.Input((_SIZE, _SIZE, 2)),
      keras.Sequential([_layers.Rescaling(2.0), _layers.Conv2D(2, 1)]),
      _base(), _layers.GlobalAveragePooling2D(), _layers.Dense(3)])


def _deep():
  inputs = keras.Input((_SIZE, _SIZE, 2))
  outer = keras.Model(inputs, _layers.MaxPooling2D()(_base("inner")(inputs)))
  other = keras.Input((_SIZE, _SIZE, 2))
  return keras.Model(other, _head(outer(other)))


def _twice():
  """One base, called twice, its outputs read in another order."""
  inputs = keras.Input((_SIZE, _SIZE, 2))
  base = _base()
  return keras.Model(inputs, _head(_layers.Concatenate()(
      [base(_layers.ReLU()(inputs)), base(inputs)])))


def _two_of_a_kind():
  """Two bases whose layers have the same names."""
  inputs = keras.Input((_SIZE, _SIZE, 2))
  return keras.Model(inputs, _head(
      _base("second", 6)(_base("first")(inputs))))


def _last():
  """The model held gives the scores."""
  inputs = keras.Input((_SIZE, _SIZE, 2))
  inner = keras.Input((_SIZE, _SIZE, 6))
  return keras.Model(
      inputs, keras.Model(inner, _head(inner))(_base()(inputs)))


def _several_inputs():
  """A model held that takes two tensors, and operators on both."""
  inputs = [keras.Input((_SIZE, _SIZE, 2)) for _ in range(2)]
  inner = [keras.Input((_SIZE, _SIZE, 2)) for _ in range(2)]
  held = keras.Model(inner, inner[0] * inner[1] + inner[1])
  return keras.Model(inputs[0], _head(_base()(
      held([inputs[0], _layers.ReLU()(inputs[0])]))))


def _operators():
  """Operators on numbers, arrays, one tensor and two, either way round."""
  inputs = keras.Input((_SIZE, _SIZE, 2))
  x = 2.0 - inputs * 3 + 1 / (4 + inputs * inputs)
  x = (x - inputs) * np.float32([1, 2]) / np.float32(7) + (x + x)
  x = tf.nn.relu(tf.concat([x, -inputs], axis=-1))[..., ::2]
  x = tf.math.subtract(x, 0.5) - tf.reduce_mean(x, [1, 2], keepdims=True)
  x = tf.add(x, tf.reduce_mean(x, [0, 1, 2])) / (1 + x * x)
  return keras.Model(inputs, _head(_base()(x)))


_NETS = {make.__name__[1:]: make for make in (
    _transfer, _sequential, _deep, _twice, _two_of_a_kind, _last,
    _several_inputs, _operators)}


def _made(name):
  return tiny.shake(_NETS[name](), 1)


def _flat(model):
  return not any(isinstance(layer, keras.Model) for layer in model.layers)


class UnnestTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_computes_the_same(self, name):
    model, images = _made(name), 100 * tiny.images(6, size=_SIZE)
    before = model.get_weights()
    calls = [len(layer.inbound_nodes) for layer in model.layers]
    copy = kap.unnest(model)
    self.assertTrue(_flat(copy))
    self.assertFalse(_flat(model))
    np.testing.assert_allclose(
        copy(images, training=False), model(images, training=False),
        rtol=FLOAT32, atol=FLOAT32)
    self.assertEqual(copy.input_names, model.input_names)
    # Nothing is shared, and the model is as it was.
    copy.set_weights([weight + 1 for weight in copy.get_weights()])
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))
    self.assertEqual(
        calls, [len(layer.inbound_nodes) for layer in model.layers])
    self.assertEqual(sum(weight.size for weight in before),
                     sum(weight.size for weight in copy.get_weights()))

  @parameterized.parameters("deep", "twice", "two_of_a_kind", "last")
  def test_trains_the_same(self, name):
    model, images = _made(name), tiny.images(6, size=_SIZE)
    copy = kap.unnest(model)
    self.assert_apart(model(images, training=True),
                           model(images, training=False))
    np.testing.assert_allclose(
        copy(images, training=True), model(images, training=True), atol=FLOAT32)

  def assert_apart(self, one, other):
    # A hundred times FLOAT32: other statistics, not another order of sums.
    self.assertGreater(np.abs(np.asarray(one) - np.asarray(other)).max(), 1e-2)

  def test_inference_mode(self):
    model, images = _transfer(), 100 * tiny.images(6, size=_SIZE)
    tiny.shake(model, 1)
    still = model(images, training=False)
    frozen, lifted = (
        kap.unnest(model, keep_augmentation=False, keep_inference_mode=keep)
        for keep in (True, False))
    np.testing.assert_allclose(
        frozen(images, training=True), still, atol=FLOAT32)
    np.testing.assert_allclose(
        lifted(images, training=False), still, atol=FLOAT32)
    self.assert_apart(lifted(images, training=True), still)

  def test_augmentation(self):
    model, images = _made("transfer"), 100 * tiny.images(6, size=_SIZE)
    def random(net):
      return [layer.name for layer in net.layers
              if type(layer).__name__.startswith("Random")]

    self.assertEqual(random(kap.unnest(model)), ["flip", "turn"])
    without = kap.unnest(model, keep_augmentation=False)
    self.assertEmpty(random(without))
    np.testing.assert_allclose(
        without(images), model(images, training=False), atol=FLOAT32)

  def test_names(self):
    names = [layer.name for layer in kap.unnest(_made("two_of_a_kind")).layers]
    self.assertIn("conv", names)
    self.assertIn("second_conv", names)
    copy = kap.unnest(_made("transfer"))
    self.assertEqual(
        [type(layer).__name__ for layer in copy.layers[3:5]], ["Rescaling"] * 2)
    self.assertEqual(copy.name, "transfer")

  @parameterized.parameters("act2", "conv", "conv2", "pool")
  def test_start(self, start):
    model, images = _made("transfer"), 100 * tiny.images(6, size=_SIZE)
    whole, rest = kap.unnest(model), kap.unnest(model, start=start)
    taken = keras.Model(whole.inputs, whole.get_layer(start).input)(
        images, training=False)
    np.testing.assert_allclose(
        rest(taken), model(images, training=False), atol=FLOAT32)
    self.assertEqual(rest.layers[1].name, start)
    for layer in rest.layers:
      self.assertLen(layer.inbound_nodes, 1)

  @parameterized.parameters(
      ("bn2", "leads past 'bn2'"), ("nothing", "one of .*'nothing'"))
  def test_no_start(self, start, text):
    with self.assertRaisesRegex(ValueError, f"start must .*{text}"):
      kap.unnest(_made("transfer"), start=start)

  def test_operators_become_layers(self):
    kinds = [type(layer).__name__ for layer in kap.unnest(_operators()).layers]
    count = {kind: kinds.count(kind) for kind in (
        "Rescaling", "Add", "Subtract", "Multiply")}
    self.assertEqual(
        count, {"Rescaling": 5, "Add": 4, "Subtract": 2, "Multiply": 2})

  def test_is_saved_and_loaded(self):
    copy, images = kap.unnest(_made("transfer")), tiny.images(3, size=_SIZE)
    with tempfile.TemporaryDirectory() as folder:
      for ending in ("h5", "keras"):
        path = os.path.join(folder, f"copy.{ending}")
        copy.save(path)
        loaded = keras.models.load_model(path, compile=False)
        np.testing.assert_array_equal(
            loaded(images, training=False), copy(images, training=False))

  def test_trainable_or_not(self):
    model = _transfer()
    model.get_layer("base").get_layer("conv").trainable = False
    copy = kap.unnest(model)
    self.assertFalse(copy.get_layer("conv").trainable)
    self.assertTrue(copy.get_layer("conv2").trainable)
    model.get_layer("base").trainable = False
    self.assertFalse(kap.unnest(model).get_layer("conv2").trainable)

  def test_a_model_without_a_graph(self):
    class Held(keras.Model):
      def call(self, inputs):
        return inputs

    inputs = keras.Input((_SIZE, _SIZE, 2))
    with self.assertRaisesRegex(ValueError, "model holds 'held' .Held."):
      kap.unnest(keras.Model(inputs, _head(Held(name="held")(inputs))))

  def test_losses_and_wrappers(self):
    model = _made("deep")
    model.add_loss(keras.backend.mean(model.output))
    with self.assertRaisesRegex(ValueError, "loss or metric of its own"):
      kap.unnest(model)
    with self.assertRaisesRegex(ValueError, "strip"):
      kap.unnest(tiny.prune(tiny.conv_net()))
    with self.assertRaises(TypeError):
      kap.unnest("model")


class CompressedTest(parameterized.TestCase):
  """Compression skips a base that is one layer; it reaches the copy."""

  def setUp(self):
    super().setUp()
    self.model = _made("transfer")
    self.images, self.labels = (
        100 * tiny.images(60, size=_SIZE), tiny.labels(60))
    self.student = kap.unnest(
        self.model, keep_augmentation=False, keep_inference_mode=False)

  def fit(self, student, least, **hints):
    """Trains for an epoch; the agreement must be above the least."""
    student.compile(keras.optimizers.Adam(1e-4),
                    keras.losses.SparseCategoricalCrossentropy(True),
                    run_eagerly=True)
    logs = student.fit(
        self.images, self.labels, verbose=0,
        callbacks=[kap.PreserveAttribution(
            self.model, kap.WCAM("act2"), hints=kap.Hints(**hints))]).history
    # The copy starts as the model, less the loss by compression. Fifteen models
    # of fresh weights came to .82 at most.
    self.assertGreater(logs["attr_agreement"][0], least)
    file = kap.export.convert(student, kap.WCAM("act2"), mode="int8",
                              representative_images=self.images)
    maps, logits = kap.export.Interpreter(file).explain(self.images[:4])
    self.assertTrue(np.isfinite(maps).all() and np.isfinite(logits).all())

  @pytest.mark.slow("pruning")
  def test_weights(self):
    with self.assertWarnsRegex(UserWarning, "'base' .*: a model; kap.unnest"):
      self.assertEqual([*kap.layer_sparsities(self.model, 0.5)], ["logits"])
    shares = kap.layer_sparsities(self.student, 0.5)
    self.assertEqual([*shares], ["conv", "conv2", "logits"])
    pruned = kap.prune_with_reconstruction(self.student, shares, self.images)
    self.assertGreater(
        np.sum(pruned.get_layer("conv2").get_weights()[0] == 0), 0)
    # Measured: .9977.
    self.fit(kap.hold_zeros(kap.recalibrate_batch_norm(pruned, self.images)),
             least=0.995)

  @pytest.mark.slow("pruning")
  def test_filters(self):
    with self.assertRaisesRegex(ValueError, "no filter that is free.*unnest"):
      kap.filter_sparsities(self.model, 0.5, self.images)
    shares = kap.filter_sparsities(self.student, 0.5, self.images)
    student, channels = kap.prune_filters(
        self.student, shares, criterion="obs", reconstruct=True,
        images=self.images, return_channels=True)
    self.assertLess(student.count_params(), 0.7 * self.student.count_params())
    # Measured, with half of the filters gone: .934.
    self.fit(kap.recalibrate_batch_norm(student, self.images), least=0.9,
             channels=channels)

  def test_quantization_aware(self):
    with self.assertRaisesRegex(ValueError, "inside another keras Model"):
      _quantization.quantize_model(self.model)
    # From behind the preprocessing on, which tfmot has no rule for.
    flat = kap.unnest(self.model, start="conv", keep_augmentation=False,
                     keep_inference_mode=False)
    self.assertEqual([layer.name for layer in flat.layers[1:]], [
        "conv", "bn", "act", "conv2", "bn2", "sum", "act2", "pool", "logits"])
    seen = self.images / 127.5 - 1
    np.testing.assert_allclose(
        flat(seen), self.model(self.images, training=False), atol=FLOAT32)
    quantized = _quantization.quantize_model(
        kap.equalize_kernels(kap.recalibrate_batch_norm(flat, seen)))
    kap.calibrate_quantizers(quantized, seen)
    self.model, self.images = flat, seen
    # Measured: .9999.
    self.fit(quantized, least=0.999)


if __name__ == "__main__":
  absltest.main()
