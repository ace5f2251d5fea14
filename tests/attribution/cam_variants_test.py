"""Tests of the CAM family, all but Grad-CAM."""

import functools

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from tests import export_helpers as helpers
from tests import tiny

# All tests share these models: leave them unchanged.
_net = functools.partial(helpers.net, size=tiny.SIZE, width=4)
_layers = keras.layers
_METHODS = (attribution.cam, attribution.hires_cam, attribution.layer_cam,
            attribution.grad_cam_plus_plus, attribution.score_cam)
# Float32 rounding: of a few operations by hand, or of convolutions and sums of
# batches of another size or of another graph.
_ROUNDING = 1e-5


@functools.cache
def _pruned():
  """Wrapped, with masks of ones."""
  return tiny.prune(_net(), 0.0)


def _two_places():
  """One row of two positions, two channels, and a dense layer on all four."""
  model = keras.Sequential([
      _layers.Conv2D(2, 1, name="features", input_shape=(1, 2, 2)),
      _layers.Flatten(), _layers.Dense(1, name="logits")])
  model.set_weights([
      np.eye(2, dtype=np.float32).reshape(1, 1, 2, 2), np.zeros(2, np.float32),
      np.float32([[1], [-1], [3], [2]]), np.zeros(1, np.float32)])
  # A = (2, 5) and (4, 1); gradients (1, -1) and (3, 2).
  return model, np.float32([[[[2, 5], [4, 1]]]])


class CamFamilyTest(parameterized.TestCase):

  def test_hires_cam_by_hand(self):
    model, image = _two_places()
    np.testing.assert_allclose(  # 2 - 5 < 0; 12 + 2.
        attribution.hires_cam(model, image, 1, "features"), [[[0, 14]]],
        rtol=_ROUNDING)

  def test_layer_cam_by_hand(self):
    model, image = _two_places()
    np.testing.assert_allclose(  # 2, the negative gradient cut; 14.
        attribution.layer_cam(model, image, 1, "features"), [[[2, 14]]],
        rtol=_ROUNDING)

  def test_grad_cam_plus_plus_by_hand(self):
    model, image = _two_places()
    # Channel 1: sums of features 6; alpha = 1 / (2 + 6 g): 1/8 and 1/20; weight
    # 1/8 + 3/20 = .275. Channel 2: sum 6; g = 2: 1/14; weight 2/14.
    weights = np.array([1 / 8 + 3 / 20, 2 / 14])
    np.testing.assert_allclose(
        attribution.grad_cam_plus_plus(model, image, 1, "features"),
        [[[weights @ [2, 5], weights @ [4, 1]]]], rtol=_ROUNDING)

  def test_score_cam_by_hand(self):
    model, image = _two_places()
    # H: channel 1 (2, 4) -> (0, 1), channel 2 (5, 1) -> (1, 0). Behind them
    # the image scores 3 * 4 + 2 * 1 = 14 and 2 - 5 = -3.
    share = 1 / (1 + np.exp(-17.0))
    want = share * np.array([2, 4]) + (1 - share) * np.array([5, 1])
    np.testing.assert_allclose(
        attribution.score_cam(model, image, 1, "features"), [[want]],
        rtol=_ROUNDING)

  def test_cam_holds_the_score(self):
    model, pictures = _net(), tiny.images(5)
    logits = model(pictures).numpy()
    bias = model.get_layer("logits").get_weights()[1]
    for target in range(3):
      maps = attribution.cam(model, pictures, target, "act")
      # Float32 sums over 36 positions; score and bias cancel in part.
      np.testing.assert_allclose(
          maps.mean((1, 2)), logits[:, target] - bias[target], rtol=1e-4,
          atol=1e-5)

  def test_cam_needs_its_head(self):
    with self.assertRaisesRegex(ValueError, "CAM needs a global average"):
      attribution.cam(_net("flatten"), tiny.images(), layer="act")

  def test_hires_cam_is_grad_cam_behind_an_average(self):
    model, pictures = _net(), tiny.images(5)
    # Float32 sums over positions and channels, taken in another order.
    np.testing.assert_allclose(
        attribution.hires_cam(model, pictures),
        attribution.grad_cam(model, pictures), rtol=1e-4, atol=1e-6)

  @parameterized.parameters(*_METHODS)
  def test_a_class_for_each_image(self, method):
    model, pictures = _net(), tiny.images(4)
    got = method(model, pictures, [2, 0, 1, 1], batch_size=3)
    each = [method(model, pictures[[i]], k)[0]
            for i, k in enumerate([2, 0, 1, 1])]
    # Far above _ROUNDING, so that the maps are not all zero.
    self.assertGreater(np.abs(got).max(), 1e-3)
    np.testing.assert_allclose(got, each, atol=_ROUNDING)
    top = model(pictures).numpy().argmax(1)
    # The same batch as a whole: less is left than of single images.
    np.testing.assert_allclose(
        method(model, pictures), method(model, pictures, top), atol=1e-6)

  @parameterized.parameters(*_METHODS)
  def test_wrapped_nets_and_softmax_heads(self, method):
    pictures = tiny.images(3)
    plain = method(_net(), pictures, 1, "act")
    np.testing.assert_allclose(
        method(_net(head="softmax"), pictures, 1, "act"), plain,
        atol=_ROUNDING)
    np.testing.assert_allclose(
        method(_pruned(), pictures, 1, "act"), plain, atol=_ROUNDING)


if __name__ == "__main__":
  absltest.main()
