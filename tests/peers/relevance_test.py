"""Relevance beside zennit and Captum, the same model in PyTorch.

Zennit 0.5.1 and Captum 0.9.0 on PyTorch 2.13.0. Both sides compute in float32
with denominators that are pushed off zero by 1e-6 at most. A tolerance is a
share of a map's largest magnitude; the measured value stands beside it.
"""

import functools
import importlib.util
import warnings

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from keras_attr_preserve.attribution.relevance.lrp import PRESETS as OURS

for _name, _title in (("torch", "PyTorch"), ("captum", "Captum"),
                      ("zennit", "zennit")):
  if importlib.util.find_spec(_name) is None:
    pytest.skip(f"{_title} is not installed; `make peer-test` installs it",
                allow_module_level=True)
import torch  # noqa: E402
from captum import attr as captum  # noqa: E402
from captum.attr._utils import lrp_rules  # noqa: E402

from tests import channel_nets  # noqa: E402
from tests.peers import peer_nets, torch_nets, zennit_peer  # noqa: E402

layers = keras.layers
zennit = zennit_peer.zennit
NETS = {
    **{name: functools.partial(peer_nets.small, name)
       for name in peer_nets.BUILDERS},
    **{seed: functools.partial(peer_nets.deep, seed)
       for seed in peer_nets.CHANCE},
    "vgg": lambda: channel_nets.vgg(True),
    "resnet 8": channel_nets.resnet_8,
    "densenet": channel_nets.densenet,
}
# zennit has no rule that shares out evenly what z+ has nothing to go by.
PRESETS = tuple(preset for preset in OURS if not preset.endswith("even"))
_OTHERS = tuple(name for name in NETS if name not in ("separable", "resnet 8"))
# Smaller ones leave sums of large numbers that cancel, where float32 gives out.
EPSILON = 1e-3
TOLERANCE = 1e-4
# Of models worked out by hand: float32 rounding, and what 1e-6 takes from
# denominators of 1 or more, in one or two layers.
BY_HAND = 1e-5


@functools.cache
def _case(name):
  """A model, the same in PyTorch, images and classes."""
  model = NETS[name]()
  return (model, torch_nets.to_torch(model), peer_nets.pictures(model),
          peer_nets.targets(model))


class ZennitTest(parameterized.TestCase):

  def _check(self, preset, name, bias=True):
    model, twin, images, classes = _case(name)
    want = zennit_peer.relevance(twin, zennit_peer.composite(
        preset, twin, images, bias, EPSILON), images, classes)
    got = attribution.lrp(model, images, classes, preset=preset, bias=bias,
                          epsilon=EPSILON)
    # Measured: epsilon alone up to 2e-4 (densenet), the others 4e-5.
    peer_nets.check_close(
        f"{preset}, {name}, bias {bias}", got, want.sum(-1),
        1e-3 if preset == "epsilon" else TOLERANCE)

  @parameterized.product(preset=PRESETS, name=("separable", "resnet 8"))
  def test_lrp(self, preset, name):
    self._check(preset, name)

  @parameterized.product(
      preset=("epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"),
      name=_OTHERS)
  def test_lrp_of_other_nets(self, preset, name):
    self._check(preset, name)

  @parameterized.product(
      preset=[preset for preset in PRESETS if preset not in (
          "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box")],
      name=_OTHERS)
  @pytest.mark.slow("explaining")
  def test_lrp_of_all_nets(self, preset, name):
    if (preset, name) == ("epsilon", "densenet"):
      # zennit passes relevance on through a norm that follows no layer. We
      # take it for a layer, so the rule stays gradient times input:
      # relevance_models_test.py.
      self.skipTest("another rule for norms that come first")
    self._check(preset, name)

  @parameterized.parameters(*PRESETS)
  def test_without_biases(self, preset):
    self._check(preset, "residual", False)

  @parameterized.parameters("epsilon", "epsilon_plus", "epsilon_gamma_box")
  def test_at_a_layer(self, preset):
    for name, layer in (("residual", "stem_act"), ("resnet 8", "s1_act"),
                        ("vgg", "conv1_a_act")):
      model, twin, images, classes = _case(name)
      want = zennit_peer.relevance(
          twin, zennit_peer.composite(preset, twin, images, True, EPSILON),
          images, classes, at=twin.layer(layer))
      got = attribution.lrp(model, images, classes, layer, preset=preset,
                            epsilon=EPSILON)
      peer_nets.check_close(
          f"{preset} at {layer}, {name}", got, want.sum(-1), TOLERANCE)

  @parameterized.parameters(*[(name,) for name in NETS])
  def test_excitation_backprop(self, name):
    model, twin, images, classes = _case(name)
    want = zennit_peer.relevance(
        twin, zennit_peer.composite("excitation_backprop", twin, images),
        images, classes, start="one")
    got = attribution.excitation_backprop(model, images, classes)
    peer_nets.check_close(
        f"excitation backprop, {name}", got, want.sum(-1), TOLERANCE)


