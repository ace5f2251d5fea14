"""Tests of explainers.py: a Keras model and a file behind the same methods."""

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.verification.explainers import KerasExplainer
from keras_attr_preserve.models.scores import top_classes
from tests import export_helpers as helpers
from tests import tiny


class KerasExplainerTest(parameterized.TestCase):

  @parameterized.product(method=("swa", "ewa"), tail=("gap", "block"))
  def test_what_its_float_file_says(self, method, tail):
    explainer = KerasExplainer(helpers.net(tail), "act", method)
    file = kap.export.Interpreter(helpers.converted(tail, "float32", method))
    images = helpers.images(5)
    self.assertEqual(explainer.input.shape, file.input.shape)
    # Float32 sums of LiteRT's kernels and TensorFlow's, in another order.
    np.testing.assert_allclose(
        explainer.predict(images), file.predict(images, logits=True), atol=1e-5)
    for targets in (None, 1, [0, 1, 2, 1, 0], np.float32(
        [[1, -1, 0]] * 5)):
      for want, got in zip(explainer.explain(images, targets),
                           file.explain(images, targets)):
        # The same, of maps: products of features and sums of gradients.
        np.testing.assert_allclose(want, got, atol=1e-4)

  @parameterized.parameters("softmax", "sigmoid", "softmax_layer")
  def test_scores_are_logits(self, head):
    images = helpers.images(5)
    want = helpers.net().predict(images, verbose=0)
    got = KerasExplainer(helpers.net(head=head), "act")
    # Float32 logits from before another head, by another graph.
    np.testing.assert_allclose(got.predict(images), want, atol=1e-5)
    np.testing.assert_allclose(got.explain(images).logits, want, atol=1e-5)
    with self.assertRaisesRegex(ValueError, "logits must be True"):
      got.predict(images, logits=False)

  def test_a_quantize_aware_model(self):
    """Its logits are the model's own: a linear head's are quantized."""
    model, images = helpers.quantize_aware(), helpers.images(4)
    maps, logits = KerasExplainer(model, "act").explain(images)
    # Float32 maps of batches of another size.
    np.testing.assert_allclose(
        maps, kap.attribution.grad_cam(model, images, None, "act"), rtol=1e-5)
    # The same integers times the same step, of 8 bits for -6..6, of .047.
    np.testing.assert_allclose(
        logits, model.predict(images, verbose=0), atol=1e-5)
    low, high = (float(weight) for name in ("min", "max")
                 for weight in model.layers[-1].weights
                 if weight.name.endswith(f"post_activation_{name}:0"))
    steps = logits / ((high - low) / 255)
    # Float32 quotients; logits before the quantizer would be off by .25 of a
    # step in the mean.
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)

  def test_any_number_of_images(self):
    explainer = KerasExplainer(helpers.net(), "act")
    for count in (1, 63, 64, 65, 130):
      images = helpers.images(count)
      self.assertEqual(explainer.predict(images).shape, (count, 3))
      self.assertEqual(explainer.explain(images).maps.shape, (count, 8, 8))

  def test_errors(self):
    with self.assertRaisesRegex(TypeError, "teacher must be a tf_keras.Model"):
      KerasExplainer("net", "act")
    with self.assertRaisesRegex(ValueError, "layer 'none'"):
      KerasExplainer(helpers.net(), "none")
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      KerasExplainer(helpers.net(), "act").predict(tiny.images(2))


class TopClassesTest(absltest.TestCase):

  def test_by_hand(self):
    self.assertEqual(
        top_classes(np.array([[1, 3, 2], [4, 4, 0.0]])).tolist(), [1, 0])
    self.assertEqual(
        top_classes(np.array([[-1], [0], [2.0]])).tolist(), [0, 1, 1])


if __name__ == "__main__":
  absltest.main()
