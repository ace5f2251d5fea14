"""Tests of TensorFlow's distribution: replicas, workers, a killed worker.

Every run of several is a separate child process: logical devices and
collectives are set once in a process. A replica's results are tested without
one: in a strategy of one, and in a step that is told it is one of two.
"""

import contextlib
import csv
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, Distillation, Hints, TrainStep
from tests import distribution_worker, tiny
from tests.places import ROOT

LIMIT = 380  # Seconds for one child, on a busy computer.
SINGLE, DOUBLE = 1e-5, 1e-9
# Their mean over an epoch counts batches, or replicas' shares of a batch.
# Uneven shares change that mean, also of Keras's "loss".
PER_BATCH = {"loss", "attr_loss", "distill_loss"}
HALVES = (
    ("plain", "drop_rate", "distillation", "layers", "agreement", "pruned",
     "quantized", "empty", "outside", "classes"),
    ("norm_twice", "norm", "norm_sync", "nested", "subclass", "ragged",
     "cache", "empty_cache", "own_step", "auto"))
EQUAL = [name for half in HALVES for name in half if name != "norm"]


def _start(folder, kind, name, *arguments, config=None):
  """Starts a child; its results go to `name`.json, its output to .log."""
  environment = {
      **os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2",
      # oneDNN's fused convolution fails on an empty batch, in plain Keras too.
      "TF_ENABLE_ONEDNN_OPTS": "0",
      "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
  environment.pop("TF_CONFIG", None)
  if config is not None:
    environment["TF_CONFIG"] = json.dumps(config)
  with open(folder / f"{name}.log", "a") as log:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distribution_worker", kind,
         "--out", str(folder / f"{name}.json"), *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def _folder():
  with tempfile.TemporaryDirectory() as place:
    yield Path(place)


@contextlib.contextmanager
def _children():
  """A list of children, none of which outlives the block."""
  started = []
  try:
    yield started
  finally:
    for child in started:
      child.kill()
      child.wait()


def _results(folder, name, child):
  """Waits for a child and reads its results."""
  code = child.wait(LIMIT)
  if code:
    raise AssertionError(
        f"{name} ended with {code}:\n"
        + (folder / f"{name}.log").read_text()[-4000:])
  return json.loads((folder / f"{name}.json").read_text())


def _cluster(test):
  """Describes two workers on free ports, for each of them."""
  try:
    with contextlib.ExitStack() as stack:
      ports = []
      for _ in range(2):
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        socket.create_connection(server.getsockname(), timeout=5).close()
        ports.append(server.getsockname()[1])
  except OSError as error:
    test.skipTest(f"no connection to 127.0.0.1 can be made: {error}")
  workers = [f"127.0.0.1:{port}" for port in ports]
  return [{"cluster": {"worker": workers},
           "task": {"type": "worker", "index": i}} for i in range(2)]


class _DistributionTest(parameterized.TestCase):

  def assert_close(self, got, want, tolerance, what):
    self.assertLess(
        np.abs(np.float64(got) - np.float64(want)).max(initial=0), tolerance,
        what)

  def assert_same_run(self, name, got, want):
    """Equal within rounding: logs of the epochs it ran, weights, constraint."""
    settings = distribution_worker.CASES[name]
    tolerance = DOUBLE if settings.get("double") else SINGLE
    left_out = PER_BATCH if distribution_worker.uneven(name) else ()
    self.assertEqual(got["replicas"], 2)
    self.assertEqual(want["replicas"], 1)
    self.assertEqual(set(got["history"]), set(want["history"]))
    means = {"loss", "attr_loss", "attr_agreement"}
    if settings.get("judged"):
      means |= {f"val_{mean}" for mean in means}
    self.assertContainsSubset(means, got["history"])
    for log, values in got["history"].items():
      self.assertTrue(np.isfinite(values).all(), log)
      if log not in left_out:
        self.assert_close(
            values, np.take(want["history"][log], got["epochs"]),
            # Keras's means are of single precision always.
            max(tolerance, 1e-6), log)
    self.assertEqual(len(got["weights"]), len(want["weights"]))
    for (weight_name, value), other in zip(
        got["weights"].items(), want["weights"].values()):
      self.assert_close(value, other, tolerance, weight_name)
    self.assertTrue(got["teacher_kept"])
    if "agreement" in settings.get("wcam", {}):
      self.assertNotEmpty(got["log_weights"])
      for epoch, weights in zip(got["epochs"], got["log_weights"]):
        self.assertLen(set(weights), 1)  # On all replicas.
        self.assert_close(
            weights[0], want["log_weights"][epoch][0], SINGLE, "log_weight")

  def assert_moved(self, run):
    """A test of equal runs says something only where they train."""
    agreement = run["history"]["attr_agreement"]
    # A move of 100 times SINGLE: runs that stand still are equal anyway.
    self.assertGreater(np.ptp(agreement), 1e-3)
    # Near 1 little is left to learn.
    self.assertLess(max(agreement), 0.9999)
    # Near 0 the maps share nothing.
    self.assertGreater(min(agreement), 0.01)


@functools.cache
def _mirrored():
  """Every case alone and on two replicas of one process."""
  with _folder() as place, _children() as children:
    for i, names in enumerate(HALVES):
      children.append(_start(
          place, "mirrored", f"half{i}", "--cases", *names))
    results = {}
    for i, child in enumerate(children):
      results |= _results(place, f"half{i}", child)
  return results


def _mirrored_alone():
  return tf.distribute.MirroredStrategy(
      ["CPU:0"], tf.distribute.ReductionToOneDevice())


class OneReplicaTest(_DistributionTest):
  """A strategy's variables and contexts, of one device of this process."""

  @parameterized.parameters(
      {"wcam": {"agreement": 0.5, "weight": "auto"}, "cache": True,
       "distillation": True, "judged": True},
      {"own_step": True})
  @pytest.mark.slow("devices")
  def test_equal_to_no_strategy(self, **settings):
    mirrored = _mirrored_alone()
    alone, replica = (
        distribution_worker.train(strategy, eagerly=True, epochs=1, **settings)
        for strategy in (tf.distribute.get_strategy(), mirrored))
    self.assertEqual(alone["history"].keys(), replica["history"].keys())
    for log, values in alone["history"].items():
      self.assert_close(replica["history"][log], values, SINGLE, log)
    for (name, value), other in zip(
        alone["weights"].items(), replica["weights"].values()):
      self.assert_close(other, value, SINGLE, name)
    self.assertTrue(replica["teacher_kept"])
    self.assert_close(
        replica["log_weights"], alone["log_weights"], SINGLE, "log_weight")


  def test_a_step_made_outside_its_scope_belongs_to_the_models_strategy(self):
    mirrored = _mirrored_alone()
    with mirrored.scope():
      model = tiny.compiled(distribution_worker.net(1))
    step = TrainStep(
        model, distribution_worker.net(0), WCAM("act", agreement=0.5))
    for variable in (
        step.state.task_loss, step.state.log_weight,
        *(weight for metric in step.metrics for weight in metric.variables)):
      self.assertTrue(
          mirrored.extended.variable_created_in_scope(variable), variable.name)


class _OneOfTwo:
  """A strategy, or the context of a replica, where another has equal data."""

  num_replicas_in_sync = 2

  def __init__(self, real):
    self._real = real

  def __getattr__(self, name):
    return getattr(self._real, name)

  def all_reduce(self, operation, value):
    assert operation == tf.distribute.ReduceOp.SUM
    return 2 * value


@contextlib.contextmanager
def _as_one_of_two():
  """Has a step take itself for that of one of two replicas."""
  strategy = _OneOfTwo(tf.distribute.get_strategy())
  context = _OneOfTwo(tf.distribute.get_replica_context())
  with contextlib.ExitStack() as stack:
    for module in (tf.distribute, tf.compat.v2.distribute):  # Keras's too.
      stack.enter_context(mock.patch.multiple(
          module, get_strategy=lambda: strategy,
          get_replica_context=lambda: context))
    yield


class OneOfTwoTest(_DistributionTest):
  """Results of two replicas of half a batch each, one after the other."""

  def step(self, wcam, **settings):
    model = distribution_worker.penalized(distribution_worker.net(1))
    return TrainStep(
        tiny.compiled(model, tiny.cross_entropy()), distribution_worker.net(0),
        wcam, **settings)

  def test_gradients_of_halves_add_up_to_the_whole(self):
    step = self.step(
        WCAM(["act", "act2"], layer_weights=[1, 3],
             weight=distribution_worker.rising),
        distillation=Distillation(alpha=0.5),
        hints=Hints("act", weight=2.0))
    pictures, labels = distribution_worker.data(8)

    def gradients(which):
      with tf.GradientTape() as tape:
        loss, _ = step.loss(pictures[which], labels[which])
      return tape.gradient(loss, step.model.trainable_variables)

    whole = gradients(slice(None))
    with _as_one_of_two():
      halves = gradients(slice(4)), gradients(slice(4, None))
    for variable, want, first, second in zip(
        step.model.trainable_variables, whole, *halves):
      # A gradient of nothing would be the sum of any two.
      self.assertGreater(np.abs(want).max(), 100 * SINGLE, variable.name)
      self.assert_close(first + second, want, SINGLE, variable.name)

  @parameterized.parameters(
      ({}, "task_loss"), ({"agreement": 0.5}, "task_loss", "log_weight"))
  def test_weights_move_as_by_the_whole(self, settings, *names):
    half = distribution_worker.data(4)
    whole = [np.concatenate([array, array]) for array in half]
    states = []
    for context, data in ((contextlib.nullcontext(), whole),
                          (_as_one_of_two(), half)):
      step = self.step(WCAM("act", **settings))
      with context:
        losses = [float(step.loss(*data)[0]) for _ in range(2)]
      states.append(([getattr(step.state, name).numpy() for name in names],
                     losses))
    (want, losses), (got, half_losses) = states
    for value, expected in zip(got, want):
      self.assertGreater(np.abs(expected).max(), 100 * SINGLE)  # It moved.
      self.assert_close(value, expected, SINGLE, names)
    # Each of two equal replicas has half of the loss.
    self.assert_close(2 * np.array(half_losses), losses, SINGLE, "loss")


  def test_its_variables_say_how_those_of_replicas_join(self):
    """TensorFlow lets one of several replicas assign to no other variable."""
    step = self.step(WCAM("act", agreement=0.5), cache=True)
    for name in ("task_loss", "log_weight"):  # Each replica has the same.
      self.assertEqual(getattr(step.state, name).aggregation,
                       tf.VariableAggregation.ONLY_FIRST_REPLICA, name)
    # Each replica counts its images.
    self.assertEqual(step.cache._counts.aggregation, tf.VariableAggregation.SUM)
    self.assertEqual(step.cache._counts.synchronization,
                     tf.VariableSynchronization.ON_READ)


@pytest.mark.slow("devices")
class MirroredTest(_DistributionTest):
  """Two replicas in one process; each batch is halved between them."""

  def runs(self, name):
    result = _mirrored()[name]
    self.assertNotIn("error", result, result.get("error"))
    return result["alone"], result["replicas"]

  def test_every_case_has_run(self):
    self.assertEqual(set(_mirrored()), set(distribution_worker.CASES))

  @parameterized.parameters(*EQUAL)
  def test_equal_to_one_process(self, name):
    alone, replicas = self.runs(name)
    self.assert_same_run(name, replicas, alone)
    self.assert_moved(alone)

  def test_batch_normalization_has_statistics_of_each_replica(self):
    """It runs in Keras's way; results differ from a run of one process."""
    alone, replicas = self.runs("norm")
    self.assertEqual(set(alone["history"]), set(replicas["history"]))
    for values in replicas["history"].values():
      self.assertTrue(np.isfinite(values).all())
    differences = {
        name: np.abs(np.subtract(value, replicas["weights"][name])).max()
        for name, value in alone["weights"].items()}
    self.assertGreater(max(differences.values()), 10 * SINGLE)

  def test_the_schedule_and_the_constraint_are_seen_in_the_logs(self):
    for name, weights in (("layers", [1.5, 2.5]), ("agreement", None)):
      _, replicas = self.runs(name)
      if weights is not None:
        # Float32 weights of a step; the step before has one .5 less.
        np.testing.assert_allclose(
            replicas["history"]["attr_weight"], weights, atol=1e-6)
      self.assertLen(replicas["history"]["attr_weight"], 2)


@pytest.mark.slow("devices")
class WorkersTest(_DistributionTest):
  """Two processes that talk over the loopback."""

  def start(self, children, place, *arguments, halt=None):
    """Starts both workers by one command, but for the worker to be killed."""
    for i, config in enumerate(self.cluster):
      extra = ["--halt", halt] if halt is not None and i == 1 else []
      children.append(_start(
          place, "workers", f"worker{i}", *arguments, *extra, config=config))
    return children[-2:]

  def setUp(self):
    super().setUp()
    self.cluster = _cluster(self)

  def test_equal_to_one_process(self):
    names = ("cache", "agreement", "own_step")
    with _folder() as place, _children() as children:
      pair = self.start(children, place, "--cases", *names)
      results = [_results(place, f"worker{i}", child)
                 for i, child in enumerate(pair)]
    for name in names:
      for result in results:
        self.assert_same_run(
            name, result[name]["replicas"], _mirrored()[name]["alone"])

  def test_a_killed_worker(self):
    """Both are started again and lose nothing but the epoch they were in.

    The pruning steps and the constraint's weight are in the backup; were one
    of them not, the masks or the losses of the later epochs would differ.
    """
    with _folder() as place, _children() as children:
      halt = place / "halted"
      command = ["--cases", "pruned", "--backup", place / "backup"]
      pair = self.start(children, place, *command, halt=halt)
      until = time.monotonic() + LIMIT
      while not halt.exists():
        self.assertLess(time.monotonic(), until, "no epoch was ever half done")
        for i, child in enumerate(pair):
          self.assertIsNone(
              child.poll(), (place / f"worker{i}.log").read_text()[-4000:])
        time.sleep(0.1)
      time.sleep(0.5)  # The other one waits for this one's gradients by now.
      pair[1].kill()
      self.assertEqual(pair[1].wait(LIMIT), -signal.SIGKILL)
      # TF 2.21: a peer is missed after 10 s without a heartbeat, and no public
      # option shortens that; the collective then fails with UnavailableError.
      self.assertGreater(pair[0].wait(LIMIT), 0)
      self.assertRegex(
          (place / "worker0.log").read_text(), "UnavailableError|UNAVAILABLE")
      self.assertFalse((place / "worker0.json").exists())
      pair = self.start(children, place, *command)
      results = [_results(place, f"worker{i}", child)["pruned"]["replicas"]
                 for i, child in enumerate(pair)]
      rows = [list(csv.DictReader(
          (place / f"worker{i}.json.csv").read_text().splitlines()))
              for i in range(2)]
    want = _mirrored()["pruned"]["alone"]
    for result, epochs in zip(results, rows):
      self.assertEqual(result["epochs"], [1, 2])  # It did not restart.
      self.assert_same_run("pruned", result, want)
      # The epoch before the kill, too, as it was written down then.
      self.assertEqual([row["epoch"] for row in epochs], ["0", "1", "2"])
      for log, values in want["history"].items():
        self.assert_close(
            [float(row[log]) for row in epochs], values, SINGLE, log)
      steps = {value for name, value in result["weights"].items()
               if "pruning_step" in name}
      self.assertEqual(steps, {6})


if __name__ == "__main__":
  absltest.main()
