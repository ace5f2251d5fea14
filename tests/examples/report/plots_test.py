"""Tests of plots.py, class_plots.py and plot_styles.py: what is drawn where."""

import math

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from examples.experiment.report.class_plots import class_bars
from examples.experiment.report.figures import in_order
from examples.experiment.report.plot_styles import LINES, png, style
from examples.experiment.report.plots import closed_curves, trade_off_curves
from tests.experiment_rows import ARMS, CLASSES, row, sweep

SOME = ("plain", "distillation", "swa")


def curves(axes):
  """Heights and reaches of the bars, by arm; places too."""
  places = {}
  for container in axes.containers:
    line, _, bars = container.lines
    reach = [(end[1] - start[1]) / 2 for start, end in bars[0].get_segments()]
    places[container.get_label()] = (*line.get_data(), reach)
  return places


def legend(drawing):
  return [text.get_text() for text in drawing.legends[0].get_texts()]


class StylesTest(absltest.TestCase):

  def test_arms_can_be_told_apart(self):
    arms = [*ARMS, "mine", "zebra", *(f"other {i}" for i in range(9))]
    looks = [style(arm, arms) for arm in arms]
    self.assertLen(set(looks), len(arms))

  def test_an_arm_looks_the_same_among_others(self):
    for arm in ARMS:
      self.assertEqual(style(arm, SOME), style(arm, [*ARMS, "mine"]))


class TradeOffTest(parameterized.TestCase):

  def test_means_and_bars(self):
    rows = [row("teacher", 1, roc_auc=0.8), row("teacher", 2, roc_auc=0.9),
            row("centre_prior", 1, roc_auc=0.6),
            row("plain", 1, strength=0.8, roc_auc=0.7),
            row("plain", 2, strength=0.8, roc_auc=0.6),
            row("plain", 1, strength=0.9, roc_auc=0.5),
            row("swa", 1, strength=0.9, roc_auc=0.75),
            row("swa", 1, strength=0.8, roc_auc=math.nan)]
    drawing = trade_off_curves(rows, "prune")
    self.assertLen(drawing.axes, 1)
    axes = drawing.axes[0]
    got = curves(axes)
    self.assertEqual([*got], ["plain", "swa"])
    np.testing.assert_allclose(got["plain"][1], [0.65, 0.5])
    # The half of a difference of float64 heights of size 1.
    np.testing.assert_allclose(got["plain"][2], [math.sqrt(0.005), 0],
                               atol=1e-9)
    np.testing.assert_allclose(got["swa"][1], [0.75])
    # At even steps, the arms side by side.
    np.testing.assert_allclose(got["plain"][0], [-0.125, 0.875])
    np.testing.assert_allclose(got["swa"][0], [1.125])
    levels = {line.get_linestyle(): line.get_ydata()[0]
              for line in axes.lines if len(set(line.get_ydata())) == 1
              and len(line.get_ydata()) == 2}
    self.assertAlmostEqual(levels["--"], 0.85)
    self.assertAlmostEqual(levels[":"], 0.6)
    self.assertEqual([text.get_text() for text in axes.get_xticklabels()],
                     ["80 %", "90 %"])
    self.assertEqual(legend(drawing),
                     ["teacher", "centre prior", "plain", "SWA"])

  def test_panels_and_file(self):
    rows = sweep(arms=SOME, strengths=(0.8, 0.9), seeds=(1, 2))
    drawing = trade_off_curves(rows, "prune")
    self.assertLen(drawing.axes, 6)
    self.assertEqual(drawing.axes[0].get_title(), "mean AP")
    for axes in drawing.axes:
      self.assertEqual([*curves(axes)], [*SOME])
    content = png(drawing)
    self.assertEqual(tf.io.decode_png(content).shape[1:], (1200, 3 + 1))
    self.assertEqual(content, png(trade_off_curves(rows, "prune")))

  def test_against_size(self):
    rows = [row("plain", strength=0.8, map=0.8, bytes_gzipped=200_000),
            row("plain", strength=0.9, map=0.7, bytes_gzipped=100_000),
            row("swa", strength=0.9, map=0.9)]
    axes = trade_off_curves(rows, "prune", against="bytes_gzipped").axes[0]
    got = curves(axes)
    self.assertEqual([*got], ["plain"])  # The other has no size.
    np.testing.assert_allclose(got["plain"][0], [200, 100])
    self.assertEqual(axes.get_xlabel(), "gzipped, kB")

  def test_one_strength_one_seed_one_arm_of_another_name(self):
    rows = [row("mine", compression="ptq", strength=8, cosine_mean=0.9)]
    drawing = trade_off_curves(rows, "ptq")
    self.assertEqual([*curves(drawing.axes[0])], ["mine"])
    self.assertEqual(legend(drawing), ["mine"])
    self.assertStartsWith(png(drawing), b"\x89PNG")

  def test_nothing_to_draw(self):
    rows = [row("plain", sparsity=0.9), row("teacher", map=0.9)]
    self.assertIsNone(trade_off_curves(rows, "prune"))
    self.assertIsNone(closed_curves(rows, "prune"))
    self.assertIsNone(class_bars(rows, "prune", 0.9, "ap"))
    self.assertIsNone(
        trade_off_curves([row(map=0.9)], "prune", against="bytes_gzipped"))
    with self.assertRaisesRegex(ValueError, r"one of \['prune'\]; got 'ptq'"):
      trade_off_curves(rows, "ptq")


