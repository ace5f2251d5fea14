"""Warns of layers with kernels that a function left unchanged."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from keras_attr_preserve.compat import keras
from keras_attr_preserve.utils.notices import notice

__all__ = ["LayersLeftWhole", "Left", "kernel_size", "tell_left_whole"]

_NO_KERNELS = ("alpha", "beta", "gamma", "mean", "moving_mean",
               "moving_variance", "variance")
_LISTED = 8


class Left(NamedTuple):
  """A layer that a function left unchanged.

  Attributes:
    kind: the name of its class.
    weights: the number of weights in its kernels.
    why: the reason.
  """

  kind: str
  weights: int
  why: str


class LayersLeftWhole(UserWarning):
  """The warning that lists the layers left unchanged.

      with warnings.catch_warnings(record=True) as caught:
        shares = kap.layer_sparsities(model, 0.9)
      left = [one.message.layers for one in caught
              if isinstance(one.message, kap.LayersLeftWhole)]

  Attributes:
    layers: a `Left` for each layer, by name.
  """

  def __init__(self, text: str, layers: Mapping[str, Left]):
    super().__init__(text)
    self.layers = dict(layers)


def kernel_size(layer: keras.layers.Layer) -> int:
  """Counts the weights in a layer's kernels, inner layers included."""
  return sum(int(np.prod(weight.shape)) for weight in layer.weights
             if (sum(size > 1 for size in weight.shape) > 1 and
             weight.name.split("/")[-1].split(":")[0] not in _NO_KERNELS)
             or "kernel" in weight.name.split("/")[-1])


def tell_left_whole(
    function: str,
    model: keras.Model,
    why: Callable[[keras.layers.Layer], str | None],
    *,
    known: Collection[str] = (),
) -> None:
  """Warns of layers with kernels that a function leaves unchanged.

  Args:
    function: the function's name.
    model: the function's model.
    why: returns the reason why a layer is left; None if it is not.
    known: names of layers that the caller excluded by name.
  """
  left = {}
  for layer in model.layers:
    weights, reason = kernel_size(layer), why(layer)
    if weights and reason is not None and layer.name not in known:
      left[layer.name] = Left(type(layer).__name__, weights, reason)
  if not left:
    return
  listed = [f"{name!r} ({entry.kind}, {entry.weights}: {entry.why})"
            for name, entry in [*left.items()][:_LISTED]]
  more = [f"and {len(left) - _LISTED} more"] * (len(left) > _LISTED)
  notice(LayersLeftWhole(
      f"{function} leaves {sum(entry.weights for entry in left.values())} of "
      f"{sum(map(kernel_size, model.layers))} weights in kernels of model "
      f"{model.name!r} as they are: {', '.join(listed + more)}.", left))
