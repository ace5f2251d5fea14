"""Tests of calibrate_quantizers.py: ranges by hand, and their use."""

import functools

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import channel_nets as nets
from tests import tiny

_quantization = tfmot.quantization.keras
_combine = tfmot.experimental.combine
_SCHEMES = {
    "default": lambda: None,
    "prune": _combine.Default8BitPrunePreserveQuantizeScheme,
    "cluster": _combine.Default8BitClusterPreserveQuantizeScheme,
    "both": lambda: _combine.Default8BitClusterPreserveQuantizeScheme(
        preserve_sparsity=True),
}


def _aware(model, scheme=None):
  annotated = _quantization.quantize_annotate_model(kap.clone_model(model))
  return _quantization.quantize_apply(
      annotated, *([scheme] if scheme is not None else []))


@functools.cache
def _shared(build, scheme="default"):
  model = build()
  student = _aware(model, _SCHEMES[scheme]())
  return model, student, student.get_weights()


def _start(build, scheme="default"):
  """Gives a model and its student, one for all tests, not yet calibrated."""
  model, student, weights = _shared(build, scheme)
  student.set_weights(weights)
  return model, student


def _block():
  return tiny.conv_net(tail="block")


def _ranges(model):
  return {weight.name: weight.numpy() for weight in model.weights
          if weight.name.endswith(("_min:0", "_max:0"))}


def _rest(model):
  return [weight.numpy() for weight in model.weights
          if not weight.name.endswith(("_min:0", "_max:0"))]


def _doubling():
  """A model of one layer that doubles each of two colours."""
  inputs = keras.Input((2, 2, 2), name="pictures")
  x = keras.layers.Conv2D(2, 1, use_bias=False, name="double")(inputs)
  x = keras.layers.ReLU(name="relu")(x)
  x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
  model = keras.Model(inputs, x)
  model.get_layer("double").set_weights([2 * np.eye(2)[None, None]])
  return model


class CalibrateQuantizersTest(parameterized.TestCase):

  def test_the_mean_over_batches_of_what_arrives(self):
    student = _aware(_doubling())
    images = np.zeros([5, 2, 2, 2], np.float32)
    images[0, 0, 0, 0], images[1, 1, 1, 1] = 10, -3  # Batch of 2: -3..10.
    images[2:4] = 1                                  # Then of 2: 0..1.
    images[4] = 4                                    # And of 1: 0..4.
    kap.calibrate_quantizers(student, images, batch_size=2)
    ranges = {
        prefix: [float(value) for name, value in _ranges(student).items()
                 if name.startswith(prefix)]
        for prefix in ("quantize_layer", "quant_relu", "quant_pool")}
    self.assertEqual(ranges, {
        # Images keep the widest range, as tfmot has it.
        "quantize_layer": [-3, 10],
        # After doubling and ReLU 20, 2 and 8 in the three batches.
        "quant_relu": [0, 10],
        # Of four positions: 20/4, 2 and 8.
        "quant_pool": [0, 5]})

  def test_kernels_have_ranges_of_their_own_size(self):
    _, student = _start(nets.resnet_8)
    kap.calibrate_quantizers(student, nets.pictures(student, 8))
    checked = 0
    for layer in student.layers:
      values = {weight.name.split("/")[-1].split(":")[0]: weight.numpy()
                for weight in layer.weights}
      if "kernel_max" in values:
        # Of a convolution each channel's own, of Dense one for all.
        axes = (0, 1, 2) if values["kernel"].ndim == 4 else None
        # Largest magnitudes in float32, of which nothing is summed.
        np.testing.assert_allclose(
            values["kernel_max"], np.abs(values["kernel"]).max(axes), rtol=1e-6)
        np.testing.assert_allclose(
            values["kernel_min"], -values["kernel_max"], rtol=1e-6)
        checked += 1
    self.assertGreater(checked, 5)

  @parameterized.parameters("default", "both")
  def test_near_the_float_net_at_once_and_nothing_else_moves(self, scheme):
    self.check_near(scheme)

  @parameterized.parameters("prune", "cluster")
  @pytest.mark.slow("compressions")
  def test_near_the_float_net_with_other_schemes(self, scheme):
    self.check_near(scheme)

  def check_near(self, scheme):
    model, student = _start(nets.resnet_8, scheme)
    images = nets.pictures(model, 48)
    expected = model(images).numpy()
    start, before = student.get_weights(), _rest(student)
    student(images[:32], training=True)  # One step, as in training.
    uncalibrated = np.linalg.norm(student(images).numpy() - expected)
    student.set_weights(start)
    kap.calibrate_quantizers(student, images)
    for old, new in zip(before, _rest(student), strict=True):
      np.testing.assert_array_equal(old, new)
    error = np.linalg.norm(student(images).numpy() - expected)
    self.assertLess(error, 0.1 * np.linalg.norm(expected))
    self.assertLess(error, uncalibrated)

  def test_training_goes_on_from_there(self):
    model = tiny.conv_net(tail="block")
    student = _aware(model)
    kap.calibrate_quantizers(student, tiny.images(32))
    ranges = _ranges(student)
    student.compile("sgd", "mse", run_eagerly=True)
    student.train_on_batch(tiny.images(8), np.zeros([8, tiny.CLASSES]))
    after = _ranges(student)
    moved = [name for name in ranges
             if not np.array_equal(ranges[name], after[name])]
    self.assertNotEmpty(moved)
    for name in ranges:
      if "kernel" not in name:
        np.testing.assert_allclose(
            after[name], ranges[name], atol=0.02 * max(
                1, np.abs(ranges[name]).max()))

  def test_the_same_again_and_one_image(self):
    (_, first), second = _start(_block), _aware(_block())
    start = first.get_weights()
    for count in (1, 5):
      for student in (first, second):
        student.set_weights(start)
        kap.calibrate_quantizers(student, tiny.images(count), batch_size=2)
      for value, other_value in zip(
          _ranges(first).values(), _ranges(second).values(), strict=True):
        np.testing.assert_array_equal(value, other_value)
        self.assertTrue(np.isfinite(value).all())

  @parameterized.parameters("float", "nan", "weights", "batch")
  def test_what_fails_changes_nothing(self, case):
    (model, student), images, settings = _start(_block), tiny.images(6), {}
    text = "finite"
    if case == "float":
      student, text = model, "no quantizer of activations"
    elif case == "nan":
      images[3] = np.nan
    elif case == "weights":
      layer = student.get_layer("quant_logits")
      layer.set_weights([np.nan * value if "kernel" in weight.name
                         and weight.trainable else value
                         for weight, value in zip(
                             layer.weights, layer.get_weights())])
    else:
      settings, text = {"batch_size": 0}, "batch_size"
    before = student.get_weights()
    with self.assertRaisesRegex(ValueError, text):
      kap.calibrate_quantizers(student, images, **settings)
    for old, new in zip(before, student.get_weights(), strict=True):
      np.testing.assert_array_equal(old, new)

  def test_tfmot_is_as_it_was(self):
    quantizer = _quantization.quantizers.MovingAverageQuantizer
    plain = quantizer.__call__
    kap.calibrate_quantizers(_start(_block)[1], tiny.images(4))
    self.assertIs(quantizer.__call__, plain)


if __name__ == "__main__":
  absltest.main()
