"""Trains tiny models under a distribution strategy; distribution_test runs it.

    python -m tests.distribution_worker mirrored --out a.json --cases plain
    python -m tests.distribution_worker workers --out b.json --cases plain

The second kind is started once for each entry of a cluster that `TF_CONFIG`
describes. Results are JSON, written whole, when everything went well.
"""

import argparse
import contextlib
import json
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from keras_attr_preserve import (
    WCAM,
    Distillation,
    PreserveAttribution,
    TrainStep,
)
from keras_attr_preserve.utils.atomic_files import write_whole
from tests import tiny

SIZE = 4
COUNT = 16
BATCH = 8
EPOCHS = 2
layers = keras.layers


def net(seed, norm=None, act="softplus"):
  """Conv-ReLU "act", Conv-ReLU "act2", a mean, "logits"; a norm in the tail."""
  inputs = keras.Input((SIZE, SIZE, 2), name="pictures")
  x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
  x = layers.ReLU(name="act")(x)
  x = layers.Conv2D(3, 2, name="conv2")(x)
  if norm is not None:
    x = layers.BatchNormalization(synchronized=norm == "sync", name="bn")(x)
  x = layers.Activation(act, name="act2")(x)
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  x = layers.Dense(tiny.CLASSES, name="logits")(x)
  return tiny.shake(keras.Model(inputs, x, name=f"net{seed}"), seed)


def nested(seed):
  """The same with graphs inside a graph, normalizations in and after them."""
  inner_in = keras.Input((SIZE, SIZE, 2))
  x = layers.Conv2D(3, 3, padding="same", name="conv")(inner_in)
  x = layers.BatchNormalization(synchronized=True, name="bn0")(x)
  x = layers.ReLU(name="act")(x)
  x = layers.Conv2D(3, 2, name="conv2")(x)
  x = layers.BatchNormalization(synchronized=True, name="bn")(x)
  inner = keras.Model(
      inner_in, layers.Activation("softplus", name="act2")(x), name="inner")
  head_in = keras.Input((SIZE - 1, SIZE - 1, 3))
  x = layers.Activation("softplus")(head_in)
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  head = keras.Model(
      head_in, layers.Dense(tiny.CLASSES, name="logits")(x), name="head")
  inputs = keras.Input((SIZE, SIZE, 2))
  x = inner(layers.Rescaling(1.0)(inputs))
  x = layers.BatchNormalization(synchronized=True, name="between")(x)
  return tiny.shake(keras.Model(inputs, head(x), name=f"outer{seed}"), seed)


class Around(keras.Model):
  """A subclass around a nested graph."""

  def __init__(self, seed):
    super().__init__()
    self.inside = nested(seed)
    self(tf.zeros([1, SIZE, SIZE, 2]))

  def call(self, inputs, training=None):
    return self.inside(inputs, training=training)


class OwnStep(keras.Model):
  """A subclass with a `train_step` of its own."""

  def __init__(self, seed, teacher):
    super().__init__()
    self.inside = net(seed)
    self(tf.zeros([1, SIZE, SIZE, 2]))
    self.step = TrainStep(self, teacher, WCAM("act", weight=3.0))
    # Keras by itself adds up the logs of workers.
    self.distribute_reduction_method = "first"

  def call(self, inputs, training=None):
    return self.inside(inputs, training=training)

  @property
  def metrics(self):
    return super().metrics + self.step.metrics

  def train_step(self, data):
    return self.step(data)

  def test_step(self, data):
    return self.step.test(data)


def rising(step):
  """A schedule of the weight."""
  return 1.0 + 0.5 * tf.cast(step, tf.float32)


def polynomial(seed):
  """Prunes more and more, so that the step's number matters."""
  return tfmot.sparsity.keras.prune_low_magnitude(
      net(seed), tfmot.sparsity.keras.PolynomialDecay(
          0.1, 0.7, begin_step=0, end_step=8, frequency=1))


