"""Tests of judging.py: the example's figures, table, files and image."""

import collections
import contextlib
import csv
import io
import json
import math
import re
from unittest import mock

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve import attribution, evaluation
from tests import export_helpers as helpers
from tests import tiny

with contextlib.suppress(ImportError):  # Said by setUpModule.
  from examples import judging
  from examples.experiment.data import digit_scenes

SCENES = 12


def setUpModule():
  helpers.skip_without_examples()


def results_by_hand():
  return {
      "centre prior": {"roc_auc": 0.5, "pointing": 0.4, "energy_inside": 0.2},
      "teacher": {"mean_average_precision": 0.9, "roc_auc": 0.9,
                  "pointing": 0.8, "energy_inside": 0.5},
      "plain": {"cosine_mean": 0.6, "cosine_p5": 0.2, "dead_maps": 0.25,
                "roc_auc": 0.7, "pointing": 0.9, "bytes": 65536,
                "same_top_class": 0.75},
      "preserved": {"cosine_mean": 0.9, "cosine_p5": 0.1, "dead_maps": 0.0,
                    "roc_auc": 0.8, "pointing": 0.85, "bytes": 65552,
                    "same_top_class": 0.875},
  }


class GapClosedTest(parameterized.TestCase):

  @parameterized.parameters(
      ("cosine_mean", 0.75),  # (.9 - .6) / (1 - .6)
      ("cosine_p5", -0.125),  # (.1 - .2) / (1 - .2)
      ("roc_auc", 0.5))       # (.8 - .7) / (.9 - .7)
  def test_by_hand(self, key, want):
    self.assertAlmostEqual(judging.gap_closed(results_by_hand(), key), want)

  @parameterized.parameters(
      "bytes", "same_top_class", "dead_maps",
      "pointing")  # Where plain compression lost nothing.
  def test_figures_without_a_gap(self, key):
    self.assertTrue(math.isnan(judging.gap_closed(results_by_hand(), key)))


class TableTest(absltest.TestCase):

  def test_text(self):
    lines = judging.table(results_by_hand()).splitlines()
    self.assertEqual(lines[1].split(), [
        "centre", "prior", "teacher", "plain", "preserved", "gap", "closed"])

    def cells(label):
      line, = [text for text in lines if text.startswith(label)]
      return re.split(r" {2,}", line[len(label):].strip())

    self.assertEqual(cells("  cosine, mean"), ["0.600", "0.900", "75%"])
    self.assertEqual(cells("  cosine, 5th"),
                     ["percentile", "0.200", "0.100", "-12%"])
    self.assertEqual(cells("  ROC-AUC"),
                     ["0.500", "0.900", "0.700", "0.800", "50%"])
    self.assertEqual(cells("  pointing game"),
                     ["0.400", "0.800", "0.900", "0.850"])
    self.assertEqual(cells("  bytes"), ["65,536", "65,552"])
    self.assertEqual(cells("  dead maps (share)"), ["0.250", "0.000"])
    self.assertNotIn("TFLM", "".join(lines))  # Nothing there to show.
    # Columns stand under their heads.
    head, row = lines[1], next(text for text in lines if "ROC-AUC" in text)
    for name, value in (("prior", "0.500"), ("teacher", "0.900"),
                        ("plain", "0.700"), ("preserved", "0.800"),
                        ("closed", "50%")):
      self.assertEqual(head.index(name) + len(name),
                       row.index(value) + len(value), name)


class JudgeTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.scenes = digit_scenes.make_scenes("test", SCENES, seed=1)
    images = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(
        6, 5, strides=4, padding="same", activation="relu", name="act")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    teacher = tiny.shake(keras.Model(images, keras.layers.Dense(10)(x)), 1)
    other = tiny.copy_of(teacher)
    rng = np.random.default_rng(0)
    for weight in other.weights:
      weight.assign_add(0.3 * rng.normal(size=weight.shape))
    cls.models = {"teacher": teacher, "plain": other,
                  "preserved": tiny.copy_of(teacher)}
    cls.files = {
        name: kap.export.convert(
            cls.models[name], helpers.wcam(), mode="int8",
            target="microcontroller",
            representative_images=digit_scenes.make_scenes("train", 20).images)
        for name in ("plain", "preserved")}
    with mock.patch.multiple(
        judging, OUTSIDE_SCENES=4, MICRO_SCENES=4), mock.patch.object(
            evaluation, "localization",
            side_effect=evaluation.localization) as cls.localization, (
                mock.patch.object(
                    kap.export.Interpreter, "explain", autospec=True,
                    side_effect=kap.export.Interpreter.explain)
            ) as cls.explain:
      cls.results = judging.judge(
          cls.models, cls.files, helpers.wcam(), cls.scenes)

  def test_whom(self):
    self.assertEqual(
        list(self.results), ["centre prior", "teacher", "plain", "preserved"])
    for row in self.results.values():
      for key, value in row.items():
        self.assertTrue(np.isfinite(value), key)
    self.assertEqual(set(self.results["plain"]), set(self.results["preserved"]))

  def test_the_same_pairs_for_all_models(self):
    calls = self.localization.call_args_list
    self.assertLen(calls, 4)
    which, classes = evaluation.mask_pairs(
        self.scenes.label_maps, digit_scenes.CLASS_IDS)
    # Each digit of each scene, once.
    self.assertEqual(len(which), self.scenes.labels.sum())
    masks = (self.scenes.label_maps[which] == (classes + 1)[:, None, None])
    valid = self.scenes.label_maps[which] != 255
    for call in calls:
      maps, got_masks, got_valid = call.args
      self.assertLen(maps, len(which))
      np.testing.assert_array_equal(got_masks, masks)
      np.testing.assert_array_equal(got_valid, valid)
    # Explained for the pair's class, not for the top one.
    explained = [call.args for call in self.explain.call_args_list
                 if len(call.args[1]) == len(which)]
    self.assertLen(explained, 2)
    for _, images, targets in explained:
      np.testing.assert_array_equal(images, self.scenes.images[which])
      np.testing.assert_array_equal(targets, classes)
    np.testing.assert_array_equal(
        calls[1].args[0], attribution.grad_cam(
            self.models["teacher"], self.scenes.images[which], classes, "act"))

  def test_figures_are_those_of_the_library(self):
    row = self.results["plain"]
    report = kap.export.verify(
        self.files["plain"], self.models["teacher"], helpers.wcam(),
        self.scenes.images)
    self.assertEqual(row["cosine_mean"], report.summary()["cosine"]["mean"])
    self.assertEqual(row["ssim_p5"], report.summary()["ssim"]["p5"])
    self.assertEqual(row["dead_maps"], report.dead)
    self.assertEqual(row["same_top_class"], report.prediction_agreement)
    self.assertEqual(row["bytes"], len(self.files["plain"]))
    self.assertEqual(
        row["mean_average_precision"], evaluation.mean_average_precision(
            self.scenes.labels, kap.export.Interpreter(
                self.files["plain"]).predict(self.scenes.images)))
    self.assertEqual(
        self.results["teacher"]["mean_average_precision"],
        evaluation.mean_average_precision(
            self.scenes.labels, self.models["teacher"].predict(
                self.scenes.images, verbose=0)))

  def test_the_better_file_has_the_better_figures(self):
    # "preserved" is the teacher itself, in int8.
    self.assertGreater(self.results["preserved"]["cosine_mean"], 0.99)
    # Noise of .3 on every weight costs "plain" more than int8 costs the other.
    self.assertLess(self.results["plain"]["cosine_mean"], 0.98)
    # What .99 and .98 leave: (.99 - .98) / (1 - .98).
    self.assertGreater(
        judging.gap_closed(self.results, "cosine_mean"), 0.5)
    # This judge asks the Keras models: "preserved" has the teacher's weights,
    # so that its maps are equal but for float32.
    self.assertGreater(
        self.results["preserved"]["integrated_gradients_cosine"], 0.999)
    # Noise on every weight; see above.
    self.assertLess(
        self.results["plain"]["integrated_gradients_cosine"], 0.999)

  @helpers.needs_tflm
  def test_tflm(self):
    for name in ("plain", "preserved"):
      self.assertGreater(
          self.results[name]["tflm_cosine_mean"],
          self.results[name]["cosine_mean"] - 0.1)

  def test_saved(self):
    folder = tiny.folder(self)
    settings = collections.defaultdict(lambda: 1, logtostderr=True)
    judging.save(folder, self.results, settings)
    report = json.loads((folder / "report.json").read_text())
    self.assertEqual(
        set(report), {"settings", "versions", "results", "gap_closed"})
    self.assertNotIn("logtostderr", report["settings"])
    self.assertEqual(report["settings"]["seed"], 1)
    self.assertIn("tf_keras", report["versions"])
    self.assertEqual(report["results"], self.results)
    self.assertAlmostEqual(
        report["gap_closed"]["cosine_mean"],
        judging.gap_closed(self.results, "cosine_mean"))
    self.assertNotIn("bytes", report["gap_closed"])
    rows = list(csv.DictReader(
        io.StringIO((folder / "report.csv").read_text())))
    by_figure = {row["figure"]: row for row in rows}
    self.assertLen(by_figure, len(rows))
    self.assertEqual(
        float(by_figure["cosine_mean"]["plain"]),
        self.results["plain"]["cosine_mean"])
    self.assertEqual(by_figure["cosine_mean"]["teacher"], "")
    self.assertEqual(by_figure["bytes"]["gap_closed"], "")

  def test_picture(self):
    with mock.patch.object(
        judging, "map_grid", side_effect=judging.map_grid) as draw:
      content = judging.picture(
          self.models["teacher"], self.files, helpers.wcam(), self.scenes,
          rows=2)
    self.assertStartsWith(content, b"\x89PNG\r\n\x1a\n")
    images, masks, maps, *rest = draw.call_args.args
    self.assertEqual(list(maps), [
        "teacher (float)", "plain (int8 file)", "preserved (int8 file)"])
    from matplotlib import image
    def pixels(content):
      return image.imread(io.BytesIO(content))[..., :3]
    page = pixels(content)
    self.assertGreater(min(page.shape[:2]), 300)
    for name, values in maps.items():
      blank = pixels(judging.map_grid(
          images, masks, {**maps, name: 0 * values}, *rest))
      changed = np.abs(page - blank).max(-1).max(0)
      # The column of that model, a fifth of the width, is another; equal pixels
      # are equal to the bit.
      self.assertBetween((changed > 0.05).mean(), 0.1, 0.2)


if __name__ == "__main__":
  absltest.main()
