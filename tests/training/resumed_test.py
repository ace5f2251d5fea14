"""A fit that was killed and goes on as if it had not been."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, PreserveAttribution
from tests import tiny

# The runs that are killed and resumed: a name, whether pruned, the settings to
# match, and the moment of a backup.
_RUNS = (
    ("schedule", False, {"drop_rate": 0.5, "weight": keras.optimizers.schedules
                         .PolynomialDecay(4.0, 12, 8.0)}, "epoch"),
    ("constraint", True, {"agreement": 0.97, "drop_rate": 0.5}, 2))
_EPOCHS = 4


class _Die(keras.callbacks.Callback):
  """Ends a run in the middle of its third epoch."""

  def __init__(self, kill):
    super().__init__()
    self._kill = kill
    self._batches = 0

  def on_train_batch_end(self, batch, logs=None):
    self._batches += 1
    if self._batches == 2 * 3 + 2:
      if self._kill:
        os.kill(os.getpid(), signal.SIGKILL)
      raise ZeroDivisionError()


def _run(
    folder, name, pruned, settings, frequency, callbacks=(), eager=False):
  """Trains one of the runs, on from its backup where there is one."""
  plain = tiny.smooth_net(1, width=6)
  model = tiny.prune(plain) if pruned else plain
  model.compile(keras.optimizers.SGD(0.05, momentum=0.9),
                tiny.cross_entropy(), run_eagerly=eager)
  backup = keras.callbacks.BackupAndRestore(
      os.path.join(folder, name), save_freq=frequency)
  # Keras resumes an epoch with its first batch, so that all must be alike.
  x, y = ((tiny.images(6, size=4), tiny.labels(6))
          if frequency == "epoch" else (
              np.tile(tiny.images(2, size=4), (3, 1, 1, 1)),
              np.tile(tiny.labels(2), 3)))
  preserve = PreserveAttribution(
      tiny.smooth_net(0, width=6), WCAM("act", **settings))
  fitted = model.fit(
      x, y, batch_size=2, epochs=_EPOCHS, shuffle=False, verbose=0,
      callbacks=[backup, *callbacks, preserve])
  return fitted.history, model.get_weights()


def _killed(folder):
  """Begins every run; the last one is killed, and this process with it."""
  for run in _RUNS:
    with contextlib.suppress(ZeroDivisionError):
      _run(folder, *run, [_Die(run is _RUNS[-1])])


class ResumedTest(parameterized.TestCase):

  def check_resumed(self, folder, run, **settings):
    want, want_weights = _run(folder / "whole", *run, **settings)
    got, got_weights = _run(folder / "killed", *run, **settings)
    # Two whole epochs were behind it.
    self.assertLen(got["loss"], _EPOCHS - 2)
    if "agreement" in run[2]:  # The weight has long left its start.
      # By .005 or more, or a weight that restarts would go unnoticed.
      self.assertNotAlmostEqual(want["attr_weight"][2], 4.0, places=2)
    for name in want:
      whole = want[name][2 if run[3] == "epoch" else 3:]
      # Part of it may have run in another process: float32 sums in another
      # order.
      np.testing.assert_allclose(
          got[name][-len(whole):], whole, rtol=1e-5, err_msg=name)
    for weight, expected in zip(got_weights, want_weights):
      # The same rounding, after twelve steps with momentum.
      np.testing.assert_allclose(weight, expected, atol=1e-6)

  @parameterized.parameters(*_RUNS)
  @pytest.mark.slow("training")
  def test_a_fit_that_died(self, *run):
    # In eager steps: resuming does not depend on how steps run.
    folder = tiny.folder(self)
    with self.assertRaises(ZeroDivisionError):
      _run(folder / "killed", *run, [_Die(False)], eager=True)
    self.check_resumed(folder, run, eager=True)

  @pytest.mark.slow("training")
  def test_a_process_that_was_killed(self):
    folder = tiny.folder(self)
    child = subprocess.run(
        [sys.executable, "-c",
         "import sys; from tests.training import resumed_test; "
         "resumed_test._killed(sys.argv[1])", str(folder / "killed")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True)
    self.assertEqual(child.returncode, -signal.SIGKILL, child.stderr)
    for run in _RUNS:
      with self.subTest(run[0]):
        self.check_resumed(folder, run)


if __name__ == "__main__":
  absltest.main()
