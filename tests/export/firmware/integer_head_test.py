"""Tests of integer_head.py: a file's head in whole numbers."""

import functools

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.firmware.integer_head import integer_head
from keras_attr_preserve.export.firmware.integer_maps import explain_features
from keras_attr_preserve.export.tflite.head import read_head
from keras_attr_preserve.export.tflite.schema import read_model, signatures
from tests import export_helpers as helpers
from tests import tiny

_layers = keras.layers
HEADS = {
    "gap": lambda: [_layers.GlobalAveragePooling2D(), _layers.Dense(3)],
    "flatten": lambda: [
        _layers.MaxPooling2D(), _layers.Flatten(), _layers.Dense(3)],
    "two_dense": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(9), _layers.Dense(3)],
    "single": lambda: [_layers.GlobalAveragePooling2D(), _layers.Dense(1)],
    "hidden": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(12, "relu"),
        _layers.Dense(3)],
    "hidden_relu6": lambda: [
        _layers.MaxPooling2D(3, 2, "same"), _layers.Flatten(),
        _layers.Dense(12), _layers.ReLU(6), _layers.Dense(3)],
    "hidden_product": lambda: [
        _layers.GlobalAveragePooling2D(), _layers.Dense(5),
        _layers.Dense(12, "relu"), _layers.Dense(7), _layers.Dense(3)],
}
# Of one kernel and of two, read in place and multiplied out.
QUICK = ("gap", "hidden_relu6", "hidden_product")
IN_PLACE = ("gap", "flatten", "single", "hidden", "hidden_relu6")


@functools.cache
def net(name: str) -> keras.Model:
  """A model whose first class has weights much smaller than the others'."""
  images = keras.Input((helpers.SIZE, helpers.SIZE, 2))
  x = _layers.Conv2D(16, 3, padding="same")(images)
  x = _layers.ReLU(name=helpers.LAYER)(x)
  for layer in HEADS[name]():
    x = layer(x)
  model = tiny.shake(keras.Model(images, x), 1)
  kernel = model.layers[-1].kernel
  kernel.assign(kernel * np.float32([0.01, 1, 3][:kernel.shape[1]]))
  return model


@functools.cache
def content(name: str) -> bytes:
  return kap.export.convert(
      net(name), helpers.wcam(), mode="int8",
      representative_images=helpers.calibration(),
      target="microcontroller")


@functools.cache
def heads(name: str):
  """The file's head in floats and in integers, and its outputs' specs."""
  model = read_model(content(name))
  explain = signatures(model)["explain"]
  head = read_head(model, 0, explain.outputs["logits"].position,
                   explain.outputs["features"].position)
  spec = explain.outputs["features"]
  return head, integer_head(content(name), model, 0, head, spec), spec


class IntegerHeadTest(parameterized.TestCase):

  @parameterized.parameters(*QUICK)
  def test_kernels_times_scales_are_the_weights(self, name):
    self.check_kernels_times_scales(name)

  def check_kernels_times_scales(self, name):
    head, integers, _ = heads(name)
    for floats, ints in ((head.last, integers.last),
                         (head.hidden, integers.hidden)):
      if floats is None:
        continue
      self.assertEqual(ints.kernel.dtype, np.int8)
      self.assertEqual(ints.scales.max(), 2**ints.bits)
      self.assertGreaterEqual(ints.scales.min(), 1)
      got = ints.kernel * ints.unit * ints.scales[:, None, None]
      # In place exactly, but for the rounding of scales, measured 2e-5 at most;
      # products are rounded to a 127th of a row's largest.
      size = np.abs(floats.weights).max((1, 2), keepdims=True)
      error = np.abs(got - floats.weights) / size
      self.assertLess(error.max(), 1e-4 if name in IN_PLACE else 0.5 / 126)

  @parameterized.parameters(*QUICK)
  def test_kernels_are_read_in_place(self, name):
    self.check_kernels_in_place(name)

  def check_kernels_in_place(self, name):
    _, integers, _ = heads(name)
    for layer in (integers.last, integers.hidden):
      if layer is None or name not in IN_PLACE:
        continue
      stored = content(name)[layer.offset:layer.offset + layer.kernel.size]
      self.assertEqual(stored, layer.kernel.tobytes())
    self.assertEqual(integers.in_place, name in IN_PLACE)

  @parameterized.parameters(*QUICK)
  def test_maps_are_those_of_floats(self, name):
    self.check_maps(name)

  def check_maps(self, name):
    head, integers, spec = heads(name)
    outputs = kap.export.Interpreter(content(name), runtime="reference")
    images = outputs.signatures["explain"].inputs["images"].encode(
        helpers.images(12))
    features = outputs.numbers("explain", {"images": images})["features"]
    classes = len(head.last.weights)
    rng, worst = np.random.default_rng(0), []
    for number, integer_features in enumerate(features):
      weights = rng.integers(-3, 4, classes).astype(np.int8)
      if number % 2 or not weights.any():
        weights = np.eye(classes, dtype=np.int8)[number % classes]
      values = spec.decode(integer_features)
      sensitivity = head.sensitivity(
          values[None], weights[None].astype(np.float64))[0]
      want = np.maximum(values @ sensitivity, 0) / values[..., 0].size
      result = explain_features(
          integers, spec.zero_point, integer_features, weights)
      unit = spec.scale * integers.unit / values[..., 0].size
      got = result.raw * (2.0**result.exponent * unit)
      # Of what a position's products add up to without their signs. Measured
      # at most: 4e-5; .01 where products of layers were rounded to 8 bits.
      size = (np.abs(values) @ np.abs(sensitivity)).max() / values[..., 0].size
      worst.append(np.abs(got - want).max() / size)
      self.assertEqual(result.status, int(want.max() == 0))
      np.testing.assert_allclose(
          result.map, 255.0 * result.raw / max(result.raw.max(), 1), 0, 0.51)
    self.assertLess(max(worst), 2e-4 if name in IN_PLACE else 0.02)

  @parameterized.parameters(*(name for name in HEADS if name not in QUICK))
  @pytest.mark.slow("firmware")
  def test_other_heads(self, name):
    self.check_kernels_times_scales(name)
    self.check_kernels_in_place(name)
    self.check_maps(name)

  def test_a_tiny_class_keeps_its_map(self):
    # One class's weights are a hundredth of another's: the int8 numbers and
    # the bits left for its map are the same.
    _, integers, spec = heads("gap")
    self.assertLess(integers.last.scales[0], 0.02 * 2**integers.last.bits)
    features = np.random.default_rng(0).integers(
        -128, 128, spec.shape[1:]).astype(np.int8)
    result = explain_features(
        integers, spec.zero_point, features, np.int8([1, 0, 0]))
    self.assertEqual(result.status, 0)
    self.assertGreater(result.raw.max(), 2**16)


if __name__ == "__main__":
  absltest.main()
