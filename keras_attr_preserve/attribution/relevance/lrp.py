"""Layer-wise relevance propagation."""

import functools
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.attribution.relevance import rules as rules
from keras_attr_preserve.attribution.relevance.relevance import relevance
from keras_attr_preserve.compat import keras

__all__ = ["PRESETS", "Conservation", "lrp", "lrp_conservation"]

PRESETS = ("epsilon", "z_plus", "z_plus_even", "alpha_beta", "gamma",
           "epsilon_plus", "epsilon_plus_flat", "epsilon_plus_even",
           "epsilon_alpha2_beta1", "epsilon_plus_box", "epsilon_gamma_box")


class Conservation(NamedTuple):
  """How much of the sent relevance arrived.

  Attributes:
    sent: `[images]`, the explained score.
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
    gamma: float = 0.25,
    bias: bool = True,
    batch_size: int = 32,
) -> np.ndarray:
  """Explains a score by sending it back, layer by layer, as relevance.

  A convolution or dense layer and an inference-mode batch normalization behind
  it form one layer with folded weights. Activations, quantizers and scalings of
  single channels pass relevance on. A maximum sends it to the winner. Averages
  are layers of equal weights. A sum shares by its summands' size under the
  epsilon and gamma rules, elsewhere by their positive part. In a gated product
  the gate (a sigmoid) takes nothing.

  Presets differ in how much relevance they keep. All z+ presets keep it if
  every active output has a positive contribution (VGG, ResNet). Behind a
  depthwise layer or a batch normalization, many outputs are active by their
  shift alone. z+ loses their relevance: MLPerf's MobileNetV1 keeps .24,
  ImageNet's .02. "z_plus_even" and "epsilon_plus_even" keep all of it; use them
  on MobileNets. They equal the z+ presets where nothing is lost. On MobileNets,
  "epsilon" is the gradient times the input, as all biases absorb; with
  `bias=False` it divides by nearly 0. "alpha_beta" multiplies contributions of
  a single sign by alpha or beta. Neither keeps the score on such models.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`.
    layer: where the relevance is read, a layer's name; None for the image.
    preset: "epsilon", "z_plus", "z_plus_even", "alpha_beta" or "gamma" for one
      rule everywhere. Others have rules for dense layers, for convolutions and
      for the first layer. "epsilon_plus": epsilon, z+, z+. "epsilon_plus_flat":
      flat in the first. "epsilon_plus_even": the same, and evenly where z+ has
      no contribution. "epsilon_plus_box": box in the first, over each image's
      own range. Also "epsilon_alpha2_beta1", "epsilon_gamma_box". See `rules`.
    epsilon: a number added to the magnitude of the epsilon and gamma rules'
      denominators.
    alpha: weight of positive contributions under "alpha_beta".
    beta: weight of negative contributions; alpha - beta must be 1.
    gamma: extra weight, under the gamma rule, of contributions with the
      output's own sign, 0 or more.
    bias: whether biases absorb relevance; under z+ they never do.
    batch_size: images per batch.

  Returns:
    Signed maps, float32 `[images, height, width]`, in units of the score: the
    relevance summed over channels. A map's sum is the score if nothing absorbs
    relevance; `lrp_conservation` compares both.

  Raises:
    TypeError, ValueError: an argument is not as above, or an operation of the
      model has no rule.

  References:
    Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140; Montavon et
    al. 2019, https://doi.org/10.1007/978-3-030-28954-6_10 (presets);
    Lapuschkin et al. 2016, https://jmlr.org/papers/v17/15-618.html (biases
    shared out evenly).
  """
  return _sent(model, images, targets, layer, preset, epsilon, alpha, beta,
               gamma, bias, batch_size)[0]


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
    gamma: float = 0.25,
    bias: bool = True,
    batch_size: int = 32,
) -> Conservation:
  """Says how much of the score arrives in the maps of `lrp`.

  Args:
    model: see `lrp`.
    images: see `lrp`.
    targets: see `lrp`.
    layer: see `lrp`.
    preset: see `lrp`.
    epsilon: see `lrp`.
    alpha: see `lrp`.
    beta: see `lrp`.
    gamma: see `lrp`.
    bias: see `lrp`.
    batch_size: see `lrp`.

  Returns:
    The sent and the arrived relevance of each image.

  Raises:
    TypeError, ValueError: see `lrp`.
  """
  maps, sent = _sent(model, images, targets, layer, preset, epsilon, alpha,
                     beta, gamma, bias, batch_size)
  return Conservation(sent, maps.reshape(len(maps), -1).sum(1))


def _sent(model, images, targets, layer, preset, epsilon, alpha, beta, gamma,
          bias, batch_size):
  if preset not in PRESETS:
    raise ValueError(f"preset must be one of {PRESETS}; got {preset!r}.")
  if not epsilon > 0:
    raise ValueError(f"epsilon must be above 0; got {epsilon}.")
  if abs(alpha - beta - 1) > 1e-6 or beta < 0:
    raise ValueError(
        "alpha must be beta + 1 and beta not negative, so that relevance is "
        f"kept; got alpha={alpha}, beta={beta}.")
  if not gamma >= 0:
    raise ValueError(f"gamma must be 0 or more; got {gamma}.")
  by_epsilon = functools.partial(
      rules.epsilon, stabilizer=epsilon, bias=bias)
  by_sign = functools.partial(
      rules.alpha_beta, alpha=alpha, beta=beta, bias=bias)
  by_gamma = functools.partial(
      rules.gamma, gamma=gamma, stabilizer=epsilon, bias=bias)
  dense, inner, first = {
      "epsilon": (by_epsilon, by_epsilon, by_epsilon),
      "z_plus": (rules.z_plus, rules.z_plus, rules.z_plus),
      "z_plus_even": (rules.z_plus_even, rules.z_plus_even,
                      rules.z_plus_even),
      "alpha_beta": (by_sign, by_sign, by_sign),
      "gamma": (by_gamma, by_gamma, by_gamma),
      "epsilon_plus": (by_epsilon, rules.z_plus, rules.z_plus),
      "epsilon_plus_flat": (by_epsilon, rules.z_plus, rules.flat),
      "epsilon_plus_even": (by_epsilon, rules.z_plus_even, rules.flat),
      "epsilon_alpha2_beta1": (
          by_epsilon, functools.partial(by_sign, alpha=2.0, beta=1.0),
          functools.partial(by_sign, alpha=2.0, beta=1.0)),
      "epsilon_plus_box": (by_epsilon, rules.z_plus, rules.box),
      "epsilon_gamma_box": (by_epsilon, by_gamma, rules.box),
  }[preset]

  by_size = preset in ("epsilon", "gamma", "epsilon_gamma_box")
  average = by_epsilon if by_size else (
      rules.z_plus_even if preset.endswith("even") else rules.z_plus)

  def linear(block, arrived):
    if block.is_average:  # All weights have one sign; no bias.
      return average(block, arrived)
    rule = first if block.is_first else dense if block.is_dense else inner
    return rule(block, arrived)

  share = rules.share_by_size if by_size else rules.share_positive
  return relevance(
      model, images, targets, layer,
      ("lrp", preset, epsilon, alpha, beta, gamma, bias),
      start=lambda logits, seed: logits * seed, linear=linear, share=share,
      scaling=by_epsilon if preset == "epsilon" else None,
      batch_size=batch_size)
