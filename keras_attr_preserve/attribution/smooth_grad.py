"""Gradients of noisy copies of a picture: their mean and their variance."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import no_layer
from keras_attr_preserve.attribution.perturbed_copies import over_copies
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.utils.progress import Progress

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
    batch_size: int | None = None,
    progress: Progress = None,
) -> np.ndarray:
  """Explains a score by the mean gradient over noisy copies of the picture.

      M = max_c |mean_n d score(x + e_n) / dx_c|,   e_n ~ N(0, s^2)

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`; the top class is that of the clean picture.
    layer: must be None, as the input is explained; every method takes it.
    samples: noisy copies of each picture, 1 or more.
    noise: the noise's standard deviation as a share of the picture's own range,
      0 or more.
    seed: of the noise; a picture's depends on its place among the images and
      nothing else.
    batch_size: pictures that run at once, all of them or several copies of
      each; memory holds
      no more. None for 64, of images under 96x96 more.
    progress: as for `integrated_gradients`.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825.
  """
  def add(gradients, numbers, mean):
    before, these = _counts(numbers)
    step = tf.reduce_mean(gradients, 0) - mean
    return [mean + step * these / (before + these)]

  def finish(pictures, mean, places):
    del pictures, places
    return tf.reduce_max(tf.abs(mean), -1)

  return _over_noise(model, images, targets, layer, samples, noise, seed,
                     batch_size, progress, "smooth_grad", 1, add, finish)


def var_grad(
    model: keras.Model,
    images: np.ndarray,
    targets: Any = None,
    layer: str | None = None,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = None,
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
    progress: see `smooth_grad`.

  Returns:
    Maps, float32 `[images, height, width]`, not negative.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, appendix A.
  """
  if samples < 2:
    raise ValueError(f"samples must be 2 or more; got {samples}.")

  def add(gradients, numbers, mean, spread):
    # Sums of squares about the mean (Chan et al. 1979): a difference of large
    # squares would lose the variance.
    before, these = _counts(numbers)
    new = tf.reduce_mean(gradients, 0)
    spread += tf.reduce_sum(tf.square(gradients - new), 0)
    spread += tf.square(new - mean) * before * these / (before + these)
    return [mean + (new - mean) * these / (before + these), spread]

  def finish(pictures, mean, spread, places):
    del pictures, mean, places
    return tf.reduce_max(spread / samples, -1)

  return _over_noise(model, images, targets, layer, samples, noise, seed,
                     batch_size, progress, "var_grad", 2, add, finish)


def _counts(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """How many copies came before these, and how many these are."""
  return (tf.cast(numbers[0], tf.float32),
          tf.cast(tf.shape(numbers)[0], tf.float32))


def _over_noise(model, images, targets, layer, samples, noise, seed, batch_size,
                progress, name, sums, add, finish):
  no_layer(layer)
  if samples < 1:
    raise ValueError(f"samples must be 1 or more; got {samples}.")
  if noise < 0:
    raise ValueError(f"noise must be 0 or more; got {noise}.")
  images = KnownTap(model).input.check(images)

  def change(pictures, numbers, places):
    axes = list(range(1, pictures.shape.rank))
    size = noise * (tf.reduce_max(pictures, axes, keepdims=True)
                    - tf.reduce_min(pictures, axes, keepdims=True))
    # A seed for each copy: what runs at once makes no difference.
    seeds = places * samples + numbers[:, None]
    drawn = tf.map_fn(
        lambda one: tf.random.stateless_normal(
            tf.shape(pictures)[1:], tf.stack([seed, one])),
        tf.reshape(seeds, [-1]), fn_output_signature=tf.float32)
    return pictures + size * tf.reshape(
        drawn, [-1, *tf.unstack(tf.shape(pictures))])

  return over_copies(
      model, images, targets, (name, samples, noise, seed),
      np.arange(len(images), dtype=np.int32), name=name, count=samples,
      sums=sums, change=change, add=add, finish=finish, batch_size=batch_size,
      progress=progress)
