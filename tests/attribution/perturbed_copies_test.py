"""Tests of streaming: perturbed_copies.py, cached_tap.py, progress.py."""

import contextlib
import functools
import io
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from keras_attr_preserve.attribution.perturbed_copies import over_copies
from keras_attr_preserve.models import cached_tap
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.running import full_batch
from keras_attr_preserve.utils import progress
from tests import export_helpers as helpers
from tests import tiny

# All tests share these models: leave them unchanged.
_net = functools.partial(helpers.net, size=tiny.SIZE, width=4)
# By name: the method, its settings, and how often it runs each image.
_METHODS = {
    "integrated_gradients": (
        attribution.integrated_gradients, {"steps": 9}, 10),
    "smooth_grad": (attribution.smooth_grad, {"samples": 10}, 10),
    "var_grad": (attribution.var_grad, {"samples": 10}, 10),
    "score_cam": (attribution.score_cam, {"layer": "act"}, 4),
}


class StreamingTest(parameterized.TestCase):

  @parameterized.parameters(*_METHODS)
  def test_maps_do_not_depend_on_the_batch(self, name):
    method, settings, _ = _METHODS[name]
    model, pictures = _net("flatten"), tiny.images(5)
    want = method(model, pictures, [0, 1, 2, 0, 1], batch_size=1, **settings)
    # Control: maps that are all zero would agree at any batch size.
    self.assertGreater(np.abs(want).max(), 1e-4)
    for size in (2, 3, 13, None):
      got = method(model, pictures, [0, 1, 2, 0, 1], batch_size=size,
                   **settings)
      # Float32 sums over copies, grouped in another way; for values near 0,
      # where summands cancel, an absolute bound.
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)

  @parameterized.parameters(*_METHODS)
  def test_top_class_is_that_of_the_picture_as_it_is(self, name):
    method, settings, _ = _METHODS[name]
    model, pictures = _net("flatten"), tiny.images(3)
    top = model(pictures).numpy().argmax(1)
    np.testing.assert_array_equal(
        method(model, pictures, **settings),
        method(model, pictures, top, **settings))

  @parameterized.product(name=tuple(_METHODS), size=(1, 2, 5, 8))
  def test_every_run_fills_its_batch(self, name, size):
    method, settings, runs = _METHODS[name]
    calls = []
    method(_net(), tiny.images(2), 1, batch_size=size,
           progress=lambda *counts: calls.append(counts), **settings)
    self.assertEqual({total for _, total in calls}, {2 * runs})
    self.assertEqual(calls[-1][0], 2 * runs)
    ran = np.diff([0] + [done for done, _ in calls])
    pictures = min(2, size)
    fill = size // pictures * pictures
    self.assertEqual(ran.max(), min(fill, pictures * runs))
    # Except for the last, smaller run of each group of images.
    self.assertLessEqual((ran < ran.max()).sum(), 2 // pictures)

  @parameterized.parameters(*_METHODS)
  def test_a_line_and_errors(self, name):
    method, settings, runs = _METHODS[name]
    model, pictures = _net(), tiny.images(2)
    with contextlib.redirect_stderr(io.StringIO()) as err:
      method(model, pictures, 1, **settings)
    self.assertEqual(err.getvalue(), "")
    with contextlib.redirect_stderr(io.StringIO()) as err:
      method(model, pictures, 1, progress=True, **settings)
    self.assertEqual(
        err.getvalue(),
        f"\r{name}: {2 * runs} of {2 * runs} pictures run\n")
    with self.assertRaisesRegex(TypeError, "progress must be"):
      method(model, pictures, 1, progress="yes", **settings)
    with self.assertRaisesRegex(ValueError, "batch_size must be 1 or more"):
      method(model, pictures, 1, batch_size=0, **settings)

  def test_one_graph_whatever_the_batches(self):
    model, traces = tiny.conv_net(), []

    def change(pictures, numbers):
      traces.append(numbers)
      return pictures[None] + tf.reshape(
          tf.cast(numbers, tf.float32), [-1, 1, 1, 1, 1])

    for pictures, size in ((2, 8), (7, 3), (1, 64)):
      over_copies(
          model, tiny.images(pictures), 1, "mine", name="mine", count=5,
          sums=1, change=change,
          add=lambda gradients, numbers, total: [
              total + tf.reduce_sum(gradients, 0)],
          finish=lambda pictures, total: tf.reduce_sum(total, -1),
          batch_size=size, progress=None)
    self.assertLen(traces, 1)

  def test_a_tap_is_made_once(self):
    model, pictures = tiny.conv_net(), tiny.images(2)
    methods = [attribution.grad_cam, attribution.saliency, attribution.lrp,
               attribution.equal_weighted]
    want = [method(model, pictures) for method in methods]
    with mock.patch.object(cached_tap, "Tap", side_effect=AssertionError):
      for method, maps in zip(methods, want):
        np.testing.assert_array_equal(method(model, pictures), maps)

  def test_what_is_known_of_a_tap(self):
    model = tiny.conv_net()
    for _ in range(2):
      tap = KnownTap(model, ["act"])
      self.assertEqual(tap.input.shape, (6, 6, 2))
      self.assertEqual(tap.classes, 3)
      self.assertEqual(tap.shapes, [(None, 6, 6, 4)])
      with self.assertRaisesRegex(ValueError, "no layer of that name"):
        KnownTap(model, ["nothing"])
    with self.assertRaisesRegex(TypeError, "must be a tf_keras.Model"):
      KnownTap("net.h5")

  def test_a_model_as_a_black_box_is_traced_once(self):
    calls = []

    def count(x):
      calls.append(1)
      return x

    inputs = keras.Input([6, 6, 2])
    model = tiny.shake(keras.Model(inputs, keras.layers.Dense(3)(
        keras.layers.Flatten()(keras.layers.Lambda(count)(inputs)))))
    calls.clear()
    before = attribution.occlusion(model, tiny.images(3), 1, batch_size=4)
    self.assertLen(calls, 1)
    # Differences of float32 scores, of a graph and of plain calls.
    np.testing.assert_allclose(
        before, attribution.occlusion(
            lambda batch: model(batch), tiny.images(3), 1), atol=1e-5)
    tiny.shake(model, 7)
    calls.clear()
    after = attribution.occlusion(model, tiny.images(3), 1, batch_size=4)
    self.assertEmpty(calls)
    # Far above rounding: a graph that keeps old weights would give `before`.
    self.assertGreater(np.abs(after - before).max(), 1e-2)

  def test_a_tanh_behind_a_normalization(self):
    # TensorFlow 2.21 has no CPU kernel for what it fuses them into.
    model = tiny.conv_net(activation="tanh")
    for method in (attribution.saliency, attribution.integrated_gradients,
                   attribution.occlusion):
      self.assertTrue(np.isfinite(method(model, tiny.images(2), 1)).all())


class FullBatchTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, (224, 224, 3), 64), (None, (96, 96, 3), 64),
      (None, (32, 32, 3), 576), (None, (48, 96, 1), 128), (5, (32, 32, 3), 5))
  def test_sizes(self, size, shape, want):
    self.assertEqual(full_batch(size, np.empty((1, *shape))), want)


