"""The main job on real digits and photographs, from training to shipped file.

Trains a classifier, compresses it twice to a sparse int8 .tflite file, once
plainly and once holding its attribution maps (and scores), and compares the
maps of both files, read off the files, with the classifier's own.

    python -m examples.quickstart --output=out/quickstart

The rival that holds the scores alone joins in with

    ... --arm=plain --arm=distilled --arm=preserved
"""

import time

import tensorflow_model_optimization as tfmot
from absl import app, flags, logging

import keras_attr_preserve as kap
from examples import digit_scenes, judging
from keras_attr_preserve.compat import keras
from keras_attr_preserve.files import make_folder, write_whole

FLAGS = flags.FLAGS

flags.DEFINE_string("output", "out/quickstart", "Folder for what comes out.")
flags.DEFINE_integer("seed", 1, "Seed of data, weights and batches.")
flags.DEFINE_integer("train_scenes", 5000, "Scenes to train on.")
flags.DEFINE_integer("test_scenes", 1000, "Scenes to judge on.")
flags.DEFINE_enum("judge_on", "test", ["test", "validation"],
                  "Which part to judge on; choose settings on validation.")
flags.DEFINE_integer("teacher_epochs", 15, "Epochs of the classifier.")
flags.DEFINE_integer("prune_epochs", 8, "Epochs while sparsity grows.")
flags.DEFINE_integer("quantize_epochs", 3, "Epochs under quantization.")
flags.DEFINE_float("sparsity", 0.96, "Share of weights that pruning removes.")
flags.DEFINE_float("weight", 4.0, "Weight of the maps in the loss.")
flags.DEFINE_enum("target", "present", ["teacher", "label", "present"],
                  "Which class's map is held; see WCAM.")
flags.DEFINE_multi_enum(
    "arm", ["plain", "preserved"], ["plain", "distilled", "preserved"],
    "Ways to compress: plainly, with the teacher's scores, with its scores and "
    "maps.")

LAYER = "relu4"
PRUNED = ("conv2", "conv3", "conv4")
BATCH = 64


def build_classifier() -> keras.Model:
  """Four blocks of convolution, an 8x8 map at the end, ten logits."""
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
  """Fits a model to the labels; the same call for every model."""
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


def compress(teacher, scenes, callbacks):
  """Prunes a copy of the teacher, then trains it for int8, zeros kept."""
  steps = FLAGS.prune_epochs * -(-len(scenes.images) // BATCH)
  schedule = tfmot.sparsity.keras.PolynomialDecay(
      initial_sparsity=0.0, final_sparsity=FLAGS.sparsity, begin_step=0,
      end_step=int(0.6 * steps), frequency=20)

  def wrapped(layer):
    # The first and the last layer are small and matter most: left whole.
    return tfmot.sparsity.keras.prune_low_magnitude(
        layer, schedule) if layer.name in PRUNED else layer

  student = keras.models.clone_model(
      kap.clone_model(teacher), clone_function=wrapped)
  train(student, scenes, FLAGS.prune_epochs, 2e-3,
        [tfmot.sparsity.keras.UpdatePruningStep(), *callbacks])

  student = tfmot.quantization.keras.quantize_apply(
      tfmot.quantization.keras.quantize_annotate_model(
          tfmot.sparsity.keras.strip_pruning(student)),
      tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme())
  train(student, scenes, FLAGS.quantize_epochs, 5e-4, callbacks)
  return student


def main(argv):
  """Runs the job and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.ERROR)  # The converter says much.
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

  wcam = kap.WCAM(
      LAYER, method="swa", weight=FLAGS.weight, target=FLAGS.target)
  scores = kap.Distillation(kind="sigmoid")
  callbacks = {
      "plain": [],
      "distilled": [
          kap.PreserveAttribution(teacher, None, distillation=scores)],
      "preserved": [
          kap.PreserveAttribution(teacher, wcam, distillation=scores)],
  }
  files, models = {}, {"teacher": teacher}
  for name in FLAGS.arm:
    print(f"\n3. Compressing it to sparse int8: {name}")
    models[name] = compress(teacher, scenes, callbacks[name])
    # A file of one subgraph, which TFLite Micro runs as phones do.
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
