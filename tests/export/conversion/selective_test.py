"""Tests of selective precision: the bad layer is kept, and little else."""

import functools
import importlib
import json
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import grad_cam
from keras_attr_preserve.evaluation import ShortfallError
from keras_attr_preserve.export.conversion.feature_maps import FeatureMaps
from keras_attr_preserve.export.conversion.selective import selective
from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_metadata,
    read_model,
)
from tests import drift_nets, export_helpers, tiny

WCAM = drift_nets.WCAM
IMAGES = drift_nets.images(48, seed=2)
NEW = drift_nets.images(16, seed=3)
_selective, _file = (
    importlib.import_module(f"keras_attr_preserve.export.conversion.{name}")
    for name in ("selective", "selective_file"))
_STEPS = ("_calibrated", "Search", "finished")


@functools.cache
def steps_of_bad():
  """Converts the bad model.

  Returns:
    The result, the arguments of each of _STEPS, and what each returned.
  """
  given, gave = {}, {}

  def remember(name, step):
    def run(*args):
      given[name], gave[name] = args, step(*args)
      return gave[name]
    return run

  with mock.patch.multiple(_selective, **{
      name: remember(name, getattr(_selective, name)) for name in _STEPS}):
    result = selective(drift_nets.bad_chain(), WCAM, IMAGES)
  return result, given, gave


@functools.cache
def of_bad(**settings):
  """Converts the bad model once for all tests of a process."""
  if not settings:
    return steps_of_bad()[0]
  return selective(drift_nets.bad_chain(), WCAM, IMAGES, **settings)


def already(*steps: str):
  """Spares steps that go as in `of_bad()`, whatever else is asked for."""
  gave = steps_of_bad()[2]
  return mock.patch.multiple(_selective, **{
      name: lambda *_, name=name: gave[name] for name in steps})


@functools.cache
def of_bad_for_a_microcontroller():
  with already("_calibrated", "Search"):
    return of_bad(target="microcontroller")


@functools.cache
def of_good():
  return selective(drift_nets.good_chain(), WCAM, IMAGES, require=0.9)


def kinds(content: bytes) -> list[tuple[str, int]]:
  """Operators of `predict`, each with the type of its output."""
  model = read_model(content)
  graph = model.subgraphs[0]
  return [(operator_name(model, operator),
           graph.tensors[operator.outputs[0]].type)
          for operator in graph.operators]


