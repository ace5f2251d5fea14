"""Tests of signatures.py: the functions that a file is made of."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from tests import export_helpers as helpers


def layer_gradient(net, image, weights):
  """Differentiates weighted logits by the features, by Keras alone."""
  tapped = keras.Model(
      net.inputs, [net.get_layer(helpers.LAYER).output, net.outputs[0]])
  with tf.GradientTape() as tape:
    batch = tf.constant(image)
    tape.watch(batch)
    features, logits = tapped(batch)
    score = tf.reduce_sum(logits * weights)
  return features.numpy(), logits.numpy(), tape.gradient(score, features)


class ExplainedModelTest(parameterized.TestCase):

  @parameterized.parameters("softmax", "sigmoid", "softmax_layer",
                            "activation_layer")
  def test_predictions_beside_the_logits(self, head):
    model = helpers.net(head=head)
    outputs = ExplainedModel(model, helpers.LAYER).explain_features()(
        tf.constant(helpers.images(1)))
    self.assertEqual(set(outputs), {"logits", "predictions", "features"})
    np.testing.assert_allclose(
        outputs["predictions"], model(helpers.images(1)), 1e-6, 1e-6)
    activation = tf.nn.sigmoid if head == "sigmoid" else tf.nn.softmax
    np.testing.assert_allclose(
        activation(outputs["logits"]), outputs["predictions"], 1e-5, 1e-6)

  def test_explain_features(self):
    model = helpers.net("block")
    outputs = ExplainedModel(model, helpers.LAYER).explain_features()(
        tf.constant(helpers.images(1)))
    self.assertEqual(set(outputs), {"logits", "features"})
    features, logits, _ = layer_gradient(model, helpers.images(1), 0)
    np.testing.assert_allclose(outputs["features"], features, 1e-6, 1e-6)
    np.testing.assert_allclose(outputs["logits"], logits, 1e-6, 1e-6)

  @parameterized.parameters("gap", "flatten", "block", "depthwise")
  def test_explain_gradient(self, tail):
    model = helpers.net(tail)
    image, weights = helpers.images(1), np.float32([[1, -0.5, 2]])
    outputs = ExplainedModel(model, helpers.LAYER).explain_gradient()(
        tf.constant(image), tf.constant(weights))
    self.assertEqual(set(outputs), {"logits", "features", "sensitivity"})
    features, logits, gradient = layer_gradient(model, image, weights)
    # A mean over the positions: Grad-CAM's own weights.
    np.testing.assert_allclose(
        outputs["sensitivity"], tf.reduce_mean(gradient, [1, 2], keepdims=True),
        1e-4, 1e-7)
    np.testing.assert_allclose(outputs["features"], features, 1e-6, 1e-6)
    np.testing.assert_allclose(outputs["logits"], logits, 1e-6, 1e-6)

  def test_the_score_is_the_logit(self):
    model = helpers.net("block", head="softmax")
    image, weights = helpers.images(1), np.float32([[0, 1, 0]])
    outputs = ExplainedModel(model, helpers.LAYER).explain_gradient()(
        tf.constant(image), tf.constant(weights))
    weights_of_softmax = model.get_weights()
    linear = helpers.net("block")  # The same model, without the softmax.
    for weight, other in zip(weights_of_softmax, linear.get_weights()):
      np.testing.assert_array_equal(weight, other)
    _, _, gradient = layer_gradient(linear, image, weights)
    np.testing.assert_allclose(
        outputs["sensitivity"], tf.reduce_mean(gradient, [1, 2], keepdims=True),
        1e-4, 1e-7)

  def test_signatures_take_one_image(self):
    explained = ExplainedModel(helpers.net("block"), helpers.LAYER)
    for function, names in (
        (explained.explain_map("ewa"), ["images"]),
        (explained.explain_map("swa"), ["images", "class_weights"]),
        (explained.explain_features(), ["images"]),
        (explained.explain_gradient(), ["images", "class_weights"])):
      specs = function.input_signature
      self.assertEqual([spec.name for spec in specs], names)
      self.assertEqual(specs[0].shape, (1, 8, 8, 2))
      self.assertEqual(specs[-1].shape[0], 1)

  def test_calibration_weights(self):
    model, image = helpers.net("block"), helpers.images(1)
    explained = ExplainedModel(model, helpers.LAYER)
    top = np.eye(3)[model.predict(image, verbose=0).argmax(1)]
    for number in range(12):  # The classes take turns, for and against.
      other = np.eye(3)[[number // 3 % 3]]
      for got, want in zip(explained.calibration_weights(image, number),
                           (top, other, -other), strict=True):
        np.testing.assert_array_equal(got, want)
    single = helpers.net("block", classes=1)
    got = ExplainedModel(single, helpers.LAYER).calibration_weights(image, 7)
    self.assertEqual(
        [weight.numpy().item() for weight in map(tf.convert_to_tensor, got)],
        [np.sign(single.predict(image, verbose=0)[0, 0]), 1, -1])

  def test_gradients_elsewhere_stay_tensorflow_s(self):
    model, images = helpers.net("block"), helpers.images(2)
    before = helpers.input_gradient(model, images)
    explained = ExplainedModel(model, helpers.LAYER)
    explained.explain_gradient().get_concrete_function()
    np.testing.assert_array_equal(helpers.input_gradient(model, images), before)
    graph = tf.function(
        lambda x: tf.gradients(model(x), x)).get_concrete_function(
            tf.constant(images)).graph
    self.assertIn(
        "ReluGrad", {operation.type for operation in graph.get_operations()})

  def test_no_fixed_size(self):
    images = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="act")(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3)(x))
    wcam = kap.WCAM("act")
    with self.assertRaisesRegex(
        ValueError, "representative_images must be given.* of any size"):
      kap.export.convert(model, wcam, mode="float32")
    # The file takes images of the size of those given.
    content = kap.export.convert(
        model, wcam, mode="float32", representative_images=helpers.images(2))
    self.assertEqual(kap.export.Interpreter(content).input_shape,
                     helpers.images(1).shape[1:])

  def test_no_such_layer(self):
    with self.assertRaisesRegex(ValueError, "layer 'relu9'.* no layer"):
      ExplainedModel(helpers.net(), "relu9")


if __name__ == "__main__":
  absltest.main()
