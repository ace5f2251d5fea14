"""Tests of layer_override.py: another call in a block and thread."""

import contextlib
import threading

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.models.layer_override import CallSwap
from tests import tiny


def _times(factor):
  return lambda own_call, inputs: factor * own_call(inputs)


class CallSwapTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.layer = keras.layers.Activation("relu")
    self.x = tf.constant([-1.0, 2.0])

  def test_inside_alone(self):
    with CallSwap(self.layer, _times(3.0)).on():
      np.testing.assert_array_equal(self.layer(self.x), [0, 6])
    np.testing.assert_array_equal(self.layer(self.x), [0, 2])
    self.assertNotIn("call", vars(self.layer))

  def test_the_innermost_runs_and_is_handed_the_one_around(self):
    with CallSwap(self.layer, _times(3.0)).on():
      with CallSwap(self.layer, _times(5.0)).on():
        np.testing.assert_array_equal(self.layer(self.x), [0, 30])
      np.testing.assert_array_equal(self.layer(self.x), [0, 6])

  def test_one_within_another(self):
    """The inner swap may call the outer swap's `call`."""
    with CallSwap(self.layer, _times(3.0)).on(), CallSwap(
        self.layer, lambda own_call, inputs: own_call(inputs) + 1).on():
      np.testing.assert_array_equal(self.layer(self.x), [1, 7])

  def test_after_an_error(self):
    with self.assertRaisesRegex(KeyError, "mine"), CallSwap(
        self.layer, _times(3.0)).on():
      raise KeyError("mine")
    np.testing.assert_array_equal(self.layer(self.x), [0, 2])
    self.assertNotIn("call", vars(self.layer))

  def test_a_call_of_the_layers_own_comes_back(self):
    self.layer.call = lambda inputs: inputs + 1
    with CallSwap(self.layer, _times(3.0)).on():
      np.testing.assert_array_equal(self.layer(self.x), [0, 9])
    np.testing.assert_array_equal(self.layer(self.x), [0, 3])
    self.assertIn("call", vars(self.layer))

  @parameterized.parameters(tiny.prune, tiny.quantize)
  def test_wrappers_of_tfmot_see_the_same_arguments(self, wrap):
    """They inspect whether a layer's `call` takes `training`."""
    model = wrap(tiny.conv_net())
    norms = [layer for layer in model.submodules
             if isinstance(layer, keras.layers.BatchNormalization)]
    self.assertNotEmpty(norms)
    for layer in model.layers:
      if hasattr(layer, "pruning_step"):
        layer.pruning_step.assign(0)  # As UpdatePruningStep does.
    seen = []

    def look(own_call, *args, **kwargs):
      seen.append(kwargs.get("training", args[1:]))
      return own_call(*args, **kwargs)

    with contextlib.ExitStack() as stack:
      for layer in norms:
        stack.enter_context(CallSwap(layer, look).on())
      model(tiny.images(), training=True)
    self.assertEqual(seen, [True] * len(norms))

  def test_each_thread_has_its_own(self):
    barrier, seen = threading.Barrier(3, timeout=60), {}

    def work(factor):
      with CallSwap(self.layer, _times(factor)).on():
        barrier.wait()  # All are inside.
        seen[factor] = self.layer(self.x).numpy()
        barrier.wait()
      barrier.wait()  # The other has left, too.
      seen[-factor] = self.layer(self.x).numpy()

    threads = [threading.Thread(target=work, args=[k]) for k in (2.0, 3.0)]
    for thread in threads:
      thread.start()
    barrier.wait()
    seen["outside"] = self.layer(self.x).numpy()
    barrier.wait()
    barrier.wait()
    for thread in threads:
      thread.join()
    for key, want in ((2.0, 4), (3.0, 6), ("outside", 2), (-2.0, 2), (-3.0, 2)):
      np.testing.assert_array_equal(seen[key], [0, want])
    self.assertNotIn("call", vars(self.layer))


if __name__ == "__main__":
  absltest.main()
