"""Compares weights of the maps: fixed, warmed up, or set by an agreement.

    python -m examples.choose_weight --output=out/choose_weight

The script prunes two models of digit scenes once for each setting. It judges
each student's predictions and attribution maps on the validation part.
"""

import json
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
from absl import app, flags, logging

import keras_attr_preserve as kap
from examples.experiment.data import digit_scenes
from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.compat import keras
from keras_attr_preserve.evaluation.report import summarize
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

OUTPUT = flags.DEFINE_string("output", "out/choose_weight", "Results' folder.")
SEED = flags.DEFINE_integer("seed", 1, "Seed of data, weights and batches.")
SCENES = flags.DEFINE_integer("train_scenes", 5000, "Scenes to train on.")
JUDGED = flags.DEFINE_integer("judged_scenes", 600, "Scenes to judge on.")
TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", 12, "Epochs.")
PRUNE_EPOCHS = flags.DEFINE_integer("prune_epochs", 6, "Epochs.")
SPARSITY = flags.DEFINE_float("sparsity", 0.96, "Share of weights removed.")
SCORES = flags.DEFINE_bool(
    "scores", False, "Teach the teacher's scores as well, in every setting.")
HINTS = flags.DEFINE_bool(
    "hints", False, "Hold features as well, wherever maps are held.")
WEIGHTS = flags.DEFINE_multi_float(
    "weight", [0.25, 1, 4, 16], "Fixed weights to try.")
NETS = flags.DEFINE_list("nets", ["vgg", "resnet"], "Which nets.")

BATCH = 64
LAYER = "last"
# Pruning skips the first and the last layer.
WHOLE = ("first", "logits")


def _block(x, channels, name):
  x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False,
                          name=name)(x)
  return keras.layers.BatchNormalization(momentum=0.9)(x)


def build(net: str) -> keras.Model:
  """Builds one of two small models with an 8x8 map at the end."""
  size = digit_scenes.SIZE
  images = keras.Input([size, size, 3])
  x = keras.layers.ReLU()(_block(images, 16, "first"))
  x = keras.layers.MaxPooling2D()(x)
  for i, channels in enumerate((32, 64, 64)):
    y = keras.layers.ReLU()(_block(x, channels, f"conv{i}a"))
    y = _block(y, channels, f"conv{i}b")
    if net == "resnet":
      y = keras.layers.Add()([y, _block(x, channels, f"shortcut{i}")])
    y = keras.layers.ReLU()(y)
    last = i == 2
    x = keras.layers.Activation("linear", name=LAYER)(y) if last else (
        keras.layers.MaxPooling2D()(y))
  x = keras.layers.GlobalAveragePooling2D()(x)
  return keras.Model(images, keras.layers.Dense(10, name="logits")(x))


def train(model, scenes, epochs, callbacks=()) -> None:
  """Fits a model, with the same settings for every model."""
  steps = epochs * -(-len(scenes.images) // BATCH)
  schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps, 0.03)
  model.compile(keras.optimizers.Adam(schedule),
                keras.losses.BinaryCrossentropy(from_logits=True))
  keras.utils.set_random_seed(SEED.value)
  model.fit(scenes.images, scenes.labels, batch_size=BATCH, epochs=epochs,
            verbose=0, callbacks=[*callbacks])