class BadLayerTest(parameterized.TestCase):

  def test_the_bad_layer_is_kept_and_who_takes_its_tensor(self):
    # Of a tensor both ends must be kept, or it is rounded between them.
    self.assertEqual(of_bad().kept, ("act2", "act3"))
    self.assertCountEqual(list(of_bad().harms)[:2], ["act2", "act3"])
    self.assertCountEqual(of_bad().harms, ["act1", "act2", "act3", "act4"])
    worst, _, third, _ = of_bad().harms.values()
    self.assertGreater(worst, 100 * third)

  def test_it_reaches_what_int8_does_not(self):
    nothing = min(of_bad().trials, key=lambda trial: len(trial.kept))
    self.assertEqual(nothing.kept, ())
    # A channel 1000 times as large leaves the others hardly a step of int8:
    # the map falls short of the .99 required.
    self.assertLess(nothing.held_out, 0.9)
    self.assertEqual(nothing.bytes, 0)
    # With both ends of the bad tensor in floats, ordinary rounding to 8 bits is
    # left.
    self.assertGreater(of_bad().agreement, 0.999)

  def test_the_agreement_holds_on_new_images_by_other_means(self):
    model = drift_nets.bad_chain()
    top = model(NEW).numpy().argmax(1)
    reference = grad_cam(model, NEW, top, "act4")
    maps = kap.export.Interpreter(of_bad().content).explain(NEW, top).maps
    cosines = export_helpers.cosines(reference, maps)
    # Ordinary rounding to 8 bits, as on the images of the choice.
    self.assertGreater(np.median(cosines), 0.999)
    # The worst of 16 images may lose ten times as much: one step is more of a
    # weak map.
    self.assertGreater(cosines.min(), 0.99)

  def test_those_layers_and_no_others_are_in_floats(self):
    float32, int8 = 0, 9
    self.assertEqual(
        [kind for kind in kinds(of_bad().content) if kind[0] == "CONV_2D"],
        [("CONV_2D", int8), ("CONV_2D", float32), ("CONV_2D", float32),
         ("CONV_2D", int8)])
    predict = kap.export.Interpreter(of_bad().content).signatures["predict"]
    self.assertEqual({tensor.dtype for tensor in (
        *predict.inputs.values(), *predict.outputs.values())},
                     {np.dtype(np.int8)})

  @pytest.mark.slow("files")
  def test_a_file_like_any_other(self):
    content = of_bad().content
    self.assertLen(content, of_bad().bytes)
    report = kap.export.verify(content, drift_nets.bad_chain(), WCAM, NEW)
    report.require(cosine=0.99, prediction_agreement=0.9)
    for runtime in export_helpers.LITERT_RUNTIMES:
      maps, logits = kap.export.Interpreter(
          content, runtime=runtime).explain(NEW)
      self.assertEqual(maps.shape, (16, 12, 12))
      self.assertTrue(np.isfinite(logits).all())

  def test_metadata(self):
    facts = read_metadata(read_model(of_bad().content))
    self.assertEqual(facts["mode"], "int8")
    self.assertEqual(facts["road"], "tail")
    self.assertEqual(facts["selective"], {
        "kept": ["act2", "act3"], "require": 0.99, "statistic": "median",
        "agreement": round(of_bad().agreement, 6),
        "bytes_added": of_bad().bytes_added})
    self.assertGreater(facts["median_cosine"], 0.99)  # As required.
    self.assertEqual(facts["measured_on"], 24)

  @pytest.mark.slow("files")
  def test_bytes_are_counted_against_the_same_file_without(self):
    plain = kap.export.convert(
        drift_nets.bad_chain(), WCAM, representative_images=IMAGES[::2],
        road="tail")
    added = of_bad().bytes - len(plain)
    self.assertAlmostEqual(added, of_bad().bytes_added, delta=400)  # Metadata.
    # Two kernels of 324 weights, each by three bytes, less their scales.
    self.assertBetween(of_bad().bytes_added, 1800, 3500)

  @pytest.mark.slow("files")
  def test_more_is_kept_where_more_is_asked(self):
    more = of_bad(require=0.9999)
    self.assertContainsSubset(of_bad().kept, more.kept)
    self.assertGreater(len(more.kept), 2)
    self.assertGreaterEqual(more.agreement, 0.9999)  # As required.

  def test_nothing_is_kept_where_int8_suffices(self):
    result = of_good()
    self.assertEmpty(result.kept)
    self.assertEqual(result.bytes_added, 0)
    self.assertGreater(result.agreement, 0.9)  # As required.
    self.assertEmpty(result.harms)
    self.assertIn("nothing", str(result))

  def test_one_half_of_the_images_chooses_and_the_other_judges(self):
    result, given, gave = steps_of_bad()
    model = drift_nets.bad_chain()
    halves = IMAGES[::2], IMAGES[1::2]
    choosing, held_out = (
        FeatureMaps(model, "act4", "swa", half) for half in halves)
    _, images = given["_calibrated"]
    np.testing.assert_array_equal(images, halves[0])
    quantizer, search = gave["_calibrated"], gave["Search"]
    trial = search.trials[0]
    content = quantizer.content(trial.nodes)
    figures = [np.median(feature_maps.cosines(content))
               for feature_maps in (choosing, held_out)]
    self.assertNotEqual(*figures)
    self.assertEqual([trial.agreement, trial.held_out], figures)
    step, value = next(iter(search.harms.items()))
    self.assertEqual(value, np.mean(1 - choosing.cosines(quantizer.content(
        {entry.node for entry in search.harms} - {step.node}))))

    def agreement(images):
      top = model(images).numpy().argmax(1)
      maps = kap.export.Interpreter(result.content).explain(images, top).maps
      return np.median(export_helpers.cosines(
          grad_cam(model, images, top, "act4"), maps))

    # Float32 maps by another road; the halves differ by far more.
    self.assertAlmostEqual(result.agreement, agreement(halves[1]), 6)
    self.assertNotAlmostEqual(result.agreement, agreement(halves[0]), 6)

  @pytest.mark.slow("files")
  def test_half_of_the_images_is_held_out(self):
    result = of_good()
    # The stated agreement equals that of verify on the held-out images.
    report = kap.export.verify(
        result.content, drift_nets.good_chain(), WCAM, IMAGES[1::2])
    self.assertAlmostEqual(
        result.agreement, np.median(report.scores["cosine"]), 6)

  @pytest.mark.slow("files")
  def test_more_is_kept_where_the_file_loses_some_behind_the_features(self):
    self.assertEqual(of_bad(require=0.9995).kept, ("act2", "act3"))
    loses = lambda reference, maps: {  # noqa: E731
        "cosine": export_helpers.cosines(reference, maps) - 0.0004}
    with mock.patch.object(_file, "agreement", loses):
      result = selective(
          drift_nets.bad_chain(), WCAM, IMAGES, require=0.9995)
    self.assertEqual(result.kept, ("act1", "act2", "act3"))
    self.assertGreaterEqual(result.agreement, 0.9995)  # As required.
    facts = read_metadata(read_model(result.content))
    self.assertEqual(facts["weights"], "int8")

  def test_table(self):
    text = str(of_bad())
    self.assertIn("act2, act3", text)
    self.assertIn("harm alone", text)
    plain = of_bad().to_dict()
    json.dumps(plain, allow_nan=False)
    self.assertEqual(plain["kept"], ["act2", "act3"])
    self.assertNotIn("content", plain)
    sizes = [trial.bytes for trial in of_bad().trials]
    self.assertEqual(sizes, sorted(sizes))