class ClosedTest(absltest.TestCase):

  def test_shares_and_daggers(self):
    rows = [row("plain", 1, cosine_mean=0.5, map=0.8),
            row("plain", 2, cosine_mean=0.6, map=0.8),
            row("swa", 1, cosine_mean=0.9, map=0.8),
            row("swa", 2, cosine_mean=0.9, map=0.8),
            row("ewa", 1, cosine_mean=0.6, map=0.5),
            row("fine_tune", 1, cosine_mean=0.9)]
    drawing = closed_curves(rows, "prune")
    axes, = drawing.axes
    got = curves(axes)
    self.assertEqual([*got], ["ewa", "swa"])
    np.testing.assert_allclose(got["swa"][1], [77.5])
    np.testing.assert_allclose(got["swa"][2], [2.5])  # 75 % to 80 %.
    np.testing.assert_allclose(got["ewa"][1], [20])
    daggers = [text for text in axes.texts if text.get_text() == "†"]
    self.assertLen(daggers, 1)
    self.assertAlmostEqual(daggers[0].xy[1], 20)

  def test_a_tiny_gap_does_not_flatten_the_rest(self):
    rows = [row("plain", cosine_mean=0.999), row("swa", cosine_mean=0.9995),
            row("ewa", cosine_mean=0.9)]
    axes, = closed_curves(rows, "prune").axes
    self.assertGreaterEqual(axes.get_ylim()[0], -100)
    self.assertIn(
        "1 outside the view", [text.get_text() for text in axes.texts])

  def test_where_nothing_was_lost(self):
    rows = [row("teacher", roc_auc=0.7), row("plain", roc_auc=0.75),
            row("swa", roc_auc=0.8)]
    self.assertIsNone(closed_curves(rows, "prune"))


class ClassBarsTest(absltest.TestCase):

  def test_a_bar_for_each_arm_and_class(self):
    rows = sweep(arms=SOME, strengths=(0.9,), seeds=(1, 2))
    drawing = class_bars(rows, "prune", 0.9, "ap")
    axes, = drawing.axes
    bars = [container for container in axes.containers
            if hasattr(container, "patches")]
    self.assertEqual([bar.get_label() for bar in bars], [*SOME])
    want = np.mean([line["per_class"]["cow"]["ap"] for line in rows
                    if line["arm"] == "swa"])
    self.assertAlmostEqual(bars[2].datavalues[CLASSES.index("cow")], want)
    self.assertEqual([text.get_text() for text in axes.get_yticklabels()],
                     [*CLASSES])
    lines = {collection.get_label()
             for collection in axes.collections} & LINES.keys()
    self.assertEqual(lines, {"teacher", "fine_tune"})
    self.assertEqual(tf.io.decode_png(png(drawing)).shape[1], 1200)

  def test_missing_classes(self):
    rows = [row("plain", per_class={"dog": {"ap": 0.5}}),
            row("swa", per_class={"cat": {"ap": 0.4}}), row("ewa")]
    drawing = class_bars(rows, "prune", 0.9, "ap")
    self.assertEqual(legend(drawing), ["plain", "SWA"])
    self.assertStartsWith(png(drawing), b"\x89PNG")

  def test_order_of_the_legend(self):
    rows = sweep(strengths=(0.9,), seeds=(1,))
    self.assertLen(legend(class_bars(rows, "prune", 0.9, "ap")),
                   len(in_order({line["arm"] for line in rows})) - 1)


if __name__ == "__main__":
  absltest.main()
