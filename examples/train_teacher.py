"""Trains the model that an experiment compresses.

    python -m examples.train_teacher --output=out/teacher
    python -m examples.train_teacher --data=VOCdevkit --size=160 \
        --net=mobilenet --weights=imagenet --head_first --freeze_batch_norm \
        --learning_rate=3e-4 --flip --output=out/voc_teacher

The script writes three files. teacher.h5 is the model. teacher.json holds
figures on the validation and the test part, settings and versions. teacher.png
shows attribution maps. A second run with the same flags resumes training, or
reports that it is complete.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

import keras_attr_preserve as kap
from examples.experiment.data.data_sets import Data
from examples.experiment.report.pictures import map_grid
from examples.experiment.runs import costs, nets
from examples.experiment.runs.experiment import versions
from examples.experiment.runs.fitting import Recipe, in_range
from examples.experiment.runs.records import digest
from examples.experiment.runs.running import load_data, refused
from examples.experiment.runs.teaching import (
  fit_teacher,
  has_backup,
  predict,
  teacher_figures,
)
from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.compat import keras
from keras_attr_preserve.models.scores import top_classes
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

FLAGS = flags.FLAGS

SETTINGS = ("data", "classes", "background_class", "limit", "size", "net",
            "weights", "width", "epochs", "steps", "batch_size",
            "learning_rate", "head_first", "freeze_batch_norm", "flip", "seed")
SMOKE = {"data": "digits", "limit": 48, "size": 32, "net": "small",
         "width": 0.25, "epochs": 2, "batch_size": 16}
ROWS = 6

flags.DEFINE_string(
    "data", "digits", "What to learn: see experiment/data/data_sets.py.")
flags.DEFINE_list("classes", None, "Classes to keep; all where it is not set.")
flags.DEFINE_string("background_class", None,
                    "Name of the absence of the one class in --classes.")
flags.DEFINE_integer("limit", None, "Pictures of each part at most.",
                     lower_bound=1)
flags.DEFINE_integer("size", 64, "Height and width of pictures.", lower_bound=1)
flags.DEFINE_enum("net", "small", [*nets.NETS], "Which net.")
flags.DEFINE_string("weights", None,
                    "An .h5 file to start from; 'imagenet' downloads them.")
flags.DEFINE_float("width", 1.0, "Factor on the number of filters.")
flags.DEFINE_integer("epochs", 10, "Times that the training part is seen.",
                     lower_bound=1)
flags.DEFINE_integer("steps", None, "Steps in all, in place of what --epochs "
                     "come to; --epochs parts of it are validated.",
                     lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Pictures a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Adam's, at the start.")
flags.DEFINE_bool("head_first", False,
                  "Fit the head to frozen features before all else.")
flags.DEFINE_bool("freeze_batch_norm", False,
                  "Leave batch normalization as it came.")
flags.DEFINE_bool("flip", False, "Mirror pictures at random.")
flags.DEFINE_integer("seed", 1, "Seed of weights and batches.")
flags.DEFINE_string("output", "out/teacher", "Folder for what comes out.")
flags.DEFINE_bool("smoke", False, "A run of seconds, to see that all works.")


def make_recipe(data: Data) -> Recipe:
  """Turns the flags into a recipe; --epochs count only whole batches."""
  pictures = len(data.train.images)
  if FLAGS.batch_size > pictures:
    raise app.UsageError(
        f"--batch_size must be at most {pictures}, the pictures to learn from; "
        f"got {FLAGS.batch_size}.")
  steps = FLAGS.steps or FLAGS.epochs * (pictures // FLAGS.batch_size)
  if steps < FLAGS.epochs:
    raise app.UsageError(
        f"--steps must be --epochs={FLAGS.epochs} or more; got {steps}.")
  return Recipe(
      steps=steps, learning_rate=FLAGS.learning_rate,
      batch_size=FLAGS.batch_size, seed=FLAGS.seed,
      pixel_range=nets.PIXEL_RANGES[FLAGS.net], flip=FLAGS.flip,
      multi_label=data.multi_label)


def describe(model: keras.Model, data: Data, recipe: Recipe) -> dict[str, Any]:
  """Describes the teacher, with figures on the validation and test parts."""
  return {
      "pixel_range": recipe.pixel_range, "class_names": data.class_names,
      "multi_label": data.multi_label, "steps": recipe.steps,
      "parameters": costs.count_parameters(model),
      "macs": costs.count_macs(model),
      **{name: teacher_figures(
          model, getattr(data, name), data.class_names, recipe)
         for name in ("validation", "test")}}


def picture(
    model: keras.Model, data: Data, recipe: Recipe, layer: str) -> bytes:
  """Draws Grad-CAM maps of the teacher, from the worst to the best.

  Args:
    model: the teacher.
    data: the function draws its test part.
    recipe: gives the range of pixels.
    layer: the layer of the maps.

  Returns:
    A PNG file's bytes. It shows images at even steps of their maps' ROC-AUC
    against the masks. Without masks, the top class's logit orders the images.
  """
  split = data.test
  which, classes = _masked_pairs(data)
  masks = None
  if len(which):
    marked = split.label_maps[which]
    masks = marked == data.class_ids[classes][:, None, None]
  else:
    logits = predict(model, split.images, recipe.pixel_range)
    which, classes = np.arange(len(logits)), top_classes(logits, True)
  maps = attribution.grad_cam(
      model, in_range(split.images[which], recipe.pixel_range), classes, layer)
  kind, scores = ("logit", logits.max(1)) if masks is None else (
      "ROC-AUC", evaluation.localization(
          maps, masks, marked != evaluation.VOID)["roc_auc"])
  steps = (np.linspace(0.03, 0.97, ROWS) * len(scores)).astype(int)
  chosen = np.argsort(scores)[steps]
  return map_grid(
      split.images[which[chosen]] / 255,
      None if masks is None else masks[chosen],
      {"Grad-CAM": maps[chosen]},
      [data.class_names[class_index] for class_index in classes[chosen]],
      f"Where the teacher looks ({layer})",
      {"Grad-CAM": [f"{kind} {score:.2f}" for score in scores[chosen]]})


def _masked_pairs(data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Returns the test images and classes with a mask; may be empty."""
  masked = np.flatnonzero(data.class_ids)
  if data.test.label_maps is None or not len(masked):
    return np.zeros([0], int), masked
  which, class_indices = evaluation.mask_pairs(
      data.test.label_maps, data.class_ids[masked])
  return which, masked[class_indices]


