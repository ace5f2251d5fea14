"""Gradients of noisy copies of an image: their mean and their variance."""

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
  """Explains a score by the mean gradient over noisy copies of the image.

      M = max_c |mean_n d score(x + e_n) / dx_c|,   e_n ~ N(0, s^2)

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`, in the range the model takes.
    targets: as for `grad_cam`; the top class is the unchanged image's.
    layer: must be None, as the input is explained; every method takes it.
    samples: noisy copies of each image, 1 or more.
    noise: the noise's standard deviation as a share of the image's own range, 0
      or more.
    seed: seed of the noise. An image's noise depends on the seed and on the
      image's place among the images, and on nothing else.
    batch_size: copies that run at once, which bounds memory; if there are fewer
      images, several copies of each. None for 64, or more for images under
      96x96.
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
    model: see `smooth_grad`.
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
    # Sums squares about the mean (Chan et al. 1979), because a difference of
    # large squares would lose the variance.
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
  """Returns the number of earlier copies, and the number of these."""
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
    # Each copy has its own seed, so the batch size does not matter.
    seeds = places * samples + numbers[:, None]
    drawn = tf.map_fn(
        lambda copy_seed: tf.random.stateless_normal(
            tf.shape(pictures)[1:], tf.stack([seed, copy_seed])),
        tf.reshape(seeds, [-1]), fn_output_signature=tf.float32)
    return pictures + size * tf.reshape(
        drawn, [-1, *tf.unstack(tf.shape(pictures))])

  return over_copies(
      model, images, targets, (name, samples, noise, seed),
      np.arange(len(images), dtype=np.int32), name=name, count=samples,
      sums=sums, change=change, add=add, finish=finish, batch_size=batch_size,
      progress=progress)
