"""Tests of scores.py, and of all that judges by scores alone, on one column."""

import functools

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.export.verification.black_box_judges import judged_maps
from keras_attr_preserve.models import scores
from tests import foreign_files, tiny

_layers = keras.layers
# Images that a model of one sigmoid gives to class 0 and to class 1.
IMAGES = np.float32([[[[-3.0], [1.0]], [[0.0], [0.0]]],
                     [[[2.0], [1.0]], [[0.0], [-1.0]]]])
SUMS = np.float64([-2.0, 2.0])


def _net(head="sigmoid"):
  """A model whose logit is the sum of the pixels."""
  inputs = keras.Input((2, 2, 1))
  x = _layers.Conv2D(1, 1, name="act")(inputs)
  x = _layers.GlobalAveragePooling2D()(x)
  model = keras.Model(inputs, _layers.Dense(1, head, name="logit")(x))
  model.set_weights([np.ones([1, 1, 1, 1]), np.zeros(1), 4 * np.ones([1, 1]),
                     np.zeros(1)])
  return model


def _sigmoid(z):
  return 1 / (1 + np.exp(-np.float64(z)))


class RuleTest(parameterized.TestCase):

  def test_top_classes(self):
    two = np.float32([[0.2, 0.1], [0.3, 0.3], [-5, -4]])
    for logits in (None, True, False):
      self.assertEqual(scores.top_classes(two, logits).tolist(), [0, 0, 1])
    self.assertEqual(
        scores.top_classes(np.float32([[-2], [0], [0.3]])).tolist(), [0, 1, 1])
    outputs = np.float32([[0.2], [0.5], [0.9]])
    self.assertEqual(scores.top_classes(outputs, True).tolist(), [1, 1, 1])
    self.assertEqual(scores.top_classes(outputs, False).tolist(), [0, 1, 1])

  def test_explained_scores(self):
    outputs, weights = np.float64([[0.2], [0.9]]), np.float32([[-1], [2]])
    np.testing.assert_array_equal(
        scores.explained_scores(outputs, weights, True), [-0.2, 1.8])
    np.testing.assert_array_equal(
        scores.explained_scores(outputs, weights, False), [0.8, 1.8])

  def test_what_could_be_either_is_asked_for(self):
    with self.assertRaisesRegex(
        ValueError, r"logits must say what one column of scores in 0\.\.1 is, "
        r"False for the probability .*; got None, and scores 0\.25\.\.0\.5"):
      scores.top_classes(np.float32([[0.25], [0.5]]))
    with self.assertRaisesRegex(ValueError, "logits must be True .* got False"):
      scores.top_classes(np.float32([[0.25], [1.5]]), False)
    with self.assertRaisesRegex(TypeError, "logits must be None, True or"):
      scores.top_classes(np.float32([[0.25]]), "yes")


