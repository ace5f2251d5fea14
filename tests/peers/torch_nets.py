"""Keras models carried to PyTorch with their weights, for peers that run there.

    model = to_torch(model)              # torch.nn.Module
    logits = twin(channels_first(images))
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tf_keras as keras
import torch
from torch import nn
from torch.nn import functional

layers = keras.layers


class _Step(NamedTuple):
  name: str
  inputs: list[str]
  run: Callable[..., torch.Tensor]


class TorchNet(nn.Module):
  """A Keras graph of layers as one of modules, each named as its layer.

  An activation inside a layer is a module of its own, `NAME_activation`. What
  has no numbers of its own (padding, joining, reshaping) is a plain function.
  """

  def __init__(self, model: keras.Model):
    """Walks the layers of a Functional or Sequential model.

    Args:
      model: of one input and one output, no layer in it called twice. A softmax
        or sigmoid at its end is left out.

    Raises:
      ValueError: a layer, or a setting of one, that this does not know.
    """
    super().__init__()
    self._steps: list[_Step] = []
    self._ends: dict[str, str] = {}
    order = list(model.layers)
    if not isinstance(order[0], layers.InputLayer):
      self._ends[""] = "pictures"  # A Sequential model hides its input.
    for layer in order:
      if len(layer.inbound_nodes) != 1:
        raise ValueError(f"layer {layer.name!r} is called more than once.")
      before = layer.inbound_nodes[0].inbound_layers
      before = before if isinstance(before, list) else [before]
      if isinstance(layer, layers.InputLayer):
        self._ends[layer.name] = "pictures"
        continue
      self._add(layer, [self._ends.get(previous.name, "pictures")
                        for previous in before], layer.output is model.output)
    self.eval()

  def forward(self, pictures: torch.Tensor) -> torch.Tensor:
    """Gives logits `[batch, classes]` of `[batch, colours, height, width]`."""
    values = {"pictures": pictures}
    for name, inputs, run in self._steps:
      values[name] = run(*[values[key] for key in inputs])
    return values[name]

  def layer(self, name: str) -> nn.Module:
    """Returns the module whose output is that of a Keras layer."""
    return getattr(self, self._ends[name])

  def norms(self) -> list[tuple[list[str], str]]:
    """Names norms with their weighted inputs that nothing else reads."""
    takers = [taken for step in self._steps for taken in step.inputs]
    weighted = {step.name for step in self._steps
                if isinstance(step.run, nn.Conv2d | nn.Linear)}
    return [(step.inputs, step.name) for step in self._steps
            if isinstance(step.run, nn.BatchNorm1d | nn.BatchNorm2d)
            and step.inputs[0] in weighted
            and takers.count(step.inputs[0]) == 1]

  def _add(self, layer, inputs, is_output):
    run = _runner(layer, is_output)
    name = layer.name
    if isinstance(run, _Conv):
      before = next(
          (step for step in self._steps if step.name == inputs[0]), None)
      if before is not None and isinstance(before.run, _Zeros):
        # As such a model is written in PyTorch: no pixels between, for peers.
        run.around, inputs = before.run.around, before.inputs
    if isinstance(run, nn.Module):
      self.add_module(name, run)
    self._steps.append(_Step(name, inputs, run))
    inner = getattr(layer, "activation", None)
    if inner is not None and not isinstance(layer, layers.Activation):
      act = _activation(inner, is_output)
      if act is not None:
        name += "_activation"
        self.add_module(name, act)
        self._steps.append(_Step(name, [layer.name], act))
    self._ends[layer.name] = name


def to_torch(model: keras.Model) -> TorchNet:
  """Carries a model over; see `TorchNet`."""
  return TorchNet(model)


def channels_first(images: np.ndarray) -> torch.Tensor:
  """Turns `[batch, height, width, colours]` into a tensor for a `TorchNet`."""
  return torch.tensor(np.ascontiguousarray(
      np.moveaxis(np.asarray(images, np.float32), 3, 1)))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
  """The reverse."""
  return np.moveaxis(tensor.detach().numpy(), 1, 3)


class Sum(nn.Module):
  """Sums over the last axis."""

  def forward(self, stacked: torch.Tensor) -> torch.Tensor:
    return stacked.sum(-1)


class ReLU6(nn.ReLU):
  """ReLU6 that peers take for a ReLU; they take PyTorch's for a Hardtanh."""

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    return functional.relu6(features)


