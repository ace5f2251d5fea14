"""Tests of reading a grid: which runs, in which order."""

from absl.testing import absltest, parameterized

from examples.experiment.runs.experiment import Run
from examples.experiment.runs.grids import expand, read_grid
from examples.experiment.runs.variants import ARMS


class ReadGridTest(parameterized.TestCase):

  def test_seed_after_seed_and_what_trains_nothing_once(self):
    self.assertEqual(read_grid("prune:0.8,.9;ptq", ["swa", "plain"], [3, 1]), [
        Run("prune", 0.8, "plain", 3), Run("prune", 0.8, "swa", 3),
        Run("prune", 0.9, "plain", 3), Run("prune", 0.9, "swa", 3),
        Run("ptq", 8.0, "plain", 3),
        Run("prune", 0.8, "plain", 1), Run("prune", 0.8, "swa", 1),
        Run("prune", 0.9, "plain", 1), Run("prune", 0.9, "swa", 1)])

  def test_what_does_not_go_together_is_refused(self):
    with self.assertRaisesRegex(ValueError, "trains nothing"):
      expand([("ptq", 8.0, ["swa"])], [1])

  def test_arms_of_its_own(self):
    self.assertEqual(
        read_grid("lamp:0.5@e2kd, plain ;filters:0.5; obs:0.5;", ARMS[:3], [1]),
        [Run("lamp", 0.5, "plain", 1),
         *(Run("filters", 0.5, arm, 1) for arm in ARMS[1:3]),
         Run("obs", 0.5, "plain", 1)])
    # In the order in which they are named.
    self.assertEqual(
        [run.arm for run in read_grid("lamp:0.5@swa,plain", ARMS, [1])],
        ["swa", "plain"])

  def test_what_trains_nothing_whatever_arms_are_asked_for(self):
    self.assertEqual(read_grid("obs:0.5", ["swa"], [1]),
                     [Run("obs", 0.5, "plain", 1)])

  def test_fine_tuning_goes_with_no_compression_alone(self):
    self.assertEqual(read_grid("none;prune:0.5", ["fine_tune", "plain"], [1]),
                     [Run("none", 0.0, "fine_tune", 1),
                      Run("prune", 0.5, "plain", 1)])
    self.assertEmpty(read_grid("none", ["plain"], [1]))

  def test_fresh_weights_have_nothing_to_recalibrate(self):
    def arms(grid):
      return {run.arm for run in read_grid(grid, ARMS, [1])}

    self.assertEqual(arms("qat") - arms("narrow:4"),
                     {arm for arm in ARMS if arm.endswith("_bn")})

  @parameterized.parameters(
      ("", "must name"), (" ; ", "must name"), ("@plain", "must name"),
      ("melt:1", "must be one of"), ("lamp:0.5@magic", "got 'magic'"),
      ("lamp:0.5@", "got ''"), ("lamp:0.5@fine_tune", "got 'fine_tune'"),
      ("ptq@swa", r"of \['plain'\]; got 'swa'"),
      ("none@plain", r"of \['fine_tune'\]; got 'plain'"),
      ("narrow:4@plain_bn", "got 'plain_bn'"))
  def test_what_it_refuses(self, text, said):
    with self.assertRaisesRegex(ValueError, said):
      read_grid(text, ARMS, [1])


if __name__ == "__main__":
  absltest.main()
