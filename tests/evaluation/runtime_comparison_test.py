"""Tests of runtime_comparison.py: reports of several runtimes, side by side."""

import json

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve.evaluation import (
    Comparison,
    Report,
    ShortfallError,
)
from keras_attr_preserve.evaluation.runtime_comparison import apart
from tests import tiny


def report(cosine, runtime, dead=0.0):
  return Report(
      {"cosine": np.array(cosine), "l2": np.array([0.1, 0.3]),
       "rise_cosine": np.array([0.7, np.nan]), "same_class": np.ones(2)},
      dead, {"layer": "relu5", "runtime": runtime, "bytes": 100})


def comparison():
  return Comparison(
      {"xnnpack": report([0.9, 0.8], "xnnpack"),
       "reference": report([0.7, 0.6], "reference", dead=0.5)},
      {"tflm": "no CUSTOM"},
      {("xnnpack", "reference"): {
          "equal_logits": 0.25, "largest": 0.125, "steps": 2,
          "equal_maps": 0.0, "map_cosine_worst": float("nan")}})


class ApartTest(absltest.TestCase):

  def test_by_hand(self):
    maps = np.float32([[[3, 4]], [[1, 0]], [[0, 0]]])
    other = np.float32([[[3, 4]], [[4, 3]], [[1, 1]]])
    logits = np.float32([[0.5, 1], [1, 2], [0, 0]])
    got = apart(maps, logits, other, logits + np.float32(
        [[0, 0], [0, -0.5], [0, 0.25]]), 0.25)
    self.assertAlmostEqual(got.pop("map_cosine_worst"), 0.8)
    self.assertEqual(got, {
        "equal_logits": 4 / 6, "largest": 0.5, "steps": 2,
        "equal_maps": 1 / 3})

  def test_floats_have_no_steps(self):
    maps, logits = np.ones((1, 1, 2)), np.ones((1, 3))
    got = apart(maps, logits, maps, logits + 1e-7, 0)
    self.assertIsNone(got["steps"])
    self.assertEqual((got["equal_logits"], got["equal_maps"]), (0, 1))

  def test_dead_maps(self):
    maps, logits = np.zeros((1, 1, 2)), np.ones((1, 3))
    self.assertTrue(np.isnan(
        apart(maps, logits, maps, logits, 0)["map_cosine_worst"]))


class ComparisonTest(parameterized.TestCase):

  def test_one_table(self):
    text = str(comparison())
    self.assertRegex(text, r"(?m)^layer +relu5$")
    self.assertNotRegex(text, r"(?m)^runtime +xnnpack$")
    self.assertRegex(text, r"(?m)^agreement of maps +xnnpack +reference$")
    for name, first, second in (
        ("cosine", "0.8500", "0.6500"), ("cosine, worst", "0.8000", "0.6000"),
        ("cosine, median", "0.8500", "0.6500"),
        ("cosine, 5th pct", "0.8050", "0.6050"), ("l2", "0.2000", "0.2000"),
        ("rise_cosine", "0.7000", "0.7000"), ("dead maps", "0.0000", "0.5000"),
        ("same top class", "1.0000", "1.0000")):
      self.assertRegex(text, rf"(?m)^{name} +{first} +{second}$")
    self.assertRegex(text, r"(?m)^tflm cannot +no CUSTOM$")
    self.assertRegex(
        text, r"(?m)^xnnpack - reference +0\.25 +0\.125 +2 +0 +nan$")

  def test_columns_stand_under_their_heads(self):
    lines = str(comparison()).splitlines()
    head = next(line for line in lines if line.startswith("agreement"))
    row = next(line for line in lines if line.startswith("dead"))
    self.assertEqual(len(head), len(row))

  def test_every_runtime_must_pass(self):
    both = comparison()
    self.assertIs(both.require(cosine=0.6, dead=0.5, rise_cosine=0.7), both)
    with self.assertRaises(ShortfallError) as caught:
      both.require(cosine=0.8, dead=0.1)
    first, table = str(caught.exception).split("\n", 1)
    self.assertEqual(
        first, "reference: cosine 0.6500, at least 0.8 required; dead 0.5000, "
        "at most 0.1 required.")
    self.assertIn("xnnpack - reference", table)
    with self.assertRaisesRegex(
        ShortfallError, "xnnpack: l2 0.2000, .*reference: l2 0.2000"):
      both.require(l2=0.1)
    with self.assertRaisesRegex(ValueError, "'cosin' is no figure"):
      both.require(cosin=0.1)

  def test_saved(self):
    folder = tiny.folder(self) / "new"
    comparison().save(folder)
    self.assertEqual({str(path.relative_to(folder))
                      for path in folder.rglob("*") if path.is_file()}, {
        "comparison.json", *(f"{name}/report.{kind}" for kind in (
            "json", "csv") for name in ("xnnpack", "reference"))})
    text = (folder / "comparison.json").read_text()
    self.assertNotIn("NaN", text)
    got = json.loads(text)
    self.assertEqual(got["refused"], {"tflm": "no CUSTOM"})
    self.assertEqual(got["differences"], [{
        "runtimes": ["xnnpack", "reference"], "equal_logits": 0.25,
        "largest": 0.125, "steps": 2, "equal_maps": 0,
        "map_cosine_worst": None}])
    self.assertEqual(
        got["runtimes"]["reference"],
        json.loads((folder / "reference" / "report.json").read_text()))

  def test_one_runtime_has_no_differences(self):
    single = Comparison({"xnnpack": report([1, 1], "xnnpack")}, {}, {})
    self.assertNotIn("apart", str(single))
    self.assertEqual(single.to_dict()["differences"], [])


if __name__ == "__main__":
  absltest.main()