def _pads(sizes: Sequence[int], kernel, strides, dilation=(1, 1)) -> list[int]:
  """TensorFlow's "same": the odd pixel goes below and to the right."""
  pads = []
  for size, width, step, gap in reversed(
      list(zip(sizes, kernel, strides, dilation))):
    reach = (width - 1) * gap + 1
    total = max((-(-size // step) - 1) * step + reach - size, 0)
    pads += [total // 2, total - total // 2]
  return pads


class _Conv(nn.Conv2d):
  """Pads inside itself, so that peers do not see padding as pixels."""

  same = False
  around = (0, 0, 0, 0)

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    features = functional.pad(features, self.around)
    if self.same:
      features = functional.pad(features, _pads(
          features.shape[2:], self.kernel_size, self.stride, self.dilation))
    return super().forward(features)


class _MaxPool(nn.MaxPool2d):
  same = False

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    if self.same:
      features = functional.pad(
          features, _pads(features.shape[2:], self.kernel_size, self.stride),
          value=-np.inf)
    return super().forward(features)


class _AvgPool(nn.AvgPool2d):
  """Padding does not count as pixels."""

  same = False

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    if not self.same:
      return super().forward(features)
    pads = _pads(features.shape[2:], self.kernel_size, self.stride)
    ones = functional.pad(torch.ones_like(features[:1, :1]), pads)
    return super().forward(functional.pad(features, pads)) / super().forward(
        ones)


class _Zeros(NamedTuple):
  """A function that puts zeros around features."""

  around: tuple[int, int, int, int]

  def __call__(self, features: torch.Tensor) -> torch.Tensor:
    return functional.pad(features, self.around)


def _conv(layer) -> nn.Module:
  if layer.data_format != "channels_last":
    raise ValueError(f"layer {layer.name!r} must have its channels last.")
  kernel, inputs = layer.get_weights()[0], layer.input.shape[-1]
  if isinstance(layer, layers.DepthwiseConv2D):
    groups = inputs
    kernel = kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *kernel.shape[:2])
  else:
    groups = layer.groups
    kernel = kernel.transpose(3, 2, 0, 1)
  module = _Conv(inputs, len(kernel), kernel.shape[2:], tuple(layer.strides),
                 dilation=tuple(layer.dilation_rate), groups=groups,
                 bias=layer.use_bias)
  module.same = layer.padding == "same"
  return _filled(module, kernel, layer)


def _dense(layer) -> nn.Module:
  kernel = layer.get_weights()[0].T
  return _filled(nn.Linear(kernel.shape[1], kernel.shape[0],
                           bias=layer.use_bias), kernel, layer)


def _filled(module, kernel, layer):
  module.weight.data = torch.tensor(np.ascontiguousarray(kernel))
  if layer.use_bias:
    module.bias.data = torch.tensor(layer.get_weights()[1])
  return module


def _norm(layer) -> nn.Module:
  kind = {4: nn.BatchNorm2d, 2: nn.BatchNorm1d}[len(layer.output.shape)]
  size = layer.output.shape[-1]
  # A peer that folds a norm away leaves its epsilon behind: it is put into the
  # variance here.
  module = kind(size, eps=0.0)
  values = iter(layer.get_weights())
  ones = np.ones(size, np.float32)
  module.weight.data = torch.tensor(next(values) if layer.scale else ones)
  module.bias.data = torch.tensor(next(values) if layer.center else 0 * ones)
  module.running_mean = torch.tensor(next(values))
  module.running_var = torch.tensor(next(values) + np.float32(layer.epsilon))
  return module


def _pool(layer) -> nn.Module:
  kind = _MaxPool if isinstance(layer, layers.MaxPooling2D) else _AvgPool
  module = kind(tuple(layer.pool_size), tuple(layer.strides))
  module.same = layer.padding == "same"
  return module


class _GlobalAverage(nn.AdaptiveAvgPool2d):
  flat = True

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    features = super().forward(features)
    return features.flatten(1) if self.flat else features


class _GlobalMax(nn.AdaptiveMaxPool2d):
  flat = True

  def forward(self, features: torch.Tensor) -> torch.Tensor:
    features = super().forward(features)
    return features.flatten(1) if self.flat else features


def _global_pool(layer) -> nn.Module:
  average = isinstance(layer, layers.GlobalAveragePooling2D)
  module = (_GlobalAverage if average else _GlobalMax)(1)
  module.flat = not layer.keepdims
  return module


def _relu(layer) -> nn.Module:
  if layer.max_value not in (None, 6) or layer.threshold or (
      layer.negative_slope):
    raise ValueError(f"layer {layer.name!r} is neither a ReLU nor a ReLU6.")
  return nn.ReLU() if layer.max_value is None else ReLU6()


def _activation(function, is_output: bool) -> nn.Module | None:
  name = keras.activations.serialize(function)
  if name == "linear" or (is_output and name in ("softmax", "sigmoid")):
    return None
  known = {"relu": nn.ReLU, "relu6": ReLU6, "tanh": nn.Tanh,
           "sigmoid": nn.Sigmoid, "softplus": nn.Softplus}
  if name not in known:
    raise ValueError(f"activation {name!r} is not one of {sorted(known)}.")
  return known[name]()


def _reshape(layer) -> Callable:
  shape = tuple(layer.output.shape[1:])

  def run(features):
    if features.ndim == 4:
      features = features.permute(0, 2, 3, 1)
    features = features.reshape(-1, *shape)
    return features.permute(0, 3, 1, 2) if len(shape) == 3 else features
  return run


def _runner(layer, is_output: bool) -> Callable:
  """Returns the module or function of one layer, its activation left out."""
  if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
    return _conv(layer)
  if isinstance(layer, layers.Dense) and len(layer.input.shape) == 2:
    return _dense(layer)
  if isinstance(layer, layers.BatchNormalization):
    return _norm(layer)
  if isinstance(layer, layers.ReLU):
    return _relu(layer)
  if isinstance(layer, layers.Activation):
    return _activation(layer.activation, is_output) or (lambda value: value)
  if isinstance(layer, layers.Softmax) and is_output:
    return lambda value: value
  if isinstance(layer, layers.MaxPooling2D | layers.AveragePooling2D):
    return _pool(layer)
  if isinstance(layer, layers.GlobalAveragePooling2D |
                layers.GlobalMaxPooling2D):
    return _global_pool(layer)
  if isinstance(layer, layers.Add):
    return _Stacked()
  if isinstance(layer, layers.Concatenate) and layer.axis in (-1, 3):
    return lambda *tensors: torch.cat(tensors, 1)
  if isinstance(layer, layers.Flatten | layers.Reshape):
    return _reshape(layer)
  if isinstance(layer, layers.ZeroPadding2D):
    (top, bottom), (left, right) = layer.padding
    return _Zeros((left, right, top, bottom))
  if isinstance(layer, layers.Dropout):
    return lambda value: value
  raise ValueError(f"layer {layer.name!r}: no PyTorch module is known for it, "
                   f"a {type(layer).__name__}.")


class _Stacked(nn.Module):
  """Stacks its inputs for `Sum`, as peers want modules of one input."""

  def __init__(self):
    super().__init__()
    self.summed = Sum()

  def forward(self, *parts: torch.Tensor) -> torch.Tensor:
    return self.summed(torch.stack(parts, -1))
