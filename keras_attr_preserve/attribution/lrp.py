"""Layer-wise relevance propagation."""

import functools
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.attribution import relevance_rules as rules
from keras_attr_preserve.attribution.relevance import relevance
from keras_attr_preserve.compat import keras

__all__ = ["PRESETS", "Conservation", "lrp", "lrp_conservation"]

PRESETS = ("epsilon", "z_plus", "alpha_beta", "epsilon_plus",
           "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_plus_box")


class Conservation(NamedTuple):
  """How much relevance arrived of what was sent.

  Attributes:
    sent: `[images]`, the score explained.
    arrived: `[images]`, the sum of the map.
  """

  sent: np.ndarray
  arrived: np.ndarray

  @property
  def share(self) -> np.ndarray:
    """Arrived over sent; 1 where nothing was absorbed."""
    return self.arrived / np.where(self.sent == 0, 1, self.sent)


def lrp(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    preset: str = "epsilon_plus_flat",
    epsilon: float = 1e-6,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: bool = True,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by sending it back, layer by layer, as relevance.

  A convolution or dense layer and an inference-mode batch normalization behind
  it are one layer with folded weights. Activations, quantizers and scalings of
  single channels pass relevance on; a maximum sends it to the winner; averages
  are layers of equal weights; a sum shares by its summands' size, or by their
  positive part under z+.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: where the relevance is read, a layer's name; None for the image.
    preset: one rule everywhere: "epsilon", "z_plus" or "alpha_beta"; or one for
      dense layers, one for convolutions and one for the first layer:
      "epsilon_plus" (epsilon, z+, z+), "epsilon_plus_flat" (flat in the first),
      "epsilon_alpha2_beta1", "epsilon_plus_box" (box in the first, over each
      image's own range). See `relevance_rules`.
    epsilon: added to the magnitude of the epsilon rule's denominators.
    alpha: weight of positive contributions under "alpha_beta".
    beta: weight of negative ones; alpha - beta must be 1.
    bias: whether biases absorb relevance; z+ never lets them.
    batch_size: images a batch.

  Returns:
    Maps with their sign, float32 `[images, height, width]`, in units of the
    score: the sum over channels. Where nothing absorbs, a map's sum is the
    score; `lrp_conservation` says how near it comes.

  Raises:
    TypeError, ValueError: an argument is not as above, or an operation of the
      model has no rule.

  References:
    Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140; Montavon et
    al. 2019, https://doi.org/10.1007/978-3-030-28954-6_10 (presets).
  """
  return _sent(model, images, targets, layer, preset, epsilon, alpha, beta,
               bias, batch_size)[0]


def lrp_conservation(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    preset: str = "epsilon_plus_flat",
    epsilon: float = 1e-6,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: bool = True,
    batch_size: int = 32,
) -> Conservation:
  """Says how much of the score arrives in the maps of `lrp`.

  Args:
    model: as for `lrp`, and so are all others.
    images: see `lrp`.
    targets: see `lrp`.
    layer: see `lrp`.
    preset: see `lrp`.
    epsilon: see `lrp`.
    alpha: see `lrp`.
    beta: see `lrp`.
    bias: see `lrp`.
    batch_size: see `lrp`.

  Returns:
    What was sent and what arrived, for each image.

  Raises:
    TypeError, ValueError: see `lrp`.
  """
  maps, sent = _sent(model, images, targets, layer, preset, epsilon, alpha,
                     beta, bias, batch_size)
  return Conservation(sent, maps.sum((1, 2)))


def _sent(model, images, targets, layer, preset, epsilon, alpha, beta, bias,
          batch_size):
  if preset not in PRESETS:
    raise ValueError(f"preset must be one of {PRESETS}; got {preset!r}.")
  if not epsilon > 0:
    raise ValueError(f"epsilon must be above 0; got {epsilon}.")
  if abs(alpha - beta - 1) > 1e-6 or beta < 0:
    raise ValueError(
        "alpha must be beta + 1 and beta not negative, so that relevance is "
        f"kept; got alpha={alpha}, beta={beta}.")
  by_epsilon = functools.partial(
      rules.epsilon, stabilizer=epsilon, bias=bias)
  by_sign = functools.partial(
      rules.alpha_beta, alpha=alpha, beta=beta, bias=bias)
  dense, inner, first = {
      "epsilon": (by_epsilon, by_epsilon, by_epsilon),
      "z_plus": (rules.z_plus, rules.z_plus, rules.z_plus),
      "alpha_beta": (by_sign, by_sign, by_sign),
      "epsilon_plus": (by_epsilon, rules.z_plus, rules.z_plus),
      "epsilon_plus_flat": (by_epsilon, rules.z_plus, rules.flat),
      "epsilon_alpha2_beta1": (
          by_epsilon, functools.partial(by_sign, alpha=2.0, beta=1.0),
          functools.partial(by_sign, alpha=2.0, beta=1.0)),
      "epsilon_plus_box": (by_epsilon, rules.z_plus, rules.box),
  }[preset]

  def linear(block, arrived):
    if block.is_average:  # One sign only, and no bias.
      return (by_epsilon if preset == "epsilon" else rules.z_plus)(
          block, arrived)
    rule = first if block.is_first else dense if block.is_dense else inner
    return rule(block, arrived)

  share = rules.share_by_size if preset == "epsilon" else rules.share_positive
  return relevance(
      model, images, targets, layer,
      ("lrp", preset, epsilon, alpha, beta, bias),
      start=lambda logits, seed: logits * seed, linear=linear, share=share,
      batch_size=batch_size)
