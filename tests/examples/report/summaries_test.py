"""Tests of summaries.py and figures.py: worked by hand."""

import math

from absl.testing import absltest, parameterized

from examples.experiment.report.figures import (
    FIGURES,
    TABLE,
    arm_name,
    figure,
    in_order,
    strength_text,
)
from examples.experiment.report.summaries import (
    best_arms,
    by_arm,
    by_class,
    gap_closed,
    settings_of,
    summarize,
    task_change,
)
from tests.experiment_rows import row


def arms_of(**values):
  """Rows by arm at prune 0.9, a seed each value of `roc_auc`."""
  return by_arm([row(arm, seed, roc_auc=value) for arm, ones in values.items()
                 for seed, value in enumerate(ones, 1)], "prune", 0.9)


class FiguresTest(absltest.TestCase):

  def test_order(self):
    self.assertEqual(
        in_order(["zebra", "agreement", "plain", "swa_stochastic", "teacher",
                  "alpha", "plain", "centre_prior", "swa"]),
        ["teacher", "centre_prior", "plain", "swa", "swa_stochastic",
         "agreement", "alpha", "zebra"])
    self.assertEqual(arm_name("zebra"), "zebra")

  def test_strengths_in_words(self):
    for compression, strength, text in (
        ("prune", 0.9, "90 %"), ("filters", 0.575, "57.5 %"),
        ("narrow", 4, "1/4"), ("narrow+qat", 8, "1/8"), ("ptq", 8, "8 bits"),
        ("prune+qat", 0.97, "97 %"), ("cluster", 16, "16")):
      self.assertEqual(strength_text(compression, strength), text)

  def test_every_column_is_a_figure(self):
    for key in TABLE:
      self.assertIn(figure(key), FIGURES)
    self.assertEqual(figure("float_roc_auc").title, figure("roc_auc").title)
    with self.assertRaisesRegex(ValueError, "figure must be one of.*'cosin'"):
      figure("cosin")


class SummaryTest(absltest.TestCase):

  def test_mean_and_sample_deviation(self):
    got = summarize([1.0, 2.0, 6.0, None, math.nan, math.inf])
    self.assertEqual((got.mean, got.count), (3.0, 3))
    self.assertAlmostEqual(got.spread, math.sqrt((4 + 1 + 9) / 2))

  def test_one_seed_and_none(self):
    self.assertEqual(summarize([0.5])[::2], (0.5, 1))
    self.assertTrue(math.isnan(summarize([0.5]).spread))
    self.assertTrue(math.isnan(summarize([None]).mean))

  def test_settings_and_cells(self):
    rows = [row("teacher"), row(strength=0.9), row(strength=0.8),
            row("swa", compression="filters", strength=0.5), row("fine_tune")]
    self.assertEqual(settings_of(rows), [
        ("prune", 0.8), ("prune", 0.9), ("filters", 0.5)])
    self.assertEqual([*by_arm(rows, "filters", 0.5)],
                     ["teacher", "fine_tune", "swa"])
    with self.assertRaisesRegex(ValueError, "must be one of.*'prune', 0.7"):
      by_arm(rows, "prune", 0.7)

  def test_classes(self):
    rows = [row(per_class={"dog": {"ap": 0.5}, "cat": {"ap": None}}),
            row(per_class=None), row(per_class={"dog": {"ap": 0.7}})]
    self.assertEqual(by_class(rows, "ap"), {"dog": [0.5, 0.7]})


class BestTest(absltest.TestCase):

  def test_a_lead_beyond_the_spread_stands_alone(self):
    # Means .50, .60, .70; sample deviations .01, .01, .01.
    arms = arms_of(plain=(0.49, 0.5, 0.51), ewa=(0.59, 0.6, 0.61),
                   swa=(0.69, 0.7, 0.71))
    self.assertEqual(best_arms(arms, "roc_auc"), {"swa"})

  def test_ties_within_the_larger_spread(self):
    # .70 with deviation .01; .65 with .06, a tie; .66 with .02, not one.
    arms = arms_of(plain=(0.59, 0.65, 0.71), ewa=(0.64, 0.66, 0.68),
                   swa=(0.69, 0.7, 0.71))
    self.assertEqual(best_arms(arms, "roc_auc"), {"swa", "plain"})

  def test_who_takes_no_part(self):
    arms = arms_of(teacher=(0.9, 0.9), fine_tune=(0.9, 0.9), swa=(0.95,),
                   centre_prior=(0.99, 0.99), plain=(0.5, 0.52), ewa=(0.6, 0.6))
    self.assertEqual(best_arms(arms, "roc_auc"), {"ewa"})
    self.assertEmpty(best_arms(arms_of(plain=(0.5, 0.6), swa=(0.9,)),
                               "roc_auc"))

  def test_less_may_be_better(self):
    arms = by_arm([row(arm, seed, dead=value, sparsity=value)
                   for arm, value in (("plain", 0.2), ("swa", 0.1))
                   for seed in (1, 2)], "prune", 0.9)
    self.assertEqual(best_arms(arms, "dead"), {"swa"})
    self.assertEmpty(best_arms(arms, "sparsity"))


