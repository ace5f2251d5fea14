"""Tests of hints.py: whole features held beside the maps."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
    WCAM,
    Distillation,
    Hints,
    PreserveAttribution,
    TrainStep,
    narrow,
    prune_filters,
)
from keras_attr_preserve.training.hints import feature_distance
from tests import tiny

# Float32 rounding of distances of size 1, from sums over a map's features.
FLOAT32 = 1e-6
# The same of losses and metrics: sums over a batch in another order, weighted.
PLACES = 5


def _features(channels=3, height=4, width=5, count=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, height, width, channels)).astype(np.float32)


def _layer(model, name="act"):
  return keras.Model(model.input, model.get_layer(name).output)


class FeatureDistanceTest(parameterized.TestCase):

  def test_channel_by_channel_by_hand(self):
    # One position pair, two channels: (1, 0, 0, 0) beside (3, 0, 4, 0).
    teacher = tf.constant([[[[1.0, 0.0], [0.0, 0.0]]]])
    student = tf.constant([[[[3.0, 0.0], [4.0, 0.0]]]])
    np.testing.assert_allclose(
        feature_distance(teacher, student), [1 - 3 / 5], rtol=FLOAT32)

  def test_position_by_position_by_hand(self):
    # A = (1, 2): A A^T = (1 2; 2 4). B = (1 0; 0 1): B B^T = identity.
    teacher = tf.constant([[[[1.0], [2.0]]]])
    student = tf.constant([[[[1.0, 0.0], [0.0, 1.0]]]])
    want = 1 - (1 + 4) / (5 * np.sqrt(2))
    np.testing.assert_allclose(
        feature_distance(teacher, student), [want], rtol=FLOAT32)

  def test_against_numpy(self):
    teacher, student = _features(), _features(seed=1)
    cosine = (tiny.unit(teacher) * tiny.unit(student)).sum(1)
    np.testing.assert_allclose(
        feature_distance(teacher, student), 1 - cosine, atol=FLOAT32)
    thin = student[..., :2]
    products = [np.einsum("bhwc,bijc->bhwij", features, features)
                for features in (teacher, thin)]
    cosine = (tiny.unit(products[0]) * tiny.unit(products[1])).sum(1)
    np.testing.assert_allclose(
        feature_distance(teacher, thin), 1 - cosine, atol=FLOAT32)

  def test_other_channels_know_no_rotation(self):
    teacher = _features(channels=3)
    # Three channels turned inside a space of four, and twice as large.
    turned, _ = np.linalg.qr(_features(4, 4, 1, 1)[0, :, 0])
    student = 2 * teacher @ turned[:3]
    np.testing.assert_allclose(
        feature_distance(teacher, student), 0, atol=FLOAT32)
    # Rows in reverse are no rotation of channels, so a distance is left.
    self.assertGreater(
        float(tf.reduce_min(feature_distance(teacher, student[:, ::-1]))), 0.1)

  def test_large_maps_are_pooled(self):
    teacher, student = _features(3, 30, 29), _features(2, 30, 29, seed=1)
    pooled = [tf.nn.avg_pool2d(features, 3, 3, "SAME")
              for features in (teacher, student)]
    self.assertEqual(pooled[0].shape[1:3], [10, 10])
    np.testing.assert_allclose(
        feature_distance(teacher, student), feature_distance(*pooled),
        atol=FLOAT32)

  @parameterized.parameters(3, 2)
  def test_dead_features_have_finite_gradients(self, channels):
    student = tf.zeros([2, 4, 5, channels])
    with tf.GradientTape() as tape:
      tape.watch(student)
      distance = feature_distance(_features(), student)
    np.testing.assert_allclose(distance, 0.5, atol=FLOAT32)
    self.assertTrue(np.isfinite(tape.gradient(distance, student)).all())

  def test_half_precision_is_computed_in_float32(self):
    halves = [_features(seed=seed).astype(np.float16) for seed in (0, 1)]
    got = feature_distance(*halves)
    self.assertEqual(got.dtype, tf.float32)
    np.testing.assert_allclose(
        got, feature_distance(*(half.astype(np.float32) for half in halves)),
        atol=FLOAT32)


class HintsTest(parameterized.TestCase):

  def test_settings(self):
    model = tiny.conv_net(tail="depthwise")  # Maps of 6x6 and of 3x3.
    self.assertEqual(Hints().layers(model), ("act", "act2"))
    self.assertEqual(Hints().student_layers(model), ("act", "act2"))
    named = Hints(["act", "sum"], student_layer=["bn", "sum"])
    self.assertEqual(named.layers(model), ("act", "sum"))
    self.assertEqual(named.student_layers(model), ("bn", "sum"))

  @parameterized.parameters(
      ({"layer": []}, TypeError, "layer must be"),
      ({"layer": 3}, TypeError, "layer must be"),
      ({"student_layer": "act"}, ValueError, "needs layer"),
      ({"layer": ["a", "b"], "student_layer": "a"}, ValueError, "got 1"),
      ({"channels": []}, TypeError, "map names of layers"),
      ({"channels": [1, 2]}, TypeError, "map names of layers"),
      ({"channels": {"act": [0, 1, 1]}}, ValueError, r"\[0, 1, 1\] for 'act'"),
      ({"channels": {"act": [-1]}}, ValueError, "from 0 up"),
      ({"channels": {"act": [0.5]}}, ValueError, "different integers"),
      ({"channels": {"act": 3}}, ValueError, "got 3"),
      ({"weight": -1}, ValueError, "0 or more; got -1"),
      ({"weight": float("nan")}, ValueError, "got nan"),
      ({"weight": "much"}, TypeError, "got 'much'"))
  def test_errors(self, settings, kind, message):
    with self.assertRaisesRegex(kind, message):
      Hints(**settings)


class StepTest(parameterized.TestCase):

  def _distance(self, student, teacher, pictures, name="act"):
    return feature_distance(
        _layer(teacher, name)(pictures), _layer(student, name)(pictures))

  def test_the_loss_by_numpy(self):
    teacher, student = (tiny.conv_net(seed=seed) for seed in (0, 1))
    pictures = tiny.images(4)
    step = TrainStep(tiny.compiled(student), teacher,
                     hints=Hints("act", weight=3.0))
    loss, _ = step.loss(pictures, np.zeros(4), np.array([1.0, 2.0, 0.0, 1.0]),
                        training=False)
    distance = self._distance(student, teacher, pictures).numpy()
    want = 3 * (distance * [1, 2, 0, 1]).sum() / 4
    self.assertAlmostEqual(float(loss), want, places=PLACES)
    means = {metric.name: float(metric.result()) for metric in step.metrics}
    self.assertAlmostEqual(means["hint_loss"], want, places=PLACES)
    self.assertAlmostEqual(
        means["hint_agreement"], 1 - distance.mean(), places=PLACES)

  def test_channels_that_are_left_by_numpy(self):
    """Beside a layer that is whole and one of which no one says."""
    teacher = tiny.conv_net(tail="depthwise")
    student, channels = prune_filters(teacher, 0.5, return_channels=True)
    tiny.shake(student, 5)
    indices = channels["act"]
    self.assertLess(len(indices), teacher.get_layer("act").output_shape[-1])
    pictures = tiny.images(4)
    step = TrainStep(
        tiny.compiled(student), teacher,
        hints=Hints(["act", "act2"], weight=1.0, channels={"act": indices}))
    loss, _ = step.loss(pictures, np.zeros(4), training=False)
    full, thin = (
        _layer(model)(pictures).numpy() for model in (teacher, student))
    cosine = (tiny.unit(full[..., indices]) * tiny.unit(thin)).sum(1)
    want = (np.mean(1 - cosine) + np.mean(
        self._distance(student, teacher, pictures, "act2"))) / 2
    self.assertAlmostEqual(float(loss), want, places=PLACES)
    # Of all channels it is another distance, or the test could not tell.
    self.assertNotAlmostEqual(np.mean(1 - cosine), np.mean(
        self._distance(student, teacher, pictures)), places=2)

  def test_a_student_of_the_teacher_s_filters_has_nothing_to_mend(self):
    teacher = tiny.conv_net()
    student, channels = prune_filters(
        teacher, {"conv": 0.5}, return_channels=True)
    step = TrainStep(tiny.compiled(student), teacher,
                     hints=Hints("act", weight=1.0, channels=channels))
    loss, _ = step.loss(tiny.images(4), np.zeros(4), training=False)
    self.assertAlmostEqual(float(loss), 0, places=PLACES)

  def test_beside_maps_and_scores(self):
    """Each term has its value alone."""
    teacher = tiny.conv_net(tail="depthwise")
    pictures, zeros = tiny.images(4), np.zeros(4)
    wcam, hints = WCAM("act2", weight=2.0), Hints(weight=3.0)
    scores = Distillation(alpha=1.0)

    def loss(*args, **settings):
      student = tiny.compiled(tiny.conv_net(tail="depthwise", seed=1))
      return float(TrainStep(student, teacher, *args, **settings).loss(
          pictures, zeros, training=False)[0])

    losses = [loss(wcam), loss(hints=hints), loss(distillation=scores)]
    # Far above the rounding allowed below, so that no term can be missing.
    self.assertGreater(min(losses), 0.01)
    # Three float32 terms, each of a separate run, added outside.
    self.assertAlmostEqual(
        loss(wcam, hints=hints, distillation=scores), sum(losses), places=4)

  def _means(self, *args, task=0.25):
    teacher, student = (tiny.conv_net(seed=seed) for seed in (0, 1))
    student.compile("sgd", lambda labels, outputs: task + 0 * outputs[:, 0])
    step = TrainStep(student, teacher, *args, hints=Hints("act"))
    step.loss(tiny.images(4), np.zeros(4))
    means = {metric.name: float(metric.result()) for metric in step.metrics}
    return means["hint_loss"] / (1 - means["hint_agreement"]), step

  def test_auto_alone_goes_by_the_task(self):
    weight, step = self._means()
    # A quotient of two float32 means, one of them taken from 1.
    self.assertAlmostEqual(weight, 8 * 0.25, places=4)
    self.assertTrue(hasattr(step.state, "hint_task_loss"))

  @parameterized.parameters(
      ({"weight": 3.0}, 3.0), ({}, 2.0),
      ({"weight": lambda step: 7.0}, 7.0),
      ({"weight": 3.0, "agreement": 0.9}, 3.0))
  def test_auto_beside_maps_is_their_weight(self, settings, want):
    weight, step = self._means(WCAM("act", **settings))
    # A quotient of two float32 means, one of them taken from 1.
    self.assertAlmostEqual(weight, want, places=4)
    self.assertFalse(hasattr(step.state, "hint_task_loss"))

  @parameterized.parameters("act", "conv")
  def test_the_gradient_is_that_of_differences(self, layer):
    with tiny.float64():
      teacher, student = (tiny.smooth_net(seed) for seed in (0, 1))
      step = TrainStep(tiny.compiled(student), teacher,
                       WCAM("act", weight=1.0), hints=Hints(layer, weight=2.0))
      pictures = tf.constant(tiny.images(4, size=4))
      kernel = student.get_layer("conv").kernel

      @tf.function(autograph=False)
      def loss():
        return step.loss(pictures, tf.zeros([4]), training=False)[0]

      with tf.GradientTape() as tape:
        value = loss()
      entries = np.arange(0, int(tf.size(kernel)), 5)
      np.testing.assert_allclose(
          np.ravel(tape.gradient(value, kernel))[entries],
          # Double precision: 1e-16 over 1e-5 of slopes of size .01.
          tiny.slopes(loss, kernel, 1e-5, entries), rtol=1e-4, atol=1e-8)

  @parameterized.named_parameters(
      ("pruned", tiny.prune), ("quantized", tiny.quantize),
      ("filters", lambda model: prune_filters(model, 0.5)))
  @pytest.mark.slow("training")
  def test_training_brings_the_features_together(self, make):
    self.check_that_training_brings_together(make, run_eagerly=True)

  @parameterized.named_parameters(
      ("plain", tiny.copy_of), ("quantized", tiny.quantize),
      ("narrow", lambda model: narrow(model, 0.5)))
  @pytest.mark.slow("training")
  def test_fits_bring_the_features_together(self, make):
    self.check_that_training_brings_together(make, epochs=12)

  def check_that_training_brings_together(self, make, epochs=5, **settings):
    teacher = tiny.conv_net(tail="block", seed=3)
    student = make(teacher)
    if make is tiny.copy_of:
      tiny.shake(student, 5)
    before = [weight.copy() for weight in teacher.get_weights()]
    pictures = tiny.images(32)
    student.compile(keras.optimizers.Adam(0.02), tiny.no_task, **settings)
    history = student.fit(
        pictures, np.zeros(32), batch_size=8, epochs=epochs, verbose=0,
        callbacks=[PreserveAttribution(
            teacher, None, hints=Hints(["act", "act2"], weight=1.0))]).history
    self.assertGreater(
        history["hint_agreement"][-1],
        history["hint_agreement"][0] + 0.25 * (
            1 - history["hint_agreement"][0]))
    self.assertTrue(tiny.weights_equal(before, teacher.get_weights()))

  def test_what_does_not_fit(self):
    teacher, student = (tiny.conv_net(seed=seed) for seed in (0, 1))
    with self.assertRaisesRegex(TypeError, "hints must be a Hints"):
      TrainStep(student, teacher, hints="act")
    with self.assertRaisesRegex(ValueError, "no layer of that name"):
      TrainStep(student, teacher, hints=Hints("relu9"))
    with self.assertRaisesRegex(ValueError, r"\(6, 6\) and \(3, 3\)"):
      TrainStep(tiny.conv_net(tail="depthwise"), teacher, WCAM("act"),
                hints=Hints("act", student_layer="act2"))
    for channels in ([0], [0, 1, 2, 99]):
      with self.assertRaisesRegex(ValueError, "channels must name, of layer"):
        TrainStep(student, teacher, hints=Hints(
            "act", channels={"act": channels}))
    with self.assertRaisesRegex(ValueError, "cache: hints hold whole"):
      TrainStep(student, teacher, hints=Hints(), cache=True)


if __name__ == "__main__":
  absltest.main()
