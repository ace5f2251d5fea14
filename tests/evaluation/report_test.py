"""Tests of report.py: the figures, the gate and the files."""

import csv
import json
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve.evaluation import Report, ShortfallError
from keras_attr_preserve.evaluation import report as report_module
from keras_attr_preserve.evaluation.report import Examples, summarize
from keras_attr_preserve.utils.drawing import side_by_side
from tests import tiny

COSINE = np.array([0.9, 0.5, np.nan, 1.0])
L2 = np.array([0.4, 1.0, np.nan, 0.0])


def _report(**changed):
  scores = {"cosine": COSINE, "l2": L2, "top_k_iou": np.array([1, 1, 0, 1.0]),
            "same_class": np.array([1.0, 0, 1, 1]), **changed}
  return Report(scores, 0.25, {"file": "net.tflite", "layer": "relu5"})


class SummarizeTest(parameterized.TestCase):

  def test_by_hand(self):
    values = (np.arange(10001) / 10000)**2
    for name, want in (("cosine", (1 / 3, 0.25, 0.0025, 0.0)),
                       ("l2", (1 / 3, 0.25, 0.9025, 1.0))):
      got = summarize(values, name)
      self.assertEqual(list(got), ["mean", "median", "p5", "worst"])
      # A mean over 10001 points is 1/60000 above the integral.
      np.testing.assert_allclose(list(got.values()), want, atol=1e-4)

  def test_leaves_out_nan(self):
    self.assertAlmostEqual(summarize(COSINE)["mean"], 0.8)
    self.assertEqual(summarize(COSINE)["worst"], 0.5)

  @parameterized.parameters([[]], [[np.nan, np.nan]])
  def test_of_nothing(self, values):
    self.assertTrue(np.isnan(
        list(summarize(np.array(values, float)).values())).all())


