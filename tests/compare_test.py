"""Tests of compare.py: models, files, methods and scores in one table."""

import numpy as np
from absl.testing import absltest

import keras_attr_preserve as kap
from tests import export_helpers as helpers


def _row(rows, **wanted):
  found, = [row for row in rows
            if all(row[key] == value for key, value in wanted.items())]
  return found


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
                                score="cosine")["worst"], 1, places=5)
    shipped = _row(rows, model="file", method="grad_cam", score="cosine")
    report = kap.export.verify(
        self.models["file"], self.net, helpers.wcam(), self.images)
    self.assertAlmostEqual(
        shipped["mean"], report.summary()["cosine"]["mean"], places=5)
    self.assertBetween(shipped["mean"], shipped["low"], shipped["high"])
    self.assertEqual(shipped["images"], 6)
    other = _row(rows, model="other", method="grad_cam", score="cosine")
    self.assertLess(other["mean"], shipped["mean"])
    maps = kap.attribution.grad_cam(
        self.net, self.images, self.net(self.images).numpy().argmax(1), "act")
    self.assertAlmostEqual(
        _row(rows, model="teacher", method="grad_cam", score="roc_auc")["mean"],
        kap.evaluation.localization(maps, masks)["roc_auc"].mean(), places=5)

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
