"""Tests of verify.py: several runtimes side by side, and files as teachers."""

import hashlib
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny


class RuntimesTest(parameterized.TestCase):

  def verify(self, content, runtime, **settings):
    return kap.export.verify(
        content, helpers.net(**settings), helpers.wcam(), helpers.images(),
        runtime=runtime)

  def test_several(self):
    content = helpers.converted("gap", "int8")
    both = self.verify(content, ("reference", "xnnpack"))
    self.assertIsInstance(both, kap.evaluation.Comparison)
    self.assertEqual(list(both.reports), ["reference", "xnnpack"])
    for name, report in both.reports.items():
      self.assertEqual(
          report.to_dict(), self.verify(content, name).to_dict())
    self.assertEqual(list(both.differences), [("reference", "xnnpack")])
    self.assertEqual(both.refused, {})

  def test_how_far_they_are_apart(self):
    content = helpers.converted("gap", "int8")
    both = self.verify(content, ["reference", "xnnpack"])
    top = helpers.net().predict(helpers.images(), verbose=0).argmax(1)
    (maps, logits), (others, other_logits) = (
        kap.export.Interpreter(content, runtime=name).explain(
            helpers.images(), top) for name in ("reference", "xnnpack"))
    row, = both.differences.values()
    self.assertEqual(row["equal_logits"], (logits == other_logits).mean())
    step = kap.export.Interpreter(
        content).signatures["explain"].outputs["logits"].scale
    # `steps` is a whole number; the ratio of float32 logits is off by their
    # rounding alone.
    self.assertAlmostEqual(
        row["steps"], np.abs(logits - other_logits).max() / step, places=3)
    self.assertEqual(
        row["equal_maps"], (maps == others).all((1, 2)).mean())
    # Kernels of two makes round int8 a step apart, which turns a map little.
    self.assertGreater(row["map_cosine_worst"], 0.99)

  def test_a_sequence_of_one_is_a_comparison_too(self):
    result = self.verify(helpers.converted(), ["builtin"])
    self.assertEqual(list(result.reports), ["builtin"])
    self.assertEqual(result.differences, {})

  @helpers.needs_tflm
  def test_all(self):
    every = self.verify(helpers.converted(
        "gap", "int8", target="microcontroller"), "all")
    self.assertEqual(
        list(every.reports), ["xnnpack", "builtin", "reference", "tflm"])
    self.assertLen(every.differences, 6)
    # By their names no less.
    named = self.verify(helpers.converted(
        "gap", "int8", target="microcontroller"), list(every.reports))
    self.assertEqual(named.to_dict(), every.to_dict())
    # The microcontroller's kernels are the reference kernels, to the last bit.
    row = every.differences["reference", "tflm"]
    self.assertEqual((row["equal_logits"], row["steps"]), (1, 0))

  def test_all_that_can(self):
    """Microcontrollers take no weights of half precision."""
    result = self.verify(helpers.converted("gap", "float16"), "all")
    self.assertEqual(
        list(result.reports), ["xnnpack", "builtin", "reference"])
    self.assertEqual(list(result.refused), ["tflm"])
    self.assertRegex(result.refused["tflm"], "tflm|tflite-micro")
    self.assertIn("tflm cannot", str(result))
    row = result.differences["builtin", "reference"]
    self.assertIsNone(row["steps"])

  @parameterized.parameters("gap", "block")
  def test_a_phone_s_file(self, tail):
    """Of two subgraphs, which microcontrollers do not take."""
    result = self.verify(helpers.converted(tail, "int8"), "all", tail=tail)
    self.assertEqual(
        list(result.reports), ["xnnpack", "builtin", "reference"])
    self.assertIn("one subgraph", result.refused["tflm"])
    result.require(cosine=0.99, dead=0)
    for row in result.differences.values():
      self.assertIsInstance(row["steps"], int)

  def test_one_that_was_named_must_run(self):
    with self.assertRaisesRegex((ValueError, ImportError), "tflm|tflite-micro"):
      self.verify(helpers.converted("gap", "float16"), ["xnnpack", "tflm"])

  def test_one_that_refuses_what_it_has_opened(self):
    class Refusing(kap.export.Interpreter):
      def explain(self, *arguments):
        if self.runtime == "builtin":
          raise ValueError("lacks\n  ELU")
        return super().explain(*arguments)

    with mock.patch(
        "keras_attr_preserve.export.verification.explainers.Interpreter",
        Refusing):
      result = self.verify(helpers.converted("gap", "float16"), "all")
      with self.assertRaisesRegex(ValueError, "lacks\n  ELU"):
        self.verify(helpers.converted("gap", "float16"), ("builtin",))
    self.assertEqual(list(result.reports), ["xnnpack", "reference"])
    self.assertEqual(list(result.differences), [("xnnpack", "reference")])
    self.assertEqual(list(result.refused), ["tflm", "builtin"])
    self.assertEqual(result.refused["builtin"], "lacks ELU")

  def test_none_can(self):
    with mock.patch(
        "keras_attr_preserve.export.verification.explainers.Interpreter",
        side_effect=ValueError("tflite_model is refused")), (
            self.assertRaisesRegex(
                ValueError, "no runtime can run the file. xnnpack: "
                "tflite_model .*reference: ")):
      self.verify(helpers.converted(), "all")

  def test_a_wrong_class_count_is_no_refusal(self):
    with self.assertRaisesRegex(ValueError, "the file's 3 classes; got 4"):
      self.verify(helpers.converted(), "all", classes=4)

  @parameterized.parameters(
      "gpu", [[]], [["xnnpack", "gpu"]], [["xnnpack", "xnnpack"]],
      [["all", "xnnpack"]])
  def test_errors(self, runtime):
    with self.assertRaisesRegex(
        ValueError, "runtime must be one of .*, several of them, or 'all'"):
      self.verify(helpers.converted(), runtime)


