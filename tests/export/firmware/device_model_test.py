"""Tests of device_model.py: a file as a microcontroller runs it."""

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.firmware.device_model import DeviceModel
from tests import device_exports as exports
from tests import export_helpers as helpers


class DeviceModelTest(parameterized.TestCase):

  @parameterized.parameters(*exports.QUICK)
  def test_maps_are_those_of_the_interpreter(self, kind):
    self.check_maps(kind)

  @parameterized.parameters(*exports.SLOW)
  @pytest.mark.slow("firmware")
  def test_maps_of_other_kinds(self, kind):
    self.check_maps(kind)

  def check_maps(self, kind):
    device, images = exports.device(kind), helpers.images(12)
    self.assertEqual(device.kind, exports.KINDS[kind])
    maps, top = device.explain(images)
    runner = kap.export.Interpreter(device.content, runtime="reference")
    want, logits = runner.explain(images)
    classes = (logits[:, 0] >= 0).astype(int) if kind == "single" else (
        logits.argmax(1))
    np.testing.assert_array_equal(top, classes)
    for integer_map, float_map in zip(maps, want):
      self.check(device, integer_map, float_map)

  @parameterized.parameters("single", "hidden", "gradient")
  def test_a_chosen_class(self, kind):
    self.check_a_chosen_class(kind)

  @pytest.mark.slow("firmware")
  def test_a_chosen_class_of_a_flattened_map(self):
    self.check_a_chosen_class("flattened")

  def check_a_chosen_class(self, kind):
    device, images = exports.device(kind), helpers.images(4)
    runner = kap.export.Interpreter(device.content, runtime="reference")
    for target in range(device.classes):
      maps, targets = device.explain(images, [target] * 4)
      np.testing.assert_array_equal(targets, target)
      want, _ = runner.explain(images, target)
      for integer_map, float_map in zip(maps, want):
        self.check(device, integer_map, float_map)

  def check(self, device, found, want):
    """Holds a map in integers against the same in floats."""
    self.assertEqual(found.status, int(not want.any()))
    self.assertEqual(found.map.max(), 255 if want.any() else 0)
    if not want.any():
      return
    got = found.raw * 2.0**found.exponent * device.raw_unit
    # Measured at worst: 1 - 6e-7, 1 - 1e-5 with the map's 8 bits, and 2e-4.
    self.assertGreater(helpers.cosines(got[None], want[None])[0], 1 - 1e-5)
    self.assertGreater(
        helpers.cosines(found.map[None], want[None])[0], 1 - 1e-4)
    # Ten times the 2e-4 above: a maximum in integers against one in floats.
    self.assertAlmostEqual(got.max() / want.max(), 1, delta=2e-3)

  @parameterized.parameters(*exports.QUICK)
  @helpers.needs_tflm
  def test_tflm_gives_the_same_numbers(self, kind):
    self.check_numbers(kind)

  @parameterized.parameters(*exports.SLOW)
  @helpers.needs_tflm
  @pytest.mark.slow("firmware")
  def test_tflm_gives_the_same_numbers_of_other_kinds(self, kind):
    self.check_numbers(kind)

  def check_numbers(self, kind):
    here, there = exports.device(kind), exports.device(kind, "tflm")
    images = here.encode(helpers.images(24, seed=9))
    weights = None
    if kind == "gradient":
      weights = np.stack([
          here.ask(here.target_weights(i % 3)) for i in range(24)])
    want, got = there.run(images, weights), here.run(images, weights)
    self.assertEqual(want.keys(), got.keys())
    for name in want:
      if name in ("features", "sensitivity"):
        np.testing.assert_array_equal(got[name], want[name], name)
        continue
      # TFLite Micro rounds dense layers in another way.
      # Measured: one step, in 1 of 72 logits of one kind.
      steps = np.abs(got[name].astype(int) - want[name])
      self.assertLessEqual(steps.max(), 1, name)
      # More than three times the share above, for other kinds of model.
      self.assertLess(steps.mean(), 0.05, name)

  def test_runs_tflm_where_it_is_installed(self):
    device = DeviceModel(exports.device("linear").content)
    self.assertEqual(device.runtime, "tflm" if kap.export.tflm_installed()
                     else "reference")

  def test_other_files_are_refused(self):
    with self.assertRaisesRegex(ValueError, "'images' must be int8, as mode "
                                "'int8' gives it; got float32"):
      DeviceModel(helpers.converted(
          "gap", "float32", target="microcontroller"))
    with self.assertRaisesRegex(ValueError, "got target 'phone' and 2 subgr"):
      DeviceModel(helpers.converted("block", "int8"))
    with self.assertRaisesRegex(ValueError, "made by kap.export.convert.*None"):
      DeviceModel(helpers.foreign(exports.device("linear").content))
    with self.assertRaisesRegex(ValueError, "must be a .tflite file"):
      DeviceModel(b"nothing of the kind")

  @parameterized.parameters(100, 1e-4, -50)
  def test_pictures_of_another_range_are_refused(self, factor):
    with self.assertRaisesRegex(ValueError, "test_images must be in the range"):
      exports.device("linear").encode(
          factor * np.abs(helpers.images(4)), "test_images")


if __name__ == "__main__":
  absltest.main()
