"""Other losses that a student may learn from its teacher, as baselines.

Logit distillation works alone or beside the matching of maps. The other classes
match maps as in other papers; each replaces a `WCAM`:

    PreserveAttribution(teacher, kap.objectives.CATKD("relu5"))
"""

from collections.abc import Sequence

import numpy as np

from keras_attr_preserve.compat import at_least_float32, tf
from keras_attr_preserve.training.wcam import WCAM, Schedule

__all__ = ["CATKD", "E2KD", "AttentionTransfer", "Distillation",
           "sigmoid_divergence", "softmax_divergence"]


def softmax_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Computes the divergence of two softmax distributions at a temperature T.

      T^2 sum_k p_k (log p_k - log q_k),   p, q = softmax(logits / T)

  Args:
    teacher_logits: `[batch, classes]`.
    student_logits: `[batch, classes]`.
    temperature: T > 0; T^2 keeps the gradients' size as T grows.

  Returns:
    The Kullback-Leibler divergence of each image, `[batch]`, not negative.

  References:
    Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531, section 2.
  """
  log_p = tf.nn.log_softmax(teacher_logits / temperature)
  log_q = tf.nn.log_softmax(student_logits / temperature)
  return temperature**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)


def sigmoid_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Computes the divergence of the two-outcome distributions of every class.

  It is `softmax_divergence` for labels that do not exclude each other. It is a
  mean over the classes, as in Keras's BinaryCrossentropy.

  Args:
    teacher_logits: `[batch, classes]`.
    student_logits: `[batch, classes]`.
    temperature: T > 0.

  Returns:
    The divergence of each image, `[batch]`, not negative.
  """
  teacher, student = teacher_logits / temperature, student_logits / temperature
  positive = tf.sigmoid(teacher) * (
      tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student))
  negative = tf.sigmoid(-teacher) * (
      tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student))
  return temperature**2 * tf.reduce_mean(positive + negative, -1)


_DIVERGENCES = {"softmax": softmax_divergence, "sigmoid": sigmoid_divergence}


class Distillation:
  """Replaces a share of the task loss by the teacher's scores.

      loss = (1 - alpha) * task + alpha * divergence

  A model's own regularization losses keep their full weight.
  """

  def __init__(self, *, alpha: float = 0.9, temperature: float = 4.0,
               kind: str = "softmax"):
    """Keeps the settings; the defaults are from Park et al. 2020.

    Args:
      alpha: share of the divergence, 0..1.
      temperature: softens both distributions, > 0.
      kind: "softmax" for classes that exclude each other, "sigmoid" for
        multi-label and one-logit heads.

    Raises:
      ValueError: a setting is out of its range.
    """
    if not 0 <= alpha <= 1:
      raise ValueError(f"alpha must be in 0..1; got {alpha}.")
    if not temperature > 0:
      raise ValueError(f"temperature must be above 0; got {temperature}.")
    if kind not in _DIVERGENCES:
      raise ValueError(f"kind must be one of {[*_DIVERGENCES]}; got {kind!r}.")
    self.alpha = float(alpha)
    self.temperature = float(temperature)
    self.kind = kind

  def divergence(
      self, teacher_logits: tf.Tensor, student_logits: tf.Tensor) -> tf.Tensor:
    """Returns the divergence of each image, `[batch]`."""
    student_logits = at_least_float32(student_logits)
    return _DIVERGENCES[self.kind](
        tf.cast(teacher_logits, student_logits.dtype), student_logits,
        self.temperature)


class AttentionTransfer(WCAM):
  """Attention transfer: mean squares of features at several layers.

      loss = weight / 2 * sum_layers mean_hw (Q_t / |Q_t| - Q_s / |Q_s|)^2,
      Q = mean_c A_c^2

  The map is that of `WCAM(method="ewa")`. The distance is a mean over the
  positions, so a layer with a larger map counts less.

  References:
    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention",
    https://arxiv.org/abs/1612.03928, equation 2 with p = 2, squared as in the
    authors' experiments. Their beta of 1000 is the weight here.
  """

  def __init__(
      self,
      layer: str | Sequence[str],
      *,
      weight: float | Schedule = 1000.0,
      student_layer: str | Sequence[str] | None = None,
  ):
    """Keeps the settings; see `WCAM`."""
    super().__init__(
        layer, method="ewa", weight=weight, student_layer=student_layer)

  def _loss(self, distance: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    # Later the layers are averaged; the factor turns the mean into a sum.
    return len(self.layers) / positions * distance


class E2KD(WCAM):
  """Explanation-enhanced distillation's term: 1 - cosine of Grad-CAM maps.

  The class is the teacher's top class. The paper adds this term to the
  divergence of the scores: use it with `Distillation(alpha=1.0)`.

  References:
    Parchami-Araghi, Boehle, Rao and Schiele 2024, "Good Teachers Explain:
    Explanation-Enhanced Knowledge Distillation",
    https://arxiv.org/abs/2402.03119, equations 2 and 3.
  """

  def __init__(
      self,
      layer: str,
      *,
      weight: float | Schedule = 1.0,
      student_layer: str | None = None,
  ):
    """Keeps the settings; see `WCAM`."""
    super().__init__(
        layer, method="swa", weight=weight, student_layer=student_layer,
        target="teacher")


class CATKD(WCAM):
  """Class attention transfer: the signed activation maps of every class.

      loss = weight * mean_k |M_k^t / |M_k^t| - M_k^s / |M_k^s||^2,
      M_k = pooled to 2x2: sum_c a_kc A_c

  `a_kc` is the sensitivity of logit k. For a global average and one Dense layer
  it is the layer's weight, as in the paper. Other tails work too.

  References:
    Guo, Yan, Li and Lin 2023, "Class Attention Transfer Based Knowledge
    Distillation", CVPR, https://arxiv.org/abs/2304.12777, equations 3 to 5.
  """

  _SIZE = 2

  def __init__(
      self,
      layer: str,
      *,
      weight: float | Schedule = 4.0,
      student_layer: str | None = None,
  ):
    """Keeps the settings; see `WCAM`."""
    super().__init__(
        layer, method="swa", weight=weight, student_layer=student_layer,
        target="all")

  def map_size(self, height: int, width: int) -> tuple[int, int]:
    """Returns 2x2: every map is pooled to it."""
    del height, width
    return self._SIZE, self._SIZE

  def _collapse(
      self, features: tf.Tensor, sensitivity: tf.Tensor) -> tf.Tensor:
    return _pooled(tf.einsum(
        "bhwc,sbc->sbhw", features, tf.squeeze(sensitivity, [2, 3])),
        self._SIZE)

  def _loss(self, distance: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    del positions
    return 2 * distance


def _pooled(maps: tf.Tensor, size: int) -> tf.Tensor:
  """Averages maps `[..., height, width]` over size x size equal windows."""
  rows, columns = (_windows(length, size) for length in maps.shape[-2:])
  return tf.einsum("ih,...hw,jw->...ij", tf.constant(rows, maps.dtype), maps,
                   tf.constant(columns, maps.dtype))


def _windows(length: int | None, size: int) -> np.ndarray:
  if length is None:
    raise ValueError("layer: its maps must have a fixed size to be pooled.")
  windows = np.zeros((size, length))
  for i in range(size):
    # If the length does not divide, windows overlap by one.
    window = slice(i * length // size, -(-(i + 1) * length // size))
    windows[i, window] = 1 / len(range(length)[window])
  return windows
