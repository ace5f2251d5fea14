"""The gradient methods and occlusion beside Captum, the same model in PyTorch.

Captum 0.9.0 on PyTorch 2.13.0. Both sides compute in float32; a tolerance is a
share of a map's largest magnitude, and the measured value stands beside it.
"""

import functools
import importlib.util
import warnings
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution

for _name, _title in (("torch", "PyTorch"), ("captum", "Captum")):
  if importlib.util.find_spec(_name) is None:
    pytest.skip(f"{_title} is not installed; `make peer-test` installs it",
                allow_module_level=True)
import torch  # noqa: E402
from captum import attr as peer  # noqa: E402

from tests.peers import peer_nets, torch_nets  # noqa: E402

layers = keras.layers
# Measured at most 5e-6 on all models of this file (occlusion).
ROUNDING = 2e-5


@functools.cache
def _case(name):
  """A model by name or by seed, the same in PyTorch, images and classes."""
  model = (peer_nets.deep(name) if isinstance(name, int)
           else peer_nets.small(name))
  return (model, torch_nets.to_torch(model), peer_nets.pictures(model),
          peer_nets.targets(model))


def _peer(explainer, images, classes, **options):
  """Runs a Captum method; gives `[batch, height, width, colours]`."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # On hooks, and on gradients it turns on.
    return torch_nets.channels_last(explainer.attribute(
        torch_nets.channels_first(images), target=torch.tensor(classes),
        **options))


ALL = [(name,) for name in (*peer_nets.BUILDERS, *peer_nets.CHANCE)]


class CarriedNetsTest(parameterized.TestCase):

  @parameterized.parameters(*ALL)
  def test_logits(self, name):
    model, twin, images, _ = _case(name)
    outputs = model(images).numpy()
    with torch.no_grad():
      logits = twin(torch_nets.channels_first(images)).numpy()
    if name == "flattened":  # It ends in a softmax.
      logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Float32 summed in another order: measured at most 2e-6.
    np.testing.assert_allclose(
        logits, outputs, atol=1e-5 * np.abs(outputs).max())

  def test_every_layer(self):
    for name in peer_nets.BUILDERS:
      model, twin, images, _ = _case(name)
      for layer in model.layers:
        if not isinstance(layer, layers.Conv2D | layers.ReLU):
          continue
        seen = []
        handle = twin.layer(layer.name).register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(output))
        twin(torch_nets.channels_first(images))
        handle.remove()
        want = keras.Model(model.input, layer.output)(images).numpy()
        got = seen[0].detach().numpy() if want.ndim == 2 else (
            torch_nets.channels_last(seen[0]))
        # Float32 features of size 1, summed in another order.
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=layer.name)

  def test_what_cannot_be_carried(self):
    inputs = keras.Input([4, 4, 2])
    with self.assertRaisesRegex(ValueError, "no PyTorch module is known"):
      torch_nets.to_torch(
          keras.Model(inputs, layers.LayerNormalization()(inputs)))
    with self.assertRaisesRegex(ValueError, "neither a ReLU nor a ReLU6"):
      torch_nets.to_torch(keras.Model(inputs, layers.ReLU(4.0)(inputs)))


class PictureMapsTest(parameterized.TestCase):

  @parameterized.parameters(*ALL)
  def test_saliency(self, name):
    model, twin, images, classes = _case(name)
    want = _peer(peer.Saliency(twin), images, classes).max(-1)
    peer_nets.check_close(
        f"saliency, {name}", attribution.saliency(model, images, classes),
        want, ROUNDING)

  @parameterized.parameters(*ALL)
  def test_gradient_x_input(self, name):
    model, twin, images, classes = _case(name)
    want = _peer(peer.InputXGradient(twin), images, classes).sum(-1)
    peer_nets.check_close(
        f"gradient x input, {name}",
        attribution.gradient_x_input(model, images, classes), want, ROUNDING)

  @parameterized.parameters(*ALL)
  def test_integrated_gradients(self, name):
    model, twin, images, classes = _case(name)
    # Captum's n steps are n points, our steps are the n - 1 intervals between.
    # Captum's weights add up to (n - 1) / n; see below.
    for baseline in (0.0, 0.3):
      want = 8 / 7 * _peer(peer.IntegratedGradients(twin), images, classes,
                           baselines=baseline, n_steps=8,
                           method="riemann_trapezoid").sum(-1)
      got = attribution.integrated_gradients(
          model, images, classes, baseline=baseline, steps=7)
      peer_nets.check_close(f"integrated gradients from {baseline}, {name}",
                            got, want, ROUNDING)

  def test_captum_s_trapezoid_loses_one_part_in_n(self):
    # score = 2 x0 + 3 x1: every method gives (2 x0, 3 x1) = (4, 3).
    model = keras.Sequential([
        layers.Flatten(input_shape=(1, 2, 1)), layers.Dense(1)])
    model.set_weights([np.float32([[2], [3]]), np.float32([5])])
    image = np.float32([[[[2], [1]]]])
    # Float32 means over five points of a gradient that stays the same.
    np.testing.assert_allclose(
        attribution.integrated_gradients(model, image, 1, steps=4),
        [[[4, 3]]], rtol=1e-6)
    twin = torch_nets.to_torch(model)
    for steps in (2, 4, 50):
      got = _peer(peer.IntegratedGradients(twin), image, [0], n_steps=steps,
                  method="riemann_trapezoid")
      # Captum's float32 sums over up to 50 points, whose weights round.
      np.testing.assert_allclose(
          got[..., 0], np.float32([[[4, 3]]]) * (steps - 1) / steps, rtol=1e-5)

  def test_integrated_gradients_by_another_rule(self):
    model, twin, images, classes = _case("residual")
    want = _peer(peer.IntegratedGradients(twin), images, classes, n_steps=300,
                 method="gausslegendre").sum(-1)
    got = attribution.integrated_gradients(model, images, classes, steps=300)
    # Two rules for one integral, whose integrand has steps: measured 8e-3.
    peer_nets.check_close("integrated gradients, Gauss-Legendre", got, want,
                          2e-2)

  @parameterized.parameters(*ALL)
  def test_guided_backprop(self, name):
    model, twin, images, classes = _case(name)
    want = np.abs(_peer(peer.GuidedBackprop(twin), images, classes)).max(-1)
    peer_nets.check_close(
        f"guided backprop, {name}",
        attribution.guided_backprop(model, images, classes), want, ROUNDING)

  def test_captum_does_not_guide_a_relu6(self):
    # score = -relu6(x): a gradient of -1, which guiding stops.
    inputs = keras.Input([1, 2, 1])
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(
        layers.Flatten()(layers.ReLU(6.0)(inputs))))
    model.set_weights([np.float32([[-1], [2]])])
    image = np.float32([[[[2], [3]]]])
    np.testing.assert_array_equal(
        attribution.guided_backprop(model, image, 1), [[[0, 2]]])
    twin = torch_nets.to_torch(model)
    guided = peer.GuidedBackprop(twin)
    np.testing.assert_array_equal(
        _peer(guided, image, [0])[..., 0], [[[0, 2]]])
    setattr(twin, model.layers[1].name, torch.nn.ReLU6())
    twin._steps[0] = twin._steps[0]._replace(run=getattr(
        twin, model.layers[1].name))
    np.testing.assert_array_equal(
        _peer(guided, image, [0])[..., 0], [[[-1, 2]]])

  @parameterized.parameters(("smoothgrad", attribution.smooth_grad),
                            ("vargrad", attribution.var_grad))
  def test_noise(self, kind, ours):
    # Our noise on both sides, seeded as our documentation says.
    samples, seed, share = 6, 4, 0.2
    for name in ("residual", "separable"):
      model, twin, images, classes = _case(name)
      noise = np.stack([[
          tf.random.stateless_normal(
              images.shape[1:], [seed, number * samples + sample]).numpy()
          for sample in range(samples)] for number in range(len(images))])
      size = share * np.ptp(images, axis=(1, 2, 3), keepdims=True)
      noise = (noise * size[:, None]).reshape(-1, *images.shape[1:])
      with mock.patch.object(torch, "normal", lambda *_, noise=noise: (
          torch_nets.channels_first(noise))):
        want = _peer(peer.NoiseTunnel(peer.Saliency(twin)), images, classes,
                     nt_type=kind, nt_samples=samples, abs=False)
      want = np.abs(want).max(-1) if kind == "smoothgrad" else want.max(-1)
      got = ours(model, images, classes, samples=samples, noise=share,
                 seed=seed)
      # Captum's variance is a difference of squares: measured 2e-6.
      peer_nets.check_close(f"{kind}, {name}", got, want, ROUNDING)

  @parameterized.parameters("residual", "separable", "joined", 1)
  def test_occlusion(self, name):
    model, twin, images, classes = _case(name)
    for patch, stride in ((3, 2), (4, 4), (2, 1)):
      if (images.shape[1] - patch) % stride:
        continue  # At the edge the two differ by definition: see below.
      want = _peer(
          peer.Occlusion(twin), images, classes, baselines=0.25,
          sliding_window_shapes=(2, patch, patch), strides=(2, stride, stride),
          perturbations_per_eval=32)
      got = attribution.occlusion(
          model, images, classes, patch=patch, stride=stride, baseline=0.25,
          batch_size=1000)
      peer_nets.check_close(f"occlusion {patch} by {stride}, {name}", got,
                            want[..., 0], ROUNDING)

  def test_occlusion_at_the_edge(self):
    # score = the sum of five pixels 1 2 3 4 5, patches of 2 by 2, cover 0.
    # Patches are worth 3 and 7; the last pixel is left over. We set one more
    # patch at the edge, worth 4 + 5; Captum cuts it short, to 5.
    model = keras.Sequential([
        layers.Flatten(input_shape=(1, 5, 1)), layers.Dense(1)])
    model.set_weights([np.ones([5, 1], np.float32), np.float32([0])])
    image = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5, 1)
    got = attribution.occlusion(
        model, image, 1, patch=(1, 2), stride=(1, 2), baseline=0.0)
    np.testing.assert_allclose(got[0], [[3, 3, 7, 8, 9]])
    want = _peer(peer.Occlusion(torch_nets.to_torch(model)), image, [0],
                 baselines=0.0, sliding_window_shapes=(1, 1, 2),
                 strides=(1, 1, 2))
    np.testing.assert_allclose(want[0, ..., 0], [[3, 3, 7, 7, 5]])

  def test_linearization(self):
    for name in ("residual", "separable", 3):
      model, twin, images, _ = _case(name)
      form = attribution.linearize(model, images)
      want = np.stack([
          channels for kind in range(3) for channels in [_peer(
              peer.Saliency(twin), images, [kind] * len(images),
              abs=False)]], 1)
      for kind in range(3):
        peer_nets.check_close(
            f"linearization, {name}", form.weights[:, kind].max(-1),
            want[:, kind].max(-1), ROUNDING)


class LayerMapsTest(parameterized.TestCase):

  def _layers(self, name):
    """Three layers of a model with a spatial map: (Keras name, module)."""
    model, twin, _, _ = _case(name)
    names = [layer.name for layer in model.layers if isinstance(
        layer, layers.Conv2D | layers.DepthwiseConv2D | layers.ReLU |
        layers.Activation) and len(layer.output.shape) == 4]
    names = {names[0], names[len(names) // 2], names[-1]}
    return [(layer_name, twin.layer(layer_name))
            for layer_name in sorted(names)]

  @parameterized.parameters(*ALL)
  def test_grad_cam(self, name):
    model, twin, images, classes = _case(name)
    for layer, module in self._layers(name):
      # Captum averages the gradient over space, as we do.
      want = _peer(peer.LayerGradCam(twin, module), images, classes,
                   relu_attributions=True)[..., 0]
      got = attribution.grad_cam(model, images, classes, layer)
      signed = np.abs(_peer(
          peer.LayerGradCam(twin, module), images, classes)).max()
      self._close(f"Grad-CAM, {name} {layer}", got, want, signed)

  @parameterized.parameters(*ALL)
  def test_hires_cam_and_layer_cam(self, name):
    model, twin, images, classes = _case(name)
    for layer, module in self._layers(name):
      features, gradient = (
          _peer(peer.LayerGradientXActivation(
              twin, module, multiply_by_inputs=by), images, classes)
          for by in (True, False))
      got = attribution.hires_cam(model, images, classes, layer)
      want = np.maximum(features.sum(-1), 0)
      self._close(f"HiRes-CAM, {name} {layer}", got, want,
                  np.abs(features).max())
      got = attribution.layer_cam(model, images, classes, layer)
      want = np.maximum((features * (gradient > 0)).sum(-1), 0)
      self._close(f"Layer-CAM, {name} {layer}", got, want,
                  np.abs(features).max())

  def _close(self, name, got, want, size):
    """Against the largest map with its sign: a ReLU may leave rounding."""
    error = np.abs(got - want).max() / size
    print(f"{name}: largest difference {error:.1e}")
    self.assertEqual(got.shape, want.shape)
    self.assertLessEqual(error, ROUNDING, name)


class HandWorkedTest(absltest.TestCase):
  """A model whose maps are worked out by hand, on both sides.

  Images 4x4 of 0..15; two filters of 3x3 ones; ReLU; and a score that adds up
  the first channel and the first place of the second, less its other places.
  The features of both channels are nine times the window's middle: 45 54 / 81
  90. Score: 270 + 45 - 225 = 90.
  """

  def setUp(self):
    super().setUp()
    self.model = keras.Sequential([
        layers.Conv2D(2, 3, activation="relu", input_shape=(4, 4, 1),
                      name="conv"),
        layers.Flatten(), layers.Dense(1)])
    weights = np.float32([[1, 1], [1, -1], [1, -1], [1, -1]]).reshape(8, 1)
    self.model.set_weights([
        np.ones([3, 3, 1, 2], np.float32), np.zeros(2, np.float32), weights,
        np.zeros(1, np.float32)])
    self.net = torch_nets.to_torch(self.model)
    self.picture = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)

  def check(self, ours, method, want, **options):
    got = ours(self.model, self.picture, 1)
    # Whole numbers and quarters, which float32 convolutions may yet round.
    np.testing.assert_allclose(got[0], want, rtol=1e-5)
    peer_map = _peer(method, self.picture, [0], **options)
    np.testing.assert_allclose(peer_map[0, ..., 0], want, rtol=1e-5)

  def test_picture(self):
    # The gradient of the features adds up to 2 at the first place, 0 elsewhere.
    first = np.zeros([4, 4])
    first[:3, :3] = 2
    self.check(attribution.saliency, peer.Saliency(self.net), first)
    self.check(attribution.gradient_x_input, peer.InputXGradient(self.net),
               first * self.picture[0, ..., 0])
    # Guided, the places of the second channel that count against are left out:
    # 2 at the first place, 1 at the others.
    self.check(attribution.guided_backprop, peer.GuidedBackprop(self.net),
               [[2, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]])

  def test_layer(self):
    module = self.net.layer("conv")
    # Weights 1 and (1 - 3) / 4.
    self.check(attribution.grad_cam, peer.LayerGradCam(self.net, module),
               [[22.5, 27], [40.5, 45]], relu_attributions=True)
    np.testing.assert_allclose(
        attribution.hires_cam(self.model, self.picture, 1)[0],
        [[90, 0], [0, 0]])
    np.testing.assert_allclose(
        attribution.layer_cam(self.model, self.picture, 1)[0],
        [[90, 54], [81, 90]])


if __name__ == "__main__":
  absltest.main()
