"""Compares the time and memory of a train step with other training.

    python -m examples.benchmarks.bench_training

The others are fine-tuning and distillation. Every variant trains the same
student on the same images. The variants take turns in short blocks, so other
load on the machine affects all alike. The figures are medians over blocks. Each
variant has its own process for the memory (on Linux). The table shows the peak
of the process and the amount that its steps added, including tracing.

A last table trains with more and more labels; every image has three. The cost
of `target="present"` depends on these three, not on the number of labels.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import app, flags

import keras_attr_preserve as kap

BATCH = flags.DEFINE_integer("batch", 32, "Pictures a step.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 96, "Height and width.", lower_bound=32)
STEPS = flags.DEFINE_integer("steps", 10, "Steps a block.", lower_bound=1)
BLOCKS = flags.DEFINE_integer("blocks", 9, "Blocks an arm.", lower_bound=1)
NETS = flags.DEFINE_list("nets", ["vgg", "mobilenet"], "Which nets.")
LABELS = flags.DEFINE_list(
    "labels", ["10", "100", "1000"], "How many labels the last table has.")
MEMORY = flags.DEFINE_bool("memory", True, "Measure memory too.")
ARM = flags.DEFINE_string(
    "arm", None, "Internal: run this arm alone and print its memory.")

CLASSES = 10
MARKED = 3  # Labels of an image in the last table.
LAYERS = {"vgg": "relu6", "mobilenet": "conv_pw_13_relu"}


def build(net: str, seed: int, classes: int = CLASSES) -> keras.Model:
  """Builds a model with weights drawn by a seed."""
  keras.utils.set_random_seed(seed)
  shape = (SIZE.value, SIZE.value, 3)
  if net == "mobilenet":
    return keras.applications.MobileNet(
        shape, 0.25, weights=None, classes=classes,
        classifier_activation=None)
  inputs = x = keras.Input(shape)
  for i, width in enumerate((16, 16, 32, 32, 64, 64), 1):
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(name=f"relu{i}")(x)
    if i % 2 == 0 and i < 6:
      x = keras.layers.MaxPool2D()(x)
  x = keras.layers.GlobalAveragePooling2D()(x)
  return keras.Model(inputs, keras.layers.Dense(classes)(x))


def make_step(arm: str, net: str) -> Callable[[tf.Tensor, tf.Tensor], dict]:
  """Builds a student and its teacher; returns the train step of `fit`."""
  student = build(net, 1)
  student.compile("adam", keras.losses.SparseCategoricalCrossentropy(
      from_logits=True))
  if arm == "fine-tuning":
    return tf.function(lambda x, y: student.train_step((x, y)))
  wcam = {"ewa": kap.WCAM(LAYERS[net], method="ewa"), "scores": None}.get(
      arm.split(",")[0], kap.WCAM(LAYERS[net]))
  step = kap.TrainStep(
      student, build(net, 0), wcam, cache="kept" in arm,
      distillation=kap.Distillation() if "scores" in arm else None,
      hints=kap.Hints() if "hints" in arm else None)
  return tf.function(lambda x, y: step((x, y)))


ARMS = ("fine-tuning", "scores", "ewa", "swa", "swa, scores",
        "swa, scores, hints", "swa, kept", "swa, scores, kept")
# Promises of the project: a variant, its reference and the largest ratio.
PROMISES = (("swa", "scores", 1.05), ("swa, kept", "fine-tuning", 1.15))


def batches() -> list[tuple[tf.Tensor, tf.Tensor]]:
  """Draws the images of a block."""
  rng = np.random.default_rng(0)
  return [(tf.constant(rng.normal(
      size=(BATCH.value, SIZE.value, SIZE.value, 3)), tf.float32),
           tf.constant(rng.integers(0, CLASSES, BATCH.value)))
          for _ in range(STEPS.value)]


def times(net: str) -> dict[str, list[float]]:
  """Runs all variants in turns; returns the seconds a step of each block."""
  data, steps = batches(), {arm: make_step(arm, net) for arm in ARMS}
  seconds = {arm: [] for arm in ARMS}
  for block in range(BLOCKS.value + 1):
    for arm, step in steps.items():
      start = time.perf_counter()
      for x, y in data:
        logs = step(x, y)
      float(logs["loss"])
      if block:  # The first block traces and fills the caches.
        seconds[arm].append((time.perf_counter() - start) / STEPS.value)
  return seconds


def label_times(net: str) -> dict[int, dict[str, list[float]]]:
  """Trains on images of several labels each.

  Returns:
    Seconds by number of labels and by variant. The first value is the first
    step with its trace, the second a later step, the median over all blocks.
  """
  rng = np.random.default_rng(0)
  results = {}
  for classes in map(int, LABELS.value):
    marked = np.argsort(rng.random((BATCH.value, classes)))[:, :MARKED]
    labels = tf.constant(
        np.eye(classes, dtype=np.float32)[marked].sum(1))
    data, steps, seconds = batches(), {}, {}
    for arm in ("fine-tuning", "present"):
      student = build(net, 1, classes)
      student.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
      run = student.train_step if arm == "fine-tuning" else kap.TrainStep(
          student, build(net, 0, classes),
          kap.WCAM(LAYERS[net], target="present"))
      steps[arm] = tf.function(lambda x, y, run=run: run((x, y)))
      start = time.perf_counter()
      float(steps[arm](data[0][0], labels)["loss"])
      seconds[arm] = [time.perf_counter() - start]
    rest = {arm: [] for arm in steps}
    for _ in range(BLOCKS.value):
      for arm, step in steps.items():
        start = time.perf_counter()
        for x, _ in data:
          logs = step(x, labels)
        float(logs["loss"])
        rest[arm].append((time.perf_counter() - start) / STEPS.value)
    for arm, values in rest.items():
      seconds[arm].append(statistics.median(values))
    results[classes] = seconds
  return results


def peak_memory(name: str, net: str) -> list[float]:
  """Measures a variant in a separate process.

  Args:
    name: the variant.
    net: the model.

  Returns:
    The peak of the process and the amount that its steps added, in MB.
  """
  flag = [f"--{setting.name}={setting.value}"
          for setting in (BATCH, SIZE, STEPS)]
  done = subprocess.run(
      [sys.executable, "-m", "examples.benchmarks.bench_training",
       f"--arm={name}", f"--nets={net}", *flag],
      capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def _kilobytes(name: str) -> int:
  """Reads a memory figure of this process from Linux, in kB."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(name):
      return int(line.split()[1])
  raise OSError(f"/proc/self/status has no {name}.")