class KindsTest(parameterized.TestCase):

  @pytest.mark.slow("files")
  def test_mean(self):
    result = of_bad(statistic="mean", require=0.995)
    self.assertIn("act2", result.kept)
    report = kap.export.verify(
        result.content, drift_nets.bad_chain(), WCAM, IMAGES[1::2])
    self.assertAlmostEqual(
        result.agreement, report.summary()["cosine"]["mean"], 5)

  @pytest.mark.slow("files")
  def test_ewa(self):
    result = selective(drift_nets.bad_chain(), kap.WCAM("act4", method="ewa"),
                       IMAGES, require=0.9999)
    self.assertContainsSubset(["act2", "act3"], result.kept)
    self.assertGreaterEqual(result.agreement, 0.9999)  # As required.

  def test_microcontroller(self):
    result = of_bad_for_a_microcontroller()
    self.assertIn("act2", result.kept)
    facts = read_metadata(read_model(result.content))
    self.assertEqual(
        (facts["road"], facts["target"]), ("features", "microcontroller"))
    self.assertLen(read_model(result.content).subgraphs, 1)
    report = kap.export.verify(
        result.content, drift_nets.bad_chain(), WCAM, NEW)
    report.require(cosine=0.99)

  @export_helpers.needs_tflm
  def test_the_micro_runtime_takes_floats_and_integers(self):
    content = of_bad_for_a_microcontroller().content
    micro, reference = (kap.export.Interpreter(
        content, runtime=runtime).explain(NEW[:2]).maps
                        for runtime in ("tflm", "reference"))
    # Floats add up in another order, which can move the int8 features behind
    # them by a step.
    np.testing.assert_allclose(micro, reference, rtol=0.02, atol=1e-4)

  @pytest.mark.slow("files")
  def test_float_ends(self):
    # Everything up to the features is kept: what goes in is not rounded, nor
    # are they.
    result = of_bad(require=0.999999)
    self.assertEqual(result.kept, ("act1", "act2", "act3", "act4"))
    explain = kap.export.Interpreter(result.content).signatures
    self.assertEqual(explain["predict"].inputs["images"].dtype, np.float32)
    self.assertEqual(explain["predict"].outputs["logits"].dtype, np.int8)
    self.assertEqual(explain["explain"].outputs["features"].dtype, np.float32)
    features = kap.export.Interpreter(result.content).features(NEW)
    model = drift_nets.bad_chain()
    # Floats throughout: XNNPACK adds up in another order than Keras.
    np.testing.assert_allclose(features, keras.Model(
        model.input, model.get_layer("act4").output)(NEW), rtol=1e-4, atol=1e-5)

  def test_convert_takes_it(self):
    with mock.patch.object(
        importlib.import_module(
            "keras_attr_preserve.export.conversion.convert"),
        "convert_selectively", return_value=of_bad()) as called:
      content = kap.export.convert(
          drift_nets.bad_chain(), WCAM, representative_images=IMAGES,
          selective=0.98, target="microcontroller")
    self.assertEqual(content, of_bad().content)
    (model, wcam, images), settings = called.call_args
    self.assertIs(model, drift_nets.bad_chain())
    self.assertIs(wcam, WCAM)
    np.testing.assert_array_equal(images, IMAGES)
    self.assertEqual(settings, {"require": 0.98, "target": "microcontroller"})
    for settings in ({"mode": "float32"}, {"road": "whole"}):
      with self.assertRaisesRegex(ValueError, "selective is for mode 'int8'"):
        kap.export.convert(
            drift_nets.bad_chain(), WCAM, representative_images=IMAGES,
            selective=0.99, **settings)

  @pytest.mark.slow("files")
  def test_a_longer_tail(self):
    model = export_helpers.net("depthwise")
    result = selective(
        model, export_helpers.wcam(), export_helpers.calibration(),
        require=0.999999)
    self.assertGreaterEqual(result.agreement, 0.999999)  # As required.
    self.assertNotEmpty(result.kept)

  @pytest.mark.slow("files")
  def test_many_kinds_of_layers(self):
    layers = keras.layers
    model = tiny.shake(keras.Sequential([
        layers.InputLayer((12, 12, 2)), layers.Conv2D(6, 3, activation="relu"),
        layers.MaxPool2D(), layers.ZeroPadding2D(), layers.Conv2D(6, 3),
        layers.BatchNormalization(), layers.LeakyReLU(name="act4"),
        layers.Conv2D(4, 3, activation="relu"), layers.Flatten(),
        layers.Dense(4, "softmax")]))
    result = selective(model, WCAM, IMAGES, require=0.999999)
    self.assertGreaterEqual(result.agreement, 0.999999)  # As required.
    self.assertNotEmpty(result.kept)

  @pytest.mark.slow("files")
  def test_pruned(self):
    pruned = tiny.prune(drift_nets.bad_chain())
    weights = pruned.get_weights()
    result = selective(pruned, WCAM, IMAGES, require=0.99)
    self.assertGreaterEqual(result.agreement, 0.99)  # As required.
    self.assertTrue(tiny.weights_equal(weights, pruned.get_weights()))


