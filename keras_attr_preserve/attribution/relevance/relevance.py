"""Runs a relevance method over batches of images."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.relevance.graph import (
  Rule,
  Share,
  send_back,
)
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.running import run_model
from keras_attr_preserve.models.scores import class_weights, top_class_seed

__all__ = ["relevance"]


def relevance(
    model: keras.Model,
    images: np.ndarray,
    targets: Any,
    layer: str | None,
    key: Hashable,
    *,
    start: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    linear: Rule,
    share: Share,
    scaling: Rule | None = None,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Sends relevance from each image's score back to the image or a layer.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`.
    layer: a layer's name, or None for the image.
    key: the method's name and settings; see `run_model`.
    start: `(logits, class weights) -> relevance of the logits`.
    linear: see `send_back`.
    share: see `send_back`.
    scaling: see `send_back`.
    batch_size: images per batch.

  Returns:
    Maps, the relevance summed over channels, float32 `[images, height, width]`;
    and each image's relevance at the start, summed, `[images]`.

  Raises:
    TypeError, ValueError: an argument is not as above, or an operation of the
      model has no rule.
  """
  check_keras(model)
  tap = KnownTap(model, [] if layer is None else [layer])
  images = tap.pixels(images, places=layer is None)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def explain(batch, *seed):
    batch = tf.identity(batch)
    tapped = tap(batch)
    logits = tf.cast(tapped.logits, tf.float32)
    seed, = seed or (top_class_seed(logits),)
    first = start(logits, seed)
    destination = batch if layer is None else tapped.features[0]
    sent = send_back(batch, tapped.logits, first, destination, linear, share,
                     scaling)
    return tf.reduce_sum(sent, -1), tf.reduce_sum(first, -1)

  return tuple(run_model(model, (key, layer), explain, images, *weights,
                           batch_size=batch_size))
