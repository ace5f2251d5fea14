"""Tests of student_pictures.py: whose maps are drawn, and from which files."""

import contextlib
import io
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from examples.experiment.report import picture_grids, student_pictures
from examples.experiment.report.student_pictures import draw_students, shown
from tests import tiny
from tests.experiment_rows import row


class Kept:
  """An experiment of made-up rows; the files of some arms were kept."""

  name = "made_up"

  def __init__(self, folder: Path, rows, lost=()):
    self.folder, self._rows, self._lost = folder, rows, lost
    self.judge = mock.Mock()

  def rows(self):
    return self._rows

  def kept(self, run):
    return None if run.name in self._lost else run.name.encode()


class StudentPicturesTest(parameterized.TestCase):

  def test_the_recipe_is_shown_beside_its_rivals(self):
    self.assertEqual(
        shown(["swa", "swa_hints", "hints", "e2kd", "plain", "distillation"]),
        ("plain", "distillation", "e2kd", "swa_hints"))
    self.assertEqual(shown(["swa", "plain"]), ("plain", "swa"))

  def test_without_plain_or_ours_nothing_is_shown(self):
    self.assertEqual(shown(["plain", "distillation"]), ())
    self.assertEqual(shown(["swa", "distillation"]), ())

  def test_a_picture_for_each_strength_from_its_own_seed_and_files(self):
    rows = [row(arm, seed, strength=strength)
            for arm in ("teacher", "plain", "e2kd", "swa") for seed in (1, 2)
            for strength in (0.5, 0.9)]
    rows.append(row("plain", 2, compression="qat", strength=8))
    experiment = Kept(
        tiny.folder(self), rows, lost=["prune-0.5-e2kd-2", "prune-0.9-swa-1"])
    with mock.patch.object(
        student_pictures, "_grid", return_value=b"drawn") as grid:
      written = draw_students(experiment, 2)
    self.assertEqual(
        written, ["pictures-prune-0.5.png", "pictures-prune-0.9.png"])
    self.assertEqual(
        [call.args[1] for call in grid.call_args_list],
        [{"plain": b"prune-0.5-plain-2", "swa": b"prune-0.5-swa-2"},
         {"plain": b"prune-0.9-plain-2", "e2kd": b"prune-0.9-e2kd-2",
          "swa": b"prune-0.9-swa-2"}])
    for name in written:
      self.assertEqual((experiment.folder / name).read_bytes(), b"drawn")

  def test_the_judge_is_not_made_for_nothing(self):
    experiment = Kept(
        tiny.folder(self), [row("plain"), row("swa")], lost=["prune-0.9-swa-1"])
    del experiment.judge  # Whoever asks for it fails.
    with contextlib.redirect_stdout(io.StringIO()) as said:
      self.assertEqual(draw_students(experiment, 1), [])
    self.assertIn("no picture of prune 0.9: it takes kept files of seed 1 of "
                  "the arm plain and of one of swa_hints, ", said.getvalue())
    self.assertIn("there are those of plain.", said.getvalue())

  @parameterized.parameters(True, False)
  def test_with_masks_and_without(self, masked):
    experiment = Kept(tiny.folder(self), [row("plain"), row("swa")])
    rng = np.random.default_rng(0)
    maps = rng.uniform(size=(3, 2, 2))
    masks = rng.uniform(size=(3, 4, 4)) > 0.5 if masked else None
    experiment.judge = mock.Mock(**{
        "shown.return_value": (
            rng.uniform(-1, 1, (3, 4, 4, 3)), np.array([0, 1, 1]), masks),
        "explain_teacher.return_value": maps})
    experiment.settings = mock.Mock(pixel_range=(-1, 1))
    experiment.data = mock.Mock(class_names=("ant", "bee"))
    with (mock.patch.object(kap.export, "Interpreter") as files,
          mock.patch.object(
              picture_grids, "map_grid", return_value=b"drawn") as grid):
      files.return_value.explain.return_value.maps = maps
      self.assertEqual(draw_students(experiment, 1), ["pictures-prune-0.9.png"])
      # Fewer images than a grid needs: told, and the report goes on.
      experiment.judge.shown.return_value = (
          np.zeros([1, 4, 4, 3]), np.array([0]),
          masks[:1] if masked else None)
      experiment.judge.explain_teacher.return_value = maps[:1]
      files.return_value.explain.return_value.maps = maps[:1]
      with contextlib.redirect_stdout(io.StringIO()) as said:
        self.assertEqual(draw_students(experiment, 1), [])
    self.assertEqual(grid.call_args.args[1] is None, not masked)
    self.assertIn("no picture of prune 0.9: cosines must hold three pictures",
                  said.getvalue())


if __name__ == "__main__":
  absltest.main()
