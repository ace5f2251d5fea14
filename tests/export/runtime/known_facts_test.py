"""Tests of known_facts.py: what a file says of itself is not said otherwise."""

import json

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime.known_facts import (
  file_metadata,
  known_wcam,
)
from keras_attr_preserve.export.tflite.schema import (
  METADATA_NAME,
  read_model,
  write_model,
)
from tests import export_helpers as helpers

OURS = {"layer": "relu3", "method": "swa"}


def with_metadata(content, metadata=None, **changes):
  """A file that says something else of itself, sealed anew."""
  old = file_metadata(content)
  model = read_model(content)
  entry, = [record for record in model.metadata
            if record.name.decode() == METADATA_NAME]
  model.buffers[entry.buffer].data = np.frombuffer(json.dumps(
      {**old, **changes} if metadata is None else metadata).encode(), np.uint8)
  return write_model(model)


class KnownWcamTest(parameterized.TestCase):

  def test_what_is_not_given_is_read(self):
    wcam = known_wcam({"layer": "relu3", "method": "ewa"}, None)
    self.assertEqual(
        (wcam.layers, wcam.student_layers, wcam.method),
        (("relu3",), ("relu3",), "ewa"))

  @parameterized.parameters(
      ("relu3", None), ("quant_relu3", None), ("relu9", "relu3"),
      ("relu9", "prune_low_magnitude_relu3"))
  def test_what_agrees(self, layer, student_layer):
    wcam = kap.WCAM(layer, student_layer=student_layer)
    self.assertIs(known_wcam(OURS, wcam), wcam)
    self.assertIs(known_wcam(None, wcam), wcam)

  @parameterized.parameters(
      ({"layer": "relu4"}, "names layer 'relu4', but the file was converted "
       "for 'relu3': name"),
      ({"layer": "relu3", "student_layer": "relu4"}, "layer 'relu4', but the "
       "file was converted for 'relu3'"),
      ({"layer": "relu3", "method": "ewa"}, "wcam has method 'ewa', but the "
       "file was converted for 'swa'"))
  def test_what_differs(self, settings, words):
    with self.assertRaisesRegex(ValueError, words):
      known_wcam(OURS, kap.WCAM(**settings))

  def test_what_is_neither_given_nor_known(self):
    with self.assertRaisesRegex(
        ValueError, "^wcam must name the layer and the method: the file was "
        "not made by kap.export.convert"):
      known_wcam(None, None)
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM"):
      known_wcam(OURS, "relu3")

  def test_files(self):
    facts = file_metadata(helpers.converted())
    self.assertEqual((facts["layer"], facts["method"]), ("act", "swa"))
    self.assertIsNone(file_metadata(helpers.foreign(helpers.converted())))
    for metadata in ({"layer": 3, "method": "swa"}, ["layer"]):
      with self.assertRaisesRegex(ValueError, "name no layer and method"):
        file_metadata(with_metadata(helpers.converted(), metadata))


class JudgesOfAFileTest(parameterized.TestCase):
  """Two layers of one model, of one size: a wrong one is no matter of sizes."""

  def setUp(self):
    super().setUp()
    self.net, self.images = helpers.net("block"), helpers.images()
    self.content = helpers.converted("block")  # For "act".

  @parameterized.parameters("verify", "drift", "explainer")
  def test_another_layer(self, name):
    wcam = kap.WCAM("act2")
    with self.assertRaisesRegex(
        ValueError, "names layer 'act2', but the file was converted for 'act'"):
      if name == "verify":
        kap.export.verify(self.content, self.net, wcam, self.images)
      elif name == "drift":
        kap.export.drift(self.net, self.content, wcam, self.images)
      else:
        kap.export.explainer(
            self.content, teacher=self.net, wcam=wcam, images=self.images)

  def test_a_file_in_the_teacher_s_stead(self):
    with self.assertRaisesRegex(
        ValueError, "layer 'act2', but the teacher's file was converted for "
        "'act'"):
      kap.export.verify(self.content, helpers.converted("block"), kap.WCAM(
          "act2", student_layer="act"), self.images)

  def test_the_report_names_the_file_s_own_layer(self):
    report = kap.export.verify(self.content, self.net, None, self.images)
    self.assertEqual(report.facts["layer"], "act")
    self.assertRegex(str(report), "(?m)^file_layer +act$")
    # By hand: the maps of that layer, which float32 rounds.
    self.assertGreater(report.scores["cosine"].min(), 1 - 1e-6)
    wcam = kap.WCAM("act2", student_layer="act")
    report = kap.export.verify(self.content, self.net, wcam, self.images)
    self.assertEqual(
        (report.facts["layer"], report.facts["file_layer"]), ("act2", "act"))

  def test_drift_of_the_file_s_own_layer(self):
    report = kap.export.drift(self.net, self.content, None, self.images)
    self.assertEqual(report.facts["layer"], "act")
    self.assertGreater(report.facts["map"], 1 - 1e-6)  # Of float32 maps.

  def test_explainer_of_a_file_of_ours(self):
    with self.assertRaisesRegex(
        ValueError, "made by kap.export.convert and says itself that it "
        "explains layer 'act': take kap.export.Interpreter"):
      kap.export.explainer(self.content)

  def test_compare_models(self):
    models = {"teacher": self.net, "file": self.content}
    for layer in ("act2", {"teacher": "act", "file": "act2"}):
      with self.assertRaisesRegex(
          ValueError, "^layer is 'act2', but the file 'file' was converted for "
          "'act'"):
        kap.compare_models(models, self.images, layer=layer)
    row = kap.compare_models(models, self.images, scores=("cosine",))[1]
    # Not that of "act2", the last layer: the file says its own.
    self.assertGreater(row["worst"], 1 - 1e-6)
    with self.assertRaisesRegex(
        ValueError, "layer must name the layer of each model, .* it names none "
        r"for \['teacher'\]"):
      kap.compare_models(
          {**models, "two": with_metadata(self.content, layer="act2")},
          self.images)


class RangeTest(absltest.TestCase):

  def test_images_of_another_range(self):
    images = np.random.default_rng(0).uniform(size=(16, 8, 8, 2))
    content = kap.export.convert(
        helpers.net(), helpers.wcam(), mode="float32",
        representative_images=images)
    interpreter = kap.export.Interpreter(content)
    low, high = interpreter.metadata["representative_range"]
    # So near do 2048 pixels come to the ends of 0..1.
    np.testing.assert_allclose([low, high], [0, 1], atol=0.01)
    interpreter.predict(2 * images - 1)  # Near enough.
    for factor in (255, 1 / 255):
      with self.assertRaisesRegex(
          ValueError, "images must be in the range the model was trained on"):
        interpreter.predict(factor * images)
    # Nothing was measured, so nothing is known.
    kap.export.Interpreter(helpers.converted()).predict(255 * images)


if __name__ == "__main__":
  absltest.main()
