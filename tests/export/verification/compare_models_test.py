"""Tests of compare_models.py: models, files and methods in a table."""

import json

import numpy as np
import pytest
from absl.testing import absltest

import keras_attr_preserve as kap
from tests import export_helpers as helpers

# Float32 maps of batches of another size, and cosines of them.
PLACES = 5


def _row(rows, **values):
  result, = [row for row in rows
             if all(row[key] == value for key, value in values.items())]
  return result


class CompareTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.net, self.images = helpers.net(), helpers.images(6)
    self.models = {"teacher": self.net, "other": helpers.net(seed=3),
                   "file": helpers.converted(mode="int8")}

  def test_one_table(self):
    masks = np.zeros([6, 8, 8], bool)
    masks[:, 2:6, 2:6] = True
    rows = kap.compare_models(
        self.models, self.images, ("grad_cam", "saliency", "occlusion"),
        ("cosine", "kendall", "roc_auc"), masks=masks, layer="act")
    # A file has no gradient of its input.
    self.assertLen(rows, 3 * 3 * 3 - 3)
    self.assertEqual({row["method"] for row in rows if row["model"] == "file"},
                     {"grad_cam", "occlusion"})
    self.assertAlmostEqual(_row(rows, model="teacher", method="saliency",
                                score="cosine")["worst"], 1, places=PLACES)
    shipped = _row(rows, model="file", method="grad_cam", score="cosine")
    report = kap.export.verify(
        self.models["file"], self.net, helpers.wcam(), self.images)
    self.assertAlmostEqual(
        shipped["mean"], report.summary()["cosine"]["mean"], places=PLACES)
    self.assertBetween(shipped["mean"], shipped["low"], shipped["high"])
    self.assertEqual(shipped["images"], 6)
    other = _row(rows, model="other", method="grad_cam", score="cosine")
    self.assertLess(other["mean"], shipped["mean"])
    maps = kap.attribution.grad_cam(
        self.net, self.images, self.net(self.images).numpy().argmax(1), "act")
    self.assertAlmostEqual(
        _row(rows, model="teacher", method="grad_cam", score="roc_auc")["mean"],
        kap.evaluation.localization(maps, masks)["roc_auc"].mean(),
        places=PLACES)

  def test_weights_of_several_classes(self):
    weights = np.float32([[1, 1, 0], [0, 1, 1], [1, 0, 1]] * 2)
    methods = ("grad_cam", "occlusion")
    models = {**self.models, "file": helpers.converted(mode="float32")}
    rows = kap.compare_models(
        models, self.images, methods, ("cosine",), targets=weights,
        layer="act")
    maps = [kap.attribution.grad_cam(self.models[name], self.images, weights)
            for name in ("teacher", "other")]
    self.assertAlmostEqual(
        _row(rows, model="other", method="grad_cam")["mean"],
        np.nanmean(kap.evaluation.agreement(*maps)["cosine"]), places=PLACES)
    for method in methods:  # The file explains the same sum.
      # A cosine near 1 falls by the square of the maps' float32 rounding.
      self.assertAlmostEqual(
          _row(rows, model="file", method=method)["worst"], 1, places=6)

  def test_rows_are_plain(self):
    self.check_rows(["grad_cam", "saliency", "lrp", "occlusion", "rise"])

  @pytest.mark.slow("explaining")
  def test_rows_are_plain_whatever_the_method(self):
    self.check_rows([
        name for name in kap.attribution.__all__
        if name[0].islower() and name not in (
            "linearize", "select_pathway", "lrp_conservation",
            "integrated_gradients_completeness")])

  def check_rows(self, names):
    """Plain dicts with the same keys: csv, JSON and pandas take them."""
    rows = kap.compare_models(
        {"teacher": self.net, "file": self.models["file"]}, self.images[:2],
        names, ("cosine",), targets=1, layer="act")
    self.assertEqual({row["method"] for row in rows}, set(names))
    self.assertLen(rows, len(names) + 3)  # The file has its own and two more.
    for row in rows:
      self.assertEqual(list(row), list(rows[0]))
      self.assertEqual({type(value) for value in row.values()},
                       {str, float, int})
    self.assertEqual(json.loads(json.dumps(rows)), rows)

  def test_rows_in_pandas(self):
    pandas = pytest.importorskip("pandas")
    rows = kap.compare_models(
        self.models, self.images, ("grad_cam", "saliency"),
        ("cosine", "spearman"), layer="act")
    table = pandas.DataFrame(rows).pivot_table(
        "mean", "model", ["method", "score"])
    self.assertEqual(table.shape, (3, 4))
    self.assertAlmostEqual(
        table.loc["other", ("saliency", "cosine")],
        _row(rows, model="other", method="saliency", score="cosine")["mean"])
    self.assertTrue(np.isnan(table.loc["file", ("saliency", "cosine")]))

  def test_functions_of_ones_own(self):
    rows = kap.compare_models(
        {"teacher": self.net}, self.images,
        {"red": lambda model, images, targets: np.abs(images[..., 0])},
        ("rmse", "sign"))
    self.assertEqual([row["mean"] for row in rows], [0, 1])

  def test_bad_arguments(self):
    for change, error, message in (
        ({"models": {"file": b""}}, TypeError, "begin with the reference"),
        ({"methods": ("shap",)}, ValueError, "methods must be out of"),
        ({"scores": ("pointing",)}, ValueError, "masks must be given"),
        ({"scores": ("sharpness",)}, ValueError, "scores must be out of")):
      with self.assertRaisesRegex(error, message):
        kap.compare_models(**{
            "models": {"teacher": self.net}, "images": self.images, **change})


if __name__ == "__main__":
  absltest.main()
