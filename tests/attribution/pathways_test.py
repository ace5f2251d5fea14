"""Tests of pathways.py."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from keras_attr_preserve.attribution.pathways import (
  pathway_gradient,
  select_pathway,
)
from tests import channel_nets, tiny

_layers = keras.layers


def _dense():
  """Four hidden units, then two, then a score, all with ReLU but the last."""
  x = inputs = keras.Input([1, 2, 1])
  x = _layers.Dense(4, "relu", name="first")(_layers.Flatten()(x))
  x = _layers.Dense(2, "relu", name="second")(x)
  model = keras.Model(inputs, _layers.Dense(1)(x))
  model.set_weights([
      np.float32([[1, 2, 0, -1], [0, 0, 1, 0]]), np.zeros(4, np.float32),
      np.float32([[1, 0], [1, 1], [0, 3], [9, 9]]), np.float32([-3, 0]),
      np.float32([[2], [-1]]), np.zeros(1, np.float32)])
  return model, np.float32([[[[2], [1]]]])
  # First: 2, 4, 1, 0. Second: 6 - 3 = 3 and 4 + 3 = 7. Score 6 - 7 = -1.


class SelectTest(parameterized.TestCase):

  def test_mct_by_hand(self):
    model, image = _dense()
    # dy/da: second (2, -1); first (2, 2 - 1, -3, not alive). Scores: 6, 7 and
    # 4, 4, 3, 0.
    for keep, first, second in (
        (1 / 6, [0, 0, 0, 0], [0, 1]), (2 / 6, [0, 0, 0, 0], [1, 1]),
        (4 / 6, [1, 1, 0, 0], [1, 1]), (1.0, [1, 1, 1, 0], [1, 1])):
      path = select_pathway(model, image, 1, keep=keep)
      self.assertEqual([name.split("/")[0] for name in path.units],
                       ["first", "second"])
      got = list(path.units.values())
      np.testing.assert_array_equal(got[0], [np.bool_(first)])
      np.testing.assert_array_equal(got[1], [np.bool_(second)])
    self.assertEqual([float(shares[0]) for shares in path.shares().values()],
                     [0.75, 1.0])
    self.assertEqual([float(shares[0]) for shares in path.dead().values()],
                     [0.25, 0.0])

  def test_intgrad_by_hand(self):
    model, image = _dense()
    # At j/4 of the first layer the first unit of the second is alive where
    # 6 j/4 > 3: j = 3 and 4, half the way. So dy/da = (1, 1 - 1, -3): scores
    # 2, 0, 3, 0; the second layer is linear above: 6, 7.
    path = select_pathway(
        model, image, 1, method="intgrad", steps=4, keep=4 / 6)
    first, second = path.units.values()
    np.testing.assert_array_equal(first, [[True, False, True, False]])
    np.testing.assert_array_equal(second, [[True, True]])

  def test_intgrad_past_a_residual(self):
    def build(x):
      x = channel_nets.conv(x, 4, "a")
      return _layers.ReLU()(
          _layers.Add()([x, channel_nets.conv(x, 4, "b")]))
    model = channel_nets.net(build)
    pictures = tiny.images(3, size=8)
    one_step = select_pathway(model, pictures, 0, method="intgrad", steps=1)
    # One step is the gradient itself.
    np.testing.assert_array_equal(
        one_step.overlap(select_pathway(model, pictures, 0)), 1)
    many = select_pathway(model, pictures, 0, method="intgrad", steps=8)
    self.assertLess(many.overlap(one_step).min(), 1)

  def test_keep_and_overlap(self):
    model, pictures = tiny.conv_net(tail="block"), tiny.images(4)
    path = select_pathway(model, pictures, 1, keep=0.2, batch_size=3)
    total = np.concatenate(
        [units.reshape(4, -1) for units in path.units.values()], 1)
    # Rounded up to whole units of 288; ties and dead units move some.
    np.testing.assert_allclose(total.mean(1), 0.2, atol=0.02)
    np.testing.assert_array_equal(path.overlap(path), 1)
    other = select_pathway(model, pictures, 0, keep=0.2)
    overlap = path.overlap(other)
    both, either = (sum(op(a, b).reshape(4, -1).sum(1) for a, b in zip(
        path.units.values(), other.units.values()))
                    for op in (np.logical_and, np.logical_or))
    np.testing.assert_allclose(overlap, both / either)
    pruned = select_pathway(
        tiny.prune(tiny.copy_of(model), 0.0), pictures, 1, keep=0.2)
    # Less than one of 58 units, which is .017 or more.
    np.testing.assert_allclose(path.overlap(pruned), 1, atol=0.01)
    with self.assertRaisesRegex(ValueError, "ReLUs of the same shapes"):
      path.overlap(select_pathway(tiny.conv_net(), pictures))


class GradientTest(absltest.TestCase):

  def test_by_hand(self):
    model, image = _dense()
    # Kept: both of the second layer and units 1, 2 of the first. Gradient of
    # x1: 2 * 1 + (2 - 1) * 2 = 4; of x2, by unit 3 alone: 0.
    np.testing.assert_allclose(
        pathway_gradient(model, image, 1, keep=4 / 6), [[[4, 0]]])
    np.testing.assert_allclose(
        pathway_gradient(model, image, 1, keep=1.0), [[[4, 3]]])

  def test_everything_kept_is_saliency(self):
    model, pictures = tiny.conv_net(tail="flatten"), tiny.images(3)
    # Float32 gradients of another graph.
    np.testing.assert_allclose(
        pathway_gradient(model, pictures, 1, keep=1.0),
        attribution.saliency(model, pictures, 1), rtol=1e-4, atol=1e-6)
    quantized = tiny.quantize(tiny.conv_net())
    quantized(pictures, training=True)
    self.assertGreater(pathway_gradient(quantized, pictures).max(), 0)

  def test_bad_settings(self):
    model, pictures = tiny.conv_net(), tiny.images(1)
    with self.assertRaisesRegex(ValueError, "method must be one of"):
      select_pathway(model, pictures, method="greedy")
    with self.assertRaisesRegex(ValueError, "keep must be above 0"):
      select_pathway(model, pictures, keep=0.0)
    with self.assertRaisesRegex(ValueError, "has no ReLU"):
      select_pathway(tiny.conv_net(activation="softplus"), pictures)


if __name__ == "__main__":
  absltest.main()
