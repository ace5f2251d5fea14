"""Tests of picture_grids.py: the rule of choice, and the drawing."""

import warnings
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from examples.experiment.report import picture_grids
from examples.experiment.report.picture_grids import (
    choose_pictures,
    success_and_failure_grid,
)


def arguments(count=7, **changes):
  rng = np.random.default_rng(0)
  return {
      "images": rng.integers(0, 256, (count, 12, 10, 3), np.uint8),
      "masks": rng.random((count, 12, 10)) > 0.5,
      "maps": {arm: rng.random((count, 3, 4))
               for arm in ("teacher", "plain", "swa")},
      "cosines": {"plain": np.full(count, 0.5),
                  "swa": np.linspace(0.2, 0.9, count)},
      "arm": "swa", "each": 1, **changes}


class ChoiceTest(parameterized.TestCase):

  def test_by_hand(self):
    preserved = np.array([0.5, 0.9, 0.1, np.nan, 0.6, 0.4, 0.7])
    got = choose_pictures(preserved, np.full(7, 0.5), each=1)
    self.assertEqual([(choice.index, choice.reason) for choice in got], [
        (1, "most gained"), (4, "middle"), (2, "most lost")])
    np.testing.assert_allclose(
        [choice.gain for choice in got], [0.4, 0.1, -0.4])
    got = choose_pictures(preserved, np.full(7, 0.5), each=2)
    self.assertEqual([choice.index for choice in got], [1, 6, 4, 0, 5, 2])

  def test_a_loss_is_called_one_only_where_it_is_one(self):
    got = choose_pictures(np.array([0.9, 0.8, 0.7]), np.full(3, 0.5))
    self.assertEqual([choice.reason for choice in got],
                     ["most gained", "middle", "least gained"])

  def test_ties_go_by_order_and_none_comes_twice(self):
    got = choose_pictures(np.ones(8), np.ones(8), each=9)
    self.assertEqual([choice.index for choice in got], [0, 1, 3, 4, 6, 7])

  @parameterized.parameters(
      (np.ones(4), np.ones(5), 1, r"one length; got \[4\] and \[5\]"),
      (np.ones((4, 1)), np.ones((4, 1)), 1, r"must be \[images\]"),
      (np.ones(4), np.ones(4), 0, "each must be 1 or more; got 0"),
      (np.array([1, 1, np.nan]), np.ones(3), 1, "three pictures.*got 2"),
  )
  def test_what_cannot_be(self, ours, plain, each, text):
    with self.assertRaisesRegex(ValueError, text):
      choose_pictures(ours, plain, each=each)


class GridTest(parameterized.TestCase):

  def drawn(self, **changes):
    """What reaches the drawing: its arguments, by name."""
    with mock.patch.object(picture_grids, "map_grid") as draw:
      success_and_failure_grid(**arguments(**changes))
    names = ("images", "masks", "columns", "row_titles", "title", "notes")
    return dict(zip(names, draw.call_args.args))

  def test_rows_by_the_rule(self):
    given = arguments()
    got = self.drawn(labels=[f"class {i}" for i in range(7)])
    np.testing.assert_allclose(got["images"], given["images"][[6, 3, 0]] / 255)
    np.testing.assert_array_equal(got["masks"], given["masks"][[6, 3, 0]])
    self.assertEqual([*got["columns"]], ["teacher", "plain", "SWA"])
    np.testing.assert_array_equal(
        got["columns"]["SWA"], given["maps"]["swa"][[6, 3, 0]])
    self.assertEqual(got["row_titles"], [
        "class 6\nmost gained\n+0.40", "class 3\nmiddle\n+0.05",
        "class 0\nmost lost\n-0.30"])
    self.assertEqual(got["notes"]["SWA"],
                     ["cosine 0.90", "cosine 0.55", "cosine 0.20"])
    self.assertNotIn("teacher", got["notes"])

  def test_dead_maps_and_signed_ones(self):
    maps = arguments()["maps"]
    maps["plain"][6], maps["swa"][0, 0, 0] = 0, -2
    got = self.drawn(maps=maps)
    self.assertEqual(got["notes"]["plain"][0], "cosine 0.50, dead map")
    self.assertEqual(got["columns"]["SWA"][2, 0, 0], 0)

  def test_grey_floats_and_masks_without_a_border(self):
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      content = success_and_failure_grid(**arguments(
          3, images=np.random.default_rng(1).random((3, 12, 10, 1)),
          masks=np.stack([np.zeros((12, 10), bool), np.ones((12, 10), bool),
                          np.eye(12, 10, dtype=bool)])))
    height, width, _ = tf.io.decode_png(content).shape
    self.assertEqual(width, round(110 * 1.75 * 5))
    self.assertEqual(height, round(110 * (1.95 * 3 + 0.7)))

  @parameterized.parameters(
      ("images", np.ones((7, 12, 10, 4)), r"1 or 3\]; got \[7, 12, 10, 4\]"),
      ("images", np.full((7, 12, 10, 3), 255.0), "0..1; got 255 to 255"),
      ("images", np.full((7, 12, 10, 3), np.nan), "0..1; got nan"),
      ("masks", np.ones((7, 12, 10)), "must be bool .* got float64"),
      ("masks", np.ones((6, 12, 10), bool), r"must be bool \[7, 12, 10\]"),
      ("arm", "ewa", "must have 'ewa'"),
      ("plain", "ewa", "must have 'ewa'"),
      ("labels", ["a"], "labels must be 7.*got 1"),
      ("maps", {"plain": np.ones((7, 3, 3)), "swa": np.ones((6, 3, 3))},
       r"maps of 'swa' must be finite \[7"),
      ("maps", {"plain": np.ones((7, 3, 3)), "swa": np.full((7, 3, 3), np.nan)},
       "maps of 'swa' must be finite"),
      ("cosines", {"plain": np.ones(7), "swa": np.ones(6)},
       r"cosines of 'swa' must be \[7\]; got \[6\]"),
  )
  def test_what_is_refused(self, name, value, text):
    with self.assertRaisesRegex(ValueError, text):
      success_and_failure_grid(**arguments(**{name: value}))


if __name__ == "__main__":
  absltest.main()
