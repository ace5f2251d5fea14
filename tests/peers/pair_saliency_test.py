"""PAIR's saliency 0.2.1, one image at a time, of the same models.

It knows no TensorFlow: a plain tape works out its inputs here, on the logits.
"""

from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from tests import tiny
from tests.peers.installed import need

need("saliency", "0.2.1", tf_keras=False)

import saliency.core as theirs  # noqa: E402
import tf_keras as keras  # noqa: E402

# Float32 sums in another order; a gradient here is of size 0.01 to 1.
CLOSE = dict(rtol=1e-4, atol=1e-6)
TAILS = ("gap", "block", "flatten", "depthwise")


def _setting(tail):
  """A model, images, and weights of the logits, not one-hot."""
  weights = np.random.default_rng(7).normal(size=(3, 3)).astype(np.float32)
  return tiny.conv_net(tail=tail), tiny.images(3), weights


def _call(model, layer=None):
  """Answers the peer's requests; call arguments are the logits' weights."""
  reader = keras.Model(
      model.inputs, [model.get_layer(layer or "act").output, model.output])

  def call(batch, call_model_args=None, expected_keys=None):
    batch = tf.constant(np.asarray(batch, np.float32))
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(batch)
      features, logits = reader(batch)
      score = tf.reduce_sum(logits * call_model_args, -1)
    readers = {
        theirs.INPUT_OUTPUT_GRADIENTS: lambda: tape.gradient(score, batch),
        theirs.CONVOLUTION_LAYER_VALUES: lambda: features,
        theirs.CONVOLUTION_OUTPUT_GRADIENTS: lambda: tape.gradient(
            score, features),
        theirs.OUTPUT_LAYER_VALUES: lambda: score}
    return {key: readers[key]().numpy() for key in expected_keys}

  return call


def _each(mask_of, pictures, weights) -> np.ndarray:
  return np.stack([mask_of(image, weight) for image, weight in zip(
      pictures, weights)])


