"""The main job on real digits and photographs, from training to shipped file.

The script trains a classifier. It then removes filters and trains for int8,
once plainly and once by the recipe that preserves attribution maps. It reads
the maps from both .tflite files and compares them with the classifier's maps.

    python -m examples.quickstart --output=out/quickstart

Two rivals can join with the flags below. "distilled" learns the teacher's
scores in place of its maps. "refitted" has the recipe's start and preserves
nothing.

    ... --arm=plain --arm=distilled --arm=refitted --arm=preserved
"""

import time

import tensorflow_model_optimization as tfmot
from absl import app, flags, logging

import keras_attr_preserve as kap
from examples import judging
from examples.experiment.data import digit_scenes
from keras_attr_preserve.compat import keras
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

FLAGS = flags.FLAGS

flags.DEFINE_string("output", "out/quickstart", "Folder for what comes out.")
flags.DEFINE_integer("seed", 1, "Seed of data, weights and batches.")
flags.DEFINE_integer("train_scenes", 5000, "Scenes to train on.")
flags.DEFINE_integer("test_scenes", 1000, "Scenes to judge on.")
flags.DEFINE_enum("judge_on", "test", ["test", "validation"],
                  "Which part to judge on; choose settings on validation.")
flags.DEFINE_integer("teacher_epochs", 15, "Epochs of the classifier.")
flags.DEFINE_integer("tune_epochs", 8, "Epochs after filters have gone.")
flags.DEFINE_integer("quantize_epochs", 3, "Epochs under quantization.")
flags.DEFINE_float("share", 0.6, "Share of filters that goes.")
flags.register_validator(
    "share", lambda share: 0 < share < 1, "must be between 0 and 1")
flags.DEFINE_float("weight", 4.0, "Weight of the maps in the loss.")
flags.DEFINE_enum("target", "present", ["teacher", "label", "present"],
                  "Which class's map is held; see WCAM.")
flags.DEFINE_multi_enum(
    "arm", ["plain", "preserved"],
    ["plain", "distilled", "refitted", "preserved"],
    "Ways to compress: plainly; so, with the teacher's scores; plainly from "
    "the recipe's starts; by the recipe, maps and features held as well.")

LAYER = "relu4"
BATCH = 64
CALIBRATION = 512


def build_classifier() -> keras.Model:
  """Builds four convolution blocks, an 8x8 map at the end and ten logits."""
  images = keras.Input([digit_scenes.SIZE, digit_scenes.SIZE, 3], name="images")
  x = images
  for block, channels in enumerate([32, 64, 128, 128], start=1):
    x = keras.layers.Conv2D(
        channels, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
    x = keras.layers.BatchNormalization(
        momentum=0.9, name=f"bn{block}")(x)
    x = keras.layers.ReLU(name=f"relu{block}")(x)
    if block < 4:
      x = keras.layers.MaxPooling2D(name=f"pool{block}")(x)
  x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
  x = keras.layers.Dense(len(digit_scenes.CLASS_IDS), name="logits")(x)
  return keras.Model(images, x, name="digits")


def train(model, scenes, epochs, learning_rate, callbacks=()):
  """Fits a model to the labels, in the same way for every model."""
  steps = epochs * -(-len(scenes.images) // BATCH)
  schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
      [int(0.7 * steps), int(0.9 * steps)],
      [learning_rate, learning_rate / 4, learning_rate / 16])
  model.compile(keras.optimizers.Adam(schedule),
                keras.losses.BinaryCrossentropy(from_logits=True))
  # Every model sees the batches in the same order.
  keras.utils.set_random_seed(FLAGS.seed)
  model.fit(scenes.images, scenes.labels, batch_size=BATCH, epochs=epochs,
            verbose=2, callbacks=[*callbacks])


def compress(teacher, scenes, arm):
  """Removes filters from a copy, trains it, then trains it for int8."""
  images = scenes.images[:CALIBRATION]
  refitted = arm in ("refitted", "preserved")
  if refitted:
    # Later layers compensate for the removed filters and are refitted.
    student, channels = kap.prune_filters(
        teacher, kap.filter_sparsities(teacher, FLAGS.share, images),
        criterion="obs", reconstruct=True, images=images, return_channels=True)
    student = kap.recalibrate_batch_norm(student, images)
  else:
    student, channels = kap.prune_filters(
        teacher, FLAGS.share, return_channels=True)

  def callbacks():
    if arm == "distilled":
      return [kap.PreserveAttribution(
          teacher, None, distillation=kap.Distillation(kind="sigmoid"))]
    if arm == "preserved":
      return [kap.PreserveAttribution(
          teacher, maps(), hints=kap.Hints(channels=channels))]
    return []

  train(student, scenes, FLAGS.tune_epochs, 2e-3, callbacks())

  if refitted:
    # Kernels and ranges then fit 8 bits.
    student = kap.equalize_kernels(kap.recalibrate_batch_norm(student, images))
  student = tfmot.quantization.keras.quantize_model(student)
  if refitted:
    kap.calibrate_quantizers(student, images)
  train(student, scenes, FLAGS.quantize_epochs, 5e-4, callbacks())
  return student


def maps():
  """Returns the maps that are preserved, shipped and judged."""
  return kap.WCAM(
      LAYER, method="swa", weight=FLAGS.weight, target=FLAGS.target)


def main(argv):
  """Runs the job and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.ERROR)  # The converter logs a lot.
  start = time.monotonic()
  folder = make_folder(FLAGS.output, "--output")
  keras.utils.set_random_seed(FLAGS.seed)

  print("\n1. Drawing digit scenes")
  scenes = digit_scenes.make_scenes("train", FLAGS.train_scenes, FLAGS.seed)
  unseen = digit_scenes.make_scenes(
      FLAGS.judge_on, FLAGS.test_scenes, FLAGS.seed)

  print("\n2. Training the classifier, the teacher of both compressed models")
  teacher = build_classifier()
  train(teacher, scenes, FLAGS.teacher_epochs, 2e-3)

  files, models = {}, {"teacher": teacher}
  wcam = maps()
  for name in FLAGS.arm:
    print(f"\n3. Compressing it, without {FLAGS.share:.0%} of its filters, to "
          f"int8: {name}")
    models[name] = compress(teacher, scenes, name)
    # The file has one subgraph, so TFLite Micro runs it like phones.
    files[name] = kap.export.convert(
        models[name], wcam, mode="int8", target="microcontroller")
    write_whole(folder / f"{name}.tflite", files[name])

  print("\n4. Reading predictions and maps back from the files")
  results = judging.judge(models, files, wcam, unseen)
  judging.save(folder, results, FLAGS.flag_values_dict())
  write_whole(folder / "maps.png",
              judging.picture(teacher, files, wcam, unseen))
  print(judging.table(results))
  names = ", ".join(f"{name}.tflite" for name in files)
  print(f"\n{folder}: {names}, report.json, report.csv, maps.png "
        f"({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
  app.run(main)
