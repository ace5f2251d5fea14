"""Tests of interpreter.py: scores and maps read back from files."""

import functools
import re
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime import tflm_process
from keras_attr_preserve.export.runtime.interpreter import RUNTIMES
from tests import export_helpers as helpers
from tests import tiny

ROADS = ("gap", "block")  # For microcontrollers "features" and "gradient".


interpreter = helpers.interpreter


def grad_cam(net, targets=None, images=None):
  return kap.attribution.grad_cam(
      net, helpers.images() if images is None else images, targets,
      helpers.LAYER)


@functools.cache
def always_positive() -> tuple[keras.Model, kap.export.Interpreter]:
  """A model whose one logit is positive for every image, and its int8 file."""
  model = tiny.conv_net(
      tail="block", classes=1, size=helpers.SIZE)
  model.get_layer("logits").bias.assign([50.0])
  return model, kap.export.Interpreter(kap.export.convert(
      model, helpers.wcam(), mode="int8",
      representative_images=helpers.calibration()))


class PredictTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", {}), ("gap", {"head": "softmax"}), ("block", {}))
  def test_float32(self, tail, settings):
    self.check_float32(tail, settings)

  @parameterized.parameters(
      ("gap", {"head": "sigmoid"}), ("gap", {"head": "softmax_layer"}),
      ("block", {"head": "softmax"}))
  @pytest.mark.slow("files")
  def test_float32_of_other_heads(self, tail, settings):
    self.check_float32(tail, settings)

  def check_float32(self, tail, settings):
    images, model = helpers.images(), helpers.net(tail, **settings)
    got = interpreter(tail, **settings).predict(images)
    self.assertEqual(got.dtype, np.float32)
    np.testing.assert_allclose(
        got, model.predict(images, verbose=0), 1e-5, 1e-5)

  @parameterized.parameters(("gap", {"head": "softmax"}), ("block", {}))
  def test_int8(self, tail, settings):
    self.check_int8(tail, settings)

  @parameterized.parameters(("gap", {}), ("block", {"head": "softmax"}))
  @pytest.mark.slow("files")
  def test_int8_of_other_heads(self, tail, settings):
    self.check_int8(tail, settings)

  def check_int8(self, tail, settings):
    images, model = helpers.images(), helpers.net(tail, **settings)
    runner = interpreter(tail, "int8", **settings)
    outputs = runner.signatures["predict"].outputs
    for logits in (True, False):
      name = "predictions" if settings and not logits else "logits"
      want = (helpers.net(tail) if logits else model).predict(images, verbose=0)
      error = np.abs(runner.predict(images, logits=logits) - want).max()
      # Measured: 2 steps of 1/256 of the range.
      self.assertLess(error, 4 * outputs[name].scale, name)

  @parameterized.parameters(
      ("softmax", {}), ("softmax_layer", {}), ("sigmoid", {"classes": 1}))
  def test_logits_of_a_head_with_an_activation(self, head, settings):
    self.check_logits_of_a_head(head, settings)

  @pytest.mark.slow("files")
  def test_logits_of_a_sigmoid_of_each_class(self):
    self.check_logits_of_a_head("sigmoid", {})

  def check_logits_of_a_head(self, head, settings):
    images = helpers.images()
    runner = interpreter("gap", head=head, **settings)
    logits = runner.predict(images, logits=True)
    # The same weights without the activation.
    linear = helpers.net("gap", **settings)
    np.testing.assert_allclose(
        logits, linear.predict(images, verbose=0), 1e-5, 1e-5)
    activation = tf.nn.sigmoid if head == "sigmoid" else tf.nn.softmax
    np.testing.assert_allclose(
        runner.predict(images), activation(logits), 1e-5, 1e-6)
    np.testing.assert_array_equal(runner.explain(images).logits, logits)

  def test_one_image_at_a_time_gives_the_same(self):
    for mode in ("float32", "int8"):
      runner, images = interpreter("block", mode), helpers.images()
      together = runner.explain(images)
      for i in range(len(images)):
        alone = runner.explain(images[i:i + 1])
        np.testing.assert_array_equal(alone.maps[0], together.maps[i])
        np.testing.assert_array_equal(alone.logits[0], together.logits[i])

  @parameterized.product(mode=("float32", "int8"))
  def test_one_subgraph(self, mode):
    # The signature "predict" of such a file has an input "class_weights" too.
    runner = interpreter("block", mode, target="microcontroller")
    np.testing.assert_array_equal(
        runner.predict(helpers.images()),
        interpreter("block", mode).predict(helpers.images()))
    self.assertEqual(runner.input_shape, (8, 8, 2))

  def test_other_number_types_of_the_same_pictures(self):
    images = np.round(helpers.images())
    want = interpreter().predict(images)
    for dtype in (np.float64, np.float16, np.int8):
      np.testing.assert_array_equal(
          interpreter().predict(images.astype(dtype)), want)