class ErrorsTest(parameterized.TestCase):

  def test_too_few_bytes(self):
    with already(*_STEPS), self.assertRaisesRegex(
        ShortfallError, r"takes 19\d\d bytes, max_bytes are 1500. Within "
        r"these the best features give 0\.8\d+, 0\.8\d+ on the images"):
      of_bad(max_bytes=1500)

  def test_a_file_that_falls_short_is_not_given(self):
    with already("_calibrated", "Search"), mock.patch.object(
        _file, "agreement", lambda reference, maps: {
            "cosine": np.full(len(maps), 0.5)}), self.assertRaisesRegex(
                ShortfallError,
                "a file's maps reach 0.5000, 0.99 is required"):
      selective(drift_nets.bad_chain(), WCAM, IMAGES)

  def test_arguments(self):
    model = drift_nets.bad_chain()
    for settings, error, words in (
        ({"require": 1}, ValueError, "require must be a number above 0"),
        ({"require": True}, ValueError, "require must be"),
        ({"require": "high"}, ValueError, "require must be"),
        ({"statistic": "worst"}, ValueError, "statistic must be one of"),
        ({"target": "toaster"}, ValueError, "target must be one of"),
        ({"max_bytes": -1}, ValueError, "max_bytes must be"),
        ({"max_bytes": 0.5}, ValueError, "max_bytes must be")):
      with self.assertRaisesRegex(error, words):
        selective(model, WCAM, IMAGES, **settings)
    with self.assertRaisesRegex(TypeError, "wcam must be"):
      selective(model, "act4", IMAGES)
    with self.assertRaisesRegex(ValueError, "four or more"):
      selective(model, WCAM, IMAGES[:3])
    with self.assertRaisesRegex(ValueError, "must have shape"):
      selective(model, WCAM, IMAGES[0])
    with self.assertRaisesRegex(TypeError, "tf_keras.Model"):
      selective("net", WCAM, IMAGES)

  def test_quantize_aware(self):
    with self.assertRaisesRegex(ValueError, "quantize_annotate_layer"):
      selective(tiny.quantize(drift_nets.chain()), WCAM, IMAGES)

  def test_microcontroller_and_a_longer_tail(self):
    with self.assertRaisesRegex(ValueError, "target 'microcontroller'"):
      selective(export_helpers.net("block"), export_helpers.wcam(),
                export_helpers.calibration(), target="microcontroller",
                require=0.5)

  def test_dead_maps(self):
    model = drift_nets.chain(seed=9)
    model.get_layer("conv4").set_weights(
        [np.zeros_like(weight)
         for weight in model.get_layer("conv4").get_weights()])
    with self.assertRaisesRegex(ValueError, "all zero"):
      selective(model, WCAM, IMAGES)


if __name__ == "__main__":
  absltest.main()
