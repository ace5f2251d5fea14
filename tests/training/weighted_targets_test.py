"""Weights of the logits as targets: several classes at once, or one less one.

A weighted sum of logits is the logit of another model, whose head has the
weighted sum of the first head's columns. Every method must give both the same
map. Methods that are linear in the score give, of two classes, the sum of their
maps.
"""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from tests import tiny

# Float32 maps are summed by weights, or the head's columns before them. The
# share of a map's largest value is for sums of both signs that nearly cancel.
RTOL, SHARE = 1e-4, 1e-5
WEIGHTS = np.float32([[1, 1, 0], [0, 1, 1], [2, 0, -1], [0.5, -1, 0]])
SETTINGS = {
    "integrated_gradients": dict(steps=5), "tf_explain": dict(steps=5),
    "smooth_grad": dict(samples=3), "var_grad": dict(samples=3),
    "occlusion": dict(patch=2, stride=2), "rise": dict(masks=20, cells=2)}
LINEAR = ("gradient_x_input", "integrated_gradients", "occlusion", "rise",
          "lrp", "excitation_backprop")
AT_LAYER = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam",
            "score_cam", "equal_weighted")
OTHERS = ("saliency", "smooth_grad", "var_grad", "guided_backprop", "full_grad",
          "pathway_gradient", "tf_explain")


def _method(name):
  return functools.partial(
      getattr(attribution, name), **SETTINGS.get(name, {}))


@functools.cache
def _net(tail="block"):
  return tiny.conv_net(tail=tail)


@functools.cache
def _summed(tail):
  """The model of the weighted sums of the given model's logits, a row each."""
  model, twin = _net(tail), tiny.conv_net(tail=tail, classes=len(WEIGHTS))
  for layer in twin.layers:
    layer.set_weights(model.get_layer(layer.name).get_weights()
                      if layer.name != "logits" else [
        weight @ WEIGHTS.T
        for weight in model.get_layer("logits").get_weights()])
  return twin


class WeightedTargetsTest(parameterized.TestCase):

  def assert_same(self, got, want):
    """By the largest value: some methods' maps reach no more than .002."""
    np.testing.assert_allclose(
        got, want, rtol=RTOL, atol=SHARE * min(1, np.abs(want).max()))

  @parameterized.parameters(*LINEAR)
  def test_two_classes_are_the_sum_of_their_maps(self, name):
    model, pictures = _net(), tiny.images(4)
    method = _method(name)
    single = np.stack([method(model, pictures, k) for k in range(3)])
    got = method(model, pictures, WEIGHTS)
    want = np.einsum("kihw,ik->ihw", single, WEIGHTS)
    # Maps as small as rounding would agree whatever they are.
    self.assertGreater(np.abs(want).max(), 1e-3)
    self.assert_same(got, want)

  @parameterized.parameters(
      *LINEAR[:-2], *AT_LAYER, *OTHERS)
  def test_the_sum_of_logits_is_a_logit(self, name):
    pictures, method = tiny.images(4), _method(name)
    got = method(_net("flatten"), pictures, WEIGHTS)
    # A pathway of few units may not reach the image.
    self.assertGreater(got.any((1, 2)).sum(), 2)
    self.assert_same(got, method(_summed("flatten"), pictures, range(4)))

  def test_cam(self):
    pictures = tiny.images(4)
    self.assert_same(
        attribution.cam(_net("gap"), pictures, WEIGHTS),
        attribution.cam(_summed("gap"), pictures, range(4)))

  @parameterized.parameters("saliency", "grad_cam", "score_cam", "lrp",
                            "relative_attributing_propagation")
  def test_one_hot_is_the_class(self, name):
    model, pictures = _net(), tiny.images(4)
    classes = np.array([2, 0, 1, 1])
    method = _method(name)
    np.testing.assert_array_equal(
        method(model, pictures, np.eye(3, dtype=np.float32)[classes]),
        method(model, pictures, classes))

  def test_linearize_has_every_class(self):
    model, pictures = _net(), tiny.images(4)
    contributions = attribution.linearize(
        model, pictures).contributions(pictures)
    self.assert_same(
        attribution.gradient_x_input(model, pictures, WEIGHTS),
        np.einsum("ikhw,ik->ihw", contributions, WEIGHTS))


if __name__ == "__main__":
  absltest.main()
