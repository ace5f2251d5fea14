"""Preparing batch normalizations for training, with the same outputs."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_model, clone_model, keras
from keras_attr_preserve.models.inputs import check_calibration
from keras_attr_preserve.models.layers import graphs_in
from keras_attr_preserve.utils.notices import notice

__all__ = ["recalibrate_batch_norm"]


def recalibrate_batch_norm(
    model: keras.Model, images: np.ndarray, *, batch_size: int = 32
) -> keras.Model:
  """Measures moving statistics anew and adapts scale and offset to them.

      start = recalibrate_batch_norm(teacher, x_train[:512])
      student = prune_layers(start, shares, schedule)

  Moving statistics may not fit the images at hand. The model was trained on
  other images, say, or with its batch normalizations frozen. Training
  normalizes batches by their own statistics. The model would then compute
  another function from the first step on.

  Let `m` and `v` be the mean and variance of a layer's inputs on `images`. The
  layer has moving mean `m0`, moving variance `v0`, scale `g` and offset `b`. It
  gets `m` and `v` as moving statistics, and

      scale = g sqrt((v + epsilon) / (v0 + epsilon))
      offset = b + g (m - m0) / sqrt(v0 + epsilon)

  Its outputs stay the same for any input, up to rounding. Training starts from
  the same function.

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers; nested models
      are included. It is not changed. Some batch normalizations stay, and a
      warning names them: without scale or offset, with a constraint on either,
      or not trainable. The last use moving statistics in training, too.
    images: `[count, height, width, channels]`, some hundred training images, in
      the range the model takes.
    batch_size: images a batch.

  Returns:
    A new, uncompiled model of the same layers.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model computes
      values that are not finite.

  References:
    Ioffe and Szegedy 2015, "Batch Normalization",
    https://arxiv.org/abs/1502.03167: the layer in training and after it.
  """
  images = check_calibration(check_model(model), images, batch_size)
  copy = clone_model(model)
  norms = {
      id(layer): layer for graph in graphs_in(copy) for layer in graph.layers
      if isinstance(layer, keras.layers.BatchNormalization)}
  stay = [layer.name for layer in norms.values() if not _can_make_up(layer)]
  if stay:
    notice(
        f"recalibrate_batch_norm leaves {len(stay)} of {len(norms)} batch "
        f"normalizations of model {model.name!r} as they are, without scale or "
        f"offset, constrained or not trainable: {', '.join(stay[:8])}"
        + ", ..." * (len(stay) > 8))
  moments = [_Moments(layer) for layer in norms.values()
             if _can_make_up(layer)]
  with contextlib.ExitStack() as stack:
    for layer_moments in moments:
      stack.enter_context(layer_moments.listening())
    for start in range(0, len(images), batch_size):
      copy(images[start:start + batch_size], training=False)
  for layer_moments in moments:
    layer_moments.settle()
  return copy


def _can_make_up(layer: keras.layers.BatchNormalization) -> bool:
  return (layer.trainable and layer.scale and layer.center
          and layer.gamma_constraint is None and layer.beta_constraint is None)


class _Moments:
  """Mean and variance of each channel of a layer's input."""

  def __init__(self, layer: keras.layers.BatchNormalization):
    self._layer = layer
    self._count = 0
    # Of differences to the old mean, since their squares lose less precision.
    self._sum = self._squares = 0.0

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Adds the layer's inputs inside the block."""
    call = self._layer.call

    def listen(inputs: Any, *args: Any, **settings: Any) -> Any:
      self._add(np.asarray(inputs, np.float64))
      return call(inputs, *args, **settings)

    self._layer.call = listen
    try:
      yield
    finally:
      del self._layer.call

  def _add(self, inputs: np.ndarray) -> None:
    axis = self._layer.axis
    axis = axis[0] if isinstance(axis, Sequence) else axis
    channels = np.moveaxis(inputs, axis, -1).reshape(-1, inputs.shape[axis])
    channels = channels - self._layer.moving_mean.numpy()
    self._count += len(channels)
    self._sum += channels.sum(0)
    self._squares += np.square(channels).sum(0)

  def settle(self) -> None:
    """Sets the layer's moving statistics, scale and offset."""
    if not self._count:  # The model has the layer, but does not run it.
      return
    layer = self._layer
    if not np.isfinite(self._squares).all():
      raise ValueError(
          f"model: on these images layer {layer.name!r} takes values that are "
          "not finite.")
    scale, offset, mean, variance = (
        weight.astype(np.float64) for weight in layer.get_weights())
    shift = self._sum / self._count
    measured = np.maximum(self._squares / self._count - np.square(shift), 0)
    slope = scale / np.sqrt(variance + layer.epsilon)
    layer.set_weights([
        slope * np.sqrt(measured + layer.epsilon), offset + slope * shift,
        mean + shift, measured])