class PairTest(parameterized.TestCase):

  @parameterized.parameters(*TAILS)
  def test_gradients(self, tail):
    model, pictures, weights = _setting(tail)
    method, call = theirs.GradientSaliency(), _call(model)
    want = _each(lambda image, weight: method.GetMask(image, call, weight),
                 pictures, weights)
    np.testing.assert_allclose(
        attribution.saliency(model, pictures, weights), np.abs(want).max(-1),
        **CLOSE)
    np.testing.assert_allclose(
        attribution.gradient_x_input(model, pictures, weights),
        (pictures * want).sum(-1), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_integrated_gradients(self, tail):
    """It adds up all points, both ends whole, and divides by their number.

    Ours halves the ends (the trapezoid rule), so that the sum of a map comes
    nearer to the score. Their values are put right here.
    """
    model, pictures, weights = _setting(tail)
    method, call = theirs.IntegratedGradients(), _call(model)
    gradients = theirs.GradientSaliency()
    points = 11
    start = np.full_like(pictures[0], 0.3)
    want = _each(lambda image, weight: method.GetMask(
        image, call, weight, x_baseline=start, x_steps=points, batch_size=4),
                 pictures, weights)
    ends = _each(lambda image, weight: (image - start) * (
        gradients.GetMask(image, call, weight)
        + gradients.GetMask(start, call, weight)) / 2, pictures, weights)
    got = attribution.integrated_gradients(
        model, pictures, weights, baseline=0.3, steps=points - 1)
    np.testing.assert_allclose(
        got, ((want * points - ends) / (points - 1)).sum(-1), **CLOSE)

  def test_completeness(self):
    """In a smooth model the rule alone is to blame for what is missed."""
    model = tiny.conv_net(tail="block", activation="softplus")
    pictures = tiny.images(3)
    method, call = theirs.IntegratedGradients(), _call(model)
    weight = np.float32([0, 1, 0])
    sums = _each(lambda image, _: method.GetMask(
        image, call, weight, x_steps=11).sum(), pictures, pictures)
    completeness = attribution.integrated_gradients_completeness(
        model, pictures, 1, steps=10)
    residual = np.abs(completeness.residual).max()
    self.assertLess(
        residual, 0.1 * np.abs(completeness.difference - sums).max())

  @parameterized.parameters(*TAILS)
  def test_smooth_grad(self, tail):
    """It gets our noise; both sides scale it by the image's range."""
    model, pictures, weights = _setting(tail)
    method, call = theirs.GradientSaliency(), _call(model)
    samples, noise = 5, 0.2
    drawn = iter([
        tf.random.stateless_normal(pictures.shape[1:], [0, number]).numpy()
        for number in range(samples * len(pictures))])

    def normal(mean, spread, shape):
      self.assertEqual((mean, shape), (0, pictures.shape[1:]))
      return spread * next(drawn)

    with mock.patch.object(np.random, "normal", normal):
      want = _each(lambda image, weight: method.GetSmoothedMask(
          image, call, weight, stdev_spread=noise, nsamples=samples,
          magnitude=False), pictures, weights)
    self.assertIsNone(next(drawn, None))
    np.testing.assert_allclose(attribution.smooth_grad(
        model, pictures, weights, samples=samples, noise=noise),
        np.abs(want).max(-1), **CLOSE)

  def test_smooth_grad_by_default(self):
    """It squares gradients unless told otherwise: another method."""
    model, pictures, weights = _setting("gap")
    method, call = theirs.GradientSaliency(), _call(model)
    want = _each(lambda image, weight: method.GetSmoothedMask(
        image, call, weight, stdev_spread=0.0, nsamples=2), pictures, weights)
    np.testing.assert_allclose(
        attribution.smooth_grad(
            model, pictures, weights, samples=2, noise=0.0) ** 2,
        want.max(-1), **CLOSE)

  @parameterized.product(tail=TAILS, layer=["act", "conv"])
  def test_grad_cam(self, tail, layer):
    model, pictures, weights = _setting(tail)
    method, call = theirs.GradCam(), _call(model, layer)
    want = _each(lambda image, weight: method.GetMask(
        image, call, weight, should_resize=False, three_dims=False),
                 pictures, weights)
    np.testing.assert_allclose(attribution.grad_cam(
        model, pictures, weights, layer), want, **CLOSE)

  @parameterized.parameters(1, 2, 4)
  def test_occlusion(self, size):
    """It sums over the windows that cover a pixel; our map is the mean."""
    model, pictures, weights = _setting("flatten")
    method, call = theirs.Occlusion(), _call(model)
    want = _each(lambda image, weight: method.GetMask(
        image, call, weight, size=size, value=0.2), pictures, weights)
    along = np.convolve(np.ones(7 - size), np.ones(size))
    got = attribution.occlusion(
        model, pictures, weights, patch=size, stride=1, baseline=0.2)
    for channel in range(2):  # One value, in each channel again.
      # Differences of float32 logits, summed over up to 16 windows.
      np.testing.assert_allclose(
          got * np.outer(along, along), want[..., channel], rtol=1e-4,
          atol=1e-5)

  def test_occlusion_of_whole_numbers(self):
    """Its map has the image's type, so it fails on a uint8 image."""
    model, pictures, weights = _setting("flatten")
    image = (pictures[0] * 20 + 100).astype(np.uint8)
    method, call = theirs.Occlusion(), _call(model)
    with self.assertRaisesRegex(TypeError, "[Cc]annot cast"):
      method.GetMask(image, call, weights[0], size=2)
    want = method.GetMask(image.astype(np.float32), call, weights[0], size=3)
    along = np.convolve(np.ones(4), np.ones(3))
    got = attribution.occlusion(
        model, image[None], weights[:1], patch=3, stride=1, baseline=0.0)
    # Pixels of about 100, not 1, make logits and their rounding larger.
    np.testing.assert_allclose(
        got[0] * np.outer(along, along), want[..., 0], rtol=1e-4, atol=1e-3)


if __name__ == "__main__":
  absltest.main()