class ByHandTest(absltest.TestCase):
  """Different choices of the peers, worked out by hand."""

  def _one(self, kernel, bias, image):
    """A model of one dense layer, in Keras and in PyTorch; an image."""
    model = keras.Sequential([
        layers.Flatten(input_shape=(1, len(image), 1)), layers.Dense(1)])
    model.set_weights([np.float32(kernel)[:, None], np.float32([bias])])
    return (model, torch_nets.to_torch(model),
            np.float32(image).reshape(1, 1, -1, 1))

  def _everywhere(self, rule, sums=None):
    return zennit.composites.LayerMapComposite([
        (torch_nets.Sum, sums or zennit.rules.Norm()),
        (zennit.types.Linear, rule)])

  def test_zennit_gives_biases_relevance_under_z_plus(self):
    # Contributions 2 and 2, bias 4, score 8. We keep all 8 in the image;
    # zennit gives the bias half of it by default.
    model, twin, image = self._one([2, 1], 4, [1, 2])
    np.testing.assert_allclose(
        attribution.lrp(model, image, 1, preset="z_plus"), [[[4, 4]]],
        rtol=BY_HAND)
    for arguments, want in (({}, 2), ({"zero_params": ["bias"]}, 4)):
      got = zennit_peer.relevance(
          twin, self._everywhere(zennit.rules.ZPlus(**arguments)), image, [0])
      np.testing.assert_allclose(got[..., 0], [[[want, want]]], rtol=BY_HAND)

  def test_zennit_shares_sums_by_size_under_z_plus(self):
    # score = relu(x + y), x = 3 and y = -1 from one pixel each: 2. By positive
    # parts x gets it all; by size x gets 3 and y -1.
    inputs = keras.Input([1, 2, 1])
    x = layers.Conv2D(1, 1, name="x")(layers.Cropping2D(((0, 0), (0, 1)))(
        inputs))
    y = layers.Conv2D(1, 1, name="y")(layers.Cropping2D(((0, 0), (1, 0)))(
        inputs))
    model = keras.Model(inputs, layers.Flatten()(
        layers.ReLU()(layers.Add()([x, y]))))
    kernel = np.ones([1, 1, 1, 1], np.float32)
    zero = np.zeros(1, np.float32)
    model.set_weights([3 * kernel, zero, -kernel, zero])
    image = np.ones([1, 1, 2, 1], np.float32)
    np.testing.assert_allclose(
        attribution.lrp(model, image, 1, preset="epsilon"), [[[3, -1]]],
        rtol=BY_HAND)
    np.testing.assert_allclose(
        attribution.lrp(model, image, 1, preset="z_plus"), [[[2, 0]]],
        rtol=BY_HAND)
    summed = torch_nets.Sum()
    summands = torch.tensor([[3.0, -1.0]], requires_grad=True)
    for rule, want in ((zennit.rules.Norm(), [3, -1]),
                       (zennit_peer.PositiveSum(), [2, 0])):
      handle = rule.register(summed)
      got, = torch.autograd.grad(
          summed(summands), summands, torch.tensor([2.0]))
      handle.remove()
      np.testing.assert_allclose(got[0], want, rtol=BY_HAND)

  def test_zennit_leaves_the_epsilon_of_a_norm_it_folds_away(self):
    # (x - 0) / sqrt(3 + 1) = x / 2, then again / sqrt(1 + 1).
    twin = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False),
                               torch.nn.BatchNorm2d(1, eps=1.0)).eval()
    twin[0].weight.data.fill_(1.0)
    twin[1].running_var.fill_(3.0)
    image = torch.full([1, 1, 1, 1], 8.0)
    # Float32 rounding of a product; the norm's epsilon of 1 takes 4 to 2.8.
    self.assertAlmostEqual(twin(image).item(), 4, places=5)
    canonizer = zennit.canonizers.SequentialMergeBatchNorm()
    folded = canonizer.apply(twin)
    self.assertAlmostEqual(twin(image).item(), 4 / 2 ** 0.5, places=5)
    for handle in folded:
      handle.remove()

  def test_captum_s_alpha_rule_takes_inputs_to_be_positive(self):
    # Contributions 1 * 2 = 2 and -1 * -4 = 4, score 6. Captum cuts the weights
    # alone: the second contributes nothing to it.
    model, twin, image = self._one([2, -4], 0, [1, -1])
    np.testing.assert_allclose(
        attribution.lrp(model, image, 1, preset="z_plus"), [[[2, 4]]],
        rtol=BY_HAND)
    got = _captum(twin, lrp_rules.Alpha1_Beta0_Rule, image, [0])
    np.testing.assert_allclose(got[..., 0], [[[6, 0]]], rtol=BY_HAND)

  def test_captum_s_gamma_rule_leaves_the_bias_as_it_is(self):
    # Contributions 2 and -1, bias 1, score 2; gamma 1: 4 - 1 + 2 = 5 where the
    # bias is favoured like the others, 4 - 1 + 1 = 4 in Captum.
    model, twin, image = self._one([2, -1], 1, [1, 1])
    np.testing.assert_allclose(
        attribution.lrp(model, image, 1, preset="gamma", gamma=1.0),
        [[[1.6, -0.4]]], rtol=BY_HAND)
    got = _captum(twin, lambda: lrp_rules.GammaRule(1.0), image, [0])
    np.testing.assert_allclose(got[..., 0], [[[2, -0.5]]], rtol=BY_HAND)

  def test_a_chain_by_hand(self):
    # Captum's own example: pixels 1 2 3, three units of weights 2, a score of
    # weights 3: 12 each, 108; pixel i gets i / 6 of it under every rule.
    model = keras.Sequential([
        layers.Flatten(input_shape=(1, 3, 1)),
        layers.Dense(3, "relu", use_bias=False),
        layers.Dense(1, use_bias=False)])
    model.set_weights([np.full([3, 3], 2, np.float32),
                       np.full([3, 1], 3, np.float32)])
    twin = torch_nets.to_torch(model)
    image = np.float32([1, 2, 3]).reshape(1, 1, 3, 1)
    for preset, rule, zennit_rule in (
        ("epsilon", lrp_rules.EpsilonRule, zennit.rules.Epsilon()),
        ("gamma", lrp_rules.GammaRule, zennit.rules.Gamma()),
        ("z_plus", lrp_rules.Alpha1_Beta0_Rule, zennit.rules.ZPlus())):
      want = [[[18, 36, 54]]]
      np.testing.assert_allclose(
          attribution.lrp(model, image, 1, preset=preset), want, rtol=BY_HAND)
      np.testing.assert_allclose(
          _captum(twin, rule, image, [0])[..., 0], want, rtol=BY_HAND)
      np.testing.assert_allclose(
          zennit_peer.relevance(twin, zennit.composites.LayerMapComposite([
              (zennit.types.Linear, zennit_rule),
              (zennit.types.Activation, zennit.rules.Pass())]), image,
                                [0])[..., 0], want, rtol=BY_HAND)


