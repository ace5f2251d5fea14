"""Tests of statistics.py and sanity.py."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest

from keras_attr_preserve import attribution
from keras_attr_preserve.evaluation import (
  cascading_randomization,
  confidence_interval,
  random_floor,
)
from tests import tiny


class IntervalTest(absltest.TestCase):

  def test_holds_the_mean_as_often_as_promised(self):
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(200):
      low, high = confidence_interval(
          rng.normal(3, 1, 60), draws=300, seed=draw)
      held += low <= 3 <= high
    # Bootstraps of 60 values are a little narrow: measured .915, and between
    # .845 at level .9 and .965 at level .99.
    self.assertBetween(held / 200, 0.88, 0.95)

  def test_width_and_nan(self):
    values = np.r_[np.random.default_rng(1).normal(0, 2, 400), np.nan]
    low, high = confidence_interval(values)
    # Percentiles of 2000 resamplings scatter by .006. Level .9 would be .06
    # short, level .99 .1 too wide.
    self.assertAlmostEqual(
        high - low, 2 * 1.96 * np.nanstd(values) / 20, delta=0.02)
    self.assertEqual(confidence_interval(np.ones(5)), (1.0, 1.0))
    self.assertTrue(np.isnan(confidence_interval(np.full(3, np.nan))).all())
    low, high = confidence_interval(
        np.r_[np.zeros(9), 100.0], statistic=np.median)
    self.assertEqual(low, 0.0)
    with self.assertRaisesRegex(ValueError, "level must be between"):
      confidence_interval(values, level=1.0)


  def test_one_image_and_infinity(self):
    self.assertEqual(confidence_interval(np.array([0.3])), (0.3, 0.3))
    self.assertEqual(confidence_interval(np.array([0.3, np.nan])), (0.3, 0.3))
    with self.assertRaisesRegex(ValueError, "must not be infinite"):
      confidence_interval(np.array([0.3, np.inf]))


class FloorTest(absltest.TestCase):

  def test_nobody_meets_himself(self):
    maps = np.eye(6).reshape(6, 2, 3)
    for seed in range(5):
      np.testing.assert_array_equal(
          random_floor(maps, seed=seed)["cosine"], 0)
    bright = 1 + 0.01 * np.random.default_rng(0).uniform(size=[4, 5, 5])
    # Values of 1 to 1.01 are all but parallel, unlike the noise below.
    self.assertGreater(random_floor(bright)["cosine"].min(), 0.99)
    noise = random_floor(bright, kind="noise")["cosine"]
    # Uniform noise and a flat map: sqrt(3) / 2 = .866, of a finite sample of
    # four maps of 25 pixels.
    self.assertBetween(noise.mean(), 0.8, 0.95)
    with self.assertRaisesRegex(ValueError, "two images or more"):
      random_floor(maps[:1])


class SanityTest(absltest.TestCase):

  def test_maps_part_layer_by_layer(self):
    model, pictures = tiny.conv_net(tail="block"), tiny.images(6)
    before = model.get_weights()
    correlations = cascading_randomization(
        model, pictures,
        lambda randomized, images: attribution.gradient_x_input(
            randomized, images, 1), seed=1)
    self.assertEqual(list(correlations)[:3], ["none", "logits", "bn2"])
    self.assertEqual(list(correlations)[-1], "conv")
    # A correlation of ranks: two swapped of 36 would cost 2.6e-4 or more.
    np.testing.assert_allclose(correlations["none"], 1, atol=1e-6)
    # The images alone keep some order; weights left as they were give 1.
    self.assertLess(np.mean(correlations["conv"]), 0.7)
    for old, new in zip(before, model.get_weights()):
      np.testing.assert_array_equal(old, new)

  def test_nested_and_wrapped_nets(self):
    inner, pictures = tiny.conv_net(tail="block"), tiny.images(2)
    def explain(net, images):
      return attribution.gradient_x_input(net, images, 1)

    plain = cascading_randomization(inner, pictures, explain)
    nested = cascading_randomization(
        keras.Sequential([keras.Input(inner.input_shape[1:]),
                          tiny.copy_of(inner)]), pictures, explain)
    self.assertEqual(
        list(nested), ["none"] + [f"net/{name}" for name in list(plain)[1:]])
    for first, second in zip(plain.values(), nested.values()):
      # A correlation of ranks: two swapped of 36 would cost 2.6e-4 or more.
      np.testing.assert_allclose(first, second, atol=1e-4)
    pruned = cascading_randomization(tiny.prune(inner), pictures, explain)
    self.assertLen(pruned, len(plain))  # No row for a layer without weights.
    with self.assertRaisesRegex(ValueError, "copy the net before it is wrap"):
      cascading_randomization(tiny.quantize(inner), pictures, explain)

  def test_what_sees_no_weights_does_not_move(self):
    correlations = cascading_randomization(
        tiny.conv_net(), tiny.images(3), lambda model, images: images[..., 0])
    for values in correlations.values():
      np.testing.assert_allclose(values, 1)


if __name__ == "__main__":
  absltest.main()
