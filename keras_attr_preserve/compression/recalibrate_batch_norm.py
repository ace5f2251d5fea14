"""Batch normalizations made ready for training; the net computes the same."""

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
  """Measures moving statistics anew, and has scale and offset make up for it.

      start = recalibrate_batch_norm(teacher, x_train[:512])
      student = prune_layers(start, shares, schedule)

  A net trained on other pictures, or with its batch normalizations frozen, has
  moving statistics that are not those of the pictures at hand. As training
  begins, batches are normalized by their own statistics instead, and the net
  computes another function before it has learned or lost anything. With the
  mean `m` and variance `v` of what a layer takes on `images`, for its moving
  mean `m0`, variance `v0`, scale `g` and offset `b`,

      scale = g sqrt((v + epsilon) / (v0 + epsilon))
      offset = b + g (m - m0) / sqrt(v0 + epsilon)

  and `m` and `v` as moving statistics compute what the layer computed before,
  for any input, up to rounding; and in training it starts from there.

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers, or one that
      holds such as layers; left as it came. A batch normalization without scale
      or offset, or with a constraint on one, cannot make up for anything, and
      one that is not trainable takes its moving statistics in training as well:
      they stay as they are, and a warning names them.
    images: `[count, height, width, channels]`, some hundred of those to train
      on, in the range the model takes.
    batch_size: how many to run at a time.

  Returns:
    A new, uncompiled model of the same layers.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model computes
      what is not finite.

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
    for one in moments:
      stack.enter_context(one.listening())
    for start in range(0, len(images), batch_size):
      copy(images[start:start + batch_size], training=False)
  for one in moments:
    one.settle()
  return copy


def _can_make_up(layer: keras.layers.BatchNormalization) -> bool:
  return (layer.trainable and layer.scale and layer.center
          and layer.gamma_constraint is None and layer.beta_constraint is None)


class _Moments:
  """Mean and variance of each channel of what a layer takes."""

  def __init__(self, layer: keras.layers.BatchNormalization):
    self._layer = layer
    self._count = 0
    # Of differences to the old mean: squares lose less that way.
    self._sum = self._squares = 0.0

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Counts in what the layer takes inside the block."""
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
    """Gives the layer these moments, and a scale and offset for them."""
    if not self._count:  # The model has it, but does not run it.
      return
    layer = self._layer
    if not np.isfinite(self._squares).all():
      raise ValueError(
          f"model: on these images layer {layer.name!r} takes values that are "
          "not finite.")
    scale, offset, mean, variance = (
        one.astype(np.float64) for one in layer.get_weights())
    shift = self._sum / self._count
    measured = np.maximum(self._squares / self._count - np.square(shift), 0)
    slope = scale / np.sqrt(variance + layer.epsilon)
    layer.set_weights([
        slope * np.sqrt(measured + layer.epsilon), offset + slope * shift,
        mean + shift, measured])
