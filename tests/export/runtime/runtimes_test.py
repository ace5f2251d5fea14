"""Tests of runtimes.py: several threads, and kernels that a runtime lacks."""

import threading

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny

_layers = keras.layers


class ThreadsTest(parameterized.TestCase):

  @parameterized.parameters("xnnpack", "builtin")
  def test_each_thread_gets_its_own_images_answers(self, runtime):
    interpreter = kap.export.Interpreter(
        helpers.converted(mode="int8"), runtime=runtime)
    images = helpers.images(16)
    maps, logits = interpreter.explain(images)
    self.assertGreater(np.ptp(logits, axis=0).min(), 0)  # They tell images.
    wrong, start = [], threading.Barrier(4, timeout=60)

    def ask(first):
      start.wait()
      for turn in range(20):
        i = (4 * first + turn) % 15
        answer = interpreter.explain(images[i:i + 2])
        if not (np.array_equal(answer.maps, maps[i:i + 2])
                and np.array_equal(answer.logits, logits[i:i + 2])):
          wrong.append((first, turn))

    threads = [threading.Thread(target=ask, args=[k]) for k in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEmpty(wrong)


class KernelsTest(parameterized.TestCase):

  def test_an_operator_that_the_reference_kernels_lack(self):
    inputs = keras.Input((8, 8, 2))
    x = _layers.Conv2D(4, 3, activation="elu", name="act")(inputs)
    x = _layers.GlobalAveragePooling2D()(x)
    model = tiny.shake(keras.Model(inputs, _layers.Dense(3)(x)))
    images, wcam = helpers.images(), kap.WCAM("act")
    content = kap.export.convert(
        model, wcam, representative_images=helpers.calibration())
    told = "builtin: the reference kernels lack ELU"
    reference, builtin = (
        kap.export.Interpreter(content, runtime=runtime)
        for runtime in ("reference", "builtin"))
    self.assertEqual(reference.runtime, told)
    self.assertEqual(builtin.runtime, "builtin")
    for want, got in zip(reference.explain(images), builtin.explain(images)):
      np.testing.assert_array_equal(want, got)
    report = kap.export.verify(
        content, model, wcam, images, runtime="reference")
    self.assertEqual(report.facts["runtime"], told)
    self.assertIn(told, str(report))
    drift = kap.export.drift(model, content, wcam, images)
    self.assertEqual(drift.facts["runtime"], told)
    self.assertIn(told, str(drift))
    # In a file of somebody else's, too, which is tried in another process.
    foreign = helpers.foreign(content)
    report = kap.export.verify(
        foreign, model, wcam, images, runtime="reference")
    self.assertEqual(report.facts["runtime"], told)
    drift = kap.export.drift(model, foreign, wcam, images)
    self.assertEqual(drift.facts["runtime"], told)

  @parameterized.parameters(
      ("float32", tf.math.ceil, "CEIL"),
      # The kernel is there, but none of this version, which takes int8.
      ("int8", lambda x: tf.nn.depth_to_space(x, 2),
       "DEPTH_TO_SPACE of version 2"))
  def test_others_that_they_lack(self, mode, operation, told):
    inputs = keras.Input((8, 8, 2))
    x = _layers.Conv2D(4, 3, activation="relu", name="act")(inputs)
    x = keras.layers.Lambda(operation)(x)
    x = _layers.GlobalAveragePooling2D()(x)
    model = tiny.shake(keras.Model(inputs, _layers.Dense(3)(x)))
    content = helpers.foreign(helpers.plainly_converted(model, mode))
    file = kap.export.FileTensors(content, runtime="reference")
    self.assertEqual(file.read(helpers.images(), [file.outputs[0]])[
        file.outputs[0]].shape, (8, 3))
    self.assertEqual(
        file.kernels, f"builtin: the reference kernels lack {told}")

  def test_kernels_that_are_there_are_those_asked_for(self):
    for runtime in helpers.LITERT_RUNTIMES:
      interpreter = helpers.interpreter(mode="int8", runtime=runtime)
      self.assertEqual(interpreter.runtime, runtime)


if __name__ == "__main__":
  absltest.main()
