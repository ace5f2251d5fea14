"""The rows that a layer multiplies its kernel with, and their sums."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.compression.layer_sparsities import is_prunable
from keras_attr_preserve.compression.least_squares.moments import (
  Moments,
  MomentsOfRows,
)
from keras_attr_preserve.utils.notices import notice

__all__ = ["input_moments", "is_fittable", "own_moments"]

POSITIONS = 100
"""Positions drawn from each image's features, if there are more."""


def is_fittable(layer: keras.layers.Layer) -> bool:
  """Says whether a layer is one product of matrices: Conv1D, Conv2D, Dense.

  It must have one group and channels last, and be called once.
  """
  return (is_prunable(layer)
          and not isinstance(layer, keras.layers.Conv2DTranspose)
          and getattr(layer, "groups", 1) == 1
          and getattr(layer, "data_format", "channels_last") == "channels_last"
          and len(layer.inbound_nodes) == 1)


def input_moments(
    student: Iterable[np.ndarray],
    teacher: Iterable[np.ndarray],
    layer: keras.layers.Layer,
) -> Moments:
  """Sums the products of a layer's inputs in a student and its teacher.

  Args:
    student: the student's inputs, batches of `[images, ..., channels]`.
    teacher: the teacher's, batch by batch; they may have more channels.
    layer: gives the windows.

  Returns:
    The sums over all positions, or over `POSITIONS` of them drawn from large
    features.

  Raises:
    ValueError: the inputs are not finite.
  """
  random = np.random.default_rng(0)
  rows = MomentsOfRows()
  for batches in zip(student, teacher, strict=True):
    both = [_windows(batch, layer) for batch in batches]
    chosen = _positions(both[0], random)
    rows.add(*(_rows(windows, chosen) for windows in both))
  return _checked(layer, rows)


def own_moments(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    images: np.ndarray,
    batch_size: int,
) -> list[Moments]:
  """Sums the products of several layers' inputs in one pass.

  Args:
    model: takes `images`.
    layers: of the model.
    images: `[count, height, width, channels]`.
    batch_size: images a batch.

  Returns:
    The sums of each layer, with the model as student and teacher.

  Raises:
    ValueError: a layer's inputs are not finite.
  """
  inputs_of = keras.Model(model.inputs, [layer.input for layer in layers])
  randoms = [np.random.default_rng(0) for _ in layers]
  collectors = [MomentsOfRows() for _ in layers]
  for start in range(0, len(images), batch_size):
    features = tf.nest.flatten(
        inputs_of(images[start:start + batch_size], training=False))
    for layer, random, rows, batch in zip(
        layers, randoms, collectors, features, strict=True):
      windows = _windows(batch, layer)
      rows.add(_rows(windows, _positions(windows, random)))
  return [_checked(layer, rows)
          for layer, rows in zip(layers, collectors, strict=True)]


def _checked(layer: keras.layers.Layer, rows: MomentsOfRows) -> Moments:
  """Raises if the sums are not finite; warns if there are too few rows."""
  moments = rows.moments()
  if not moments.finite():
    raise ValueError(
        f"model: on these images layer {layer.name!r} takes values that are "
        "not finite.")
  if rows.count < len(moments.diagonal):
    notice(
        f"Layer {layer.name!r} has {len(moments.diagonal)} inputs and sees "
        f"{rows.count} positions in these images; give more images, or leave "
        "it whole.")
  return moments


def _positions(
    windows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, ...]:
  """Draws positions of the features, in order."""
  tall, wide = windows.shape[1:3]
  return np.unravel_index(
      np.sort(random.permutation(tall * wide)[:POSITIONS]), (tall, wide))


def _rows(
    windows: np.ndarray, chosen: tuple[np.ndarray, ...]) -> np.ndarray:
  """Flattens the windows at these positions: `[rows, inputs]`, float64."""
  return windows[:, chosen[0], chosen[1]].reshape(
      -1, math.prod(windows.shape[3:])).astype(np.float64)


def _windows(inputs: tf.Tensor, layer: keras.layers.Layer) -> np.ndarray:
  """Returns the windows that a layer multiplies its kernel with.

  Args:
    inputs: of the layer, `[batch, ..., channels]`.
    layer: a Conv1D, Conv2D or Dense.

  Returns:
    A view `[batch, rows, columns, ...]`. Its last axes are the kernel's without
    the outputs. A Conv1D has one column.
  """
  inputs = np.asarray(inputs)
  if isinstance(layer, keras.layers.Dense):
    return inputs.reshape(len(inputs), -1, 1, inputs.shape[-1])
  sizes, strides, rates = (
      (*setting, 1)[:2] for setting in (
          layer.kernel_size, layer.strides, layer.dilation_rate))
  if inputs.ndim == 3:
    inputs = inputs[:, :, None]
  spans = [(size - 1) * rate + 1
           for size, rate in zip(sizes, rates, strict=True)]
  if layer.padding == "same":
    missing = [max((-(-length // stride) - 1) * stride + span - length, 0)
               for length, stride, span in zip(
                   inputs.shape[1:3], strides, spans, strict=True)]
    inputs = np.pad(inputs, [(0, 0), *(
        (count // 2, count - count // 2) for count in missing), (0, 0)])
  elif layer.padding == "causal":
    inputs = np.pad(inputs, [(0, 0), (spans[0] - 1, 0), (0, 0), (0, 0)])
  windows = np.lib.stride_tricks.sliding_window_view(
      inputs, spans, axis=(1, 2))
  (down, right), (tall, wide) = strides, rates
  return np.moveaxis(
      windows[:, ::down, ::right, :, ::tall, ::wide], 3, -1)
