"""Tests of linearize.py, bias_terms.py and full_grad.py."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution.full_grad import full_grad
from keras_attr_preserve.attribution.linearize import linearize
from tests import channel_nets, tiny

_layers = keras.layers
# The last bits of small whole numbers, which float32 holds exactly.
WHOLE = 1e-6


class LinearizeTest(parameterized.TestCase):

  def test_by_hand(self):
    # Hidden: relu(2 x1 - x2 + 1) = 2 and relu(-x1) = 0; score 3 h1 + 5 h2 - 1.
    x = inputs = keras.Input([1, 2, 1])
    x = _layers.Dense(2, "relu")(_layers.Flatten()(x))
    model = keras.Model(inputs, _layers.Dense(1)(x))
    model.set_weights([np.float32([[2, -1], [-1, 0]]), np.float32([1, 0]),
                       np.float32([[3], [5]]), np.float32([-1])])
    form = linearize(model, np.float32([[[[1], [1]]]]))
    np.testing.assert_allclose(form.weights.ravel(), [6, -3], rtol=WHOLE)
    np.testing.assert_allclose(form.offset, [[2]], rtol=WHOLE)
    np.testing.assert_allclose(form.scores, [[5]], rtol=WHOLE)
    np.testing.assert_allclose(form.residual, [[0]], atol=WHOLE)
    np.testing.assert_allclose(
        form.contributions(np.float32([[[[1], [1]]]])), [[[[6, -3]]]])

  @parameterized.named_parameters(
      ("residual", lambda x: _layers.ReLU()(_layers.Add()([
          channel_nets.conv(x, 4, "a"), channel_nets.conv(x, 4, "b")]))),
      ("relu6", lambda x: _layers.ReLU(6.0)(
          _layers.Rescaling(8.0, 1.0)(channel_nets.conv(x, 6, "a")))),
      ("pools", lambda x: _layers.AveragePooling2D(2)(_layers.MaxPool2D(2)(
          channel_nets.conv(x, 6, "a")))),
      ("depthwise", lambda x: _layers.LeakyReLU()(
          _layers.DepthwiseConv2D(3)(channel_nets.conv(x, 6, "a")))),
  )
  def test_piecewise_linear_nets(self, build):
    model = channel_nets.net(build)
    pictures = tiny.images(4, size=8)
    form = linearize(model, pictures, batch_size=3)
    # Float32 through the layers, and weights summed over 128 values.
    np.testing.assert_allclose(form.residual, 0, atol=1e-4)
    # The same float32 sums in another function, maybe in another order.
    np.testing.assert_allclose(form.scores, model(pictures), atol=1e-5)
    # Without offsets the residual would say nothing of them.
    self.assertGreater(np.abs(form.offset).max(), 1e-3)
    # The same image, moved a little, is on the same piece.
    moved = pictures + 1e-4 * np.sign(tiny.images(4, 5, 8))
    change = np.einsum("ikhwc,ihwc->ik", form.weights, moved - pictures)
    # Scores of size 1, rounded to float32, and changes of 1e-4: 1.3 % of them
    # at most was measured.
    self.assertLess(tiny.relative_error(
        model(moved).numpy() - form.scores, change), 0.04)

  def test_a_curved_net_has_a_residual(self):
    form = linearize(tiny.conv_net(activation="softplus"), tiny.images(3))
    # Rounding stays below 1e-4; the curvature is what is left.
    self.assertGreater(np.abs(form.residual).max(), 1e-2)

  def test_chosen_classes_and_wrapped_nets(self):
    model, pictures = tiny.conv_net(tail="block"), tiny.images(3)
    whole, chosen = linearize(model, pictures), linearize(
        tiny.prune(tiny.copy_of(model), 0.0), pictures, [2, 0])
    # The wrapped model is another function: float32 sums in another order.
    np.testing.assert_allclose(chosen.weights, whole.weights[:, [2, 0]],
                               atol=1e-5)
    np.testing.assert_allclose(
        chosen.offset, whole.offset[:, [2, 0]], atol=1e-5)
    with self.assertRaisesRegex(ValueError, r"classes must be .* in 0\.\.2"):
      linearize(model, pictures, [3])


class FullGradTest(absltest.TestCase):

  def test_by_hand(self):
    # One layer on a row of two pixels: score = mean(relu(2 x + 1)); both alive.
    # Pixels: x g = (1, 3) -> 0, 1. The bias: 1 x .5 at both, even -> 0, 0.
    model = keras.Sequential([
        _layers.Conv2D(1, 1, activation="relu", input_shape=(1, 2, 1)),
        _layers.GlobalAveragePooling2D()])
    model.set_weights([np.float32([[[[2]]]]), np.float32([1])])
    np.testing.assert_allclose(
        full_grad(model, np.float32([[[[1], [3]]]]), 1), [[[0, 1]]], atol=WHOLE)
    # A dead second pixel: its bias has no gradient, the first one's does.
    np.testing.assert_allclose(
        full_grad(model, np.float32([[[[1], [-3]]]]), 1), [[[2, 0]]],
        atol=WHOLE)

  def test_wrapped_nets(self):
    pictures = tiny.images(3)
    got = full_grad(tiny.conv_net(tail="block"), pictures, [0, 1, 2])
    self.assertEqual(got.shape, (3, 6, 6))
    # Each channel is divided by its range: float32 rounding of the gradients
    # grows where that is small.
    np.testing.assert_allclose(
        full_grad(tiny.prune(tiny.conv_net(tail="block"), 0.0), pictures,
                  [0, 1, 2]), got, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