def data(count=COUNT, twice=False, seed=0):
  """Images, labels; `twice` gives both halves of a batch equal images."""
  pictures = tiny.images(count, size=SIZE, seed=seed)
  if twice:
    half = BATCH // 2
    for i in range(0, count, BATCH):
      pictures[i + half:i + BATCH] = pictures[i:i + half]
  return pictures, tiny.labels(count, seed=seed)


# What each does otherwise than `_train` does by itself. An agreement of 0.5
# leaves every cosine its say: the weight's move is clipped at 0 and 1.
CASES = {
    "plain": {"judged": True},
    "drop_rate": {"wcam": {"drop_rate": 0.4, "method": "ewa"}},
    "distillation": {"distillation": True, "penalty": True},
    "layers": {"wcam": {"layer": ["act", "act2"], "layer_weights": [1, 3],
                        "weight": rising}},
    "agreement": {
        "wcam": {"agreement": 0.5}, "steps": 2, "judged": True},
    "pruned": {"student": polynomial, "wcam": {"agreement": 0.5}, "epochs": 3},
    # A replica sees one half of a batch. Equal halves give equal ranges of
    # quantizers and equal statistics of BatchNormalization.
    "quantized": {"student": lambda seed: tiny.quantize(net(seed, act="relu")),
                  "twice": True, "wcam": {"target": "label"}},
    # In double precision there is no correction of the variance for the count.
    "norm_twice": {"student": lambda seed: net(seed, "own"), "teacher": "norm",
                   "twice": True, "double": True},
    "norm": {"student": lambda seed: net(seed, "own"), "teacher": "norm"},
    "norm_sync": {"student": lambda seed: net(seed, "sync"), "teacher": "norm",
                  "double": True},
    "nested": {"student": nested, "teacher": "nested", "double": True,
               "wcam": {"layer": ["act", "act2"]}},
    "subclass": {"student": Around, "teacher": "around", "double": True,
                 "judged": True, "wcam": {"agreement": 0.5}},
    "outside": {"inside": False, "teacher": "nested"},
    "cache": {"cache": True, "distillation": True, "judged": True},
    "ragged": {"count": 11},
    "empty": {"count": 9, "student": polynomial, "distillation": True,
              "wcam": {"agreement": 0.5}},
    "empty_cache": {"count": 9, "cache": True},
    "classes": {"count": 9, "wcam": {"target": "top_k", "top_k": 2}},
    "own_step": {"own_step": True},
    "auto": {"wcam": {"weight": "auto"}, "distillation": True},
}
TEACHERS = {
    None: net, "norm": lambda seed: net(seed, "own"), "nested": nested,
    "around": Around}


