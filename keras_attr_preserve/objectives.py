"""What a student learns from a teacher's scores.

Logit distillation, alone or beside attribution matching.
"""

from keras_attr_preserve.compat import at_least_float32, tf

__all__ = ["Distillation", "sigmoid_divergence", "softmax_divergence"]


def softmax_divergence(
    teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float
) -> tf.Tensor:
  """Divergence of two softmax distributions at a temperature T.

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
  """Divergence of the two-outcome distributions of every class.

  As `softmax_divergence`, for labels that do not exclude each other; the mean
  over the classes, as in Keras's BinaryCrossentropy.

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
    """Keeps the settings; the defaults are those of Park et al. 2020.

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
