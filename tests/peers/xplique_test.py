"""Xplique 2.0.2 explains and judges the same models.

It takes the output of the model, so all models here end in logits. A "reducer"
combines its channels; it is set to match each of our methods.
"""

from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution, evaluation
from tests import tiny
from tests.peers.installed import need

need("xplique", "2.0.2", tf_keras=True)

from xplique import attributions as theirs  # noqa: E402
from xplique import metrics  # noqa: E402
from xplique.attributions.gradient_statistics.gradient_statistic import (  # noqa: E402
  GradientStatistic,
)
from xplique.metrics import randomization  # noqa: E402

# Float32 sums in another order; a gradient here is of size 0.01 to 1.
CLOSE = dict(rtol=1e-4, atol=1e-6)
TAILS = ("gap", "block", "flatten", "depthwise")


def _setting(tail="block", count=4, **settings):
  """A model, images, and weights of the logits, not one-hot."""
  model = tiny.conv_net(tail=tail, **settings)
  weights = np.random.default_rng(7).normal(size=(count, 3))
  return model, tiny.images(count), weights.astype(np.float32)


def _maps(explanation) -> np.ndarray:
  return np.asarray(explanation)[..., 0]


def _resized(maps, size):
  return tf.image.resize(maps[..., None], size, "bicubic").numpy()[..., 0]


class GradientsTest(parameterized.TestCase):

  @parameterized.parameters(*TAILS)
  def test_saliency(self, tail):
    model, pictures, weights = _setting(tail)
    np.testing.assert_allclose(
        attribution.saliency(model, pictures, weights),
        _maps(theirs.Saliency(model)(pictures, weights)), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_gradient_x_input(self, tail):
    model, pictures, weights = _setting(tail)
    got = attribution.gradient_x_input(model, pictures, weights)
    np.testing.assert_allclose(got, _maps(theirs.GradientInput(
        model, reducer="sum")(pictures, weights)), **CLOSE)
    # By default it takes the mean over the two channels.
    np.testing.assert_allclose(got / 2, _maps(theirs.GradientInput(model)(
        pictures, weights)), **CLOSE)

  @parameterized.product(tail=TAILS, baseline=[0.0, 0.4])
  def test_integrated_gradients(self, tail, baseline):
    """Trapezoids in both; its steps are points, ours the intervals between."""
    model, pictures, weights = _setting(tail)
    got = attribution.integrated_gradients(
        model, pictures, weights, baseline=baseline, steps=12)
    np.testing.assert_allclose(got, _maps(theirs.IntegratedGradients(
        model, reducer="sum", steps=13, baseline_value=baseline)(
            pictures, weights)), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_guided_backprop(self, tail):
    model, pictures, weights = _setting(tail)
    want = theirs.GuidedBackprop(model, reducer=None)(pictures, weights)
    np.testing.assert_allclose(
        attribution.guided_backprop(model, pictures, weights),
        np.abs(want).max(-1), **CLOSE)

  def test_guided_backprop_of_relu6(self):
    """It lets a gradient through a ReLU6 that is full, which has none."""
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((1, 2, 1)), layers.ReLU(6.0), layers.Flatten(),
        layers.Dense(2, use_bias=False)])
    model.layers[-1].set_weights([np.float32([[1, 0], [1, 1]])])
    image = np.float32([[[[5], [7]]]])
    pull = np.float32([[1, 0]])
    np.testing.assert_array_equal(
        attribution.guided_backprop(model, image, pull), [[[1, 0]]])
    np.testing.assert_array_equal(
        attribution.saliency(model, image, pull), [[[1, 0]]])
    np.testing.assert_array_equal(_maps(theirs.GuidedBackprop(model)(
        image, pull)), [[[1, 1]]])

  def test_a_softmax_head(self):
    """It explains the probability, also where it is told to take the logits.

    It needs a model cut off before the softmax.
    """
    model, pictures, weights = _setting("gap", head="softmax_layer")
    got = attribution.saliency(model, pictures, weights)
    cut = keras.Model(model.inputs, model.get_layer("logits").output)
    np.testing.assert_allclose(
        got, _maps(theirs.Saliency(cut)(pictures, weights)), **CLOSE)
    fading = _maps(theirs.Saliency(model)(pictures, weights))
    # The softmax mixes and shrinks the gradients by much of their size; the
    # logits' own are 1e-4 apart at most.
    self.assertGreater(tiny.relative_error(fading, got), 0.5)
    np.testing.assert_array_equal(fading, _maps(theirs.Saliency(
        model, output_layer="logits")(pictures, weights)))