def _captum(twin, rule, images, classes, epsilon=1e-9):
  """Captum's LRP, a rule for layers with weights, epsilon for the rest."""
  for module in twin.modules():
    if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
      module.rule = rule()
    elif not list(module.children()) and type(module) is not torch.nn.ReLU:
      # In Captum a maximum, too, loses what an epsilon takes.
      module.rule = lrp_rules.EpsilonRule(
          1e-9 if isinstance(module, torch.nn.MaxPool2d) else epsilon)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # On gradients that it turns on.
    return torch_nets.channels_last(captum.LRP(twin).attribute(
        torch_nets.channels_first(images), target=torch.tensor(classes)))


class CaptumTest(parameterized.TestCase):

  @parameterized.parameters(
      ("epsilon", lambda: lrp_rules.EpsilonRule(EPSILON), True),
      ("z_plus", lambda: lrp_rules.Alpha1_Beta0_Rule(True), True),
      ("gamma", lambda: lrp_rules.GammaRule(0.25, True), False))
  def test_lrp(self, preset, rule, bias):
    # Captum's gamma has an epsilon of 1e-9.
    epsilon = EPSILON if preset == "epsilon" else 1e-9
    model = peer_nets.bare()
    if preset != "epsilon":
      # What Captum's other rules are made for: see ByHandTest.
      kernel, shift = model.layers[-1].get_weights()
      model.layers[-1].set_weights([np.abs(kernel), shift])
    images = peer_nets.pictures(model)
    images = images if preset == "epsilon" else np.abs(images)
    classes = peer_nets.targets(model)
    want = _captum(torch_nets.to_torch(model), rule, images, classes, epsilon)
    got = attribution.lrp(model, images, classes, preset=preset, bias=bias,
                          epsilon=epsilon)
    peer_nets.check_close(
        f"{preset}, Captum", got, want.sum(-1), TOLERANCE)


if __name__ == "__main__":
  absltest.main()
