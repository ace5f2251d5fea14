"""Fits a model to a part of the data for a number of steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.logits import find_head

__all__ = ["Recipe", "batches", "fit", "in_range", "task_loss"]


class Recipe(NamedTuple):
  """The settings of a fit, the same for all compared models.

  Attributes:
    steps: optimizer steps.
    learning_rate: Adam's first learning rate; a cosine lowers it to 2 %.
    batch_size: images per step.
    seed: the seed of the batches and of the model's random numbers.
    pixel_range: the model's values for black and for white.
    flip: whether to mirror images left to right at random, half of them.
    multi_label: whether an image may show several classes.
  """

  steps: int
  learning_rate: float
  batch_size: int
  seed: int
  pixel_range: tuple[float, float]
  flip: bool
  multi_label: bool


def in_range(images: Any, pixel_range: tuple[float, float]) -> Any:
  """Turns uint8 images, array or tensor, into floats of a model's range."""
  low, high = pixel_range
  if isinstance(images, np.ndarray):
    images = images.astype(np.float32)
  else:
    images = tf.cast(images, tf.float32)
  return images * ((high - low) / 255) + low


def task_loss(model: keras.Model, multi_label: bool) -> keras.losses.Loss:
  """Returns the loss for labels `[batch, classes]`, with or without softmax.

  Args:
    model: a classifier.
    multi_label: True for a binary cross-entropy of every class, False for the
      categorical cross-entropy.

  Returns:
    A Keras loss of the model's output.
  """
  # Logarithms of probabilities are logits too.
  from_logits = find_head(model).squash in ("", "log_softmax")
  kind = (keras.losses.BinaryCrossentropy if multi_label
          else keras.losses.CategoricalCrossentropy)
  return kind(from_logits=from_logits)


def batches(split: Any, recipe: Recipe) -> tf.data.Dataset:
  """Draws endless shuffled batches; equal seeds draw equal batches."""
  pictures = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
  pictures = pictures.shuffle(
      len(split.images), seed=recipe.seed, reshuffle_each_iteration=True)
  drawn = pictures.repeat().batch(recipe.batch_size, drop_remainder=True)

  def prepared(number, batch):
    images, labels = batch
    images = in_range(images, recipe.pixel_range)
    if recipe.flip:
      mirrored = tf.random.stateless_uniform(
          [recipe.batch_size], [recipe.seed, tf.cast(number, tf.int32)]) < 0.5
      images = tf.where(mirrored[:, None, None, None],
                        tf.reverse(images, axis=[2]), images)
    return images, labels

  return drawn.enumerate().map(prepared).prefetch(2)


def fit(
    model: keras.Model,
    split: Any,
    recipe: Recipe,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    *,
    epochs: int = 1,
    verbose: int = 0,
) -> dict[str, float]:
  """Compiles a model and fits it.

  Args:
    model: a classifier, wrapped or not.
    split: `images` uint8 and `labels` to train on.
    recipe: the settings of the fit.
    callbacks: callbacks for Keras.
    epochs: the number of epochs, which share the steps equally.
    verbose: as in Keras.

  Returns:
    The logs of the last epoch.
  """
  each = max(1, recipe.steps // epochs)
  schedule = keras.optimizers.schedules.CosineDecay(
      recipe.learning_rate, each * epochs, alpha=0.02)
  model.compile(keras.optimizers.Adam(schedule),
                task_loss(model, recipe.multi_label))
  keras.utils.set_random_seed(recipe.seed)
  history = model.fit(
      batches(split, recipe), epochs=epochs, steps_per_epoch=each,
      callbacks=[*callbacks], verbose=verbose)
  return {name: float(values[-1]) for name, values in history.history.items()}
