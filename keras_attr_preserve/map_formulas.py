"""Weighted collapsed attribution maps and their distance, on tensors.

The formulas come from Park, Yang, Hwang and Yang, "Attribution Preservation in
Network Compression for Reliable Network Interpretation", NeurIPS 2020
(https://arxiv.org/abs/2010.15054).
"""

import tensorflow as tf

__all__ = [
    "drop_channels",
    "equal_weighted_map",
    "map_distance",
    "same_size",
    "sensitivity_weighted_map",
    "unit_map",
]


def equal_weighted_map(features: tf.Tensor) -> tf.Tensor:
  """Collapses features into a map that weights every channel equally (EWA).

      M = mean_c A_c^2

  Args:
    features: `[batch, height, width, channels]`.

  Returns:
    The map, `[batch, height, width]`, not negative.

  References:
    Park et al. 2020, section 3. Zagoruyko and Komodakis 2017, attention
    transfer, use the same map.
  """
  return tf.reduce_mean(tf.square(features), axis=-1)


def sensitivity_weighted_map(
    features: tf.Tensor, sensitivity: tf.Tensor) -> tf.Tensor:
  """Collapses features into a map weighted by the score's sensitivity (SWA).

      M = ReLU(sum_c a_c A_c),   a_c = sum_{h,w} dy / dA_c

  The sensitivity is a sum over positions. Grad-CAM's mean differs by a constant
  factor, which cancels in a unit map.

  Args:
    features: `[batch, height, width, channels]`.
    sensitivity: `[batch, 1, 1, channels]`, or for several scores
      `[scores, batch, 1, 1, channels]`.

  Returns:
    The map, `[batch, height, width]`, not negative; or for several scores
    `[scores, batch, height, width]`.

  References:
    Park et al. 2020, section 3; Selvaraju et al. 2017, Grad-CAM.
  """
  # A matrix product needs no second tensor of the features' size.
  scores = "s" * (len(sensitivity.shape) - 4)
  return tf.nn.relu(tf.einsum(
      f"bhwc,{scores}bc->{scores}bhw", features,
      tf.squeeze(sensitivity, [-3, -2])))


def drop_channels(
    features: tf.Tensor, drop_rate: float, seed: tf.Tensor) -> tf.Tensor:
  """Zeroes a fixed share of the channels, the same for the whole batch.

  Stochastic matching draws `int(drop_rate * C)` of C channels uniformly without
  replacement and sets them to zero. The other channels are not rescaled.

  Args:
    features: `[batch, height, width, channels]`.
    drop_rate: share of the channels to zero, `0 <= drop_rate < 1`.
    seed: two integers, `[2]`; equal seeds drop equal channels.

  Returns:
    The features with those channels at zero, same shape.

  References:
    Park et al. 2020, section 3, "stochastic matching".
  """
  channels = features.shape[-1]
  dropped = int(drop_rate * channels)
  if not dropped:
    return features
  # XLA draws the same integers with this algorithm.
  order = tf.argsort(tf.random.stateless_uniform(
      [channels], seed, None, None, tf.int32, alg="philox"))
  return features * tf.cast(order >= dropped, features.dtype)


def unit_map(maps: tf.Tensor) -> tf.Tensor:
  """Scales each map to unit L2 norm; a map of zeros stays zero.

  Each map is first divided by its largest magnitude, so that tiny and huge maps
  keep their precision. The unit map does not depend on that scale.

  Args:
    maps: `[batch, height, width]`.

  Returns:
    Unit maps of the same shape, finite and with finite gradients everywhere.
  """
  peak = tf.reduce_max(tf.abs(maps), axis=[1, 2], keepdims=True)
  scaled = tf.math.divide_no_nan(maps, tf.stop_gradient(peak))
  # A nonzero map now has a norm of at least 1, and needs no epsilon.
  square = tf.reduce_sum(tf.square(scaled), axis=[1, 2], keepdims=True)
  return scaled * tf.math.rsqrt(tf.maximum(square, 1.0))


def map_distance(teacher_map: tf.Tensor, student_map: tf.Tensor) -> tf.Tensor:
  """Returns half the squared distance of unit maps: 1 - cosine if not zero.

      d = |M_t / |M_t| - M_s / |M_s||^2 / 2 = 1 - cos(M_t, M_s)

  The paper takes the mean of the squared difference over positions,
  `2 d / (height * width)`. Its weight of 100 on 7x7 maps is 4.08 here. `d` does
  not depend on the map size. If one map is all zero, d is 1/2; if both are, d
  is 0. In both cases d has no gradient.

  Args:
    teacher_map: `[batch, height, width]`.
    student_map: `[batch, height, width]`. If the sizes differ, the larger map
      is first resized to the smaller, bilinear and antialiased.

  Returns:
    The distance of each pair, `[batch]`, in 0..1 (0..2 for signed maps).

  References:
    Park et al. 2020, equations 1 and 2, with p = 2.
  """
  teacher_map, student_map = same_size(teacher_map, student_map)
  difference = unit_map(teacher_map) - unit_map(student_map)
  return tf.reduce_sum(tf.square(difference), axis=[1, 2]) / 2


def same_size(
    one: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Resizes maps of two sizes to the smaller height and width.

  Args:
    one: `[batch, height, width]`.
    other: `[batch, height, width]`, perhaps of another size.

  Returns:
    Both, resized if needed, bilinear and antialiased.
  """
  sizes = one.shape[1:], other.shape[1:]
  if not all(size.is_fully_defined() for size in sizes):
    size = tf.minimum(tf.shape(one)[1:], tf.shape(other)[1:])
    return _resize(one, size), _resize(other, size)
  size = [min(lengths) for lengths in zip(*sizes)]
  return _resampled(one, size), _resampled(other, size)


def _resize(maps: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
  return tf.image.resize(maps[..., None], size, antialias=True)[..., 0]


def _resampled(maps: tf.Tensor, size: list[int]) -> tf.Tensor:
  """Resizes by two matrix products, because XLA cannot resize images."""
  if maps.shape[1:] == size:
    return maps
  with tf.init_scope():
    rows, columns = (
        tf.cast(_resize(tf.eye(before)[None], [after, before])[0], maps.dtype)
        for before, after in zip(maps.shape[1:], size))
  return tf.einsum("ih,bhw,jw->bij", rows, maps, columns)
