"""How a linear layer shares its relevance out among its inputs.

A rule is a function `(block, relevance of the outputs) -> relevance of the
inputs`. z_ij = x_i w_ij is the contribution of input i to output j; z+ and z-
are its positive and negative part; b is the bias:

    epsilon     R_i = sum_j z_ij / (sum_i z_ij + b_j) R_j
    z_plus      R_i = sum_j z+_ij / sum_i z+_ij R_j
    alpha_beta  R_i = sum_j (alpha z+_ij / (sum_i z+_ij + b+_j)
                             - beta z-_ij / (sum_i z-_ij + b-_j)) R_j
    gamma       R_i = sum_j (z_ij + gamma z*_ij)
                            / sum_i (z_ij + gamma z*_ij) R_j, where * is the
                sign of the output j, and the bias is also a contribution
    flat        R_i = sum_j R_j / (number of inputs of j)
    z_plus_even as z_plus; as flat for an output j without any z+_ij
    box         z_ij = x_i w_ij - low w+_ij - high w-_ij, then as z_plus

References:
  Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140 (epsilon,
  alpha-beta); Montavon et al. 2017, https://arxiv.org/abs/1512.02479 (z+, box);
  Montavon et al. 2019, https://doi.org/10.1007/978-3-030-28954-6_10 (overview,
  gamma for inputs that are not negative); Andeol et al. 2021,
  https://arxiv.org/abs/2112.04990 (gamma for inputs of both signs).
"""

import functools

from keras_attr_preserve.attribution.relevance.linear_blocks import Linear
from keras_attr_preserve.compat import tf

__all__ = ["alpha_beta", "box", "divided", "epsilon", "flat", "gamma", "parts",
           "share_by_magnitude", "share_by_size", "share_positive", "z_plus",
           "z_plus_even"]


def divided(numerator: tf.Tensor, denominator: tf.Tensor,
            stabilizer: float = 1e-9) -> tf.Tensor:
  """Divides by a number moved away from zero with its sign."""
  away = tf.where(denominator >= 0, stabilizer, -stabilizer)
  return numerator / (denominator + away)


def parts(block: Linear, positive: bool) -> tuple[tf.Tensor, ...]:
  """Returns the inputs and kernels whose products have one sign.

  Args:
    block: the layer.
    positive: True for positive products, False for negative.

  Returns:
    Inputs above 0 and their kernel, inputs below 0 and their kernel.
  """
  above, below = tf.nn.relu(block.inputs), -tf.nn.relu(-block.inputs)
  plus, minus = tf.nn.relu(block.kernel), -tf.nn.relu(-block.kernel)
  return (above, plus, below, minus) if positive else (
      above, minus, below, plus)


def _sent(block, relevance, positive, bias=0.0):
  """Shares relevance out by the contributions of one sign."""
  above, over, below, under = parts(block, positive)
  total = block.apply(above, over) + block.apply(below, under) + bias
  share = divided(relevance, total) * tf.cast(total != 0, relevance.dtype)
  return (above * block.transposed(share, over)
          + below * block.transposed(share, under))


def epsilon(
    block: Linear, relevance: tf.Tensor, *, stabilizer: float = 1e-6,
    bias: bool = True) -> tf.Tensor:
  """Shares out by contribution; the bias absorbs its own share."""
  total = block.apply(block.inputs, block.kernel)
  if bias:
    total += block.bias
  share = divided(relevance, total, stabilizer)
  return block.inputs * block.transposed(share, block.kernel)


def z_plus(block: Linear, relevance: tf.Tensor) -> tf.Tensor:
  """Shares out by positive contribution; the bias takes nothing."""
  return _sent(block, relevance, True)


def z_plus_even(block: Linear, relevance: tf.Tensor) -> tf.Tensor:
  """Shares out by positive contribution; evenly where there is none.

  No relevance is lost. An output without positive contributions owes its value
  to its bias, which has no place. Its relevance is spread over its inputs, as
  the bias is in Lapuschkin et al. 2016, https://jmlr.org/papers/v17/15-618.html.
  """
  above, over, below, under = parts(block, True)
  total = block.apply(above, over) + block.apply(below, under)
  # The share that `divided` leaves over: 1 at a total of zero, else about 0.
  left = 1.0 - divided(total, total)
  return _sent(block, relevance, True) + flat(block, relevance * left)


