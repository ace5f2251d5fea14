"""Tests of first_run.py: no file is handed over that was never run."""

import functools
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.conversion.first_run import FirstRun
from tests import export_helpers as helpers
from tests import tiny

_layers = keras.layers


@functools.cache
def scaled(factor: float) -> keras.Model:
  """Gives the mean of all pixels times `factor`, by a 1x1 convolution."""
  images = keras.Input((4, 4, 1))
  x = _layers.Conv2D(1, 1, kernel_initializer=keras.initializers.Constant(
      factor), name="act")(images)
  x = _layers.GlobalAveragePooling2D()(x)
  return keras.Model(images, _layers.Dense(2, kernel_initializer="ones")(x))


class FirstRunTest(parameterized.TestCase):

  def test_floats_that_half_precision_cannot_hold(self):
    # By hand: both logits are 1e5 times the mean pixel, 1. The converter clips
    # 1e5 to float16's largest number, 65504.
    model, images = scaled(1e5), np.ones((2, 4, 4, 1))
    kap.export.convert(model, kap.WCAM("act"), mode="float32",
                       representative_images=images)
    with self.assertRaisesRegex(
        ValueError, r"^the file made of model '\w+' is not handed over, since "
        r"it gives in '\w+' logits that are 3.45e\+04 off the model's, of "
        r"which the largest is 1e\+05; pass another mode, "):
      kap.export.convert(model, kap.WCAM("act"), mode="float16",
                         target="microcontroller", representative_images=images)

  @parameterized.parameters("float32", "int8")
  def test_models_that_give_no_numbers(self, mode):
    model = scaled(np.nan)
    with self.assertRaisesRegex(
        ValueError, r"^model '\w+' gives logits that are not finite on the "
        "first of representative_images: look for weights"):
      kap.export.convert(model, kap.WCAM("act"), mode=mode,
                         representative_images=np.ones((4, 4, 4, 1)))
    with self.assertRaisesRegex(ValueError, "on an image of random pixels"):
      kap.export.convert(model, kap.WCAM("act"), mode="float32")

  def test_the_image(self):
    # By hand: the logits are the mean pixel.
    seen = []
    with mock.patch.object(
        kap.export.Interpreter, "numbers", autospec=True,
        side_effect=kap.export.Interpreter.numbers) as numbers:
      def logits(net, images):
        numbers.reset_mock()
        kap.export.convert(net, kap.WCAM("act"), mode="float32",
                           representative_images=images)
        seen.append([call.args[1] for call in numbers.call_args_list])
        return numbers.call_args_list[0].args[2]["images"]
      given = np.arange(32, dtype=np.float32).reshape(2, 4, 4, 1)
      np.testing.assert_array_equal(logits(scaled(1.0), given), given[:1])
      pixels = logits(scaled(1.0), None)
      self.assertEqual((pixels.shape, pixels.dtype), ((1, 4, 4, 1), np.float32))
      self.assertTrue(((pixels >= 0) & (pixels <= 1)).all())
      self.assertGreater(np.ptp(pixels), 0)
    # Every signature, explain included.
    self.assertEqual([sorted(names) for names in seen],
                     2 * [["explain", "predict"]])

  @parameterized.parameters(
      ("phone", "tail", "int8", "swa"),
      ("microcontroller", "gradient", "int8", "swa"))
  def test_a_road_is_run(self, *case):
    self.check_road(*case)

  @parameterized.parameters(
      ("phone", "whole", "float32", "swa"), ("phone", "tail", "float32", "ewa"),
      ("phone", "features", "int8", "swa"),
      ("microcontroller", "auto", "int8", "swa"))
  @pytest.mark.slow("files")
  def test_every_road_is_run(self, *case):
    self.check_road(*case)

  def check_road(self, target, road, mode, method):
    with mock.patch.object(
        FirstRun, "check", side_effect=ValueError("it was run")), (
            self.assertRaisesRegex(ValueError, "it was run")):
      kap.export.convert(
          helpers.net(), helpers.wcam(method), mode=mode, target=target,
          road=road, representative_images=helpers.calibration())

  @pytest.mark.slow("files")
  def test_selective(self):
    with mock.patch.object(
        FirstRun, "check", side_effect=ValueError("it was run")), (
            self.assertRaisesRegex(ValueError, "it was run")):
      kap.export.selective(
          helpers.net(), helpers.wcam(), helpers.calibration(), require=0.5)


class CheckTest(parameterized.TestCase):

  def check(self, content, net=None, mode="int8"):
    FirstRun(net or helpers.net(), helpers.LAYER, mode, None).check(content)

  def test_files_of_this_model(self):
    self.check(helpers.converted())
    self.check(helpers.converted(target="microcontroller"))
    self.check(helpers.converted(mode="int8", method="ewa"))

  def test_other_shapes(self):
    other = tiny.conv_net(size=helpers.SIZE, width=helpers.WIDTH, classes=5)
    with self.assertRaisesRegex(
        ValueError, r"it gives as logits of 'predict' numbers of shape "
        r"\[1, 3\] in place of \[1, 5\]; pass another mode"):
      self.check(helpers.converted(), other)

  def test_numbers_that_are_not_finite(self):
    numbers = kap.export.Interpreter.numbers

    def spoilt(interpreter, name, feeds):
      outputs = numbers(interpreter, name, feeds)
      return {**outputs, **({"map": outputs["map"] * np.nan}
                            if name == "explain" else {})}
    with mock.patch.object(
        kap.export.Interpreter, "numbers", spoilt), self.assertRaisesRegex(
            ValueError, "as map of 'explain' numbers that are not finite"):
      self.check(helpers.converted())

  def test_a_signature_that_does_not_run(self):
    with mock.patch.object(
        kap.export.Interpreter, "numbers", side_effect=ValueError(
            "tflite_model is refused by the runtime 'xnnpack': groups.")), (
                self.assertRaisesRegex(
                    ValueError, "since it does not run: tflite_model is "
                    "refused by the runtime 'xnnpack': groups; pass another")):
      self.check(helpers.converted())


if __name__ == "__main__":
  absltest.main()