class NoiseTest(parameterized.TestCase):
  """Its noise has an absolute size; it gets our noise."""

  SAMPLES = 6
  NOISE = 0.3

  def _noisy(self, pictures):
    """Returns the noise, `[images, samples, height, width, channels]`."""
    spread = pictures.max((1, 2, 3)) - pictures.min((1, 2, 3))
    return np.stack([[
        spread[i] * self.NOISE * tf.random.stateless_normal(
            pictures.shape[1:], [0, i * self.SAMPLES + n]).numpy()
        for n in range(self.SAMPLES)] for i in range(len(pictures))])

  def _theirs(self, method, model, pictures, weights):
    noise = self._noisy(pictures)

    def perturb(batch, count, size):
      del size
      self.assertEqual((len(batch), count), noise.shape[:2])
      return tf.reshape(batch[:, None] + noise, [-1, *batch.shape[1:]])

    with mock.patch.object(
        GradientStatistic, "_perturb_samples", staticmethod(perturb)):
      return np.asarray(method(
          model, reducer=None, batch_size=None, nb_samples=self.SAMPLES)(
              pictures, weights))

  @parameterized.parameters(*TAILS)
  def test_smooth_grad(self, tail):
    model, pictures, weights = _setting(tail)
    want = self._theirs(theirs.SmoothGrad, model, pictures, weights)
    np.testing.assert_allclose(attribution.smooth_grad(
        model, pictures, weights, samples=self.SAMPLES, noise=self.NOISE),
        np.abs(want).max(-1), **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_var_grad(self, tail):
    """It divides by one sample less; the paper's variance is over all."""
    model, pictures, weights = _setting(tail)
    want = self._theirs(theirs.VarGrad, model, pictures, weights)
    want = want * (self.SAMPLES - 1) / self.SAMPLES
    # It subtracts large squares: of a gradient g the error is 1e-7 g^2.
    np.testing.assert_allclose(attribution.var_grad(
        model, pictures, weights, samples=self.SAMPLES, noise=self.NOISE),
        want.max(-1), rtol=1e-4, atol=1e-5)

  def test_a_variance_of_nothing(self):
    """A linear model has one gradient; the peer's variance is below zero."""
    model = keras.Sequential([
        keras.Input((6, 6, 2)), keras.layers.Flatten(),
        keras.layers.Dense(3)])
    tiny.shake(model)
    _, pictures, weights = _setting()
    # Squares of what float32 rounds a gradient by.
    self.assertLess(np.abs(attribution.var_grad(
        model, pictures, weights)).max(), 1e-12)
    self.assertGreaterEqual(
        attribution.var_grad(model, pictures, weights).min(), 0)
    self.assertLess(theirs.VarGrad(model, reducer="min", nb_samples=7)(
        pictures, 100 * weights).numpy().min(), 0)

  def test_without_noise(self):
    model, pictures, weights = _setting()
    want = theirs.SmoothGrad(model, reducer=None, noise=0.0, nb_samples=3)(
        pictures, weights)
    got = attribution.smooth_grad(
        model, pictures, weights, noise=0.0, samples=3)
    np.testing.assert_allclose(got, np.abs(want).max(-1), **CLOSE)
    np.testing.assert_allclose(
        got, attribution.saliency(model, pictures, weights), **CLOSE)


class LayersTest(parameterized.TestCase):

  @parameterized.product(tail=TAILS, layer=["act", "conv"])
  def test_grad_cam(self, tail, layer):
    model, pictures, weights = _setting(tail)
    want = theirs.GradCAM(model, conv_layer=layer)(pictures, weights)
    np.testing.assert_allclose(attribution.grad_cam(
        model, pictures, weights, layer), _maps(want), **CLOSE)

  def test_it_resizes(self):
    """Bicubic, to the image's size, which makes negative values anew."""
    model, pictures, weights = _setting("depthwise")
    maps = attribution.grad_cam(model, pictures, weights, "depthwise")
    self.assertEqual(maps.shape, (4, 3, 3))
    want = _maps(theirs.GradCAM(model, conv_layer="depthwise")(
        pictures, weights))
    np.testing.assert_allclose(_resized(maps, (6, 6)), want, **CLOSE)

  @parameterized.parameters(*TAILS)
  def test_grad_cam_plus_plus(self, tail):
    """It takes means of features and of weights, the paper sums (eq. 10, 19).

    With sums over positions of A and of its weights, both sides agree.
    """
    model, pictures, weights = _setting(tail)
    got = attribution.grad_cam_plus_plus(model, pictures, weights, "act")
    compute = theirs.GradCAMPP._compute_weights
    area = 36

    def summed(gradients, features):
      return area * compute(gradients, area * features)

    with mock.patch.object(
        theirs.GradCAMPP, "_compute_weights", staticmethod(summed)):
      want = theirs.GradCAMPP(model, conv_layer="act")(pictures, weights)
    # Like CLOSE, for a quotient of float32 sums of squares and cubes.
    np.testing.assert_allclose(got, _maps(want), rtol=2e-4, atol=1e-6)
    plain = _maps(theirs.GradCAMPP(model, conv_layer="act")(pictures, weights))
    # Means in place of sums give another map; rounding leaves a cosine of 1
    # to six digits or more.
    self.assertLess(evaluation.agreement(got, plain)["cosine"].min(), 0.9999)


class BlackBoxTest(parameterized.TestCase):

  @parameterized.parameters((2, 2), (3, 3), (2, 1), (4, 2), (6, 6))
  def test_occlusion(self, patch, stride):
    """It sums over the patches that cover a pixel; our map is the mean."""
    model, pictures, weights = _setting("flatten")
    want = _maps(theirs.Occlusion(
        model, patch_size=patch, patch_stride=stride, occlusion_value=0.3)(
            pictures, weights))
    starts = range(0, 6 - patch + 1, stride)
    along = sum((np.arange(6) >= s) & (np.arange(6) < s + patch)
                for s in starts)
    got = attribution.occlusion(
        model, pictures, weights, patch=patch, stride=stride, baseline=0.3)
    # A fall is the difference of two float32 scores of size 1; up to four are
    # added.
    np.testing.assert_allclose(
        got * np.outer(along, along), want, rtol=1e-4, atol=1e-5)

  def test_occlusion_that_leaves_a_rest(self):
    """It never covers the last pixels where patches do not fit; we do."""
    model, pictures, weights = _setting("flatten")
    want = _maps(theirs.Occlusion(model, patch_size=4, patch_stride=4)(
        pictures, weights))
    got = attribution.occlusion(
        model, pictures, weights, patch=4, stride=4, baseline=0.0)
    self.assertFalse(want[:, 4:].any())
    self.assertTrue(got[:, 4:].all())
    # Differences of float32 scores of size 1, as above.
    np.testing.assert_allclose(
        got[:, :2, :2], want[:, :2, :2], rtol=1e-4, atol=1e-5)

  def test_rise_with_our_masks(self):
    """It divides by the masks' sum, the paper by the expected sum.

    It adds a little, so that it never divides by zero.
    """
    model, pictures, weights = _setting("flatten")
    masks = []
    # Of a white image the masks themselves are left.
    attribution.rise(
        lambda batch: masks.append(batch[..., 0]) or np.ones([len(batch), 1]),
        np.ones([1, 6, 6, 1]), 1, masks=40, cells=3, keep=0.4, batch_size=40)
    masks = masks[-1][..., None]

    def applied(picture, binary, value):
      del binary, value
      return picture * masks, tf.constant(masks)

    with mock.patch.object(theirs.Rise, "_apply_masks", staticmethod(applied)):
      want = _maps(theirs.Rise(model, nb_samples=40, batch_size=None)(
          pictures, weights))
    got = attribution.rise(
        model, pictures, weights, masks=40, cells=3, keep=0.4)
    shown = masks[..., 0].sum(0) + float(theirs.Rise.EPSILON)
    # Float32 sums over 40 masks in another order.
    np.testing.assert_allclose(
        got * 0.4 * 40 / shown, want, rtol=1e-4, atol=2e-6)

  def test_its_masks_share_one_shift(self):
    """All masks of a batch are cut out at one place, by one random number."""
    grids = tf.tile(
        tf.constant(np.eye(3) > 0)[None, ..., None], [64, 1, 1, 1])
    _, masks = theirs.Rise._apply_masks(tf.ones([6, 6, 1]), grids)
    self.assertLen(np.unique(masks.numpy().reshape(64, -1), axis=0), 1)

  def test_rise_by_chance(self):
    """With masks of its own, in batches of one shift each.

    Its shifts are 0 to a whole cell; the paper's end a pixel before. A small
    cell makes that visible. Division by the masks' sum takes a logit's mean out
    of its map, except for one constant. Our `centred` removes the mean.
    """
    model = tiny.conv_net(tail="flatten", size=18)
    pictures = tiny.images(1, size=18)
    tf.random.set_seed(1)
    want = _maps(theirs.Rise(
        model, nb_samples=3000, grid_size=3, batch_size=20)(
            pictures, np.float32([[0, 1, 0]])))
    got = attribution.rise(
        model, pictures, 1, masks=3000, cells=3, centred=True)
    scores = evaluation.agreement(
        got, want - want.mean((1, 2), keepdims=True), scores=("pearson",))
    # Two of our own seeds differ as much.
    self.assertGreater(scores["pearson"][0], 0.97)


class CurvesTest(parameterized.TestCase):

  @parameterized.product(
      mode=["deletion", "insertion"], steps=[4, 12, 36], tail=["gap", "flatten"]
  )
  def test_curves(self, mode, steps, tail):
    """It gives the mean over the images at each step."""
    model, pictures, weights = _setting(tail)
    maps = tiny.images(4, seed=3)[..., 0]
    metric = {"deletion": metrics.Deletion, "insertion": metrics.Insertion}
    measure = metric[mode](
        model, pictures, weights, steps=steps, baseline_mode=0.2)
    curves = getattr(evaluation, mode)(
        model, pictures, maps, weights, steps=steps, baseline=0.2)
    want = measure.detailed_evaluate(maps)
    # Shares of 36 pixels are whole numbers but for rounding.
    np.testing.assert_allclose(curves.shares * 36, list(want), rtol=1e-6)
    # Float32 scores of batches of other sizes; the mean is over four images.
    np.testing.assert_allclose(
        curves.scores.mean(0), list(want.values()), rtol=1e-4, atol=1e-5)
    # The area under that curve, a mean of its float32 scores.
    self.assertAlmostEqual(
        curves.area.mean(), measure(maps), delta=1e-5)

  def test_steps_that_do_not_fit(self):
    """It cuts a share of pixels off to a whole number; we round it."""
    model, pictures, weights = _setting("gap")
    maps = tiny.images(4, seed=3)[..., 0]
    want = metrics.Deletion(
        model, pictures, weights, steps=5).detailed_evaluate(maps)
    self.assertEqual(list(want), [0, 7, 14, 21, 28, 36])
    got = evaluation.deletion(model, pictures, maps, weights, steps=5)
    np.testing.assert_allclose(got.shares * 36, [0, 7, 14, 22, 29, 36])


class AgreementTest(absltest.TestCase):

  def test_spearman(self):
    """Ties get their average rank in both."""
    first, second = (np.maximum(tiny.images(8, seed)[..., 0], 0)
                     for seed in (1, 2))
    want = randomization.batched_spearman(
        first.reshape(8, -1), second.reshape(8, -1))
    # It adds 1e-8 to a product of spreads of about 100, in float32.
    np.testing.assert_allclose(
        evaluation.agreement(first, second)["spearman"], want, atol=1e-5)

  def test_ssim(self):
    """Of maps from 0 to 1, since it takes their common range for the scale."""
    first, second = (tiny.images(8, seed, size=13)[..., 0] for seed in (1, 2))
    first, second = (
        (maps - maps.min((1, 2), keepdims=True))
        / np.ptp(maps, (1, 2), keepdims=True) for maps in (first, second))
    want = randomization.ssim(
        tf.constant(first[..., None]), tf.constant(second[..., None]),
        batched=True)
    # Float32 sums over windows of 11 x 11, whose variances are differences of
    # squares.
    np.testing.assert_allclose(
        evaluation.agreement(first, second)["ssim"], want, atol=1e-5)

  def test_cascading_randomization(self):
    """Both sides use our random weights; its own are uniform in 0..1."""
    conv_model, pictures, weights = _setting("block")
    drawn = []

    def explain(model, batch):
      drawn.append(model.get_weights())
      return attribution.saliency(model, batch, weights)

    got = evaluation.cascading_randomization(conv_model, pictures, explain)
    for name, values in zip([None, *got], drawn):
      if name is None:
        continue

      class Strategy(randomization.ModelRandomizationStrategy):
        def randomize(self, model, values=values):
          model.set_weights(values)
          return model

      want = metrics.ModelRandomizationMetric(
          conv_model, pictures, weights, randomization_strategy=Strategy())(
              theirs.Saliency(conv_model))
      # Two values of a map that differ by rounding may change ranks.
      self.assertAlmostEqual(got[name].mean(), want, delta=2e-3, msg=name)


if __name__ == "__main__":
  absltest.main()
