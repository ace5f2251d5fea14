"""Tests of sensitivity_check.py: scores must move as sensitivities say."""

import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.evaluation import ShortfallError
from keras_attr_preserve.export.verification.sensitivity_check import (
    BAR,
    DIRECTIONS,
    IMAGES,
    check_sensitivities,
)
from tests import export_helpers as helpers
from tests import tiny

_layers = keras.layers


@tf.custom_gradient
def _wrong(x):
  """Hands on its input, and a gradient of other channels."""
  return tf.identity(x), lambda upstream: upstream[..., ::-1]


class _Wrong(_layers.Layer):

  def call(self, inputs):
    return _wrong(inputs)


TAILS = {
    "convolution": lambda x: _layers.Conv2D(8, 3, activation="relu")(x),
    "layer normalization": lambda x: _layers.Conv2D(8, 3, activation="relu")(
        _layers.LayerNormalization()(x)),
    "softmax inside": lambda x: _layers.Conv2D(8, 3)(_layers.Softmax()(x)),
    "wrong": lambda x: _layers.Conv2D(8, 3, activation="relu")(_Wrong()(x)),
}


def _model(tail):
  keras.utils.set_random_seed(0)
  inputs = keras.Input((8, 8, 2))
  x = _layers.Conv2D(8, 3, activation="relu", name="act")(inputs)
  x = _layers.GlobalAveragePooling2D()(TAILS[tail](x))
  return tiny.shake(keras.Model(inputs, _layers.Dense(3)(x)), 3)


class SensitivityCheckTest(parameterized.TestCase):

  @parameterized.parameters(*[name for name in TAILS if name != "wrong"])
  def test_right_gradients(self, tail):
    model, images = _model(tail), helpers.images()
    check = check_sensitivities(model, "act", images, [0, 1] * 4)
    self.assertEqual(check["slopes"], IMAGES * DIRECTIONS)
    # A step's curvature and kinks of ReLU.
    self.assertGreater(check["cosine"], 0.98)
    self.assertNotIn("call", vars(model.get_layer("act")))

  def test_by_hand(self):
    """A linear model's slopes equal its sensitivities, to rounding."""
    model = tiny.conv_net(tail="gap")
    check = check_sensitivities(model, "act", tiny.images(2), [0, 1])
    self.assertEqual(check["slopes"], 2 * DIRECTIONS)
    # Differences of float32 scores of some 1 over steps of some 1e-2.
    self.assertAlmostEqual(check["cosine"], 1, delta=1e-6)

  def test_a_wrong_gradient_is_told_first(self):
    model, images = _model("wrong"), helpers.images()
    content = kap.export.convert(
        _model("convolution"), helpers.wcam(), mode="float32")
    report = kap.export.verify(content, model, helpers.wcam(), images)
    self.assertLess(report.facts["sensitivity_check"]["cosine"], BAR)
    words = "The teacher's scores do not move as its sensitivities say"
    self.assertStartsWith(str(report), words)
    self.assertStartsWith(report.to_dict()["warnings"][0], words)
    with self.assertRaisesRegex(ShortfallError, words):
      report.require()
    several = kap.export.verify(
        content, model, helpers.wcam(), images,
        runtime=("xnnpack", "reference"))
    self.assertStartsWith(str(several), words)

  def test_where_nothing_is_measured_the_reason_is_told(self):
    content, images = helpers.converted(), helpers.images()
    for teacher, wcam, words in (
        (content, helpers.wcam(), "the teacher is a file"),
        (helpers.quantize_aware(), helpers.wcam(), "is quantize-aware")):
      report = kap.export.verify(content, teacher, wcam, images)
      self.assertIn(words, report.facts["sensitivity_check"]["reason"])
      self.assertEmpty(report.warnings)

  def test_scores_that_do_not_depend_on_the_layer(self):
    model = _model("convolution")
    model.layers[-1].kernel.assign(tf.zeros_like(model.layers[-1].kernel))
    check = check_sensitivities(model, "act", helpers.images(), [0, 1] * 4)
    self.assertEqual(check["cosine"], 1)


if __name__ == "__main__":
  absltest.main()