def alpha_beta(
    block: Linear, relevance: tf.Tensor, *, alpha: float = 2.0,
    beta: float = 1.0, bias: bool = True) -> tf.Tensor:
  """Shares out by positive and negative contribution; alpha - beta = 1."""
  above = tf.nn.relu(block.bias) if bias else 0.0
  below = -tf.nn.relu(-block.bias) if bias else 0.0
  return (alpha * _sent(block, relevance, True, above)
          - beta * _sent(block, relevance, False, below))


def gamma(
    block: Linear, relevance: tf.Tensor, *, gamma: float = 0.25,
    stabilizer: float = 1e-6, bias: bool = True) -> tf.Tensor:
  """Shares out by contribution, and favours the output's own sign.

  Gamma 0 gives the epsilon rule; a larger gamma is closer to z+.
  """
  plain = block.apply(block.inputs, block.kernel)
  output = plain + block.bias
  shift = block.bias if bias else tf.zeros_like(block.bias)
  shares = []
  for positive, favoured in ((True, tf.nn.relu(shift)),
                             (False, -tf.nn.relu(-shift))):
    above, over, below, under = parts(block, positive)
    total = plain + shift + gamma * (
        block.apply(above, over) + block.apply(below, under) + favoured)
    here = output > 0 if positive else output < 0
    share = tf.where(here, divided(relevance, total, stabilizer), 0.0)
    shares.append(block.inputs * block.transposed(share, block.kernel)
                  + gamma * (above * block.transposed(share, over)
                             + below * block.transposed(share, under)))
  return tf.add_n(shares)


def flat(block: Linear, relevance: tf.Tensor) -> tf.Tensor:
  """Shares out evenly to all inputs of an output, except padding."""
  inputs = tf.ones_like(
      block.inputs) if block.inside is None else block.inside
  kernel = tf.ones_like(block.kernel)
  return inputs * block.transposed(
      divided(relevance, block.apply(inputs, kernel)), kernel)


def box(block: Linear, relevance: tf.Tensor) -> tf.Tensor:
  """Shares out by contribution above the least possible, for pixels.

  The box is each image's own range, its smallest and largest value. Padding
  takes nothing. The rule shares out evenly where the box has no width, in an
  image of one colour, or where the kernel is zero.
  """
  axes = list(range(1, block.inputs.shape.rank))
  inside = tf.ones_like(
      block.inputs) if block.inside is None else block.inside
  low = inside * _least(block.inputs, inside, axes)
  high = -inside * _least(-block.inputs, inside, axes)
  plus, minus = tf.nn.relu(block.kernel), -tf.nn.relu(-block.kernel)
  total = (block.apply(block.inputs, block.kernel) - block.apply(low, plus)
           - block.apply(high, minus))
  share = divided(relevance, total)
  return (block.inputs * block.transposed(share, block.kernel)
          - low * block.transposed(share, plus)
          - high * block.transposed(share, minus)
          + flat(block, relevance * (1.0 - divided(total, total))))


def _least(
    values: tf.Tensor, inside: tf.Tensor, axes: list[int]) -> tf.Tensor:
  """Returns the least value over axes, without padding."""
  return tf.reduce_min(
      tf.where(inside > 0, values, values.dtype.max), axes, keepdims=True)


def share_by_size(
    summands: list[tf.Tensor], relevance: tf.Tensor) -> list[tf.Tensor]:
  """Shares a sum's relevance out by its signed summands."""
  share = divided(relevance, tf.add_n(summands), 1e-6)
  return [summand * share for summand in summands]


def share_by_magnitude(
    summands: list[tf.Tensor], relevance: tf.Tensor) -> list[tf.Tensor]:
  """Shares a sum's relevance out by its summands' magnitude; evenly if none."""
  return share_positive([tf.abs(summand) for summand in summands], relevance)


def share_positive(
    summands: list[tf.Tensor], relevance: tf.Tensor) -> list[tf.Tensor]:
  """Shares a sum's relevance out by its positive summands; evenly if none."""
  above = [tf.nn.relu(summand) for summand in summands]
  total = tf.add_n(above)
  even = relevance * (1.0 - divided(total, total)) / len(summands)
  share = divided(relevance, total)
  return [positive * share + even for positive in above]


alpha_2_beta_1 = functools.partial(alpha_beta, alpha=2.0, beta=1.0)
