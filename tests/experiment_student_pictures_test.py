"""Tests of student_pictures.py: whose maps are drawn, and from which files."""

from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest

from examples.experiment import student_pictures
from examples.experiment.student_pictures import draw_students, shown
from tests import tiny
from tests.experiment_rows import row


class Kept:
  """An experiment of made-up rows; the files of some arms were kept."""

  name = "made_up"

  def __init__(self, folder: Path, rows, lost=(), pairs=3):
    self.folder, self._rows, self._lost = folder, rows, lost
    self.judge = mock.Mock(classes=np.zeros(pairs, int))

  def rows(self):
    return self._rows

  def kept(self, run):
    return None if run.name in self._lost else run.name.encode()


class StudentPicturesTest(absltest.TestCase):

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
    self.assertEqual(draw_students(experiment, 1), [])

  def test_without_masks_there_is_nothing_to_draw(self):
    experiment = Kept(tiny.folder(self), [row("plain"), row("swa")], pairs=0)
    with mock.patch.object(student_pictures, "_grid") as grid:
      self.assertEqual(draw_students(experiment, 1), [])
    grid.assert_not_called()


if __name__ == "__main__":
  absltest.main()