def prune(teacher: keras.Model, scenes, callbacks) -> keras.Model:
  """Prunes a copy of the teacher in one fit."""
  steps = PRUNE_EPOCHS.value * -(-len(scenes.images) // BATCH)
  schedule = tfmot.sparsity.keras.PolynomialDecay(
      0.0, SPARSITY.value, 0, int(0.6 * steps), frequency=10)

  def wrapped(layer):
    kernel = isinstance(layer, keras.layers.Conv2D) and layer.name not in WHOLE
    return tfmot.sparsity.keras.prune_low_magnitude(
        layer, schedule) if kernel else layer

  student = keras.models.clone_model(
      kap.clone_model(teacher), clone_function=wrapped)
  train(student, scenes, PRUNE_EPOCHS.value, [
      tfmot.sparsity.keras.UpdatePruningStep(), *callbacks])
  return kap.strip(student)


def settings(teacher: keras.Model, steps: int) -> dict[str, list]:
  """Returns the callbacks of every setting, by its name."""
  distillation = kap.Distillation(kind="sigmoid") if SCORES.value else None
  def hold(**found):
    return [kap.PreserveAttribution(
        teacher, kap.WCAM(LAYER, target="present", **found),
        distillation=distillation, hints=kap.Hints() if HINTS.value else None)]
  warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, steps // 4, 1.0)
  return {
      **({"scores": [kap.PreserveAttribution(
          teacher, None, distillation=distillation)]}
         if SCORES.value else {"plain": []}),
      "weight=auto": hold(),
      **{f"weight={weight:g}": hold(weight=weight) for weight in WEIGHTS.value},
      "weight=0..1": hold(weight=warm_up),
      **{f"agreement={cosine}": hold(agreement=cosine)
         for cosine in (0.9, 0.95)},
  }


def judge(model, teacher, scenes) -> dict[str, float]:
  """Scores a model's predictions and its attribution maps."""
  logits = model.predict(scenes.images, verbose=0, batch_size=BATCH)
  top = teacher.predict(
      scenes.images, verbose=0, batch_size=BATCH).argmax(1)
  maps, teacher_maps = (
      attribution.grad_cam(classifier, scenes.images, top, LAYER)
      for classifier in (model, teacher))
  scores = evaluation.agreement(teacher_maps, maps)
  which, classes = evaluation.mask_pairs(
      scenes.label_maps, digit_scenes.CLASS_IDS)
  marked = scenes.label_maps[which]
  located = evaluation.localization(
      attribution.grad_cam(model, scenes.images[which], classes, LAYER),
      marked == digit_scenes.CLASS_IDS[classes][:, None, None],
      marked != evaluation.VOID)
  return {
      "mAP": evaluation.mean_average_precision(scenes.labels, logits),
      "cosine": summarize(scores["cosine"])["mean"],
      "spearman": summarize(scores["spearman"])["mean"],
      "roc_auc": float(np.nanmean(located["roc_auc"])),
  }


class LastWeight(keras.callbacks.Callback):
  """Records the weight of the maps at the end of a fit."""

  weight: Any = None

  def on_epoch_end(self, epoch, logs=None):
    self.weight = (logs or {}).get("attr_weight")


def main(argv: list[str]) -> None:
  """Prints a table for each model."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.ERROR)
  folder = make_folder(OUTPUT.value, "--output")
  scenes = digit_scenes.make_scenes("train", SCENES.value, SEED.value)
  unseen = digit_scenes.make_scenes("validation", JUDGED.value, SEED.value)
  steps = PRUNE_EPOCHS.value * -(-SCENES.value // BATCH)
  results = {}
  for architecture in NETS.value:
    keras.utils.set_random_seed(SEED.value)
    teacher = build(architecture)
    train(teacher, scenes, TEACHER_EPOCHS.value)
    results[architecture] = {"teacher": judge(teacher, teacher, unseen)}
    print(f"\n{architecture}, {SPARSITY.value:.0%} pruned in {steps} steps")
    print(f"{'':16}{'mAP':>8}{'cosine':>8}{'spearman':>10}{'ROC-AUC':>9}"
          f"{'weight at the end':>20}")
    _print("teacher", results[architecture]["teacher"])
    for name, callbacks in settings(teacher, steps).items():
      last = LastWeight()
      student = prune(teacher, scenes, [*callbacks, last])
      figures = judge(student, teacher, unseen)
      if last.weight is not None:
        figures["weight"] = float(last.weight)
      results[architecture][name] = figures
      _print(name, figures)
      write_whole(folder / "results.json", json.dumps(
          {"flags": flags.FLAGS.flag_values_dict(), "results": results},
          indent=2, default=str))


def _print(name: str, figures: dict[str, float]) -> None:
  weight = f"{figures['weight']:20.3f}" if "weight" in figures else ""
  print(f"{name:16}{figures['mAP']:8.3f}{figures['cosine']:8.3f}"
        f"{figures['spearman']:10.3f}{figures['roc_auc']:9.3f}{weight}",
        flush=True)


if __name__ == "__main__":
  app.run(main)
