"""Weighted collapsed attribution maps and their distance.

The formulas of Park, Yang, Hwang and Yang, "Attribution Preservation in Network
Compression for Reliable Network Interpretation", NeurIPS 2020
(https://arxiv.org/abs/2010.15054), as functions of tensors.
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
    Park et al. 2020, section 3; Zagoruyko and Komodakis 2017, attention
    transfer, is the same map.
  """
  return tf.reduce_mean(tf.square(features), axis=-1)


def sensitivity_weighted_map(
    features: tf.Tensor, sensitivity: tf.Tensor) -> tf.Tensor:
  """Collapses features into a map weighted by the score's sensitivity (SWA).

      M = ReLU(sum_c a_c A_c),   a_c = sum_{h,w} dy / dA_c

  The sensitivity is a sum over positions; Grad-CAM's mean differs by a constant
  that a unit map does not see.

  Args:
    features: `[batch, height, width, channels]`.
    sensitivity: `[batch, 1, 1, channels]`, or of several scores
      `[scores, batch, 1, 1, channels]`.

  Returns:
    The map, `[batch, height, width]`, not negative; or of several scores
    `[scores, batch, height, width]`.

  References:
    Park et al. 2020, section 3; Selvaraju et al. 2017, Grad-CAM.
  """
  # A product of matrices, which needs no second tensor of the features' size.
  scores = "s" * (len(sensitivity.shape) - 4)
  return tf.nn.relu(tf.einsum(
      f"bhwc,{scores}bc->{scores}bhw", features,
      tf.squeeze(sensitivity, [-3, -2])))


def drop_channels(
    features: tf.Tensor, drop_rate: float, seed: tf.Tensor) -> tf.Tensor:
  """Zeroes a fixed share of the channels, the same ones for the whole batch.

  Stochastic matching: of C channels `int(drop_rate * C)` are drawn uniformly
  without replacement and set to zero; the others are not rescaled.

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
  # Whole numbers of this algorithm are the same ones under XLA.
  order = tf.argsort(tf.random.stateless_uniform(
      [channels], seed, None, None, tf.int32, alg="philox"))
  return features * tf.cast(order >= dropped, features.dtype)


def unit_map(maps: tf.Tensor) -> tf.Tensor:
  """Scales each map to unit L2 norm; a map of zeros stays one.

  Each map is first divided by its largest magnitude, so that neither a tiny nor
  a huge map loses precision; a unit map does not depend on that scale.

  Args:
    maps: `[batch, height, width]`.

  Returns:
    Unit maps of the same shape, finite and with finite gradients everywhere.
  """
  peak = tf.reduce_max(tf.abs(maps), axis=[1, 2], keepdims=True)
  scaled = tf.math.divide_no_nan(maps, tf.stop_gradient(peak))
  # A live map now holds a 1, so its norm is at least 1 and needs no epsilon.
  square = tf.reduce_sum(tf.square(scaled), axis=[1, 2], keepdims=True)
  return scaled * tf.math.rsqrt(tf.maximum(square, 1.0))


def map_distance(teacher_map: tf.Tensor, student_map: tf.Tensor) -> tf.Tensor:
  """Half the squared distance of two unit maps: 1 - cosine for live maps.

      d = |M_t / |M_t| - M_s / |M_s||^2 / 2 = 1 - cos(M_t, M_s)

  The paper's own term is the mean of the squared difference over positions,
  `2 d / (height * width)`, so its weight of 100 on 7x7 maps is 4.08 here. This
  form means the same on every map size. Where one map is all zero d is 1/2,
  where both are it is 0; in neither case does a gradient come from it.

  Args:
    teacher_map: `[batch, height, width]`.
    student_map: `[batch, height, width]`; resized first where the sizes differ,
      the larger down to the smaller, bilinear and antialiased.

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
  """Brings maps of two sizes to the smaller height and width.

  Args:
    one: `[batch, height, width]`.
    other: `[batch, height, width]`, perhaps of other sizes.

  Returns:
    Both, resized where need be, bilinear and antialiased.
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
  """As `_resize`, by two matrices: XLA cannot resize, but multiplies."""
  if maps.shape[1:] == size:
    return maps
  with tf.init_scope():
    rows, columns = (
        tf.cast(_resize(tf.eye(before)[None], [after, before])[0], maps.dtype)
        for before, after in zip(maps.shape[1:], size))
  return tf.einsum("ih,bhw,jw->bij", rows, maps, columns)
