"""Zennit's rules, run on models carried to PyTorch."""

import contextlib
import importlib
import importlib.util
import sys
import types

import numpy as np
import torch

from tests.peers import torch_nets

_RESNET = "torchvision.models.resnet"


def load_zennit() -> types.ModuleType:
  """Imports zennit, also where torchvision is not installed.

  Its package imports that for the names of two classes of ResNets, which its
  rules and composites do not need.

  Raises:
    ModuleNotFoundError: zennit is not installed.
  """
  names = []
  if importlib.util.find_spec("torchvision") is None:
    stand_in = types.ModuleType(_RESNET)
    stand_in.Bottleneck = stand_in.BasicBlock = type("Unused", (), {})
    names = ["torchvision", "torchvision.models", _RESNET]
    sys.modules.update({name: stand_in for name in names})
  try:
    return importlib.import_module("zennit")
  finally:
    for name in names:
      del sys.modules[name]


zennit = load_zennit()
rules, composites, kinds = zennit.rules, zennit.composites, zennit.types
TINY = 1e-9  # Our term against zero denominators, except epsilon's.


class PositiveSum(zennit.core.BasicHook):
  """Shares a sum's relevance out by the positive part of its summands."""

  def __init__(self):
    super().__init__(
        input_modifiers=[lambda value: value.clamp(min=0)],
        param_modifiers=[rules.NoMod(param_keys=[])],
        output_modifiers=[lambda value: value],
        gradient_mapper=lambda arrived, outputs: arrived / (outputs[0] + TINY),
        reducer=lambda inputs, gradients: inputs[0] * gradients[0])

  def copy(self):
    return PositiveSum()


def composite(preset: str, net: torch_nets.TorchNet, images: np.ndarray,
              bias: bool = True,
              epsilon: float = 1e-6) -> zennit.core.Composite:
  """Returns zennit's composite for one of our presets.

  It is zennit's own of that name, with two decisions of ours:
  biases get nothing under z+, and sums not shared by size are shared by their
  summands' positive parts. relevance_test.py shows both by hand.

  Args:
    preset: as `lrp` takes it, or "excitation_backprop".
    net: what will be explained; its norms are folded meanwhile.
    images: the box is each one's range.
    bias: whether biases get relevance.
    epsilon: of the epsilon and gamma rules.
  """
  axes = (1, 2, 3)
  low, high = (torch_nets.channels_first(np.broadcast_to(
      bound(images, axes, keepdims=True), images.shape))
               for bound in (np.min, np.max))
  none = {"zero_params": ["bias"]}
  zeroed = {} if bias else none
  plus = rules.ZPlus(TINY, **none)
  # Averages follow the epsilon rule where sums are shared by size.
  by_size = [(torch_nets.Sum, rules.Norm(1e-6)),
             (kinds.AvgPool, rules.Norm(epsilon))]
  by_part = [(torch_nets.Sum, PositiveSum())]
  convs, dense = (kinds.Convolution, plus), (
      torch.nn.Linear, rules.Epsilon(epsilon, **zeroed))
  gamma = rules.Gamma(stabilizer=epsilon, **zeroed)
  base = composites.layer_map_base(TINY)
  more = {"canonizers": [zennit.canonizers.NamedMergeBatchNorm(net.norms())]}
  everywhere = {
      "epsilon": (by_size, rules.Epsilon(epsilon, **zeroed)),
      "gamma": (by_size, gamma),
      "z_plus": (by_part, plus),
      "alpha_beta": (by_part, rules.AlphaBeta(stabilizer=TINY, **zeroed)),
      "excitation_backprop": (by_part, plus),
  }
  if preset in everywhere:
    sums, rule = everywhere[preset]
    return composites.LayerMapComposite(
        [*sums, *base, (kinds.Linear, rule)], **more)
  more |= zeroed | {"epsilon": epsilon, "stabilizer": TINY}
  return {
      "epsilon_plus": lambda: composites.EpsilonPlus(
          layer_map=[*by_part, convs], **more),
      "epsilon_plus_flat": lambda: composites.EpsilonPlusFlat(
          layer_map=[*by_part, convs], **more),
      "epsilon_alpha2_beta1": lambda: composites.EpsilonAlpha2Beta1(
          layer_map=by_part, **more),
      "epsilon_plus_box": lambda: composites.SpecialFirstLayerMapComposite(
          [*by_part, *base, convs, dense],
          [(kinds.Convolution, rules.ZBox(low, high, TINY))],
          canonizers=more["canonizers"]),
      "epsilon_gamma_box": lambda: composites.EpsilonGammaBox(
          low, high, layer_map=[*by_size, (kinds.Convolution, gamma)],
          **more),
  }[preset]()


def relevance(net: torch_nets.TorchNet, using: zennit.core.Composite,
              images: np.ndarray, classes: np.ndarray, *, start: str = "score",
              at: torch.nn.Module | None = None) -> np.ndarray:
  """Sends relevance back through a model under a composite.

  Args:
    net: from `to_torch`.
    using: of zennit.
    images: `[batch, height, width, colours]`.
    classes: the class explained of each.
    start: "score", or "one" for a relevance of 1.
    at: where it is read, a module's output; None for the images.

  Returns:
    Relevance `[batch, height, width, channels]`.
  """
  pictures = torch_nets.channels_first(images).requires_grad_()
  read = [pictures]

  def keep(module, inputs, output):
    del module, inputs
    read.append(output * 1.0)  # The next module's input.
    return read[-1]

  with contextlib.ExitStack() as stack:
    stack.enter_context(using.context(net))
    if at is not None:
      stack.callback(at.register_forward_hook(keep).remove)
    logits = net(pictures)
    seed = torch.eye(logits.shape[1])[torch.tensor(classes)]
    if start == "score":
      seed = seed * logits.detach()
    result, = torch.autograd.grad(logits, read[-1], seed)
  return torch_nets.channels_last(result)