class ExplainTest(parameterized.TestCase):

  @parameterized.product(
      tail=ROADS, targets=(None, 0, 2, np.int64(1), [0, 1, 2, 2, 1, 0, 1, 1]))
  def test_grad_cam_in_its_own_units(self, tail, targets):
    maps, logits = interpreter(tail).explain(helpers.images(), targets)
    want = grad_cam(helpers.net(tail), targets)
    self.assertEqual(maps.dtype, np.float32)
    self.assertEqual(maps.shape, (8, 8, 8))
    np.testing.assert_allclose(maps, want, 1e-4, 1e-5 * want.max())
    np.testing.assert_allclose(
        logits, helpers.net(tail).predict(helpers.images(), verbose=0),
        1e-5, 1e-5)

  @parameterized.product(tail=ROADS, mode=("float32", "int8"))
  def test_float_weights_of_the_logits(self, tail, mode):
    # Class 0 against class 1, at ten times its score; any other for others.
    weights = np.random.default_rng(0).normal(size=[8, 3]).astype(np.float32)
    weights[:4] = [10, -10, 0]
    maps, _ = interpreter(tail, mode).explain(helpers.images(), weights)
    want = grad_cam(helpers.net(tail), weights)
    self.assertGreater(want.max((1, 2)).min(), 0)
    self.assertGreater(
        helpers.cosines(maps, want).min(), 0.9999 if mode == "float32" else .99)
    # In int8 one step serves weak scores and strong ones alike.
    np.testing.assert_allclose(
        maps.max((1, 2)), want.max((1, 2)), *(
            (1e-4, 1e-6) if mode == "float32" else (0.1, 0.03 * want.max())))

  @parameterized.product(
      tail=ROADS, target=("phone", "microcontroller"),
      mode=("float32", "int8"))
  def test_one_class_rather_than_another(self, tail, target, mode):
    runner = interpreter(tail, mode, target=target)
    weights = np.float32([[1, -1, 0], [0, 1, -1], [0, 0, 0], [0, 0, -1]] * 2)
    maps, _ = runner.explain(helpers.images(), weights)
    want = grad_cam(helpers.net(tail), weights)
    alive = want.max((1, 2)) > 0
    self.assertGreaterEqual(alive.sum(), 4)
    # Int8 rounds features and gradients, of weak scores to few steps: measured
    # .994 of a microcontroller's backward pass, else .9996.
    least = {"float32": 1 - 1e-7, "int8": 0.999}[mode]
    if (tail, target, mode) == ("block", "microcontroller", "int8"):
      least = 0.99
    self.assertGreater(
        helpers.cosines(maps[alive], want[alive]).min(), least)
    # Nothing weighted is nothing explained, not the file's top class.
    self.assertFalse(maps[2::4].any())

  @parameterized.product(tail=ROADS, target=("phone", "microcontroller"))
  def test_features(self, tail, target):
    model = helpers.net(tail)
    want = type(model)(
        model.inputs, model.get_layer(helpers.LAYER).output)(helpers.images())
    for mode in ("float32", "int8"):
      got = interpreter(tail, mode, target=target).features(helpers.images())
      self.assertEqual(got.dtype, np.float32)
      # Some of these images are brighter than those of the calibration.
      error = 1e-5 if mode == "float32" else 0.06 * np.abs(want).max()
      np.testing.assert_allclose(got, want, 0, error)

  def test_features_of_a_file_of_others(self):
    with self.assertRaisesRegex(ValueError, "carries no attribution"):
      kap.export.Interpreter(helpers.foreign(helpers.converted())).features(
          helpers.images(1))

  @parameterized.parameters("gap", "block")
  def test_the_file_runs_once_for_its_top_class(self, tail):
    runner = interpreter(tail)
    with mock.patch.object(
        runner._runtime, "run", side_effect=runner._runtime.run) as run:
      runner.explain(helpers.images(2))
    self.assertEqual([call.args[0] for call in run.call_args_list], ["explain"])

  @parameterized.product(
      file=(("gap", "float16"), ("block", "dynamic"), ("gap", "int8"),
            ("block", "int8")), target=(0, 1, 2))
  def test_every_class_in_other_modes(self, file, target):
    self.check_class(*file, target)

  @parameterized.product(
      file=(("gap", "dynamic"), ("block", "float16")), target=(0, 1, 2))
  @pytest.mark.slow("files")
  def test_every_class_in_the_other_file_s_mode(self, file, target):
    self.check_class(*file, target)

  def check_class(self, tail, mode, target):
    # Nearly all the calibration images of these models are of one top class:
    # the backward pass of the others must not be clipped to its range.
    maps, _ = interpreter(tail, mode).explain(helpers.images(), target)
    want = grad_cam(helpers.net(tail), target)
    self.assertGreater(want.max((1, 2)).min(), 0)
    # The cosines' mean and least, and how far the maps' mean, their unit, may
    # be off. Features, kernels and gradients are rounded to 8 bits; measured at
    # worst .9999, .9996 and .003; .9997, .9994 and .033; .9985, .995 and .028.
    # Kernels of 11 bits, and small ones that "dynamic" leaves whole: 1 - 1e-6,
    # 1 - 6e-6 and .0009.
    mean, least, off = {
        ("gap", "int8"): (0.9995, 0.999, 0.01),
        ("block", "dynamic"): (0.999, 0.998, 0.05),
        ("block", "int8"): (0.997, 0.99, 0.05),
    }.get((tail, mode), (0.99999, 0.99998, 0.003))
    cosines = helpers.cosines(maps, want)
    self.assertGreater(cosines.mean(), mean)
    self.assertGreater(cosines.min(), least)
    self.assertAlmostEqual(maps.mean() / want.mean(), 1, delta=off)

  @parameterized.product(
      file=(("gap", "float32"), ("block", "int8")), targets=(None, 0, 1))
  def test_one_logit(self, file, targets):
    self.check_one_logit(*file, targets)

  @parameterized.product(
      file=(("gap", "int8"), ("block", "float32")), targets=(None, 0, 1))
  @pytest.mark.slow("files")
  def test_one_logit_in_the_other_file_s_mode(self, file, targets):
    self.check_one_logit(*file, targets)

  def check_one_logit(self, tail, mode, targets):
    # Class 1 is its positive side, class 0 its negative.
    settings = {"head": "sigmoid", "classes": 1}
    maps, logits = interpreter(tail, mode, **settings).explain(
        helpers.images(), targets)
    model = helpers.net(tail, **settings)
    if targets is None:
      targets = (logits[:, 0] >= 0).astype(int)
    want = grad_cam(model, targets)
    alive = want.max((1, 2)) > 0
    self.assertTrue(alive.any())
    self.assertGreater(
        helpers.cosines(maps[alive], want[alive]).min(),
        0.9999 if mode == "float32" else 0.99)

  @parameterized.parameters(0, 1)
  def test_one_logit_that_was_always_positive(self, target):
    # The weights -1 and 1 must both be there, whatever the calibration saw.
    model, runner = always_positive()
    maps, _ = runner.explain(helpers.images(), target)
    want = grad_cam(model, target)
    alive = want.max((1, 2)) > 0
    self.assertTrue(alive.any())
    self.assertTrue(maps[alive].any((1, 2)).all())
    # Int8 rounds the backward pass, seen in the worst map; a weight clipped to
    # nothing fails above.
    self.assertGreater(
        helpers.cosines(maps[alive], want[alive]).min(), 0.98)

  @parameterized.product(mode=("float32", "int8"))
  def test_equal_weighted(self, mode):
    maps, _ = interpreter("block", mode, "ewa").explain(helpers.images())
    want = kap.attribution.equal_weighted(
        helpers.net("block"), helpers.images(), layer=helpers.LAYER)
    if mode == "float32":
      np.testing.assert_allclose(maps, want, 1e-5, 1e-6)
    # Without a backward pass int8 rounds features alone, and the mean over 16
    # channels evens that out.
    self.assertGreater(helpers.cosines(maps, want).min(), 0.999)
    # Rounding evens out in the mean; clipping of images brighter than the
    # calibration's does not.
    self.assertAlmostEqual(maps.mean() / want.mean(), 1, delta=0.02)

  def test_targets_in_one_subgraph(self):
    runner = interpreter("block", "float32", target="microcontroller")
    for targets in (None, 1, [2, 1, 0, 0, 1, 2, 2, 2]):
      np.testing.assert_allclose(
          runner.explain(helpers.images(), targets).maps,
          interpreter("block").explain(helpers.images(), targets).maps,
          1e-4, 1e-6)

  @parameterized.product(
      tail=ROADS,
      targets=(3, -1, "dog", [0, 1], [[0, 1, 2]], 1.0, np.ones((8, 2))))
  def test_bad_targets(self, tail, targets):
    with self.assertRaisesRegex(ValueError, "targets must be"):
      interpreter(tail).explain(helpers.images(), targets)

  def test_the_explanation_has_names(self):
    explanation = interpreter().explain(helpers.images(2))
    self.assertIs(explanation.maps, explanation[0])
    self.assertIs(explanation.logits, explanation[1])


