"""Tests of drift: a wrong layer is found, and nothing else is blamed."""

import csv
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.export.diagnosis.drift import drift
from keras_attr_preserve.export.tensors.file_tensors import FileTensors
from keras_attr_preserve.models.layer_changes import changed, layers_by_name
from tests import drift_nets, export_helpers, foreign_files, tiny

IMAGES = drift_nets.images()
WCAM = drift_nets.WCAM
# Float32 sums over a kernel in another order, as a share of the features.
FLOAT32 = 1e-5
# One less a cosine is half the square of such an error.
SQUARED = 1e-9


def row(found, layer):
  return next(entry for entry in found.rows if entry.layer == layer)


class ExactTest(parameterized.TestCase):

  def test_a_float_file_does_not_drift(self):
    report = drift(
        drift_nets.good_chain(), drift_nets.converted(), WCAM, IMAGES)
    self.assertEqual(
        [entry.layer for entry in report.in_order],
        ["(input)", "act1", "act2", "act3", "act4", "pool", "logits"])
    for entry in report.rows:
      self.assertLess(entry.error, FLOAT32)
      self.assertLess(entry.added, FLOAT32)
      self.assertLess(entry.harm, SQUARED)
      self.assertGreater(entry.cosine, 1 - SQUARED)
      self.assertEqual(entry.matched, "numbers")
    for entry in report.in_order[1:5]:
      self.assertGreater(entry.map, 1 - 1e-6)
      self.assertGreater(entry.sensitivity, 1 - 1e-6)
    self.assertGreater(report.facts["map"], 1 - 1e-6)
    self.assertGreater(report.facts["sensitivity"], 1 - 1e-6)
    self.assertEmpty(report.facts["not_measured"])
    self.assertNotIn("measured", str(report))
    self.assertCountEqual(report.left_out, ["conv1", "conv2", "conv3", "conv4"])

  @parameterized.parameters(1, 2, 3, 4)
  def test_one_wrong_layer_is_blamed_and_no_other(self, number):
    content = drift_nets.with_wrong_layer(drift_nets.converted(), number)
    report = drift(drift_nets.good_chain(), content, WCAM, IMAGES)
    wrong, order = f"act{number}", report.in_order
    self.assertEqual(report.rows[0].layer, wrong)
    # The doubled channel is one of six; rounding adds less than FLOAT32.
    self.assertGreater(report.rows[0].added, 0.01)
    # Rounding does less than SQUARED.
    self.assertGreater(report.rows[0].harm, 1e-4)
    for entry in order:
      if entry.layer != wrong:
        self.assertLess(entry.added, FLOAT32)
        self.assertLess(entry.harm, SQUARED)
    place = report.rows[0].place
    # The error that arrives: none before the layer, all of it behind.
    for entry in order[:place]:
      self.assertLess(entry.error, FLOAT32)
    for entry in order[place:]:
      # The doubled channel leaves this error; rounding is below FLOAT32.
      self.assertGreater(entry.error, 1e-3)
    # At the wrong layer alone arrival and addition are one.
    self.assertAlmostEqual(
        report.rows[0].error, report.rows[0].added, delta=1e-5)

  def test_figures_by_numpy(self):
    content = drift_nets.with_wrong_layer(drift_nets.converted(), 2)
    model = drift_nets.good_chain()
    entry = row(drift(model, content, WCAM, IMAGES, batch_size=3), "act3")
    layer = lambda name: keras.Model(model.input, model.get_layer(name).output)  # noqa: E731
    by_model = layer("act3")(IMAGES).numpy()
    files = FileTensors(content, signature="explain")
    by_file = next(values for number, values in files.read(IMAGES).items()
                   if str(number) == entry.tensor.split()[1])
    self.assertAlmostEqual(
        entry.error, tiny.relative_error(by_file, by_model), 5)
    flat = [values.reshape(len(values), -1) for values in (by_model, by_file)]
    cosine = np.mean([
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*flat)])
    self.assertAlmostEqual(entry.cosine, cosine, 6)
    self.assertAlmostEqual(entry.snr, -20 * math.log10(entry.error), 4)
    # Behind act3 lie a convolution, a mean and a linear layer.
    def explain(features):
      top = np.eye(3, dtype=np.float32)[model(IMAGES).numpy().argmax(1)]
      features = tf.constant(features)
      with tf.GradientTape() as tape:
        tape.watch(features)
        x = model.get_layer("act4")(model.get_layer("conv4")(features))
        score = tf.reduce_sum(top * model.get_layer("logits")(
            model.get_layer("pool")(x)))
      sums = tape.gradient(score, features).numpy().sum((1, 2))
      return sums, np.maximum(
          np.einsum("bhwc,bc->bhw", features, sums), 0)
    (values, map_one), (other, map_other) = explain(by_model), explain(by_file)
    self.assertAlmostEqual(entry.map, np.median(
        export_helpers.cosines(map_one, map_other)), 5)
    self.assertAlmostEqual(entry.sensitivity, np.median(
        export_helpers.cosines(values, other)), 5)

  def test_harm_by_hand(self):
    content = drift_nets.with_wrong_layer(drift_nets.converted(), 2)
    model = drift_nets.good_chain()
    wrong = tiny.copy_of(model)
    kernel, bias = wrong.get_layer("conv2").get_weights()
    # The file keeps a kernel as [outputs, height, width, inputs].
    kernel[..., 0] *= 2
    wrong.get_layer("conv2").set_weights([kernel, bias])
    top = model(IMAGES).numpy().argmax(1)
    cosines = export_helpers.cosines(
        *(grad_cam(variant, IMAGES, top, "act4")
          for variant in (model, wrong)))
    report = drift(model, content, WCAM, IMAGES)
    self.assertAlmostEqual(row(report, "act2").harm, np.mean(1 - cosines), 5)
    self.assertAlmostEqual(report.facts["map"], np.median(cosines), 5)

  def test_bad_layer_of_an_int8_file_comes_first(self):
    report = drift(drift_nets.bad_chain(), drift_nets.converted(True, "int8"),
                   WCAM, IMAGES)
    self.assertEqual(report.rows[0].layer, drift_nets.BAD)
    self.assertGreater(report.rows[0].harm, 10 * report.rows[1].harm)
    good = drift(drift_nets.good_chain(), drift_nets.converted(False, "int8"),
                 WCAM, IMAGES)
    # Half a step of int8 a tensor; a bad layer leaves most channels no steps.
    self.assertLess(good.rows[0].harm, 0.01)


