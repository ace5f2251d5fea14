"""Tests of layer_sparsities.py: how much of each layer to prune."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
    IterativePruning,
    layer_sparsities,
    prune_layers,
)
from keras_attr_preserve.compression.layer_sparsities import lamp_scores
from tests import tiny


def _net(*kernels):
  """Dense layers without biases that have these kernels."""
  inputs = x = keras.Input([len(kernels[0])])
  for number, kernel in enumerate(kernels):
    x = keras.layers.Dense(
        len(kernel[0]), use_bias=False, name=f"dense{number}")(x)
  model = keras.Model(inputs, x)
  model.set_weights([np.array(values, np.float32) for values in kernels])
  return model


class LampScoresTest(absltest.TestCase):

  def test_by_hand(self):
    # Squares 1, 9, 4: of the 1 all three are left, of the 4 two, of the 9 one.
    np.testing.assert_allclose(
        lamp_scores(np.array([[1.0, -3.0, 2.0]])), [[1 / 14, 1, 4 / 13]])

  def test_scale_does_not_count(self):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5))
    # Float64 sums of at most 90 squares, scaled by a million.
    np.testing.assert_allclose(
        lamp_scores(kernel), lamp_scores(1000 * kernel), rtol=1e-12)

  def test_order_is_that_of_magnitudes(self):
    kernel = np.random.default_rng(1).normal(size=50)
    self.assertSequenceEqual(
        np.argsort(lamp_scores(kernel)).tolist(),
        np.argsort(np.abs(kernel)).tolist())

  def test_zeros(self):
    np.testing.assert_array_equal(lamp_scores(np.zeros([2, 2])), 0)


class LayerSparsitiesTest(parameterized.TestCase):

  def test_by_hand(self):
    # Scores 1/14, 4/13 and 1; of three equal weights 1/3, 1/2 and 1.
    model = _net([[1, -3, 2]], [[5], [5], [5]])
    self.assertEqual(layer_sparsities(model, 0.5),
                     {"dense0": 2 / 3, "dense1": 1 / 3})

  def test_as_many_go_as_asked(self):
    model = tiny.conv_net(tail="block", width=16)
    for sparsity in (0.1, 0.5, 0.9):
      shares = layer_sparsities(model, sparsity)
      self.assertCountEqual(shares, ["conv", "conv2", "logits"])
      sizes = {name: model.get_layer(name).get_weights()[0].size
               for name in shares}
      gone = sum(shares[name] * sizes[name] for name in shares)
      self.assertAlmostEqual(
          gone / sum(sizes.values()), sparsity, delta=1 / sum(sizes.values()))

  def test_what_is_excluded_is_whole_and_not_counted(self):
    model = tiny.conv_net(tail="depthwise", width=16)
    shares = layer_sparsities(model, 0.5, exclude=["conv", "logits"])
    self.assertEqual([*shares], ["conv2"])  # No depthwise kernel.
    self.assertAlmostEqual(shares["conv2"], 0.5, delta=1 / 256)

  @parameterized.parameters(0.001, 0.999)
  def test_one_weight_stays(self, sparsity):
    model = _net([[0, 0, 0]], [[5], [5], [5]], [[1.0, 2.0]])
    for share in layer_sparsities(model, sparsity).values():
      self.assertLess(share, 1)

  @parameterized.parameters(
      ({"sparsity": 0}, "between 0 and 1; got 0"),
      ({"sparsity": 1.0}, "between 0 and 1; got 1.0"),
      ({"sparsity": float("nan")}, "got nan"),
      ({"sparsity": True}, "got True"),
      ({"sparsity": 0.5, "exclude": "conv9"}, "has no 'conv9'"),
      ({"sparsity": 0.5, "exclude": ["conv", "logits"]}, "left to prune"))
  def test_errors(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      layer_sparsities(tiny.conv_net(), **settings)

  def test_weights_that_are_not_finite(self):
    with self.assertRaisesRegex(ValueError, "'dense1' has weights"):
      layer_sparsities(_net([[1.0, 2.0]], [[np.nan], [1.0]]), 0.5)


class PruneLayersTest(parameterized.TestCase):

  def test_each_layer_to_its_own(self):
    model = tiny.conv_net(tail="block", width=8)
    before = [weight.copy() for weight in model.get_weights()]
    student = prune_layers(
        model, {"conv2": 0.75, "conv": 0.0, "logits": 0.25},
        lambda share: IterativePruning.reaching(
            share, rounds=2, steps_per_round=2))
    student.compile("sgd", tiny.cross_entropy())
    student.fit(tiny.images(8), tiny.labels(8), batch_size=4, epochs=2,
                verbose=0, callbacks=[
                    tfmot.sparsity.keras.UpdatePruningStep()])
    stripped = tfmot.sparsity.keras.strip_pruning(student)
    for name, share in (("conv", 0), ("conv2", 0.75), ("logits", 0.25)):
      kernel = stripped.get_layer(name).get_weights()[0]
      self.assertEqual(np.mean(kernel == 0), share, name)
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))

  @parameterized.parameters(
      ({"conv9": 0.5}, "has no 'conv9'"),
      ({"conv": 1.0}, r"sparsities\['conv'\] must be .* got 1.0"),
      ({"conv": float("nan")}, "got nan"))
  def test_errors(self, sparsities, message):
    with self.assertRaisesRegex(ValueError, message):
      prune_layers(tiny.conv_net(), sparsities, lambda share: None)


class ReachingTest(parameterized.TestCase):

  @parameterized.parameters((0.9, 10), (0.972, 16), (0.5, 1))
  def test_the_last_round_reaches_it(self, sparsity, rounds):
    schedule = IterativePruning.reaching(
        sparsity, rounds=rounds, steps_per_round=3, begin_step=4)
    self.assertEqual((schedule.rounds, schedule.begin_step), (rounds, 4))
    _, reached = schedule(schedule.end_step)
    # A float32 power of up to 16 rounds.
    self.assertAlmostEqual(float(reached), sparsity, places=6)

  @parameterized.parameters(
      (0.0, ValueError), (1.0, ValueError), (True, TypeError), ("1", TypeError))
  def test_errors(self, sparsity, kind):
    with self.assertRaisesRegex(kind, "sparsity must be"):
      IterativePruning.reaching(sparsity, rounds=2, steps_per_round=1)


if __name__ == "__main__":
  absltest.main()
