"""A forward and a backward pass in batches, for the gradient methods."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.cached_tap import KnownTap
from keras_attr_preserve.models.gradient_rules import (
  STRAIGHT_THROUGH,
  gradient_rules,
)
from keras_attr_preserve.models.layers import last_spatial_layer
from keras_attr_preserve.models.running import has_tanh, kept, run_model
from keras_attr_preserve.models.scores import class_weights, top_class_seed
from keras_attr_preserve.models.tap import feature_gradients

__all__ = ["at_layer", "at_pictures", "largest", "last_layer", "no_layer",
           "score_gradient", "score_weights"]

def _frozen_batch_norm(op: tf.Operation, grad: tf.Tensor, *_):
  """Leaves out the gradients of the weights, which no method uses."""
  if op.get_attr("is_training") or has_tanh(
      tf.compat.v1.get_default_graph()):
    return NotImplemented
  _, scale, _, _, variance = op.inputs
  factor = scale * tf.math.rsqrt(variance + op.get_attr("epsilon"))
  if op.get_attr("data_format") == b"NCHW":
    factor = tf.reshape(factor, [-1, 1, 1])
  return [grad * tf.cast(factor, grad.dtype)] + [None] * 4


_FROZEN = {"FusedBatchNormV3": _frozen_batch_norm}

Combine = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def at_layer(
    model: keras.Model,
    images: np.ndarray,
    targets: Any,
    layer: str | None,
    key: Hashable,
    combine: Combine,
    batch_size: int | None,
) -> np.ndarray:
  """Makes maps from a layer's features and a score's gradient by them.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`.
    layer: a layer's name; None for the last layer with a spatial map.
    key: the method's name; see `run_model`.
    combine: `(features, gradients) -> maps`; both float32 `[batch, height,
      width, channels]`.
    batch_size: images per batch; None as in `full_batch`.

  Returns:
    Maps, float32 `[images, layer height, layer width]`.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  layer = layer or last_layer(model)
  tap = KnownTap(model, [layer])
  images = tap.images(images)
  weights = () if targets is None else (
      class_weights(targets, len(images), tap.classes),)

  def explain(batch, *seed):
    with tf.GradientTape() as tape:
      tape.watch(batch)
      tapped = tap(batch)
    seed, = seed or (top_class_seed(tapped.logits),)
    with gradient_rules(_FROZEN):
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
    batch_size: int | None,
    *arrays: np.ndarray,
    flat: bool = False,
) -> np.ndarray:
  """Makes maps of the images' size by a method's own function.

  Args:
    model: a built `tf_keras` model, wrapped by tfmot or not.
    images: `[images, height, width, channels]`.
    targets: as for `grad_cam`; the top class is the unchanged image's.
    key: the method's name and settings; see `run_model`.
    explain: `(tap, images, class weights, *arrays) -> maps`; the images have
      their channels last.
    batch_size: images per batch; None as in `full_batch`.
    *arrays: further arrays with a row for each image.
    flat: whether the method needs images with a height and a width.

  Returns:
    Maps, float32 `[images, height, width]`.

  Raises:
    TypeError, ValueError: an argument is not as above.
  """
  tap = KnownTap(model)
  images = tap.pixels(images, flat=flat)
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
    tap: KnownTap, pictures: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Differentiates a score by the images; quantizers pass gradients on.

  Args:
    tap: runs the model.
    pictures: the images, `[batch, height, width, channels]`.
    seed: class weights `[batch, classes]`.

  Returns:
    Gradients of the images' shape.
  """
  with tf.GradientTape() as tape:
    tape.watch(pictures)
    logits = tap(pictures).logits
  with gradient_rules({**STRAIGHT_THROUGH, **_FROZEN}):
    return tape.gradient(
        logits, pictures, output_gradients=tf.cast(seed, logits.dtype),
        unconnected_gradients="zero")


def score_weights(
    model: keras.Model, tap: KnownTap, images: np.ndarray, targets: Any,
    batch_size: int | None,
) -> np.ndarray:
  """Returns the weights of the score to explain, for each image.

  Args:
    model: the model that the tap runs.
    tap: runs the model.
    images: checked images.
    targets: as for `grad_cam`.
    batch_size: images per batch; None as in `full_batch`.

  Returns:
    Weights of the logits, float32 `[images, classes]`.

  Raises:
    ValueError: the targets have another shape, or name no class.
  """
  if targets is not None:
    return class_weights(targets, len(images), tap.classes)
  weights, = run_model(
      model, "top class", lambda batch: (top_class_seed(tap(batch).logits),),
      images, batch_size=batch_size)
  return weights


def largest(pictures: tf.Tensor) -> tf.Tensor:
  """Returns each pixel's largest channel, `[batch, height, width]`."""
  if pictures.shape[-1] > 4:
    return tf.reduce_max(pictures, -1)
  # For few channels a reduction takes twice as long.
  return functools.reduce(tf.maximum, tf.unstack(pictures, axis=-1))


def last_layer(model: keras.Model) -> str:
  """Names the last layer with a spatial map; see `last_spatial_layer`."""
  return kept(check_keras(model), "last layer",
              lambda: last_spatial_layer(model))


def no_layer(layer: str | None) -> None:
  """Raises ValueError if a method that explains the input gets a layer."""
  if layer is not None:
    raise ValueError(
        f"layer must be None, the input is explained; got {layer!r}.")
