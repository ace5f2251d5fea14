"""Tests of teacher_cache.py and teacher.py: a teacher that runs once.

Students are trained eagerly: a few eager steps take a fifth of the time of
tracing. Where Keras makes a graph, the test says so.
"""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
    WCAM,
    Distillation,
    PreserveAttribution,
    TrainStep,
)
from keras_attr_preserve.training import objectives
from keras_attr_preserve.training.teacher_cache import TeacherCache, identify
from tests import tiny

COUNT = 8


class TeacherCacheTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.pictures = tf.constant(tiny.images(COUNT))
    self.values = np.arange(3.0 * COUNT, dtype=np.float32).reshape(-1, 3)
    self.asked = 0

  def _look(self, chosen):
    def look():
      self.asked += 1
      return tf.constant(self.values[chosen])
    return look

  def _get(self, cache, chosen):
    return cache(tf.gather(self.pictures, chosen), self._look(chosen))

  def test_asks_once_in_any_order_and_batch(self):
    cache = TeacherCache(3)
    for chosen in ([0, 1, 2], [3, 4, 5], [6, 7]):
      np.testing.assert_array_equal(
          self._get(cache, chosen), self.values[chosen])
    self.assertEqual(self.asked, 3)
    for chosen in ([7, 0, 3, 2], [5], [1, 1]):
      np.testing.assert_array_equal(
          self._get(cache, chosen), self.values[chosen])
    self.assertEqual(self.asked, 3)
    self.assertEqual((cache.looked, cache.found), (8, 7))
    cache.reset()
    self.assertEqual((cache.looked, cache.found), (0, 0))
    self._get(cache, [4])
    self.assertEqual((cache.looked, cache.found), (0, 1))

  def test_a_batch_known_in_part_is_looked_at(self):
    cache = TeacherCache(3)
    self._get(cache, [0, 1])
    np.testing.assert_array_equal(
        self._get(cache, [1, 2]), self.values[[1, 2]])
    self.assertEqual(self.asked, 2)

  def test_a_changed_pixel_is_another_picture(self):
    cache = TeacherCache(3)
    self._get(cache, [0])
    changed = self.pictures.numpy()[:1].copy()
    changed[0, 5, 5, 1] = np.nextafter(changed[0, 5, 5, 1], np.float32(9))
    cache(tf.constant(changed), self._look([1]))
    self.assertEqual(self.asked, 2)

  def test_labels_belong_to_the_key(self):
    cache = TeacherCache(3)
    for label in (0, 1, 0):
      cache((self.pictures[:1], tf.constant([label])), self._look([label]))
    self.assertEqual(self.asked, 2)

  def test_rows_of_zeros_are_kept_too(self):
    cache = TeacherCache(2)
    for _ in range(2):
      def look():
        self.asked += 1
        return tf.zeros([1, 2])
      cache(self.pictures[:1], look)
    self.assertEqual(self.asked, 1)

  def test_kept_in_a_file(self):
    path = tiny.folder(self) / "deep" / "teacher.cache"
    cache = TeacherCache(3, path)
    self.assertEqual(cache.load("me"), 0)
    self._get(cache, [0, 1, 2])
    cache.save("me")
    again = TeacherCache(3, path)
    self.assertEqual(again.load("me"), 3)
    np.testing.assert_array_equal(
        self._get(again, [2, 0]), self.values[[2, 0]])
    self.assertEqual(self.asked, 1)
    with self.assertRaisesRegex(ValueError, "is of another teacher or other"):
      again.load("you")
    with self.assertRaisesRegex(ValueError, "is of another teacher or other"):
      TeacherCache(4, path).load("me")
    for content in (path.read_bytes()[:-1], b"", b"[]\n", b"\xff\xff"):
      path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, r"teacher.cache' is damaged \("):
        again.load("me")

  def test_identity(self):
    first, second = tiny.conv_net(seed=0), tiny.conv_net(seed=1)
    names = [identify(first, "a"), identify(second, "a"), identify(first, "b")]
    self.assertLen(set(names), 3)
    self.assertEqual(identify(tiny.conv_net(seed=0), "a"), names[0])


class CachedTrainingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.teacher = tiny.shared(tiny.smooth_net, 0)
    self.pictures = tiny.images(COUNT, size=4)
    self.labels = tiny.labels(COUNT)

  def _fit(self, wcam, cache, epochs=2, pictures=None, labels=None,
           teacher=None, run_eagerly=True, **settings):
    keras.utils.set_random_seed(0)
    student = tiny.smooth_net(1)
    student.compile("sgd", "mse", run_eagerly=run_eagerly)
    labels = self.labels if labels is None else labels
    return student.fit(
        self.pictures if pictures is None else pictures, labels, verbose=0,
        batch_size=5, epochs=epochs, callbacks=[PreserveAttribution(
            teacher or self.teacher, wcam, cache=cache, **settings)]).history

  @parameterized.named_parameters(
      ("ewa", WCAM("act", method="ewa"), {}),
      ("top_k", WCAM(["act", "conv"], target="top_k", top_k=2), {}),
      ("with_scores", WCAM("act"), {"distillation": Distillation()}),
      ("scores_alone", None, {"distillation": Distillation()}))
  def test_the_same_fit(self, wcam, settings):
    self.check_the_same_fit(wcam, settings, True)

  @parameterized.parameters(
      WCAM("act", target="label"), objectives.CATKD("act"))
  @pytest.mark.slow("training")
  def test_the_same_fit_of_others(self, wcam):
    self.check_the_same_fit(wcam, {}, True)

  # The quick ones have a graph without scores, where the teacher is counted.
  @parameterized.parameters(False, True)
  @pytest.mark.slow("training")
  def test_the_same_fit_as_a_graph(self, scores):
    self.check_the_same_fit(WCAM("act"), {
        "distillation": Distillation() if scores else None}, False)

  def check_the_same_fit(self, wcam, settings, run_eagerly):
    want = self._fit(wcam, False, **settings)
    got = self._fit(wcam, True, run_eagerly=run_eagerly, **settings)
    self.assertEqual(set(got), set(want))
    for name, values in want.items():
      # The teacher's float32 sums are cached from batches of other images; four
      # steps carry that on.
      np.testing.assert_allclose(got[name], values, rtol=1e-4, err_msg=name)

  def test_present_classes(self):
    labels = np.float32(np.random.default_rng(0).uniform(size=(COUNT, 3)) > .5)
    wcam = WCAM("act", target="present")
    want = self._fit(wcam, False, labels=labels)
    got = self._fit(wcam, True, labels=labels)
    # The same, of maps of the present classes.
    np.testing.assert_allclose(got["attr_loss"], want["attr_loss"], rtol=1e-4)

  def test_the_teacher_runs_once_for_a_picture(self):
    """Counted inside the model; its outputs are the same.

    Keras makes a graph, which must be able to skip the teacher.
    """
    class Count(keras.layers.Layer):
      def build(self, _):
        self.count = self.add_weight(
            "count", initializer="zeros", trainable=False)

      def call(self, inputs):
        self.count.assign_add(tf.cast(tf.shape(inputs)[0], tf.float32))
        return inputs

    inputs = keras.Input((4, 4, 2))
    x = Count(name="count")(inputs)
    for layer in tiny.smooth_net(0).layers[1:]:
      x = layer(x)
    teacher = keras.Model(inputs, x)
    count = teacher.get_layer("count").count
    count.assign(0.0)
    pictures, labels = self.pictures[:6], self.labels[:6]
    got = self._fit(WCAM("act"), True, 3, pictures, labels, teacher,
                    run_eagerly=False)
    # Batches are drawn again each epoch, but all are known after the first.
    self.assertEqual(float(count), 6)
    count.assign(0.0)
    want = self._fit(WCAM("act"), False, 3, pictures, labels, teacher)
    self.assertEqual(float(count), 18)
    # As in test_the_same_fit; and a graph sums in another order.
    np.testing.assert_allclose(got["attr_loss"], want["attr_loss"], rtol=1e-4)

  def test_a_file_serves_the_next_fit(self):
    path = tiny.folder(self) / "teacher.cache"
    want = self._fit(WCAM("act"), path)
    size = path.stat().st_size
    # One flag, three logits and 16 positions of 4 bytes, and a key of 8.
    self.assertBetween(size, COUNT * (8 + 4 * 20), COUNT * (8 + 4 * 20) + 200)
    got = self._fit(WCAM("act"), path)
    # The file keeps float32 as it is; the steps' sums may vary in order.
    np.testing.assert_allclose(got["attr_loss"], want["attr_loss"], rtol=1e-5)
    for wcam, teacher in ((WCAM("conv"), self.teacher),
                          (WCAM("act"), tiny.smooth_net(3))):
      with self.assertRaisesRegex(ValueError, "delete it, or give another pa"):
        self._fit(wcam, path, teacher=teacher)
    self.assertEqual(path.stat().st_size, size)

  def test_a_full_disk_leaves_the_model_its_own_step(self):
    student = tiny.smooth_net(1)
    student.compile("sgd", "mse", run_eagerly=True)
    full = OSError(28, "No space left on device")
    with mock.patch.object(
        TeacherCache, "save", side_effect=full), self.assertRaises(OSError):
      student.fit(self.pictures, self.labels, verbose=0, callbacks=[
          PreserveAttribution(
              self.teacher, WCAM("act"),
              cache=tiny.folder(self) / "teacher.cache")])
    self.assertIsNone(student.train_function)
    self.assertEmpty(
        {"train_step", "attr_preserve_state"} & set(vars(student)))

  def test_augmented_pictures_are_warned_of(self):
    def noisy():
      rng = np.random.default_rng(0)
      for _ in range(4):
        yield (self.pictures + rng.normal(size=self.pictures.shape),
               self.labels)
    data = tf.data.Dataset.from_generator(noisy, output_signature=(
        tf.TensorSpec([None, 4, 4, 2]), tf.TensorSpec([None], tf.int32)))
    student = tiny.smooth_net(1)
    student.compile("sgd", "mse", run_eagerly=True)
    with self.assertWarnsRegex(
        UserWarning, "the cache did not know most of the pictures of a second"
    ) as caught:
      student.fit(data, epochs=4, steps_per_epoch=1, verbose=0, callbacks=[
          PreserveAttribution(self.teacher, WCAM("act"), cache=True)])
    self.assertLen([warning for warning in caught.warnings
                    if "the cache" in str(warning.message)], 1)

  def test_what_it_forbids(self):
    student = tiny.smooth_net(1)
    with self.assertRaisesRegex(ValueError, "cache: drop_rate draws the teac"):
      TrainStep(student, self.teacher, WCAM("act", drop_rate=0.3), cache=True)
    inputs = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(3, 3, name="act")(inputs)
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    with self.assertRaisesRegex(ValueError, "cache: the teacher must take pic"):
      TrainStep(student, keras.Model(inputs, x), WCAM("act"), cache=True)
    student.compile("sgd", "mse", jit_compile=True)
    with self.assertRaisesRegex(ValueError, "cache: .*jit_compile"):
      TrainStep(student, self.teacher, WCAM("act"), cache=True)


if __name__ == "__main__":
  absltest.main()
