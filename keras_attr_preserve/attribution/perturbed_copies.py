"""Gradients of a score at many changed copies of each image.

Integrated gradients changes an image along a path; SmoothGrad adds noise. The
gradients are summed batch by batch, so memory holds only one batch.
"""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.gradient_maps import (
  score_gradient,
  score_weights,
)
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.running import full_batch, graph_of, run_batches
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["over_copies"]


def over_copies(
    model: keras.Model,
    images: np.ndarray,
    targets: Any,
    key: Hashable,
    *arrays: np.ndarray,
    name: str,
    count: int,
    sums: int,
    change: Callable[..., tf.Tensor],
    add: Callable[..., list[tf.Tensor]],
    finish: Callable[..., tf.Tensor],
    batch_size: int | None,
    progress: Progress,
) -> np.ndarray:
  """Makes maps from the gradients of a score at changed copies of images.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`; the top class is the unchanged image's.
    key: the method's name and settings; see `run_model`.
    *arrays: further arrays with a row for each image.
    name: the method's name, for the progress line.
    count: copies of each image.
    sums: how many running sums the method keeps, each of the images' shape.
    change: `(images, numbers, *arrays) -> copies [numbers, batch, ...]`. The
      numbers are consecutive indices of copies, in 0..count - 1.
    add: `(gradients [numbers, batch, ...], numbers, *sums) -> sums`.
    finish: `(images, *sums, *arrays) -> maps`.
    batch_size: copies that run at once; None as in `full_batch`. If there are
      fewer images, several copies of each run.
    progress: see `Progress`.

  Returns:
    Maps, float32 `[images, height, width]`.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  tap = KnownTap(model)
  images = tap.pixels(images)
  batch_size = full_batch(batch_size, images)
  weights = score_weights(model, tap, images, targets, batch_size)
  report = reporter(progress, name, count * len(images))

  def step(pictures, seed, numbers, *rest):
    copies = change(pictures, numbers, *rest[sums:])
    gradients = score_gradient(
        tap, tf.reshape(copies, [-1, *pictures.shape[1:]]),
        tf.tile(seed, [tf.shape(numbers)[0], 1]))
    return add(tf.reshape(gradients, tf.shape(copies)), numbers, *rest[:sums])

  added = [images] * sums
  step = graph_of(model, (key, "step"), step, images, weights,
                  np.zeros(1, np.int32), *added, *arrays)
  end = graph_of(model, (key, "end"), finish, images, *added, *arrays)
  done = 0

  def explain(pictures, seed, *more):
    nonlocal done
    totals = [tf.zeros_like(pictures)] * sums
    at_once = max(1, batch_size // len(pictures))
    for start in range(0, count, at_once):
      numbers = tf.range(start, min(start + at_once, count))
      totals = step(pictures, seed, numbers, *totals, *more)
      done += len(numbers) * len(pictures)
      report(done)
    return (end(pictures, *totals, *more),)

  maps, = run_batches(explain, images, weights, *arrays, batch_size=batch_size)
  return maps