class KindsTest(parameterized.TestCase):

  @parameterized.parameters(("depthwise", "float32"), ("flatten", "int8"))
  def test_tails_and_roads(self, tail, mode):
    self.check_tail(tail, mode)

  @parameterized.parameters(("flatten", "float32"), ("depthwise", "int8"))
  @pytest.mark.slow("files")
  def test_the_rest_of_tails_and_roads(self, tail, mode):
    self.check_tail(tail, mode)

  def check_tail(self, tail, mode):
    model = export_helpers.net(tail)
    report = drift(model, export_helpers.converted(tail, mode),
                   export_helpers.wcam(), export_helpers.images())
    # Int8: half a step a tensor. Measured: .056 arrives, .036 is added.
    most = {"float32": FLOAT32, "int8": 0.1}[mode]
    self.assertIn("act", [entry.layer for entry in report.rows])
    for entry in report.rows:
      self.assertLess(entry.error, most)
      self.assertLess(entry.added, most)
    # Of int8 .99988 was measured, of float32 1 less rounding.
    least = {"float32": 1 - 1e-6, "int8": 0.9995}[mode]
    self.assertGreater(report.facts["sensitivity"], least)
    self.assertGreater(report.facts["map"], least)

  @parameterized.parameters("softmax", "softmax_layer")
  @pytest.mark.slow("files")
  def test_heads(self, head):
    model = tiny.conv_net(head=head, size=8, width=16)
    content = kap.export.convert(model, kap.WCAM("act"), mode="float32")
    report = drift(model, content, kap.WCAM("act"), export_helpers.images())
    for entry in report.rows:
      # Float32 sums in another order, with batch norms folded into kernels.
      self.assertLess(entry.error, 1e-4)
      # Between that rounding, squared, and a wrong layer's 1e-4 (ExactTest).
      self.assertLess(entry.harm, 1e-6)

  def test_ewa(self):
    model = export_helpers.net()
    report = drift(model, export_helpers.converted(mode="int8", method="ewa"),
                   export_helpers.wcam("ewa"), export_helpers.images())
    act = row(report, "act")
    # Half a step of int8 in features and map.
    self.assertGreater(act.map, 0.99)
    self.assertTrue(math.isnan(act.sensitivity))
    self.assertIsNone(report.facts["sensitivity"])
    self.assertEqual(report.facts["not_measured"],
                     "sensitivity: a map of method 'ewa' has none")
    reference = equal_weighted(model, export_helpers.images(), None, "act")
    maps = kap.export.Interpreter(export_helpers.converted(
        mode="int8", method="ewa"), runtime="reference").explain(
            export_helpers.images()).maps
    self.assertAlmostEqual(report.facts["map"], np.median(
        export_helpers.cosines(reference, maps)), 5)

  def test_a_file_of_others(self):
    content = export_helpers.foreign(export_helpers.converted(mode="int8"))
    report = drift(export_helpers.net(), content, export_helpers.wcam(),
                   export_helpers.images())
    self.assertIsNone(report.facts["map"])
    self.assertIn("act", [entry.layer for entry in report.rows])
    text = str(report)
    self.assertNotIn("None", text)
    self.assertIn("not measured          road, map and sensitivity: "
                  "kap.export.convert has not made the file, so that", text)

  def test_a_file_of_another_layer(self):
    with self.assertRaisesRegex(
        ValueError, "names layer 'conv', but the file was converted for 'act'"):
      drift(export_helpers.net(), export_helpers.converted(), kap.WCAM("conv"),
            export_helpers.images())

  @parameterized.parameters(("float64", 6), ("float32", None))
  def test_models_of_other_types_and_of_no_size(self, dtype, size):
    inputs = keras.Input((size, size, 2), dtype=dtype)
    x = keras.layers.Conv2D(4, 3, name="act", activation="relu", dtype=dtype)(
        inputs)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    model = tiny.shake(keras.Model(
        inputs, keras.layers.Dense(3, dtype=dtype)(x)))
    plain_inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="act")(plain_inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    plain = keras.Model(plain_inputs, keras.layers.Dense(3)(x))
    plain.set_weights(
        [weight.astype("float32") for weight in model.get_weights()])
    content = kap.export.convert(plain, kap.WCAM("act"), mode="float32")
    report = drift(model, content, kap.WCAM("act"), tiny.images())
    self.assertLess(row(report, "act").error, FLOAT32)
    self.assertGreater(row(report, "act").map, 1 - 1e-6)  # Float32 sums.

  def test_preprocess(self):
    # The same model for images of twice the range.
    model = tiny.copy_of(drift_nets.good_chain())
    kernel, bias = model.get_layer("conv1").get_weights()
    model.get_layer("conv1").set_weights([kernel / 2, bias])
    content = export_helpers.foreign(drift_nets.converted())
    report = drift(model, content, WCAM, 2 * IMAGES,
                   preprocess=lambda images: images / 2)
    self.assertNotIn("(input)", [entry.layer for entry in report.rows])
    self.assertLen(report.rows, 6)
    for entry in report.rows:
      self.assertLess(entry.error, FLOAT32)
      self.assertLess(entry.harm, SQUARED)

  @pytest.mark.slow("files")
  def test_nested_net(self):
    inner = tiny.conv_net(size=8, width=16)
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, keras.layers.ReLU(name="outer")(inner(inputs)))
    content = kap.export.convert(model, kap.WCAM("act"), mode="float32")
    report = drift(model, content, kap.WCAM("act"), export_helpers.images())
    self.assertIn("act", [entry.layer for entry in report.rows])
    for entry in report.rows:
      # Float32 sums in another order, with batch norms folded into kernels.
      self.assertLess(entry.added, 1e-4)

  def test_quantize_aware(self):
    student = export_helpers.quantize_aware()
    content = export_helpers.converted_quantize_aware()
    report = drift(student, content, kap.WCAM("act"), export_helpers.images())
    # The file rounds where the fake quantizers do: a sum near half a step may
    # land on the next one.
    self.assertLess(row(report, "act").error, 0.05)
    # The same steps, in the map.
    self.assertGreater(report.facts["map"], 0.99)

  def test_a_layer_too_far_off_is_told_by_its_name(self):
    report = drift(drift_nets.bad_chain(), drift_nets.converted(True, "int8"),
                   WCAM, IMAGES)
    self.assertIn("act3", [entry.layer for entry in report.rows])
    named = [entry.layer for entry in report.rows if entry.matched == "name"]
    self.assertNotEmpty(named)
    self.assertIn("(by name)", str(report))


  @pytest.mark.slow("files")
  def test_a_tensor_in_two_types_is_one_layers(self):
    # `act2` in floats and rounded for what follows; `conv2` is near to both.
    model = drift_nets.bad_chain()
    content = kap.export.convert(
        model, kap.WCAM("act2"), representative_images=drift_nets.images(24, 2),
        selective=0.9995)
    report = drift(model, content, kap.WCAM("act2"), IMAGES)
    self.assertNotIn("conv2", [entry.layer for entry in report.rows])
    # In floats `act2` does little; in int8 its first channel takes the range
    # and leaves the others no steps.
    self.assertLess(row(report, "act2").harm, 1e-3)
    self.assertEqual(report.rows[0].layer, "act3")