class ImagesTest(parameterized.TestCase):

  @parameterized.product(
      method=("predict", "explain"), mode=("float32", "int8"))
  def test_shape(self, method, mode):
    call = getattr(interpreter("gap", mode), method)
    for shape in ((8, 8, 2), (1, 8, 9, 2), (0, 8, 8, 2), (1, 8, 8, 3)):
      with self.assertRaisesRegex(
          ValueError, r"images must have shape \[at least 1, 8, 8, 2\]; got"):
        call(np.zeros(shape))

  @parameterized.parameters("predict", "explain")
  def test_not_finite(self, method):
    images = helpers.images(3)
    images[2, 1, 1, 1] = np.nan
    for mode in ("float32", "int8"):
      with self.assertRaisesRegex(ValueError, "images must be finite; 1 of 3"):
        getattr(interpreter("gap", mode), method)(images)

  def test_no_numbers(self):
    with self.assertRaisesRegex(TypeError, "images must be numbers"):
      interpreter().predict(["a.png"])

  @parameterized.product(
      method=("predict", "explain"), factor=(255.0, 1 / 255))
  def test_another_range(self, method, factor):
    # Pixels 0..255 for a file that takes 0..1, or the other way round.
    call = getattr(interpreter("gap", "int8"), method)
    low, high = interpreter("gap", "int8").signatures["predict"].inputs[
        "images"].range
    with self.assertRaisesRegex(
        ValueError, "images must be in the range the model was trained on; the "
        f"file takes {re.escape(f'{low:.4g}..{high:.4g}')} in steps of .*, "
        "got "):
      call(helpers.images() * factor)
    # A file of floats has no range.
    getattr(interpreter(), method)(helpers.images() * factor)

  def test_a_little_outside_is_clipped(self):
    runner = interpreter("gap", "int8")
    low, high = runner.signatures["predict"].inputs["images"].range
    images = helpers.images(2)
    images[0, 0, 0] = [low - 0.1 * (high - low), high + 0.1 * (high - low)]
    np.testing.assert_array_equal(
        runner.predict(images), runner.predict(np.clip(images, low, high)))

  def test_one_colour_is_no_other_range(self):
    interpreter("gap", "int8").predict(np.zeros((1, 8, 8, 2)))