def shares(count, replicas):
  """Weights that give one batch's mean the weight of replicas' means.

  Keras divides each replica's sum by the replica's own images, then by the
  number of replicas.
  """
  weights = []
  for start in range(0, count, BATCH):
    batch = min(BATCH, count - start)
    most = -(-batch // replicas)
    while batch > 0:
      size = min(most, batch)
      weights += [min(BATCH, count - start) / (size * replicas)] * size
      batch -= size
  return np.float32(weights)


class Replicas(keras.callbacks.Callback):
  """Notes the constraint's weight on each replica as each epoch ends."""

  def __init__(self):
    super().__init__()
    self.seen = []

  def on_epoch_end(self, epoch, logs=None):
    state = getattr(self.model, "attr_preserve_state", None)
    if hasattr(state, "log_weight"):
      strategy = self.model.distribute_strategy
      self.seen.append([float(value) for value in
                        strategy.experimental_local_results(state.log_weight)])


def train(strategy, *, double=False, **settings):
  """Trains under a strategy; returns what distribution must not change."""
  keras.utils.set_random_seed(0)
  with tiny.float64() if double else contextlib.nullcontext():
    return _train(strategy, **settings)


def _train(
    strategy, *, student=net, teacher=None, wcam=None, inside=True, twice=False,
    count=COUNT, distillation=False, penalty=False, cache=False, steps=None,
    own_step=False, epochs=EPOCHS, callbacks=(), weighted=False,
    judged=False, eagerly=False):
  settings = {"layer": "act", "weight": 3.0, **(wcam or {})}
  teacher = TEACHERS[teacher]
  old = None if inside else teacher(0)
  with strategy.scope():
    old = old or teacher(0)
    model = OwnStep(1, old) if own_step else student(1)
    if penalty:
      model = penalized(model)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"], steps_per_execution=steps, run_eagerly=eagerly)
  noted = Replicas()
  preserve = [] if own_step else [PreserveAttribution(
      old, WCAM(**{"weight": 4.0, **settings}), cache=cache,
      distillation=Distillation(alpha=0.5) if distillation else None)]
  pictures, classes = data(count, twice)
  weights = shares(count, 2) if weighted else None
  before = [weight.copy() for weight in old.get_weights()]
  history = model.fit(
      pictures, classes, sample_weight=weights, batch_size=BATCH, epochs=epochs,
      validation_data=data(COUNT, seed=9) if judged else None,
      shuffle=False, verbose=0, callbacks=[*preserve, noted, *callbacks])
  return {
      "epochs": history.epoch,
      "history": {name: np.float64(values).tolist()
                  for name, values in history.history.items()},
      "weights": {f"{i} {variable.name}": np.float64(variable.numpy()).tolist()
                  for i, variable in enumerate(model.variables)},
      "log_weights": noted.seen,
      "teacher_kept": tiny.weights_equal(before, old.get_weights()),
      "replicas": strategy.num_replicas_in_sync,
  }


def penalized(model):
  """Copies a model that `net` made, with a penalty of its second kernel."""
  def copy(layer):
    config = layer.get_config()
    if layer.name == "conv2":
      config["kernel_regularizer"] = keras.regularizers.L2(0.1)
    return type(layer).from_config(config)
  return tiny.shake(
      keras.models.clone_model(model, clone_function=copy), 1)


def mirrored(wanted):
  """Cases alone and on two replicas of this process."""
  cpu, = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(
      cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  # The default collectives serve only the first strategy of a process.
  strategy = tf.distribute.MirroredStrategy(
      ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
  alone = tf.distribute.get_strategy()
  results = {}
  for name in wanted:
    try:
      results[name] = {
          "alone": train(alone, weighted=uneven(name), **CASES[name]),
          "replicas": train(strategy, **CASES[name])}
    except Exception:  # Each case is a test of its own, which prints this.
      results[name] = {"error": traceback.format_exc()}
  return results


def uneven(name):
  """Whether a case's last batch is not of one size on all replicas."""
  return CASES[name].get("count", COUNT) % BATCH != 0


class Halt(keras.callbacks.Callback):
  """Says that an epoch is half done, and waits to be killed."""

  def __init__(self, marker):
    super().__init__()
    self._marker = marker
    self._epoch = None

  def on_epoch_begin(self, epoch, logs=None):
    self._epoch = epoch

  def on_train_batch_end(self, batch, logs=None):
    if (self._epoch, batch) == (1, 0):
      self._marker.touch()
      time.sleep(600)


def workers(wanted, out, backup, marker):
  """Cases on the workers of a cluster, each of which runs this."""
  strategy = tf.distribute.MultiWorkerMirroredStrategy()
  results = {}
  for name in wanted:
    callbacks = []
    if backup is not None:
      callbacks += [keras.callbacks.BackupAndRestore(str(backup)),
                    keras.callbacks.CSVLogger(f"{out}.csv", append=True)]
    if marker is not None:
      callbacks.append(Halt(marker))
    results[name] = {"replicas": train(
        strategy, callbacks=callbacks, **CASES[name])}
  return results


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("kind", choices=["mirrored", "workers"])
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--cases", nargs="*", default=[])
  parser.add_argument("--backup", type=Path, help="for BackupAndRestore")
  parser.add_argument("--halt", type=Path, help="halt and write this file")
  args = parser.parse_args()
  signal.alarm(400)  # Nothing is left behind if the test itself dies.
  args = parser.parse_args()
  if args.kind == "mirrored":
    results = mirrored(args.cases)
  else:
    results = workers(args.cases, args.out, args.backup, args.halt)
  write_whole(args.out, json.dumps(results))


if __name__ == "__main__":
  main()
