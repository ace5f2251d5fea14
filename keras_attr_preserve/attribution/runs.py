"""What the gradient methods share: a forward and a backward pass in batches."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.batches import class_weights, run_model
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.gradient_rules import STRAIGHT_THROUGH, gradient_rules
from keras_attr_preserve.images import check_images
from keras_attr_preserve.layers import last_spatial_layer
from keras_attr_preserve.tap import Tap, feature_gradients, top_class_seed

__all__ = ["at_layer", "at_pictures", "no_layer", "score_gradient"]

Combine = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def at_layer(
    model: keras.Model,
    images: np.ndarray,
    targets: Any,
    layer: str | None,
    key: Hashable,
    combine: Combine,
    batch_size: int,
) -> np.ndarray:
  """Makes maps of a layer's features and the gradient of a score by them.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last one with a spatial map.
    key: the method's name; see `run_model`.
    combine: `(features, gradients) -> maps`; both float32 `[batch, height,
      width, channels]`.
    batch_size: images a batch.

  Returns:
    Maps, float32 `[images, layer height, layer width]`.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  check_keras(model)
  layer = layer or last_spatial_layer(model)
  tap = Tap(model, [layer])
  images = check_images(images, tap.picture_shape)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def explain(batch, *seed):
    with tf.GradientTape() as tape:
      tape.watch(batch)
      tapped = tap(batch)
    seed, = seed or (top_class_seed(tapped.logits),)
    gradient, = feature_gradients(tape, tapped, seed)
    features, = tapped.features
    return (combine(tf.cast(features, tf.float32),
                    tf.cast(gradient, tf.float32)),)

  maps, = run_model(model, (key, layer), explain, images, *weights,
                      batch_size=batch_size)
  return maps


def at_pictures(
    model: keras.Model,
    images: np.ndarray,
    targets: Any,
    key: Hashable,
    explain: Callable[..., tf.Tensor],
    batch_size: int,
    *arrays: np.ndarray,
) -> np.ndarray:
  """Makes maps of pictures and what a model gives for changed ones.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`; the top class is that of the picture as it is.
    key: the method's name and settings; see `run_model`.
    explain: `(tap, pictures, class weights, *arrays) -> maps`.
    batch_size: images a batch.
    *arrays: further arrays with a row for each image.

  Returns:
    Maps, float32 `[images, height, width]`.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  check_keras(model)
  tap = Tap(model)
  images = check_images(images, tap.picture_shape)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def run(batch, *rest):
    seed, more = rest[:len(weights)], rest[len(weights):]
    seed, = seed or (top_class_seed(tap(batch).logits),)
    return (tf.cast(explain(tap, batch, seed, *more), tf.float32),)

  maps, = run_model(model, (key, len(weights)), run, images, *weights, *arrays,
                      batch_size=batch_size)
  return maps


def score_gradient(
    tap: Tap, pictures: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Differentiates a score by the pictures; quantizers are transparent.

  Args:
    tap: of the model.
    pictures: `[batch, height, width, channels]`.
    seed: class weights `[batch, classes]`.

  Returns:
    Gradients of the pictures' shape.
  """
  with tf.GradientTape() as tape:
    tape.watch(pictures)
    logits = tap(pictures).logits
  with gradient_rules(STRAIGHT_THROUGH):
    return tape.gradient(
        logits, pictures, output_gradients=tf.cast(seed, logits.dtype),
        unconnected_gradients="zero")


def no_layer(layer: str | None) -> None:
  """Raises ValueError where a method of the input is given a layer."""
  if layer is not None:
    raise ValueError(
        f"layer must be None, the input is explained; got {layer!r}.")
