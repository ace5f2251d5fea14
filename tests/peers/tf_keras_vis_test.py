"""tf-keras-vis 0.8.7 on the same models.

It scales maps to 0..1 and enlarges them by default. Its scores are functions of
the output, so all models here end in logits.
"""

from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution, evaluation
from tests import tiny
from tests.peers.installed import need

need("tf_keras_vis", "0.8.7", tf_keras=True)

from tf_keras_vis import gradcam, layercam, saliency, scorecam  # noqa: E402

# Float32 sums in another order; a gradient here is of size 0.01 to 1.
CLOSE = dict(rtol=1e-4, atol=1e-6)
TAILS = ("gap", "block", "flatten", "depthwise")
PLAIN = dict(penultimate_layer="act", seek_penultimate_conv_layer=False,
             expand_cam=False, normalize_cam=False)


def _setting(tail="block", count=4):
  """A model, images, weights of the logits, and the score they make."""
  weights = np.random.default_rng(7).normal(size=(count, 3))
  weights = weights.astype(np.float32)
  return (tiny.conv_net(tail=tail), tiny.images(count), weights,
          lambda output: tf.reduce_sum(output * weights, -1))


class PeerTest(parameterized.TestCase):

  @parameterized.parameters(*TAILS)
  def test_saliency(self, tail):
    model, pictures, weights, score = _setting(tail)
    np.testing.assert_allclose(
        attribution.saliency(model, pictures, weights),
        saliency.Saliency(model, clone=False)(
            score, pictures, normalize_map=False), **CLOSE)

  def test_smooth_grad(self):
    """It takes the mean of magnitudes by default; the paper, of gradients."""
    model, pictures, weights, score = _setting()
    samples, noise = 5, 0.2
    drawn = np.stack([[tf.random.stateless_normal(
        pictures.shape[1:], [0, i * samples + n]).numpy()
                       for i in range(len(pictures))] for n in range(samples)])
    settings = dict(smooth_samples=samples, smooth_noise=noise, keepdims=True,
                    normalize_map=False)
    with mock.patch.object(
        np.random, "normal", lambda mean, size, shape: size.numpy() * drawn):
      method = saliency.Saliency(model, clone=False)
      want = method(score, pictures, gradient_modifier=None, **settings)
      larger = np.max(method(score, pictures, **settings), -1)
    got = attribution.smooth_grad(
        model, pictures, weights, samples=samples, noise=noise)
    np.testing.assert_allclose(got, np.abs(want).max(-1), **CLOSE)
    # Magnitudes' mean is no less than the mean's magnitude, but for rounding.
    self.assertGreater((larger - got).min(), -1e-6)
    # The two means differ; otherwise the test could not tell them apart.
    self.assertGreater(tiny.relative_error(larger, got), 0.05)

  @parameterized.parameters(*TAILS)
  def test_grad_cam(self, tail):
    model, pictures, weights, score = _setting(tail)
    np.testing.assert_allclose(
        attribution.grad_cam(model, pictures, weights, "act"),
        gradcam.Gradcam(model, clone=False)(score, pictures, **PLAIN), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_layer_cam(self, tail):
    model, pictures, weights, score = _setting(tail)
    np.testing.assert_allclose(
        attribution.layer_cam(model, pictures, weights, "act"),
        layercam.Layercam(model, clone=False)(score, pictures, **PLAIN),
        **CLOSE)

  def test_hires_cam(self):
    """Layer-CAM without its ReLU of gradients is HiRes-CAM."""
    model, pictures, weights, score = _setting("flatten")
    np.testing.assert_allclose(
        attribution.hires_cam(model, pictures, weights, "act"),
        layercam.Layercam(model, clone=False)(
            score, pictures, gradient_modifier=None, **PLAIN), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_grad_cam_plus_plus(self, tail):
    """It makes each channel's alphas add up to 1, which the paper does not.

    And its weights are of exp(score), a factor of the whole map.
    """
    model, pictures, weights, score = _setting(tail)
    want = gradcam.GradcamPlusPlus(model, clone=False)(score, pictures, **PLAIN)
    got = attribution.grad_cam_plus_plus(model, pictures, weights, "act")
    features, gradients = _read(model, pictures, weights)
    square = gradients**2
    alphas = square / (2 * square + square * gradients * features.sum(
        (1, 2), keepdims=True))
    # A quotient whose divisor may come near 0, where float32 rounding grows.
    np.testing.assert_allclose(
        got, _weighted(features, alphas, gradients), rtol=1e-3, atol=1e-5)
    alphas /= alphas.sum((1, 2), keepdims=True)
    size = np.exp(score(model(pictures)).numpy())[:, None, None]
    # As above, and divided by the alphas' sum and by exp(score).
    np.testing.assert_allclose(
        want / size, _weighted(features, alphas, gradients), rtol=1e-3,
        atol=1e-4)
    # The peer's maps are others: the sums of alphas are no common factor.
    self.assertLess(
        evaluation.agreement(got, np.asarray(want))["cosine"].min(), 0.9999)

  def test_score_cam(self):
    """It weights channels by the masked images' probabilities of the class.

    The paper takes the score's rise and a softmax over the channels. The
    model's logits for the peer's masked images are caught, and weighted both
    ways.
    """
    model, pictures = tiny.conv_net(tail="flatten"), tiny.images(1)
    shown = []

    def second(probabilities):
      shown.append(probabilities.numpy())
      return probabilities[:, 1]

    method = scorecam.Scorecam(model, clone=False)
    want = method(second, pictures, **PLAIN)
    features, _ = _read(model, pictures, np.ones([1, 3]))
    # Float32 sums over channels, of features of another run.
    np.testing.assert_allclose(
        want, np.maximum(features @ np.concatenate(shown)[:, 1], 0),
        rtol=1e-4, atol=1e-5)
    shown.clear()
    with mock.patch.object(
        scorecam.K, "softmax", lambda logits: logits):  # Logits as they are.
      method(second, pictures, **PLAIN)
    logits = np.concatenate(shown)[:, 1]
    shares = np.exp(logits - logits.max())
    # The softmax makes rounding of the logits a relative error of the shares.
    np.testing.assert_allclose(
        attribution.score_cam(model, pictures, 1, "act"),
        np.maximum(features @ (shares / shares.sum()), 0), rtol=1e-4,
        atol=1e-5)


def _read(model, pictures, weights):
  """Features and gradients of "act", by a plain tape, float64."""
  reader = type(model)(
      model.inputs, [model.get_layer("act").output, model.output])
  with tf.GradientTape() as tape:
    batch = tf.constant(pictures)
    tape.watch(batch)
    features, logits = reader(batch)
    score = logits * weights
  gradients = tape.gradient(score, features)
  return features.numpy().astype(float), gradients.numpy().astype(float)


def _weighted(features, alphas, gradients):
  weights = (alphas * np.maximum(gradients, 0)).sum((1, 2), keepdims=True)
  return np.maximum((weights * features).sum(-1), 0)


if __name__ == "__main__":
  absltest.main()
