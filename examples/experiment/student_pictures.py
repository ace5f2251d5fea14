"""Pictures of where kept students look, beside their teacher."""

import numpy as np

import keras_attr_preserve as kap
from examples.experiment.experiment import Experiment, Run
from examples.experiment.picture_grids import success_and_failure_grid
from keras_attr_preserve import evaluation
from keras_attr_preserve.files import write_whole

__all__ = ["draw_students"]

SHOWN = ("plain", "distillation", "swa_distillation")
"""The arms that a picture shows; the last is the one whose gains choose."""


def draw_students(experiment: Experiment, seed: int) -> list[str]:
  """Draws the maps of the files that an experiment has kept.

  Args:
    experiment: with `keep`; of each compression and strength where all arms of
      `SHOWN` are there, one picture is drawn.
    seed: whose students.

  Returns:
    The names of the pictures written to the experiment's folder.
  """
  runs = {(row["compression"], row["strength"]) for row in experiment.rows()}
  written = []
  for compression, strength in sorted(runs):
    files = {arm: experiment.kept(Run(compression, strength, arm, seed))
             for arm in SHOWN if compression not in ("none", "ptq")}
    if not files or not all(files.values()):
      continue
    name = f"pictures-{compression}-{strength:g}.png"
    write_whole(experiment.folder / name, _grid(
        experiment, files, f"{experiment.name}, {compression} {strength:g}"))
    written.append(name)
  return written


def _grid(experiment: Experiment, files: dict[str, bytes], about: str) -> bytes:
  judge = experiment.judge
  images, classes = judge.pairs()
  reference = judge.explain_teacher(images, classes)
  maps = {"teacher": reference}
  cosines = {}
  for arm, content in files.items():
    maps[arm] = kap.export.Interpreter(content).explain(images, classes).maps
    cosines[arm] = evaluation.agreement(
        reference, maps[arm], scores=("cosine",))["cosine"]
  low, high = experiment.settings.pixel_range
  names = experiment.data.class_names
  return success_and_failure_grid(
      np.clip((images - low) / (high - low), 0, 1), judge.masks, maps, cosines,
      arm=SHOWN[-1], labels=[names[one] for one in classes], about=about)
