"""Draws attribution maps of kept students, beside their teacher."""

from collections.abc import Collection

import numpy as np

import keras_attr_preserve as kap
from examples.experiment.report.picture_grids import success_and_failure_grid
from examples.experiment.runs.experiment import Experiment, Run
from examples.experiment.runs.variants import CALLBACK_ARMS
from keras_attr_preserve import evaluation
from keras_attr_preserve.utils.atomic_files import write_whole

__all__ = ["draw_students", "shown"]

RIVALS = ("distillation", "e2kd")
OURS = ("swa_hints", "swa_hints_distillation", "swa_distillation", "swa")
"""The drawing shows the first available one; its gains choose the images."""


def shown(arms: Collection[str]) -> tuple[str, ...]:
  """Chooses the variants of a drawing; the last one's gains choose the images.

  Args:
    arms: the variants whose files were kept.

  Returns:
    Plain compression, rivals, and one of `OURS`; empty without plain
    compression or without any of `OURS`.
  """
  candidates = [arm for arm in OURS if arm in arms]
  if "plain" not in arms or not candidates:
    return ()
  return ("plain", *(arm for arm in RIVALS if arm in arms), candidates[0])


def draw_students(experiment: Experiment, seed: int) -> list[str]:
  """Draws the maps of the files that an experiment has kept.

  Args:
    experiment: an experiment with `keep`. The function makes a drawing for each
      compression and strength that `shown` accepts. It draws (image, class)
      pairs with a mask. Without masks, it draws each image's top class.
    seed: the seed of the students.

  Returns:
    The names of the drawings, written to the experiment's folder. The function
    prints the reason for each missing drawing.
  """
  kept_files = {}
  for row in experiment.rows():
    if row["arm"] in CALLBACK_ARMS and row["seed"] == seed:
      setting = row["compression"], row["strength"]
      file = experiment.kept(Run(*setting, row["arm"], seed))
      if file is not None:
        kept_files.setdefault(setting, {})[row["arm"]] = file
  written = []
  for (compression, strength), files in sorted(kept_files.items()):
    arms = shown(files)
    setting = f"{compression} {strength:g}"
    if not arms:
      print(f"no picture of {setting}: it takes kept files of seed {seed} of "
            f"the arm plain and of one of {', '.join(OURS)}; there are those "
            f"of {', '.join(files)}.")
      continue
    name = f"pictures-{compression}-{strength:g}.png"
    try:
      drawn = _grid(experiment, {arm: files[arm] for arm in arms},
                    f"{experiment.name}, {setting}")
    except ValueError as error:  # Too few images for a drawing.
      print(f"no picture of {setting}: {error}")
      continue
    write_whole(experiment.folder / name, drawn)
    written.append(name)
  return written


def _grid(experiment: Experiment, files: dict[str, bytes], about: str) -> bytes:
  judge = experiment.judge
  images, classes, masks = judge.shown()
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
      np.clip((images - low) / (high - low), 0, 1), masks, maps, cosines,
      arm=[*files][-1],
      labels=[names[class_index] for class_index in classes], about=about)
