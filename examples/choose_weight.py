"""Which weight to give the maps: fixed ones, a warm-up, and agreements to hold.

    python -m examples.choose_weight --output=out/choose_weight

Prunes two nets of digit scenes again and again, once for each setting, and
judges each on the validation part: what it still knows, and what it looks at.
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
# The first and the last layer are left whole.
WHOLE = ("first", "logits")


def _block(x, channels, name):
  x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False,
                          name=name)(x)
  return keras.layers.BatchNormalization(momentum=0.9)(x)


def build(net: str) -> keras.Model:
  """Builds one of two small nets with an 8x8 map at the end."""
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
  """Fits a model; the same call for every model."""
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
  """The callbacks of every setting, by its name."""
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
      **{f"weight={one:g}": hold(weight=one) for one in WEIGHTS.value},
      "weight=0..1": hold(weight=warm_up),
      **{f"agreement={one}": hold(agreement=one) for one in (0.9, 0.95)},
  }


def judge(model, teacher, scenes) -> dict[str, float]:
  """What a model knows, and how its maps stand."""
  logits = model.predict(scenes.images, verbose=0, batch_size=BATCH)
  top = teacher.predict(
      scenes.images, verbose=0, batch_size=BATCH).argmax(1)
  maps, wanted = (attribution.grad_cam(one, scenes.images, top, LAYER)
                  for one in (model, teacher))
  scores = evaluation.agreement(wanted, maps)
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
  """Remembers the weight that a fit ended with."""

  weight: Any = None

  def on_epoch_end(self, epoch, logs=None):
    self.weight = (logs or {}).get("attr_weight")


def main(argv: list[str]) -> None:
  """Prints a table for each net."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.ERROR)
  folder = make_folder(OUTPUT.value, "--output")
  scenes = digit_scenes.make_scenes("train", SCENES.value, SEED.value)
  unseen = digit_scenes.make_scenes("validation", JUDGED.value, SEED.value)
  steps = PRUNE_EPOCHS.value * -(-SCENES.value // BATCH)
  results = {}
  for net in NETS.value:
    keras.utils.set_random_seed(SEED.value)
    teacher = build(net)
    train(teacher, scenes, TEACHER_EPOCHS.value)
    results[net] = {"teacher": judge(teacher, teacher, unseen)}
    print(f"\n{net}, {SPARSITY.value:.0%} pruned in {steps} steps")
    print(f"{'':16}{'mAP':>8}{'cosine':>8}{'spearman':>10}{'ROC-AUC':>9}"
          f"{'weight at the end':>20}")
    _print("teacher", results[net]["teacher"])
    for name, callbacks in settings(teacher, steps).items():
      last = LastWeight()
      student = prune(teacher, scenes, [*callbacks, last])
      found = judge(student, teacher, unseen)
      if last.weight is not None:
        found["weight"] = float(last.weight)
      results[net][name] = found
      _print(name, found)
      write_whole(folder / "results.json", json.dumps(
          {"flags": flags.FLAGS.flag_values_dict(), "results": results},
          indent=2, default=str))


def _print(name: str, found: dict[str, float]) -> None:
  weight = f"{found['weight']:20.3f}" if "weight" in found else ""
  print(f"{name:16}{found['mAP']:8.3f}{found['cosine']:8.3f}"
        f"{found['spearman']:10.3f}{found['roc_auc']:9.3f}{weight}", flush=True)


if __name__ == "__main__":
  app.run(main)
