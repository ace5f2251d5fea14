"""Tests of recalibrate_batch_norm.py: new statistics, same function."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import clone_model, recalibrate_batch_norm
from tests import tiny

_SCALE, _OFFSET, _MEAN, _VARIANCE = range(4)
# Computed in float64, rounded when stored as float32.
STORED = 1e-6


def _same(first, second):
  return tiny.weights_equal(first.get_weights(), second.get_weights())


def _norm(**settings):
  """One batch normalization of two channels, with weights of its own."""
  inputs = keras.Input([1, 2, 2])
  layer = keras.layers.BatchNormalization(
      **{"name": "bn", "epsilon": 1.0, **settings})
  model = keras.Model(inputs, layer(inputs))
  layer.set_weights([np.arange(1, 3, dtype=np.float32) + number
                     for number in range(len(layer.get_weights()))])
  return model


def _nested():
  inner = tiny.conv_net(tail="block")
  inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
  x = keras.layers.BatchNormalization(name="first")(inputs)
  return tiny.shake(keras.Model(inputs, inner(x)), seed=3)


def _shared():
  inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
  layer = keras.layers.BatchNormalization(name="bn")
  x = layer(keras.layers.ReLU()(layer(inputs)))
  x = keras.layers.GlobalAveragePooling2D()(x)
  return tiny.shake(keras.Model(inputs, x), seed=4)


def _axis():
  """Normalizes over the height's positions, as if they were channels."""
  inputs = keras.Input([tiny.SIZE, tiny.SIZE, 2])
  x = keras.layers.BatchNormalization(axis=1, name="bn")(inputs)
  x = keras.layers.GlobalAveragePooling2D()(x)
  return tiny.shake(keras.Model(inputs, x), seed=5)


_NETS = {
    "block": lambda: tiny.conv_net(tail="block"),
    "residual": lambda: tiny.conv_net(tail="depthwise", head="softmax"),
    "nested": _nested,
    "shared": _shared,
    "axis": _axis,
}


class RecalibrateBatchNormTest(parameterized.TestCase):

  def test_by_hand(self):
    # Channels (1, 3) and (4, 4): means 2 and 4, variances 1 and 0.
    images = np.array([[[[1, 4], [3, 4]]]], np.float32)
    got = recalibrate_batch_norm(_norm(), images).get_layer("bn").get_weights()
    # Scales 1 and 2, offsets 2 and 3, old means 3 and 4, old variances 4 and 5.
    slopes = np.array([1, 2]) / np.sqrt([4 + 1, 5 + 1])
    np.testing.assert_allclose(got[_MEAN], [2, 4], rtol=STORED)
    np.testing.assert_allclose(got[_VARIANCE], [1, 0], atol=STORED)
    np.testing.assert_allclose(
        got[_SCALE], slopes * np.sqrt([1 + 1, 0 + 1]), rtol=STORED)
    np.testing.assert_allclose(
        got[_OFFSET], [2 + slopes[0] * (2 - 3), 3], rtol=STORED)

  @parameterized.named_parameters(_NETS.items())
  def test_computes_what_it_computed(self, build):
    model = build()
    got = recalibrate_batch_norm(model, tiny.images(20, seed=1))
    for seed in (1, 2):  # Also for images outside the measurement.
      images = tiny.images(8, seed=seed)
      want = model(images).numpy()
      # float32's rounding, of weights of another size.
      np.testing.assert_allclose(
          got(images).numpy(), want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    self.assertFalse(_same(model, got))

  def test_starts_training_from_there(self):
    model = tiny.conv_net(tail="block")
    images = tiny.images(16, seed=1)
    got = recalibrate_batch_norm(model, images)
    want = model(images).numpy()
    # Keras takes a batch's moments in float32; this library took them in
    # float64, and two layers add up.
    np.testing.assert_allclose(
        got(images, training=True).numpy(), want, rtol=1e-3, atol=1e-4)
    drift = np.abs(model(images, training=True).numpy() - want).max()
    self.assertGreater(drift, 0.1 * np.abs(want).max())

  def test_parts_of_any_size(self):
    model = tiny.conv_net(tail="depthwise")
    images = tiny.images(7, seed=1)
    whole = recalibrate_batch_norm(model, images, batch_size=7).get_weights()
    batched = recalibrate_batch_norm(model, images, batch_size=3).get_weights()
    for weight, other in zip(whole, batched):
      # Layers behind the first take float32 outputs of batches of other sizes.
      np.testing.assert_allclose(weight, other, rtol=1e-5, atol=1e-6)

  def test_far_from_zero(self):
    # In float32 the squares of a mean of 4096 have no digit left for this.
    images = 4096 + np.array([[[[1, 1], [3, 3]]]], np.float32)
    got = recalibrate_batch_norm(_norm(), images).get_layer("bn").get_weights()
    np.testing.assert_allclose(got[_VARIANCE], [1, 1], rtol=STORED)

  @parameterized.named_parameters(
      ("scale", {"scale": False}), ("center", {"center": False}),
      ("frozen", {"trainable": False}),
      ("gamma", {"gamma_constraint": "non_neg"}),
      ("beta", {"beta_constraint": "non_neg"}))
  def test_what_cannot_make_up_stays(self, settings):
    model = _norm(**settings)
    got = recalibrate_batch_norm(model, np.ones([3, 1, 2, 2], np.float32))
    self.assertTrue(_same(model, got))

  def test_the_model_stays_as_it_came(self):
    model = tiny.conv_net()
    before = clone_model(model)
    recalibrate_batch_norm(model, tiny.images())
    self.assertTrue(_same(model, before))

  def test_the_copy_trains_and_is_saved(self):
    got = recalibrate_batch_norm(tiny.conv_net(), tiny.images())
    tiny.compiled(got, tiny.cross_entropy()).fit(
        tiny.images(), tiny.labels(), verbose=0)
    path = tiny.folder(self) / "net.h5"
    got.save(path)
    self.assertTrue(_same(keras.models.load_model(path), got))

  def test_a_net_without_any(self):
    inputs = keras.Input([2, 2, 1])
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs))
    got = recalibrate_batch_norm(model, np.ones([1, 2, 2, 1], np.float32))
    self.assertTrue(_same(model, got))
    self.assertIsNot(got, model)

  @parameterized.named_parameters(
      ("nan", np.full([1, 1, 2, 2], np.nan), "finite"),
      ("none", np.ones([0, 1, 2, 2]), "images must have shape"),
      ("size", np.ones([1, 2, 2, 2]), "images must have shape"))
  def test_images_that_do_not_do(self, images, text):
    with self.assertRaisesRegex(ValueError, text):
      recalibrate_batch_norm(_norm(), images)

  def test_a_net_that_overflows(self):
    model = tiny.conv_net()
    model.get_layer("conv").kernel.assign(
        np.full_like(model.get_layer("conv").kernel, 3e38))
    with self.assertRaisesRegex(ValueError, "'bn' takes values.*not finite"):
      recalibrate_batch_norm(model, np.abs(tiny.images()) + 1)

  @parameterized.parameters(0, -1, 2.0, True)
  def test_batch_sizes_that_do_not_do(self, size):
    with self.assertRaisesRegex(ValueError, "batch_size must be"):
      recalibrate_batch_norm(
          _norm(), np.ones([1, 1, 2, 2], np.float32), batch_size=size)

  def test_what_is_no_model(self):
    with self.assertRaisesRegex(TypeError, "model"):
      recalibrate_batch_norm("net", np.ones([1, 1, 2, 2], np.float32))


if __name__ == "__main__":
  absltest.main()