class GapTest(parameterized.TestCase):

  def test_by_hand(self):
    # Gaps .2 and .25; closed .15 and .05 of them: 75 % and 20 %.
    got = gap_closed(arms_of(teacher=(0.8, 0.85), plain=(0.6, 0.6),
                             swa=(0.75, 0.65)), "swa", "roc_auc")
    self.assertAlmostEqual(got.mean, 0.475)
    self.assertAlmostEqual(got.low, 0.2)
    self.assertAlmostEqual(got.high, 0.75)
    self.assertEqual(got.count, 2)

  def test_beyond_the_teacher_and_below_plain(self):
    arms = arms_of(teacher=(0.8,), plain=(0.6,), swa=(0.9,), ewa=(0.5,))
    self.assertAlmostEqual(gap_closed(arms, "swa", "roc_auc").mean, 1.5)
    self.assertAlmostEqual(gap_closed(arms, "ewa", "roc_auc").mean, -0.5)

  def test_the_teacher_agrees_with_itself(self):
    rows = [row("plain", cosine_mean=0.6), row("swa", cosine_mean=0.9)]
    got = gap_closed(by_arm(rows, "prune", 0.9), "swa", "cosine_mean")
    self.assertAlmostEqual(got.mean, 0.75)

  def test_seeds_meet_their_own(self):
    rows = [row("teacher", 1, roc_auc=0.8), row("teacher", 3, roc_auc=0.9),
            row("plain", 1, roc_auc=0.6), row("plain", 2, roc_auc=0.1),
            row("plain", 3, roc_auc=0.7), row("swa", 3, roc_auc=0.8),
            row("swa", 2, roc_auc=0.8), row("swa", 1, roc_auc=math.nan)]
    got = gap_closed(by_arm(rows, "prune", 0.9), "swa", "roc_auc")
    self.assertEqual(got.count, 1)  # Seed 3 alone has all.
    self.assertAlmostEqual(got.mean, 0.5)

  @parameterized.parameters(
      ((0.8, 0.8, 0.8), (0.79, 0.79, 0.80)),  # Nothing lost in one seed.
      ((0.8, 0.8, 0.8), (0.79, 0.79, 0.81)),
      ((0.8, 0.8, 0.8), (0.79, 0.79, 0.60)),  # .0733 within its spread .110.
      ((0.8, 0.8, 0.8), (0.9, 0.9, 0.9)),
  )
  def test_nothing_lost_beyond_the_noise(self, teacher, plain):
    arms = arms_of(teacher=teacher, plain=plain, swa=(0.8, 0.8, 0.8))
    self.assertIsNone(gap_closed(arms, "swa", "roc_auc"))

  def test_what_is_not_there(self):
    self.assertIsNone(gap_closed(
        arms_of(plain=(0.6,), swa=(0.8,)), "swa", "roc_auc"))  # No teacher.
    self.assertIsNone(gap_closed(
        arms_of(teacher=(0.8,), swa=(0.8,)), "swa", "roc_auc"))
    self.assertIsNone(gap_closed(
        arms_of(teacher=(0.8,), plain=(0.6,)), "swa", "roc_auc"))
    with self.assertRaisesRegex(ValueError, "to raise; got 'dead'"):
      gap_closed(arms_of(plain=(0.6,)), "swa", "dead")


class TaskTest(absltest.TestCase):

  def change(self, plain, ours):
    rows = [row(arm, seed, accuracy=value)
            for arm, values in (("plain", plain), ("swa", ours))
            for seed, value in enumerate(values, 1)]
    return task_change(by_arm(rows, "prune", 0.9), "swa")

  def test_worse_is_beyond_the_larger_spread(self):
    change, worse = self.change((0.79, 0.80, 0.81), (0.77, 0.78, 0.79))[
        "accuracy"]
    self.assertAlmostEqual(change, -0.02)
    self.assertTrue(worse)
    self.assertFalse(  # A spread of .03 now.
        self.change((0.77, 0.80, 0.83), (0.77, 0.78, 0.79))["accuracy"][1])
    self.assertFalse(self.change((0.8, 0.8), (0.9, 0.9))["accuracy"][1])

  def test_one_seed_and_shared_seeds(self):
    self.assertTrue(self.change((0.8,), (0.799,))["accuracy"][1])
    self.assertFalse(self.change((0.8,), (0.8,))["accuracy"][1])
    # The second seed has no partner and must not tell.
    self.assertFalse(self.change((0.8, 0.99), (0.8,))["accuracy"][1])
    self.assertEmpty(self.change((0.8,), (None,)))


if __name__ == "__main__":
  absltest.main()