class RuntimesTest(parameterized.TestCase):

  @parameterized.product(runtime=helpers.LITERT_RUNTIMES, tail=ROADS)
  def test_float32(self, runtime, tail):
    maps, logits = interpreter(tail, runtime=runtime).explain(
        helpers.images(), 1)
    want = grad_cam(helpers.net(tail), 1)
    np.testing.assert_allclose(maps, want, 1e-4, 1e-5 * want.max())
    np.testing.assert_allclose(
        logits, helpers.net(tail).predict(helpers.images(), verbose=0),
        1e-5, 1e-5)

  @parameterized.product(runtime=helpers.LITERT_RUNTIMES, tail=ROADS)
  def test_int8(self, runtime, tail):
    runner = interpreter(tail, "int8", runtime=runtime)
    maps, logits = runner.explain(helpers.images(), 1)
    other = interpreter(tail, "int8").explain(helpers.images(), 1)
    # Runtimes differ by a step here and there.
    step = runner.signatures["predict"].outputs["logits"].scale
    self.assertLessEqual(np.abs(logits - other.logits).max(), 1.01 * step)
    np.testing.assert_allclose(
        maps, other.maps, 0, 0.1 * other.maps.max())

  def test_unknown(self):
    with self.assertRaisesRegex(
        ValueError, f"runtime must be one of {re.escape(str(RUNTIMES))}; got "
        "'gpu'"):
      kap.export.Interpreter(helpers.converted(), runtime="gpu")

  def test_tflm_that_is_not_installed(self):
    with mock.patch.object(
        tflm_process, "installed", return_value=False), self.assertRaisesRegex(
            ImportError, "tflite-micro.*pip install"):
      kap.export.Interpreter(
          helpers.converted("gap", "int8"), runtime="tflm")

  def test_the_worker_s_reason_is_told(self):
    # What TFLite Micro says in front of its traceback is the reason.
    said = ("Didn't find op for builtin opcode 'ELU'\nTraceback (most recent "
            "call last):\n  File x\n    ^^^^\n  File y\n    ^^^^\n"
            "RuntimeError: TFLM failed to allocate tensors\n")
    done = mock.Mock(returncode=1, stdout="", stderr=said)
    with mock.patch.object(
        tflm_process, "installed", return_value=True), mock.patch(
            "subprocess.run", return_value=done):
      runner = kap.export.Interpreter(
          helpers.converted("gap", "int8", target="microcontroller"),
          runtime="tflm")
      with self.assertRaisesRegex(
          ValueError, "refused by the runtime 'tflm'.*ELU"):
        runner.predict(helpers.images(1))


