"""Tests of the methods that differentiate a score by the pixels."""

import functools

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from tests import export_helpers as helpers
from tests import tiny

# All tests share these models: leave them unchanged.
_net = functools.partial(helpers.net, size=tiny.SIZE, width=4)
_layers = keras.layers
_METHODS = (attribution.saliency, attribution.gradient_x_input,
            attribution.integrated_gradients, attribution.smooth_grad,
            attribution.var_grad, attribution.guided_backprop)


@functools.cache
def _pruned():
  """Wrapped, with masks of ones."""
  return tiny.prune(_net(), 0.0)


def _dense(kernels, biases=None):
  """Dense layers with ReLUs between on an image of one row of two pixels."""
  x = inputs = keras.Input([1, 2, 1])
  x = _layers.Flatten()(x)
  for number, kernel in enumerate(kernels):
    last = number + 1 == len(kernels)
    x = _layers.Dense(np.shape(kernel)[1], None if last else "relu")(x)
  model = keras.Model(inputs, x)
  weights = []
  for number, kernel in enumerate(kernels):
    bias = np.zeros(np.shape(kernel)[1]) if biases is None else biases[number]
    weights += [np.float32(kernel), np.float32(bias)]
  model.set_weights(weights)
  return model


class InputGradientsTest(parameterized.TestCase):

  def test_saliency_equals_finite_differences(self):
    model = tiny.conv_net(tail="flatten", activation="tanh")
    image = tiny.images(1)
    got = attribution.saliency(model, image, 1)[0]
    step = np.float32(1e-2)
    # One batch for each side, in which each image has one value moved.
    moves = step * np.eye(image.size, dtype=np.float32).reshape(
        -1, *image.shape[1:])
    high, low = (model(image + sign * moves).numpy()[:, 1]
                 for sign in (1, -1))
    slopes = ((high - low) / (2 * step)).reshape(image.shape[1:])
    # A central difference of step 1e-2: truncation of order 1e-4, and float32
    # round-off of 1e-5.
    np.testing.assert_allclose(got, np.abs(slopes).max(-1), atol=5e-4)

  @parameterized.parameters(False, True)
  def test_batch_normalization_by_either_statistics(self, training):
    inputs = keras.Input([4, 4, 2])
    x = _layers.Conv2D(3, 3, activation="tanh")(inputs)
    x = _layers.BatchNormalization()(x, training=training)
    x = _layers.Dense(3)(_layers.Flatten()(x * x))
    model = tiny.shake(keras.Model(inputs, x))
    pictures = tf.constant(tiny.images(3, size=4))
    with tf.GradientTape() as tape:
      tape.watch(pictures)
      score = tf.reduce_sum(model(pictures)[:, 1])
    want = np.abs(tape.gradient(score, pictures)).max(-1)
    # Float32 gradients, by a graph and eagerly, in another order of sums.
    np.testing.assert_allclose(
        attribution.saliency(model, pictures.numpy(), 1), want, rtol=1e-4,
        atol=1e-6)

  def test_gradient_x_input_of_a_linear_net_is_its_score(self):
    model = _dense([[[2], [-3]]])
    image = np.float32([[[[5], [1]]]])
    # Small whole numbers, which float32 holds exactly.
    np.testing.assert_allclose(
        attribution.gradient_x_input(model, image, 1), [[[10, -3]]],
        rtol=1e-6)

  def test_integrated_gradients_by_hand(self):
    # relu(x1 + x2 - 1) along (t, 2t): alive from t = 1/3 on, two thirds of
    # the way, so 2/3 (1, 2).
    model = _dense([[[1], [1]], [[1]]], [[-1], [0]])
    image = np.float32([[[[1], [2]]]])
    got = attribution.integrated_gradients(model, image, 1, steps=3000)
    # The kink may cost half an interval: 2 / 6000; the rest is float32 sums of
    # 3001 points.
    np.testing.assert_allclose(got, [[[2 / 3, 4 / 3]]], atol=1e-3)
    # From (1, 0) the way is (0, 2 t), alive all along.
    got = attribution.integrated_gradients(
        model, image, 1, baseline=np.float32([[[1], [0]]]), steps=10)
    # The first point lies on the kink, where the gradient is 0, and has half a
    # weight of eleven: 2 (9 + 1 / 2) / 10. The rest is float32.
    np.testing.assert_allclose(got, [[[0, 1.9]]], atol=1e-5)

  def test_integrated_gradients_add_up(self):
    model = tiny.conv_net(tail="block", activation="softplus")
    report = attribution.integrated_gradients_completeness(
        model, tiny.images(4), 2, baseline=0.25, steps=200)
    # Ten times the residual allowed below: a map of zeros would be seen.
    self.assertGreater(np.abs(report.difference).min(), 1e-3)
    # The trapezoid rule's error on 200 intervals, and float32 sums.
    np.testing.assert_allclose(report.residual, 0, atol=1e-4)
    start = model(np.full_like(tiny.images(1), 0.25)).numpy()[0, 2]
    # Float32 logits of batches of another size.
    np.testing.assert_allclose(
        report.difference, model(tiny.images(4)).numpy()[:, 2] - start,
        atol=1e-5)

  def test_integrated_gradients_equal_tf_explain(self):
    # tf-explain 0.3.1 leaves out the factor (image - baseline) and averages
    # the points where ours takes trapezoids: equal as the points get dense.
    inputs = keras.Input([4, 4, 1])
    x = _layers.Conv2D(4, 3, activation="tanh")(inputs)
    x = _layers.Dense(3)(_layers.Flatten()(x))
    model = tiny.shake(keras.Model(inputs, x))
    pictures = 0.5 + np.abs(tiny.images(3, size=4))[..., :1]
    tf_explain_maps = attribution.tf_explain(model, pictures, 1, steps=500)
    maps = attribution.integrated_gradients(model, pictures, 1, steps=500)
    # Means of 500 points and of 500 intervals differ by 1 / 500 of how far the
    # gradient changes on the way.
    np.testing.assert_allclose(
        np.abs(maps / pictures[..., 0]), tf_explain_maps, rtol=1e-2, atol=1e-3)

  def test_smooth_grad_without_noise_is_saliency(self):
    model, pictures = _net("flatten"), tiny.images(3)
    # Float32 means of two equal gradients; batches of another size.
    np.testing.assert_allclose(
        attribution.smooth_grad(model, pictures, 1, noise=0.0, samples=2),
        attribution.saliency(model, pictures, 1), rtol=1e-5)
    # Equal gradients differ by float32 rounding, 1e-7 of size 1; this is its
    # square.
    np.testing.assert_allclose(
        attribution.var_grad(model, pictures, 1, noise=0.0, samples=3), 0,
        atol=1e-12)

  def test_noise_is_each_pictures_own(self):
    model, pictures = _net("flatten"), tiny.images(5)
    for method in (attribution.smooth_grad, attribution.var_grad):
      whole = method(model, pictures, 1, samples=4)
      # Float32 means and variances, gathered from other batches.
      np.testing.assert_allclose(
          method(model, pictures, 1, samples=4, batch_size=2), whole,
          rtol=1e-3, atol=1e-6)
      other = method(model, pictures, 1, samples=4, seed=1)
      # A hundred times the atol above: other noise, not another order of sums.
      self.assertGreater(np.abs(other - whole).max(), 1e-4)

  def test_var_grad_of_a_kink(self):
    # The gradient of relu(x1) at 0 with noise is 1 or 0, each half the time.
    model = _dense([[[1], [0]], [[1]]])
    image = np.float32([[[[0], [1]]]])
    got = attribution.var_grad(model, image, 1, samples=400)
    # Of 400 draws the share that is alive, p, is off by .025, one sigma, and
    # p (1 - p) by the square of that.
    np.testing.assert_allclose(got, [[[0.25, 0]]], atol=0.01)

  def test_guided_backprop_by_hand(self):
    # Hidden: x1 + x2 and x1 - x2, both alive; the score takes 1 and -1 of
    # them. The second's gradient is negative and does not get through.
    model = _dense([[[1, 1], [1, -1]], [[1], [-1]]])
    image = np.float32([[[[2], [1]]]])
    np.testing.assert_allclose(
        attribution.guided_backprop(model, image, 1), [[[1, 1]]])
    np.testing.assert_allclose(
        attribution.saliency(model, image, 1), [[[0, 2]]])

  @parameterized.parameters(*_METHODS)
  def test_targets_heads_and_wrappers(self, method):
    model, pictures = _net(), tiny.images(3)
    got = method(model, pictures, [2, 0, 1])
    self.assertEqual((got.dtype, got.shape), (np.float32, (3, 6, 6)))
    # A dead map is 0; the comparison below may be off by 1e-6.
    self.assertGreater(np.abs(got).max(), 1e-6)
    for row, target in enumerate([2, 0, 1]):
      if row == 0:  # Noise goes by an image's place.
        # Float32 gradients of a batch of another size.
        np.testing.assert_allclose(
            method(model, pictures[:1], target)[0], got[0], rtol=1e-3,
            atol=1e-6)
    # Float32 gradients of other graphs, gathered in another order.
    np.testing.assert_allclose(
        method(_net(head="softmax"), pictures, [2, 0, 1]), got, rtol=1e-3,
        atol=1e-6)
    np.testing.assert_allclose(
        method(_pruned(), pictures, [2, 0, 1]), got, rtol=1e-3, atol=1e-6)
    with self.assertRaisesRegex(ValueError, "layer must be None"):
      method(model, pictures, layer="act")

  def test_bad_settings(self):
    model, pictures = _net(), tiny.images(1)
    with self.assertRaisesRegex(ValueError, "steps must be 1 or more"):
      attribution.integrated_gradients(model, pictures, steps=0)
    with self.assertRaisesRegex(ValueError, "baseline must be a number"):
      attribution.integrated_gradients(model, pictures, baseline=[1, 2, 3])
    with self.assertRaisesRegex(ValueError, "samples must be 2"):
      attribution.var_grad(model, pictures, samples=1)
    with self.assertRaisesRegex(ValueError, "noise must be 0"):
      attribution.smooth_grad(model, pictures, noise=-1.0)


if __name__ == "__main__":
  absltest.main()