def is_done(folder: Path, settings: dict[str, Any]) -> bool:
  """Checks whether the folder holds the teacher of these settings.

  Args:
    folder: the output folder.
    settings: the settings of this run.

  Returns:
    True if there is nothing left to do.

  Raises:
    app.UsageError: the folder holds another teacher.
  """
  report = folder / "teacher.json"
  if not report.exists():
    return False
  earlier = json.loads(report.read_text())["settings"]
  if earlier != settings:
    different = sorted(key for key in settings
                       if settings[key] != earlier.get(key))
    raise app.UsageError(
        f"--output must be a folder without another teacher; {str(folder)!r} "
        f"has one of another {', '.join(different)}.")
  return True


def main(argv: list[str]) -> None:
  """Trains and judges the teacher, and writes the files."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  if FLAGS.smoke:
    for name, value in SMOKE.items():
      if FLAGS[name].using_default_value:
        FLAGS[name].value = value
  logging.set_verbosity(logging.ERROR)
  with refused():
    layer = nets.layer_of(FLAGS.net, FLAGS.size)
  settings = {name: FLAGS[name].value for name in SETTINGS}
  folder = make_folder(FLAGS.output, "--output")
  if is_done(folder, settings):
    print(f"{folder}/teacher.h5 is there already, of the same settings.")
    return
  start = time.monotonic()
  data = load_data()
  recipe = make_recipe(data)
  keras.utils.set_random_seed(FLAGS.seed)
  with refused():
    model = nets.build(
        FLAGS.net, size=FLAGS.size, classes=len(data.class_names),
        weights=FLAGS.weights, width=FLAGS.width)
  backup = folder / f"backup-{digest(settings)}"
  resumed = has_backup(backup)
  print(f"{'Going on with' if resumed else 'Training'} {FLAGS.net} of "
        f"{costs.count_parameters(model):,} parameters on "
        f"{len(data.train.images)} pictures, {recipe.steps} steps")
  logs = fit_teacher(
      model, data, recipe, epochs=FLAGS.epochs, head_first=FLAGS.head_first,
      freeze_batch_norm=FLAGS.freeze_batch_norm, backup=backup, verbose=1)

  # A copy is not compiled: students do not need the optimizer's state.
  kap.save_model(kap.clone_model(model), folder / "teacher.h5")
  write_whole(folder / "teacher.png", picture(model, data, recipe, layer))
  report = {
      "settings": settings, "layer": layer, **describe(model, data, recipe),
      "logs": logs, "versions": versions(), "resumed": resumed,
      "seconds": round(time.monotonic() - start, 1)}
  # Written last: the file marks the folder as complete.
  write_whole(folder / "teacher.json", json.dumps(report, indent=2) + "\n")
  for old in folder.glob("backup-*"):
    shutil.rmtree(old)
  for split in ("validation", "test"):
    print(f"{split}: mean AP {report[split]['map']:.3f}, accuracy "
          f"{report[split]['accuracy']:.3f}, F1 {report[split]['f1']:.3f}")
  print(f"{folder}: teacher.h5, teacher.json, teacher.png "
        f"({report['seconds']:.0f} s)")


if __name__ == "__main__":
  app.run(main)