def print_own_memory(arm: str, net: str) -> None:
  """Runs one variant; prints its peak and the part its steps added, in MB."""
  step, data = make_step(arm, net), batches()
  before = _kilobytes("VmRSS")
  for x, y in data:
    step(x, y)
  peak = _kilobytes("VmHWM")
  print(json.dumps([peak / 1024, (peak - before) / 1024]))


def main(argv: list[str]) -> None:
  """Prints one table for each model, and the promises."""
  del argv
  if ARM.value:
    print_own_memory(ARM.value, NETS.value[0])
    return
  for name in NETS.value:
    seconds = times(name)
    # Ratios compare the same block: close in time.
    def ratio(arm, base, seconds=seconds):
      return statistics.median(
          value / base_value for value, base_value in zip(
              seconds[arm], seconds[base]))
    memory = {
        arm: peak_memory(arm, name) for arm in ARMS} if MEMORY.value else {
            arm: [float("nan")] * 2 for arm in ARMS}
    print(f"\n{name}, {BATCH.value} pictures of {SIZE.value}x{SIZE.value}, "
          f"layer {LAYERS[name]}, median of {BLOCKS.value} blocks of "
          f"{STEPS.value} steps")
    print(f"{'arm':20}{'ms a step':>10}{'/fine-tuning':>14}{'/scores':>9}"
          f"{'MB':>8}{'/scores':>9}{'added':>8}{'/scores':>9}")
    for arm in ARMS:
      print(f"{arm:20}{1000 * statistics.median(seconds[arm]):10.1f}"
            f"{ratio(arm, 'fine-tuning'):14.3f}{ratio(arm, 'scores'):9.3f}"
            + "".join(f"{value:8.0f}{value / base:9.3f}" for value, base in zip(
                memory[arm], memory["scores"])))
    for arm, base, most in PROMISES:
      measured = ratio(arm, base)
      print(f"time of {arm!r} / {base!r}: {measured:.3f}, at most {most}: "
            f"{'held' if measured <= most else 'NOT HELD'}")
    if MEMORY.value:
      measured = memory["swa"][0] / memory["scores"][0]
      print(f"peak memory of 'swa' / 'scores': {measured:.3f}, at most 1.05: "
            f"{'held' if measured <= 1.05 else 'NOT HELD'}")
    print(f"\n{name}, {MARKED} labels a picture, target='present'")
    print(f"{'labels':>8}{'first step, s':>16}{'ms a step':>12}"
          f"{'fine-tuning, ms':>18}")
    for classes, seconds in label_times(name).items():
      first, later = seconds["present"]
      print(f"{classes:8}{first:16.1f}{1000 * later:12.1f}"
            f"{1000 * seconds['fine-tuning'][1]:18.1f}")


if __name__ == "__main__":
  app.run(main)