class TeachersTest(parameterized.TestCase):

  def test_a_file_as_the_teacher(self):
    """The float file stands for the model that it was made from."""
    self.check_a_file_as_the_teacher("gap")

  @pytest.mark.slow("files")
  def test_a_file_of_two_subgraphs_as_the_teacher(self):
    self.check_a_file_as_the_teacher("block")

  def check_a_file_as_the_teacher(self, tail):
    content = helpers.converted(tail, seed=5)
    want = kap.export.verify(
        content, helpers.net(tail), helpers.wcam(), helpers.images())
    folder = tiny.folder(self)
    (folder / "teacher.tflite").write_bytes(helpers.converted(tail))
    for teacher in (helpers.converted(tail), folder / "teacher.tflite",
                    str(folder / "teacher.tflite")):
      got = kap.export.verify(
          content, teacher, helpers.wcam(), helpers.images())
      # Other weights: scores that are all near 1 would be equal by themselves.
      self.assertLess(want.summary()["cosine"]["mean"], 0.99)
      self.assertEqual(
          (want.facts["teacher"], got.facts["teacher"]),
          ("net", "file " + hashlib.sha256(
              helpers.converted(tail)).hexdigest()))
      for name, values in want.scores.items():
        # Scores of LiteRT's float32 maps and TensorFlow's, summed otherwise.
        np.testing.assert_allclose(got.scores[name], values, atol=1e-4)

  def test_it_must_explain_alike(self):
    with self.assertRaisesRegex(
        ValueError, "teacher must be .*; wcam has method 'swa', but the "
        "teacher's file was converted for 'ewa'"):
      kap.export.verify(
          helpers.converted(), helpers.converted("block", "float32", "ewa"),
          helpers.wcam(), helpers.images())

  def test_judged(self):
    report = kap.export.verify(
        helpers.converted(seed=5), helpers.converted(), helpers.wcam(),
        helpers.images(2), judges=["occlusion"])
    want = kap.export.verify(
        helpers.converted(seed=5), helpers.net(), helpers.wcam(),
        helpers.images(2), judges=["occlusion"])
    # Float32 scores of LiteRT's kernels and TensorFlow's, summed otherwise.
    np.testing.assert_allclose(
        report.scores["occlusion_cosine"], want.scores["occlusion_cosine"],
        atol=1e-4)


if __name__ == "__main__":
  absltest.main()