class ReportTest(parameterized.TestCase):

  def test_figures(self):
    report = _report()
    self.assertEqual(report.prediction_agreement, 0.75)
    summary = report.summary()
    self.assertEqual(list(summary), ["cosine", "l2", "top_k_iou"])
    self.assertAlmostEqual(summary["cosine"]["mean"], 0.8)
    self.assertAlmostEqual(summary["l2"]["worst"], 1.0)

  def test_worst_images(self):
    self.assertEqual(_report().worst_images(), [1, 0, 3])
    self.assertEqual(_report().worst_images(2), [1, 0])
    self.assertEqual(_report().worst_images(score="l2"), [1, 0, 3])
    self.assertEqual(_report().worst_images(1, "top_k_iou"), [2])

  def test_the_gate_opens(self):
    report = _report()
    self.assertIs(report.require(), report)
    self.assertIs(report.require(
        cosine=0.79, cosine_mean=0.79, cosine_median=0.9, cosine_p5=0.5,
        cosine_worst=0.5, l2=0.5,
        l2_worst=1.0, l2_p5=1.0, top_k_iou=0.75, top_k_iou_worst=0.0,
        prediction_agreement=0.75, dead=0.25), report)

  @parameterized.parameters(
      ({"cosine": 0.81}, "cosine 0.8000, at least 0.81 required"),
      ({"cosine_median": 0.91}, "cosine_median 0.9000, at least 0.91 required"),
      ({"cosine_worst": 0.6}, "cosine_worst 0.5000, at least 0.6 required"),
      ({"cosine_p5": 0.6}, "cosine_p5 0.5400, at least 0.6 required"),
      ({"l2": 0.4}, "l2 0.4667, at most 0.4 required"),
      ({"l2_worst": 0.9}, "l2_worst 1.0000, at most 0.9 required"),
      ({"top_k_iou": 0.8}, "top_k_iou 0.7500, at least 0.8 required"),
      ({"prediction_agreement": 0.8},
       "prediction_agreement 0.7500, at least 0.8 required"),
      ({"dead": 0.2}, "dead 0.2500, at most 0.2 required"))
  def test_the_gate_shuts_with_the_figures(self, limits, message):
    with self.assertRaisesRegex(ShortfallError, message) as caught:
      _report().require(**limits)
    self.assertIn("net.tflite", str(caught.exception))  # The table follows.

  def test_all_that_falls_short_is_said(self):
    with self.assertRaises(ShortfallError) as caught:
      _report().require(cosine=0.9, l2=0.1, dead=0.0, top_k_iou=0.1)
    first = str(caught.exception).splitlines()[0]
    self.assertEqual(first.count("required"), 3)
    self.assertNotIn("top_k_iou", first)

  def test_nan_never_passes(self):
    nothing = np.full(4, np.nan)
    for limits in ({"cosine": -1}, {"cosine_worst": -1}, {"l2": 100},
                   {"prediction_agreement": 0}):
      with self.assertRaisesRegex(ShortfallError, " nan, at (least|most)"):
        _report(cosine=nothing, l2=nothing, same_class=nothing).require(
            **limits)
    report = Report({"same_class": np.ones(1)}, float("nan"), {})
    with self.assertRaisesRegex(ShortfallError, "dead nan, at most 1"):
      report.require(dead=1)

  @parameterized.parameters("cosin", "cosine_best", "same_class", "_p5")
  def test_a_limit_on_nothing(self, name):
    with self.assertRaisesRegex(
        ValueError, f"require: '{name}' is no figure; take .*cosine.*l2"
        ".*_median, _p5 or _worst"):
      _report().require(**{name: 0.5})

  def test_as_text(self):
    lines = {" ".join(line.split()[:-4]): line.split()[-4:]
             for line in str(_report()).splitlines() if line}
    self.assertEqual(lines["cosine"], ["0.8000", "0.9000", "0.5400", "0.5000"])
    text = str(_report())
    self.assertRegex(text, r"file +net\.tflite\n")
    self.assertRegex(text, r"dead maps +0\.2500\n")
    self.assertRegex(text, r"same top class +0\.7500$")

  def test_as_json(self):
    folder = tiny.folder(self) / "new" / "report"
    _report(pearson=np.full(4, np.nan)).save(folder)
    text = (folder / "report.json").read_text()
    self.assertNotIn("NaN", text)  # Other readers refuse it.
    got = json.loads(text)
    self.assertEqual(got["file"], "net.tflite")
    self.assertAlmostEqual(got["agreement"]["cosine"]["mean"], 0.8)
    self.assertEqual(got["agreement"]["pearson"], dict.fromkeys(
        ["mean", "median", "p5", "worst"]))
    self.assertEqual(got["dead"], 0.25)
    self.assertEqual(got["prediction_agreement"], 0.75)
    self.assertEqual(got["worst_images"], [1, 0, 3])

  def test_numpy_facts_are_written(self):
    folder = tiny.folder(self)
    report = Report({"cosine": COSINE, "same_class": np.ones(4)}, 0.0, {
        "size": np.int64(7), "time": np.float32(0.5)})
    report.save(folder)
    got = json.loads((folder / "report.json").read_text())
    self.assertEqual((got["size"], got["time"]), (7, 0.5))

  def test_no_figure_is_nan_in_json(self):
    folder = tiny.folder(self)
    Report({"cosine": COSINE[:0], "same_class": COSINE[:0]},
           float("nan"), {}).save(folder)
    self.assertNotIn("NaN", (folder / "report.json").read_text())

  def test_as_csv(self):
    folder = tiny.folder(self)
    for _ in range(2):  # Existing files are replaced.
      _report().save(folder)
    with open(folder / "report.csv", newline="") as file:
      rows = list(csv.reader(file))
    self.assertEqual(
        rows[0], ["image", "cosine", "l2", "top_k_iou", "same_class"])
    self.assertEqual([row[0] for row in rows[1:]], ["0", "1", "2", "3"])
    got = np.array([[float(cell) for cell in row[1:3]] for row in rows[1:]])
    np.testing.assert_allclose(got, np.stack([COSINE, L2], 1))  # NaN too.
    self.assertEqual(
        {path.name for path in folder.iterdir()},
        {"report.csv", "report.json"})

  def test_names_in_place_of_numbers(self):
    folder = tiny.folder(self)
    report = _report()
    report.image_names = ["a.png", "b, c.png", "d.png", "\N{SNOWMAN}.png"]
    images = np.zeros([1, 8, 8, 3])
    report.examples = Examples(
        [3], images, images[..., 0], images[..., 0], (0, 1))
    with mock.patch.object(
        report_module, "labelled_png", return_value=b"") as drawn:
      report.save(folder)
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
      self.assertEqual([row[0] for row in csv.reader(file)],
                       ["image", *report.image_names])
    got = json.loads((folder / "report.json").read_text())
    self.assertEqual(got["worst_images"], [1, 0, 3])
    self.assertEqual(
        got["worst_names"], ["b, c.png", "a.png", "\N{SNOWMAN}.png"])
    self.assertEqual(drawn.call_args.kwargs["labels"],
                     ["\\u2603.png: cosine 1.0000"])
    report.image_names = ["a.png"]
    with self.assertRaisesRegex(ValueError, "image_names must be 4, .*got 1"):
      report.save(folder)

  def test_as_a_picture(self):
    folder = tiny.folder(self)
    rng = np.random.default_rng(0)
    report = _report()
    report.examples = Examples(
        [1, 0], rng.random((2, 64, 64, 3)), rng.random((2, 4, 4)),
        rng.random((2, 4, 4)), (0, 1))
    report.save(folder)
    pixels = tf.io.decode_png((folder / "worst.png").read_bytes()).numpy()
    rows = side_by_side(*report.examples[1:4], value_range=(0, 1))
    np.testing.assert_array_equal(pixels[2 * 18:2 * 18 + 128], rows[0])
    np.testing.assert_array_equal(pixels[-128:], rows[1])
    report.examples = None
    report.save(folder)  # Another report's images do not stay.
    self.assertFalse((folder / "worst.png").exists())

  def test_judges_have_names_of_their_own(self):
    report = _report(occlusion_cosine=np.array([0.5, np.nan, 1, np.nan]),
                     rise_l2=np.array([0.1, 0.2, 0.3, np.nan]))
    self.assertAlmostEqual(report.summary()["occlusion_cosine"]["mean"], 0.75)
    self.assertAlmostEqual(report.summary()["rise_l2"]["worst"], 0.3)
    self.assertEqual(report.worst_images(1, "rise_l2"), [2])
    report.require(occlusion_cosine=0.75, occlusion_cosine_worst=0.5,
                   rise_l2=0.21, rise_l2_worst=0.3)
    for name in ("occlusion_cosine_worst", "occlusion_cosine"):
      with self.assertRaisesRegex(ShortfallError, f"{name} 0.*, at least 0.8"):
        report.require(**{name: 0.8})
    with self.assertRaisesRegex(ShortfallError, "rise_l2 0.2000, at most 0.1"):
      report.require(rise_l2=0.1)

  def test_no_folder_to_write_to(self):
    path = tiny.folder(self) / "a.txt"
    path.write_text("old")
    with self.assertRaisesRegex(OSError, "folder must be a folder that can be"):
      _report().save(path)
    self.assertEqual(path.read_text(), "old")


if __name__ == "__main__":
  absltest.main()
