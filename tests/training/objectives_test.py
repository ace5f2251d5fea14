"""Tests of objectives.py: distillation of logits, and rivals of maps."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized
from scipy import special

from keras_attr_preserve import PreserveAttribution, TrainStep
from keras_attr_preserve.attribution import grad_cam
from keras_attr_preserve.training import objectives
from tests import tiny

# A few float32 roundings, of 6e-8 each.
FLOAT32 = 1e-6
# Float32 sums over a map's 25 positions in another order.
PLACES = 5


def _logits(count=5, classes=4, scale=3.0):
  rng = np.random.default_rng(0)
  return [(scale * rng.normal(size=(count, classes))).astype(np.float32)
          for _ in range(2)]


class SoftmaxDivergenceTest(parameterized.TestCase):

  def test_by_hand(self):
    teacher = tf.constant([[np.log(3.0), 0.0]], tf.float32)  # 3/4 and 1/4.
    student = tf.constant([[1.0, 1.0]])  # A half each.
    want = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(
        objectives.softmax_divergence(teacher, student, 1.0), [want],
        rtol=FLOAT32)
    # Twice the logits at twice the temperature: the same, times 4.
    np.testing.assert_allclose(
        objectives.softmax_divergence(2 * teacher, 2 * student, 2.0),
        [4 * want], rtol=FLOAT32)

  @parameterized.parameters(1.0, 4.0, 20.0)
  def test_against_scipy(self, temperature):
    teacher, student = _logits()
    p, q = (special.softmax(np.float64(logits) / temperature, axis=1)
            for logits in (teacher, student))
    want = temperature**2 * special.rel_entr(p, q).sum(1)
    # Differences of float32 logarithms of size 1, times T^2.
    np.testing.assert_allclose(
        objectives.softmax_divergence(teacher, student, temperature), want,
        rtol=1e-5, atol=1e-7 * temperature**2)

  def test_gradient_is_that_of_hinton(self):
    teacher, student = _logits()
    student = tf.constant(student)
    with tf.GradientTape() as tape:
      tape.watch(student)
      loss = objectives.softmax_divergence(teacher, student, 4.0)
    q, p = (special.softmax(np.asarray(logits) / 4, axis=1)
            for logits in (student, teacher))
    # Float32 softmaxes of size 1, times 4.
    np.testing.assert_allclose(
        tape.gradient(loss, student), 4 * (q - p), atol=1e-5)

  def test_finite_for_extreme_logits(self):
    teacher = tf.constant([[1e4, -1e4], [0.0, 0.0]])
    student = tf.constant([[-1e4, 1e4], [0.0, 0.0]])
    got = objectives.softmax_divergence(teacher, student, 1.0)
    np.testing.assert_allclose(got, [2e4, 0], rtol=FLOAT32)


class SigmoidDivergenceTest(parameterized.TestCase):

  def test_by_hand(self):
    teacher = tf.constant([[np.log(3.0), 0.0]], tf.float32)  # 3/4; a half.
    student = tf.constant([[0.0, 0.0]])
    # Of the first class that of 3/4 from a half, of the second nothing.
    want = (0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2
    np.testing.assert_allclose(
        objectives.sigmoid_divergence(teacher, student, 1.0), [want],
        rtol=FLOAT32)

  @parameterized.product(temperature=[1.0, 4.0], classes=[1, 4])
  def test_against_scipy(self, temperature, classes):
    teacher, student = _logits(classes=classes)
    p, q = (special.expit(np.float64(logits) / temperature)
            for logits in (teacher, student))
    want = temperature**2 * (
        special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).mean(1)
    # Differences of float32 logarithms of size 1, times T^2.
    np.testing.assert_allclose(
        objectives.sigmoid_divergence(teacher, student, temperature), want,
        rtol=1e-5, atol=1e-7 * temperature**2)

  def test_finite_for_extreme_logits(self):
    got = objectives.sigmoid_divergence(
        tf.constant([[1e4], [0.0]]), tf.constant([[-1e4], [0.0]]), 1.0)
    np.testing.assert_allclose(got, [1e4, 0], rtol=FLOAT32)


class DistillationTest(parameterized.TestCase):

  @parameterized.parameters(
      ("softmax", objectives.softmax_divergence),
      ("sigmoid", objectives.sigmoid_divergence))
  def test_kinds(self, kind, function):
    teacher, student = _logits()
    setting = objectives.Distillation(kind=kind, temperature=3.0)
    np.testing.assert_array_equal(
        setting.divergence(teacher, student), function(teacher, student, 3.0))

  def test_the_paper_values_by_default(self):
    setting = objectives.Distillation()
    self.assertEqual((setting.alpha, setting.temperature, setting.kind),
                     (0.9, 4.0, "softmax"))

  def test_half_precision_is_computed_in_float32(self):
    teacher, student = (logits.astype(np.float16) for logits in _logits())
    got = objectives.Distillation().divergence(teacher, student)
    self.assertEqual(got.dtype, tf.float32)

  @parameterized.parameters(
      ({"alpha": -0.1}, r"alpha must be in 0\.\.1; got -0.1"),
      ({"alpha": 1.1}, r"alpha must be in 0\.\.1; got 1.1"),
      ({"alpha": float("nan")}, r"alpha must be in 0\.\.1; got nan"),
      ({"temperature": 0}, "temperature must be above 0; got 0"),
      ({"temperature": float("nan")}, "temperature must be above 0; got nan"),
      ({"kind": "tanh"}, "kind must be one of .*softmax.*sigmoid.*got 'tanh'"))
  def test_errors(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.Distillation(**settings)


def _nets(positive=True):
  """Two models and images, with features and head weights as arrays."""
  build = tiny.smooth_net if positive else tiny.conv_net
  nets = [build(seed=seed, width=3, size=5, activation="relu")
          for seed in (0, 1)]
  pictures = tiny.images(4, size=5)
  pairs = []
  for model in nets:
    features = keras.Model(model.input, model.get_layer("act").output)(pictures)
    pairs.append((features.numpy(), model.get_layer("logits").kernel.numpy()))
  nets[1].compile("sgd", lambda labels, outputs: 0.0 * outputs[:, 0])
  return nets, pictures, pairs


def _loss(nets, pictures, rival):
  step = TrainStep(nets[1], nets[0], rival)
  loss, _ = step.loss(pictures, np.zeros(4), training=False)
  return float(loss), {
      metric.name: float(metric.result()) for metric in step.metrics}


def _unit(maps):
  flat = maps.reshape(len(maps), -1)
  return flat / np.linalg.norm(flat, axis=1, keepdims=True)


class RivalsTest(parameterized.TestCase):
  """Each against its paper's formula, written out in NumPy."""

  def test_attention_transfer(self):
    nets, pictures, ((teacher, _), (student, _)) = _nets()
    teacher_maps, student_maps = (
        _unit((each**2).mean(-1)) for each in (teacher, student))
    want = 1000 / 2 * ((teacher_maps - student_maps)**2).mean(1).mean()
    loss, logs = _loss(
        nets, pictures, objectives.AttentionTransfer("act"))
    self.assertAlmostEqual(loss / want, 1, places=PLACES)
    self.assertAlmostEqual(
        logs["attr_agreement"], (teacher_maps * student_maps).sum(1).mean(),
        places=PLACES)

  def test_attention_transfer_sums_over_layers(self):
    nets, pictures, ((teacher, _), (student, _)) = _nets()
    convs = [keras.Model(model.input, model.get_layer("conv").output)(
        pictures).numpy() for model in nets]
    want = 0
    for pair in ((teacher, student), convs):
      teacher_maps, student_maps = (_unit((each**2).mean(-1)) for each in pair)
      want += 6 / 2 * ((teacher_maps - student_maps)**2).mean(1).mean()
    loss, _ = _loss(nets, pictures, objectives.AttentionTransfer(
        ["act", "conv"], weight=6.0))
    self.assertAlmostEqual(loss, want, places=PLACES)

  def test_e2kd_is_one_minus_the_cosine_of_grad_cam(self):
    nets, pictures, _ = _nets()
    maps = [grad_cam(model, pictures, np.argmax(nets[0](pictures), 1), "act")
            for model in nets]
    teacher_maps, student_maps = map(_unit, maps)
    loss, _ = _loss(nets, pictures, objectives.E2KD("act", weight=2.0))
    self.assertAlmostEqual(
        loss, 2 * (1 - (teacher_maps * student_maps).sum(1)).mean(),
        places=PLACES)

  def test_cat_kd_matches_signed_maps_of_every_class(self):
    nets, pictures, pairs = _nets(positive=False)
    pooled = []
    for features, kernel in pairs:
      maps = np.einsum("bhwc,ck->bkhw", features, kernel)
      # Of 5 rows the middle one belongs to both windows.
      halves = [slice(0, 3), slice(2, 5)]
      pooled.append(np.stack([maps[:, :, rows, columns].mean((2, 3))
                              for rows in halves for columns in halves], -1))
    self.assertTrue((pooled[0] < 0).any())
    teacher_maps, student_maps = (
        each / np.linalg.norm(each, axis=-1, keepdims=True)
        for each in pooled)
    want = 3 * ((teacher_maps - student_maps)**2).sum(-1).mean()
    loss, _ = _loss(nets, pictures, objectives.CATKD("act", weight=3.0))
    # Float32 sums over channels and windows, of both signs: they cancel.
    self.assertAlmostEqual(loss, want, places=4)

  @parameterized.parameters("AttentionTransfer", "E2KD", "CATKD")
  def test_they_train_quantized_nets(self, name):
    self.check_that_they_train(
        name, tiny.quantize, rate=0.04, epochs=8, run_eagerly=True)

  @parameterized.product(
      name=("AttentionTransfer", "E2KD", "CATKD"),
      wrap=(tiny.copy_of, tiny.quantize))
  @pytest.mark.slow("training")
  def test_they_train_in_a_graph(self, name, wrap):
    self.check_that_they_train(name, wrap)

  def check_that_they_train(
      self, name, wrap, rate=0.02, epochs=25, **settings):
    kind = getattr(objectives, name)
    student = wrap(tiny.smooth_net(1))
    student.compile(
        keras.optimizers.Adam(rate),
        lambda labels, outputs: 0.0 * outputs[:, 0], **settings)
    history = student.fit(
        tiny.images(6, size=4), np.zeros(6), epochs=epochs, verbose=0,
        callbacks=[PreserveAttribution(
            tiny.smooth_net(0), kind("act"))]).history
    # Noise of quantizing leaves a rest of it.
    self.assertLess(
        history["attr_loss"][-1], 0.5 * history["attr_loss"][0])

  @parameterized.parameters("AttentionTransfer", "E2KD", "CATKD")
  def test_their_gradients(self, name):
    """By finite differences, in double precision."""
    kind = getattr(objectives, name)
    with tiny.float64():
      student = tiny.smooth_net(1, "flatten")
      student.compile("sgd", lambda labels, outputs: 0.0 * outputs[:, 0])
      step = TrainStep(student, tiny.smooth_net(0, "flatten"),
                       kind("act", weight=5.0))
      pictures = tf.constant(tiny.images(4, size=4))
      run = tf.function(
          lambda: step.loss(pictures, tf.zeros(4), training=False)[0])
      for name in ("conv", "hidden"):
        kernel = student.get_layer(name).kernel
        with tf.GradientTape() as tape:
          loss = run()
        got = tape.gradient(loss, kernel)
        if kind is objectives.AttentionTransfer and name == "hidden":
          self.assertTrue(got is None or not np.any(got))
          continue
        entries = np.arange(8)
        want = tiny.slopes(run, kernel, 1e-5, entries)
        # Slopes of next to nothing would be compared with round-off.
        self.assertGreater(np.abs(want).max(), 1e-5)
        # Float64's 1e-16 over a step of 1e-5 is 1e-6 of a slope of 1e-5.
        self.assertLess(
            tiny.relative_error(np.ravel(got)[entries], want), 1e-5)


if __name__ == "__main__":
  absltest.main()
