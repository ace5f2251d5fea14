"""Tests of grad_cam.py."""

import functools

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution import grad_cam
from tests import export_helpers as helpers
from tests import tiny

# Maps are held to 1e-5 and less: one that reaches this is not dead.
LIVE = 0.01
# The same float32 sums, made twice or from a score given another way.
FLOAT32 = 1e-6

# All tests share these models: leave them unchanged.
_net = functools.partial(helpers.net, size=tiny.SIZE, width=4)


@functools.cache
def _two_channels():
  """Doubles and negates an image of 5x5; its classes weigh the channels."""
  layers = keras.layers
  model = keras.Sequential([
      layers.Conv2D(2, 1, name="conv", input_shape=(5, 5, 1)),
      layers.GlobalAveragePooling2D(),
      layers.Dense(3, name="logits")])
  model.set_weights([
      np.float32([[[[2, -1]]]]), np.float32([0, 4]),
      np.float32([[1, 0, -1], [0, 25, 5]]), np.float32([0, 0, 0])])
  return model


class GradCamTest(parameterized.TestCase):

  def test_by_hand(self):
    image = np.arange(25.0).reshape(1, 5, 5, 1) / 4
    # A_1 = 2 x and A_2 = 4 - x; the mean over 25 positions passes 1/25 of a
    # class's weights. Class 0: w = (1, 0) / 25. Class 1: w = (0, 25) / 25, and
    # the ReLU cuts 4 - x where x > 4. Class 2: (-2 x + 5 (4 - x)) / 25.
    x = image[..., 0]
    wants = [2 * x / 25, np.maximum(4 - x, 0),
             np.maximum(20 - 7 * x, 0) / 25]
    for target, want in enumerate(wants):
      got = grad_cam(_two_channels(), image, target, "conv")
      self.assertEqual((got.dtype, got.shape), (np.float32, (1, 5, 5)))
      # Float32 means over 25 positions.
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # Logits: 2 * 3 = 6; 25 * (4 - 3) = 25; -6 + 5 = -1.
    np.testing.assert_allclose(
        grad_cam(_two_channels(), image), wants[1], rtol=1e-5, atol=1e-6)

  def test_a_class_for_each_image(self):
    model = _net("flatten")
    pictures = tiny.images(5)
    targets = [2, 0, 1, 1, 2]
    got = grad_cam(model, pictures, targets)
    each = [grad_cam(model, pictures[[i]], target)[0]
            for i, target in enumerate(targets)]
    self.assertGreater(np.max(got), LIVE)
    # Float32 convolutions of batches of another size.
    np.testing.assert_allclose(got, each, atol=1e-5)
    weights = np.eye(3)[targets]
    np.testing.assert_allclose(
        grad_cam(model, pictures, weights), got, atol=FLOAT32)
    # Linear in the score before the ReLU: a scaled score scales the map.
    np.testing.assert_allclose(
        grad_cam(model, pictures, 3 * weights), 3 * got, rtol=1e-4, atol=1e-5)

  def test_none_is_the_top_class(self):
    model = tiny.conv_net(seed=10)
    pictures = tiny.images(8)
    top = model(pictures).numpy().argmax(1)
    self.assertGreater(len(set(top)), 1)
    np.testing.assert_allclose(
        grad_cam(model, pictures), grad_cam(model, pictures, top), atol=FLOAT32)

  @parameterized.parameters(
      "softmax", "sigmoid", "softmax_layer", "activation_layer")
  def test_the_score_is_the_logit(self, head):
    pictures = tiny.images(4)
    want = grad_cam(_net(), pictures, 1)
    self.assertGreater(want.max(), LIVE)
    np.testing.assert_allclose(
        grad_cam(_net(head=head), pictures, 1), want, atol=FLOAT32)

  def test_one_logit_has_two_sides(self):
    model = tiny.conv_net(head="sigmoid", classes=1, seed=1)
    pictures = tiny.images(4)
    yes, no = (grad_cam(model, pictures, k) for k in (1, 0))
    self.assertGreater(yes.max(), LIVE)
    self.assertGreater(no.max(), LIVE)
    self.assertEqual((yes * no).max(), 0)  # Positive parts of M and -M.
    top = (model(pictures).numpy()[:, 0] >= 0.5).astype(int)
    np.testing.assert_allclose(
        grad_cam(model, pictures),
        np.where(top[:, None, None], yes, no), atol=FLOAT32)

  @parameterized.parameters(1, 2, 3, 5, 100)
  def test_the_batch_size_does_not_matter(self, batch_size):
    model = _net("block")
    pictures = tiny.images(5)
    targets = [0, 1, 2, 0, 1]
    # Float32 convolutions of batches of another size.
    np.testing.assert_allclose(
        grad_cam(model, pictures, targets, batch_size=batch_size),
        grad_cam(model, pictures, targets), atol=1e-5)

  @parameterized.parameters(
      ("block", "act", "softplus"), ("block", "act2", "softplus"),
      ("block", "conv", "softplus"), ("depthwise", "depthwise", "softplus"),
      ("flatten", "act", "softplus"))
  def test_weights_against_finite_differences(self, tail, layer, activation):
    """Tails with inference BatchNormalization, residual sums, hidden Dense."""
    model = _net(tail, activation=activation)
    pictures = tiny.images(3)
    output = model.get_layer(layer).output
    features = keras.Model(model.inputs, output)(pictures).numpy()
    rest = keras.Model(output, model.output)
    step, weights = 1e-2, []
    for channel in np.eye(features.shape[-1], dtype=np.float32):
      rise = (rest(features + step * channel)
              - rest(features - step * channel)).numpy()[:, 1] / (2 * step)
      weights.append(rise / np.prod(features.shape[1:3]))
    want = np.einsum("bhwc,cb->bhw", features, weights)
    # The map of the score less that of its negative: nothing is cut.
    score = np.float32([[0, 1, 0]] * 3)
    got = (grad_cam(model, pictures, score, layer)
           - grad_cam(model, pictures, -score, layer))
    # Float32 logits over a step of 1e-2; the stencil's error is of order 1e-4.
    self.assertLess(tiny.relative_error(got, want), 2e-3)

  def test_the_last_spatial_layer_by_default(self):
    model = _net("depthwise")
    pictures = tiny.images(2)
    np.testing.assert_array_equal(
        grad_cam(model, pictures), grad_cam(model, pictures, layer="act2"))
    self.assertEqual(
        grad_cam(model, pictures, layer="act").shape, (2, 6, 6))
    self.assertEqual(
        grad_cam(model, pictures, layer="act2").shape, (2, 3, 3))

  def test_behind_wrappers(self):
    model = _net("depthwise")
    pictures = tiny.images(3)
    want = grad_cam(model, pictures, 1, "act")
    with tiny.fine_quantizers():
      got = grad_cam(tiny.quantize(model), pictures, 1, "act")
    # 16 bits: steps of 2e-4 on weights of size 0.5, and a ReLU may flip.
    self.assertLess(tiny.relative_error(got, want), 2e-2)
    pruned = tiny.prune(model, sparsity=0.0)
    # A mask of ones changes no weight: float32 sums in another graph.
    np.testing.assert_allclose(
        grad_cam(pruned, pictures, 1, "act"), want, atol=1e-5)

  def test_a_clipped_score_does_not_blank_its_map(self):
    """Trap 2."""
    float_model = tiny.conv_net()
    float_model.get_layer("logits").bias.assign([50.0, 0.0, 0.0])
    model = tiny.quantize(float_model)
    pictures = tiny.images(3)
    self.assertGreater(model(pictures).numpy()[:, 0].min(), 5.9)  # Clipped.
    self.assertTrue(grad_cam(model, pictures).any(axis=(1, 2)).all())

  def test_leaves_the_model_as_it_is(self):
    model = tiny.conv_net()
    weights = model.get_weights()
    grad_cam(model, tiny.images(2))
    self.assertTrue(tiny.weights_equal(model.get_weights(), weights))
    model.trainable = False
    grad_cam(model, tiny.images(2))
    self.assertFalse(model.trainable)

  def test_other_numbers(self):
    pictures = np.random.default_rng(0).integers(0, 9, (2, 6, 6, 2))
    np.testing.assert_array_equal(
        grad_cam(_net(), pictures.astype(np.uint8)),
        grad_cam(_net(), pictures.astype(np.float64)))

  def test_pictures_of_any_size(self):
    inputs = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    for size in (5, 8):
      self.assertEqual(
          grad_cam(model, tiny.images(2, size=size), 0).shape,
          (2, size - 2, size - 2))

  @parameterized.parameters(
      ({"layer": "relu9"}, "layer 'relu9': .* no layer of that name"),
      ({"layer": "logits"}, "layer 'logits' .* no spatial map"),
      ({"targets": 3}, r"targets must be class numbers in 0\.\.2; got 3"),
      ({"targets": [0]}, "targets must be None, a class number, 2 class num"),
      ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
      ({"images": tiny.images(2, size=5)}, r"images must have shape \[at least "
       r"1, 6, 6, 2\]; got \[2, 5, 5, 2\]"),
      ({"images": np.full((2, 6, 6, 2), np.nan)}, "images must be finite; 2 "),
      ({"images": tiny.images(0)}, "images must have shape .at least 1"))
  def test_errors(self, changed, message):
    settings = {"images": tiny.images(2), **changed}
    with self.assertRaisesRegex(ValueError, message):
      grad_cam(_net(), **settings)

  def test_what_is_no_model_is_said(self):
    import keras as keras_3
    other = keras_3.Sequential([
        keras_3.Input((6, 6, 2)), keras_3.layers.Conv2D(3, 3, name="conv"),
        keras_3.layers.GlobalAveragePooling2D()])
    for layer in (None, "conv"):
      with self.assertRaisesRegex(
          TypeError, "model must be a tf_keras model.*TF_USE_LEGACY_KERAS"):
        grad_cam(other, tiny.images(2), layer=layer)
      with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
        grad_cam("net.h5", tiny.images(2), layer=layer)

  def test_a_model_without_a_map(self):
    model = keras.Sequential(
        [keras.layers.Flatten(input_shape=(6, 6, 2)), keras.layers.Dense(2)])
    with self.assertRaisesRegex(ValueError, "no layer with a spatial map"):
      grad_cam(model, tiny.images(2))

  def test_under_an_outer_function_it_stays_eager(self):
    """Maps are NumPy arrays, whatever eager mode tf.function is in."""
    tf.config.run_functions_eagerly(True)
    try:
      eager = grad_cam(tiny.conv_net(), tiny.images(2), 1)
    finally:
      tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(
        eager, grad_cam(tiny.conv_net(), tiny.images(2), 1), atol=FLOAT32)


if __name__ == "__main__":
  absltest.main()