class OneSigmoidTest(parameterized.TestCase):

  def test_occlusion(self):
    model = _net()
    # By hand: covering a pixel with 0 takes its value off the logit; of class
    # 0 the probability is that of the negative logit.
    sign = np.float64([-1, 1])[:, None, None]
    whole = SUMS[:, None, None]
    want = _sigmoid(sign * whole) - _sigmoid(
        sign * (whole - IMAGES[..., 0]))
    occlude = functools.partial(
        attribution.occlusion, images=IMAGES, patch=1, baseline=0)
    for predict, settings in (
        (model, {}), (model.predict_on_batch, {}),
        (functools.partial(model, training=False), {}),
        (lambda batch: model(batch), {"logits": False}),
        (model, {"targets": [0, 1]}), (model, {"targets": sign[..., 0]})):
      # Probabilities in float32.
      np.testing.assert_allclose(
          occlude(predict, **settings), want, atol=1e-6)
    np.testing.assert_allclose(  # Logits, in float32.
        occlude(_net(None)), sign * IMAGES[..., 0], atol=1e-6)

  def test_the_methods_agree_on_the_class(self):
    model, logits = _net(), _net(None)
    top = attribution.grad_cam(model, IMAGES, layer="act")
    np.testing.assert_array_equal(
        top, attribution.grad_cam(model, IMAGES, [0, 1], "act"))
    rise = functools.partial(
        attribution.rise, images=IMAGES, masks=40, cells=2, centred=True)
    maps, logit_maps = rise(model), rise(logits)
    agreement = evaluation.agreement(maps, logit_maps, scores=("cosine",))
    # A sigmoid bends the scores but keeps their order; before, it was -1.
    self.assertGreater(agreement["cosine"].min(), 0.8)
    chances = _sigmoid(np.abs(SUMS))  # Of each image's top class.
    for curves, place in ((evaluation.deletion, 0), (evaluation.insertion, -1),
                          (evaluation.road, 0)):
      np.testing.assert_allclose(  # Probabilities in float32.
          curves(model, IMAGES, top, steps=2).scores[:, place], chances,
          atol=1e-6)
      np.testing.assert_array_equal(
          curves(model, IMAGES, top, steps=2).scores,
          curves(model, IMAGES, top, [0, 1], steps=2).scores)
    np.testing.assert_allclose(  # The map of a linear score, of each class.
        evaluation.sensitivity_n(
            logits, IMAGES, np.float32([-1, 1])[:, None, None] * IMAGES[..., 0],
            shares=(0.5,)),
        1, atol=1e-6)

  def test_of_a_function_it_is_asked_for(self):
    model = _net()
    settings = {"images": IMAGES, "maps": IMAGES[..., 0]}
    for explain in (
        functools.partial(attribution.occlusion, images=IMAGES),
        functools.partial(attribution.rise, images=IMAGES, masks=2),
        functools.partial(evaluation.deletion, **settings),
        functools.partial(evaluation.insertion, **settings),
        functools.partial(evaluation.road, **settings),
        functools.partial(evaluation.sensitivity_n, **settings)):
      for targets in (None, 0):
        with self.assertRaisesRegex(ValueError, "logits must say"):
          explain(lambda batch: model(batch), targets=targets)
      explain(lambda batch: model(batch), targets=1)  # There they are alike.
    with self.assertRaisesRegex(
        ValueError, "logits must be None or False: that is what predict gives; "
        "got True"):
      attribution.occlusion(model, IMAGES, logits=True)

  def test_half_precision(self):
    model = _net()
    for dtype in (tf.float16, tf.bfloat16, tf.float64):
      # A bfloat16 has 8 bits: of a difference of two scores up to 1, 1/128.
      np.testing.assert_allclose(
          attribution.occlusion(
              lambda batch, dtype=dtype: tf.cast(model(batch), dtype), IMAGES,
              logits=False),
          attribution.occlusion(model, IMAGES), atol=1 / 128)

  def test_a_file(self):
    model = _net()
    file = kap.export.Interpreter(kap.export.convert(
        model, kap.WCAM("act"), mode="float32"))
    self.assertIs(file.gives_logits, False)
    # Float32 sums of XNNPACK and of TensorFlow.
    np.testing.assert_allclose(
        attribution.occlusion(file.predict, IMAGES),
        attribution.occlusion(model, IMAGES), atol=1e-5)
    np.testing.assert_allclose(
        attribution.occlusion(functools.partial(
            file.predict, logits=True), IMAGES),
        attribution.occlusion(_net(None), IMAGES), atol=1e-5)

  def test_a_file_of_others(self):
    content = foreign_files.convert(_net())
    runner = kap.export.Interpreter(content)
    self.assertIsNone(runner.gives_logits)
    with self.assertRaisesRegex(
        ValueError, "only kap.export.explainer finds out; got True"):
      runner.predict(IMAGES, logits=True)
    with self.assertRaisesRegex(ValueError, "logits must say"):
      attribution.occlusion(runner.predict, IMAGES)
    file = kap.export.explainer(content, black_box="occlusion")
    self.assertIs(file.gives_logits, False)
    # Float32 sums of XNNPACK and of TensorFlow.
    np.testing.assert_allclose(
        attribution.occlusion(file.predict, IMAGES),
        attribution.occlusion(_net(), IMAGES), atol=1e-5)
    # On logits; only values that support the class.
    np.testing.assert_allclose(
        file.explain(IMAGES).maps,
        np.maximum(attribution.occlusion(_net(None), IMAGES), 0), atol=1e-5)

  def test_judges_are_given_logits(self):
    model, fine = _net(), functools.partial(
        attribution.occlusion, patch=1, baseline=0)
    maps = judged_maps(
        lambda batch: 0.1 + 0 * model.predict_on_batch(batch), IMAGES,
        np.array([0, 1]), {"occlusion": None, "fine": fine}, "a file")
    for name in ("occlusion", "fine"):  # The same score everywhere.
      np.testing.assert_array_equal(maps[name], np.zeros([2, 2, 2]))

  def test_one_logit_among_the_best(self):
    seeds = kap.WCAM("act", target="top_k", top_k=1).seeds(
        tf.constant([[-2.0], [3.0]]), None)
    np.testing.assert_array_equal(seeds.seed(0), [[-1], [1]])


class SaturatedTest(absltest.TestCase):

  def test_maps_at_p_1_are_alive(self):
    for head in ("softmax", "sigmoid"):
      model = tiny.conv_net(head=head)
      plain = tiny.conv_net()
      for scaled in (model, plain):
        scaled.get_layer("logits").kernel.assign(
            300 * scaled.get_layer("logits").kernel)
      images = tiny.images()
      top = plain(images).numpy().argmax(1)
      self.assertEqual(model(images).numpy().max(1).min(), 1)  # In float32.
      want = tiny.plain_grad_cam(plain, images, top)
      # Float32 sums of products in the hundreds.
      np.testing.assert_allclose(
          attribution.grad_cam(model, images, layer="act"), want, rtol=1e-3,
          atol=1e-2)
      self.assertTrue(want.any((1, 2)).all())


if __name__ == "__main__":
  absltest.main()
