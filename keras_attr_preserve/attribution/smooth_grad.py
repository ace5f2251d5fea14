"""Gradients of noisy copies of a picture: their mean and their variance."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.runs import (
  at_pictures,
  no_layer,
  score_gradient,
)
from keras_attr_preserve.compat import keras, tf

__all__ = ["smooth_grad", "var_grad"]


def smooth_grad(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: int = 64,
) -> np.ndarray:
  """Explains a score by the mean gradient over noisy copies of the picture.

      M = max_c |mean_n d score(x + e_n) / dx_c|,   e_n ~ N(0, s^2)

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`; the top class is that of the clean picture.
    layer: accepted as every method does; must be None, the input is explained.
    samples: noisy copies of each picture, 1 or more; one runs at a time.
    noise: the noise's standard deviation as a share of the picture's own range,
      0 or more.
    seed: of the noise; a picture's depends on its place among the images and
      nothing else.
    batch_size: images a batch.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825.
  """
  return _over_noise(model, images, targets, layer, samples, noise, seed,
                     batch_size, "smooth_grad", lambda mean, _: tf.abs(mean))


def var_grad(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: int = 64,
) -> np.ndarray:
  """Explains a score by the variance of its gradient over noisy copies.

      M = max_c var_n d score(x + e_n) / dx_c

  Args:
    model: as for `smooth_grad`, and so are all others.
    images: see `smooth_grad`.
    targets: see `smooth_grad`.
    layer: see `smooth_grad`.
    samples: see `smooth_grad`; 2 or more.
    noise: see `smooth_grad`.
    seed: see `smooth_grad`.
    batch_size: see `smooth_grad`.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, appendix A.
  """
  if samples < 2:
    raise ValueError(f"samples must be 2 or more; got {samples}.")
  return _over_noise(
      model, images, targets, layer, samples, noise, seed, batch_size,
      "var_grad", lambda _, spread: spread / samples)


def _over_noise(model, images, targets, layer, samples, noise, seed, batch_size,
                name, collapse):
  no_layer(layer)
  if samples < 1:
    raise ValueError(f"samples must be 1 or more; got {samples}.")
  if noise < 0:
    raise ValueError(f"noise must be 0 or more; got {noise}.")

  def explain(tap, pictures, weights, numbers):
    axes = [1, 2, 3]
    size = noise * (tf.reduce_max(pictures, axes, keepdims=True)
                    - tf.reduce_min(pictures, axes, keepdims=True))

    def drawn(sample):
      return tf.map_fn(
          lambda number: tf.random.stateless_normal(
              tf.shape(pictures)[1:], tf.stack([seed, number * samples + sample]
                                               )),
          numbers, fn_output_signature=tf.float32)

    def add(sample, mean, spread):
      gradient = score_gradient(tap, pictures + size * drawn(sample), weights)
      # Welford's sums: a difference of large squares would lose the variance.
      step = gradient - mean
      mean += step / tf.cast(sample + 1, tf.float32)
      return sample + 1, mean, spread + step * (gradient - mean)

    nothing = tf.zeros_like(pictures)
    _, mean, spread = tf.while_loop(
        lambda sample, *_: sample < samples, add, (0, nothing, nothing))
    return tf.reduce_max(collapse(mean, spread), -1)

  numbers = np.arange(len(images), dtype=np.int32)
  return at_pictures(model, images, targets, (name, samples, noise, seed),
                     explain, batch_size, numbers)