class CallTest(parameterized.TestCase):

  def test_targets(self):
    content = drift_nets.converted(False, "int8")
    model = drift_nets.good_chain()
    top = model(IMAGES).numpy().argmax(1)
    report = drift(model, content, WCAM, IMAGES)
    self.assertEqual(
        report.rows, drift(model, content, WCAM, IMAGES, targets=top).rows)
    self.assertNotEqual(
        report.rows[0].harm,
        drift(model, content, WCAM, IMAGES, targets=(top + 1) % 3).rows[0].harm)

  def test_the_model_is_left_as_it_came(self):
    model = drift_nets.good_chain()
    content = drift_nets.with_wrong_layer(drift_nets.converted(), 2)
    weights = model.get_weights()
    calls = {layer: vars(layer).get("call") for layer in model.layers}
    before = model(IMAGES).numpy()
    drift(model, content, WCAM, IMAGES)
    self.assertTrue(tiny.weights_equal(weights, model.get_weights()))
    self.assertEqual(
        calls, {layer: vars(layer).get("call") for layer in model.layers})
    np.testing.assert_array_equal(model(IMAGES).numpy(), before)

  def test_a_change_is_undone_after_an_error(self):
    model = drift_nets.good_chain()
    before = vars(model.get_layer("act2")).get("call")
    layer = layers_by_name(model)["act2"]
    def fail(output):
      raise RuntimeError("in the middle")
    with self.assertRaisesRegex(RuntimeError, "in the middle"), changed(
        {layer: fail}):
      model(IMAGES)
    model(IMAGES)
    self.assertEqual(vars(layer).get("call"), before)

  def test_save(self):
    report = drift(drift_nets.good_chain(), drift_nets.converted(False, "int8"),
                   WCAM, IMAGES)
    folder = tiny.folder(self)
    report.save(folder / "new")
    with open(folder / "new" / "drift.csv", newline="") as file:
      rows = list(csv.DictReader(file))
    self.assertEqual([entry["layer"] for entry in rows],
                     [entry.layer for entry in report.rows])
    self.assertAlmostEqual(float(rows[0]["harm"]), report.rows[0].harm, 6)
    read = json.loads((folder / "new" / "drift.json").read_text())
    self.assertEqual(read, report.to_dict())
    self.assertEqual(read["layer"], "act4")
    json.dumps(report.to_dict(), allow_nan=False)
    self.assertIn("harm", str(report))

  def test_errors(self):
    model, content = drift_nets.good_chain(), drift_nets.converted()
    with self.assertRaisesRegex(TypeError, "must be a tf_keras.Model"):
      drift("net", content, WCAM, IMAGES)
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM"):
      drift(model, content, "act4", IMAGES)
    with self.assertRaisesRegex(ValueError, "no layer of that name"):
      drift(model, content, kap.WCAM("nothing", student_layer="act4"), IMAGES)
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      drift(model, content, WCAM, IMAGES[0])
    with self.assertRaisesRegex(ValueError, "batch_size"):
      drift(model, content, WCAM, IMAGES, batch_size=0)
    with self.assertRaisesRegex(ValueError, "runtime"):
      drift(model, content, WCAM, IMAGES, runtime="tflm")
    with self.assertRaisesRegex(ValueError, "TFL3"):
      drift(model, b"nothing at all", WCAM, IMAGES)
    with self.assertRaises(OSError):
      drift(model, "/no/such/file.tflite", WCAM, IMAGES)
    with self.assertRaisesRegex(ValueError, "was converted for 'act'"):
      drift(model, export_helpers.converted(), WCAM, IMAGES)

  def test_the_file_of_another_net(self):
    strange = foreign_files.convert(
        tiny.conv_net(size=drift_nets.SIZE, width=5, seed=3))
    with self.assertRaisesRegex(ValueError, "not this model's file"):
      drift(drift_nets.good_chain(), strange, WCAM, IMAGES)


if __name__ == "__main__":
  absltest.main()