@helpers.needs_tflm
class TflmTest(parameterized.TestCase):

  @parameterized.parameters(*ROADS)
  def test_the_reference_kernels_numbers(self, tail):
    content = helpers.converted(tail, "int8", target="microcontroller")
    micro, reference = (kap.export.Interpreter(content, runtime=runtime)
                        for runtime in ("tflm", "reference"))
    by_micro, by_reference = (runner.explain(helpers.images(64), 2)
                              for runner in (micro, reference))
    if tail == "gap":
      # Features, and so maps: equal to the last bit.
      np.testing.assert_array_equal(by_micro.maps, by_reference.maps)
    else:
      # The int8 backward pass may differ by a step here and there.
      self.assertGreater(
          helpers.cosines(by_micro.maps, by_reference.maps).min(), 0.999)
    # Of the logits 0.2 to 1 % are a step apart (ai-edge-litert 2.3).
    step = micro.signatures["explain"].outputs["logits"].scale
    distance = np.abs(by_micro.logits - by_reference.logits) / step
    # One step; the hundredth is for float32 rounding of the quotient.
    self.assertLess(distance.max(), 1.01)
    # Several times the share above, for other versions of the kernels.
    self.assertLess((distance > 0).mean(), 0.05)

  @parameterized.parameters(("gap", {"head": "softmax"}), ("block", {}))
  def test_predict(self, tail, settings):
    content = helpers.converted(
        tail, "int8", target="microcontroller", **settings)
    micro, reference = (kap.export.Interpreter(content, runtime=runtime)
                        for runtime in ("tflm", "reference"))
    name = "predictions" if settings else "logits"
    step = micro.signatures["predict"].outputs[name].scale
    np.testing.assert_allclose(
        micro.predict(helpers.images()), reference.predict(helpers.images()),
        0, 1.01 * step)

  def test_floats(self):
    maps, _ = interpreter(
        "gap", runtime="tflm", target="microcontroller").explain(
            helpers.images(), 1)
    want = grad_cam(helpers.net(), 1)
    np.testing.assert_allclose(maps, want, 1e-4, 1e-5 * want.max())

  def test_two_subgraphs_are_refused(self):
    # The interpreter itself would end the process.
    with self.assertRaisesRegex(
        ValueError, "must have one subgraph for the runtime 'tflm'; got 2. "
        "Convert with target='microcontroller'"):
      interpreter("block", "int8", runtime="tflm")

  def test_float16_is_refused(self):
    with self.assertRaisesRegex(
        ValueError, "refused by the runtime 'tflm', which lacks DEQUANTIZE of "
        "FLOAT16"):
      interpreter("gap", "float16", runtime="tflm", target="microcontroller")


if __name__ == "__main__":
  absltest.main()