class ReporterTest(absltest.TestCase):

  def _lines(self, asked, seconds, terminal=True):
    err = io.StringIO()
    err.isatty = lambda: terminal
    with contextlib.redirect_stderr(err), mock.patch.object(
        progress.time, "monotonic", side_effect=[0.0, *seconds]):
      report = progress.reporter(asked, "rise", 8)
      for number in range(len(seconds)):
        report(2 * (number + 1))
    return err.getvalue()

  def test_where_it_takes_long(self):
    self.assertEqual(self._lines(None, [1, 4, 9, 9.5]), "")
    self.assertEqual(
        self._lines(None, [5, 12, 18, 24]),
        "\rrise: 4 of 8 pictures run, 12 s left"
        "\rrise: 6 of 8 pictures run, 6 s left "
        "\rrise: 8 of 8 pictures run          \n")
    self.assertEqual(self._lines(None, [5, 12, 18, 24], terminal=False), "")
    self.assertEqual(self._lines(False, [5, 12, 18, 24]), "")

  def test_where_it_is_asked_for(self):
    self.assertEqual(
        self._lines(True, [1, 2], terminal=False),
        "\rrise: 2 of 8 pictures run\rrise: 4 of 8 pictures run")


_MEASURE = """
import resource, sys
import numpy as np
from keras_attr_preserve import attribution
from tests import tiny
model = tiny.conv_net(size=64, width=2)
def most():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
def run(name, count):
  pictures = tiny.images(4, size=64)
  if name == "integrated_gradients":
    attribution.integrated_gradients(model, pictures, 1, steps=count)
  elif name == "occlusion":
    stride = 8 if count < 1000 else 2
    attribution.occlusion(model, pictures, 1, patch=8, stride=stride)
  elif name == "rise":
    attribution.rise(model, pictures, 1, masks=count)
  else:
    getattr(attribution, name)(model, pictures, 1, samples=count)
run(sys.argv[1], 100)
before = most()
run(sys.argv[1], 1000)
print(most() - before)
"""


class MemoryTest(parameterized.TestCase):

  @parameterized.parameters(
      "integrated_gradients", "smooth_grad", "var_grad", "occlusion", "rise")
  @pytest.mark.slow("explaining")
  def test_does_not_grow_with_the_copies(self, name):
    # 4 images 900 times more are 118 MB at 64x64x2 (occlusion: 721 times).
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, name], check=True,
        capture_output=True, text=True)
    self.assertLess(float(done.stdout), 30)


if __name__ == "__main__":
  absltest.main()
