"""Pruning without training: what is left of a layer makes up for what goes."""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import check_model, clone_model, keras
from keras_attr_preserve.images import check_calibration
from keras_attr_preserve.layer_sparsity import (
  check_sparsities,
  is_prunable,
  prune_layers,
)

__all__ = ["hold_zeros", "prune_linear", "prune_with_reconstruction"]

ROUND_SHARE = 0.1
"""Share of what is left that one round removes; OBS itself removes one weight
at a time."""

ITERATIONS = 40
"""Of conjugate gradients, at most, to refit what a round leaves."""

DAMPING = 1e-2
"""How much the weights are held to what they were, in units of the inputs' mean
square: what the pictures say nothing of stays."""

POSITIONS = 100
"""Positions drawn from a feature map of each picture, where it has more."""


def prune_with_reconstruction(
    model: keras.Model,
    sparsities: Mapping[str, float],
    images: np.ndarray,
    *,
    batch_size: int = 32,
) -> keras.Model:
  """Prunes a copy of a model, each layer refitted to what it computed before.

      shares = layer_sparsities(teacher, 0.5)
      student = prune_with_reconstruction(teacher, shares, x_train[:512])

  Layer after layer, from the pictures on, the weights go whose loss the others
  make up for best, and those others take the values that bring the layer's
  outputs nearest to the teacher's, in least squares over all positions, from
  the inputs that the layers pruned before it now give. Neither labels nor
  training are needed; biases and all other layers stay as they are. To train on
  with the zeros where they are, see `hold_zeros`.

  Args:
    model: a built Functional or Sequential `tf_keras` model, stripped of
      tfmot's wrappers; left as it came.
    sparsities: by layer name, 0 or more and below 1, as `layer_sparsities`
      gives; layers that are not named stay whole, and at least one weight of
      each stays. Conv2D, of one group and with channels last, and Dense.
    images: `[count, height, width, channels]`, some hundred of those to train
      on, in the range the model takes. A layer with more inputs than it sees
      positions in them, at most 100 of each, is warned of: a Dense behind a
      Flatten sees one.
    batch_size: how many to run at a time.

  Returns:
    A new, uncompiled model of the same layers, zeros in their kernels.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model computes
      what is not finite.

  References:
    Hassibi and Stork 1992, "Second order derivatives for network pruning:
    Optimal Brain Surgeon"; Frantar and Alistarh 2022, "Optimal Brain
    Compression", https://arxiv.org/abs/2208.11580, section 3, layer by layer;
    He et al. 2017, https://arxiv.org/abs/1707.06168, section 3.2, from the
    inputs that pruned layers give.
  """
  images = check_calibration(check_model(model), images, batch_size)
  check_sparsities(model, sparsities)
  student = clone_model(model)
  for layer in model.layers:
    share = sparsities.get(layer.name, 0.0)
    if not share:
      continue
    _check_layer(layer)
    other = student.get_layer(layer.name)
    kernel, *rest = layer.get_weights()
    moments = _moments(
        keras.Model(model.inputs, layer.input),
        keras.Model(student.inputs, other.input), other, images, batch_size)
    fitted = prune_linear(
        kernel.reshape(-1, kernel.shape[-1]), *moments,
        kept=max(1, kernel.size - round(share * kernel.size)))
    other.set_weights([fitted.reshape(kernel.shape), *rest])
  return student


def prune_linear(
    weights: np.ndarray,
    inputs: np.ndarray,
    cross: np.ndarray,
    *,
    kept: int,
) -> np.ndarray:
  """Prunes a linear layer and refits what is left, in rounds.

  Minimizes the sum over the rows `x` of a student's inputs and `z` of a
  teacher's, of `|x V - z W|^2`, over matrices `V` with so many nonzeros. In
  each round those weights go that cost least when all others of their column
  make up for them, `V_i^2 / (H^-1)_ii` with `H = sum x^T x`; then the others
  are refitted.

  Args:
    weights: `W`, `[inputs, outputs]`.
    inputs: `sum x^T x`, `[inputs, inputs]`.
    cross: `sum x^T z`, `[inputs, inputs]`.
    kept: how many weights stay, 1 or more.

  Returns:
    `V`, of `W`'s shape and dtype. Weights of inputs that are always zero stay
    as they are, and go first.

  References:
    Hassibi and Stork 1992, equation 5, with the inverse of all inputs also
    where some have gone from a column: one inverse serves all columns.
  """
  damping = DAMPING * np.trace(inputs) / len(inputs) or 1.0
  products = inputs + damping * np.eye(len(inputs))
  wanted = cross @ weights + damping * weights
  spread = np.diag(np.linalg.inv(products))[:, None]
  left = np.ones(weights.shape, bool)
  rounds = max(1, math.ceil(
      math.log(kept / left.size) / math.log(1 - ROUND_SHARE)))
  fitted = _refitted(weights.astype(np.float64), products, wanted, left)
  for number in range(1, rounds + 1):
    losses = np.where(left, np.square(fitted) / spread, np.inf)
    stay = round(left.size * (kept / left.size) ** (number / rounds))
    gone = np.argsort(losses, axis=None, kind="stable")[:left.sum() - stay]
    left.flat[gone] = False
    fitted = _refitted(fitted, products, wanted, left)
  return fitted.astype(weights.dtype)


def _refitted(
    weights: np.ndarray, products: np.ndarray, wanted: np.ndarray,
    left: np.ndarray) -> np.ndarray:
  """Solves `products V = wanted` in the places left, from the weights there.

  By conjugate gradients, preconditioned by the diagonal, all columns at once.
  """
  scale = np.diag(products)[:, None]
  fitted = weights * left
  residual = (wanted - products @ fitted) * left
  first = np.linalg.norm(residual)
  step, last = 0.0, np.ones(weights.shape[1])
  for _ in range(ITERATIONS):
    if np.linalg.norm(residual) <= 1e-9 * first:
      break
    slope = residual / scale
    now = np.sum(residual * slope, axis=0)
    step = slope + step * _ratio(now, last)
    image = (products @ step) * left
    length = _ratio(now, np.sum(step * image, axis=0))
    fitted, residual = fitted + length * step, residual - length * image
    last = now
  return fitted


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Divides; 0 where a column is solved and both are."""
  return np.divide(one, other, out=np.zeros_like(one), where=other > 0)


def hold_zeros(model: keras.Model) -> keras.Model:
  """Wraps a copy of a pruned model so that its zeros stay while it trains.

      student = hold_zeros(prune_with_reconstruction(teacher, shares, images))
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam),
                                  tfmot.sparsity.keras.UpdatePruningStep()])
      student = tfmot.sparsity.keras.strip_pruning(student)

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers; left as it
      came. The zeros in kernels of its Conv2D and Dense layers are held, not
      those of models it holds as layers, which tfmot does not wrap.

  Returns:
    A new, uncompiled model, wrapped by tfmot's `prune_low_magnitude`.

  Raises:
    TypeError, ValueError: an argument is not as above, or there are no zeros.
  """
  shares = {}
  for layer in check_model(model).layers:
    if is_prunable(layer):
      kernel = layer.get_weights()[0]
      shares[layer.name] = np.count_nonzero(kernel == 0) / kernel.size
  shares = {name: share for name, share in shares.items() if 0 < share < 1}
  if not shares:
    raise ValueError(
        f"model {model.name!r} has no zeros in a kernel to hold; prune it "
        "first.")
  # The schedule may not fire: training may go on from a later step than 0.
  wrapped = prune_layers(
      model, shares, lambda share: tfmot.sparsity.keras.ConstantSparsity(
          share, begin_step=0, end_step=0))
  for layer in wrapped.layers:
    if hasattr(layer, "pruning_step"):
      kernel = layer.layer.kernel
      masks = [one for one in layer.weights
               if "mask" in one.name and one.shape == kernel.shape]
      masks[0].assign(kernel.numpy() != 0)
  return wrapped


def _check_layer(layer: keras.layers.Layer) -> None:
  if (not is_prunable(layer)
      or isinstance(layer, keras.layers.Conv2DTranspose)
      or getattr(layer, "groups", 1) != 1
      or getattr(layer, "data_format", "channels_last") != "channels_last"):
    raise ValueError(
        "sparsities must name Conv2D layers of one group, channels last, and "
        f"Dense layers; {layer.name!r} ({type(layer).__name__}) is not one.")
  if len(layer.inbound_nodes) != 1:
    raise ValueError(
        f"sparsities: layer {layer.name!r} is used {len(layer.inbound_nodes)} "
        "times; it cannot be refitted to each.")


def _moments(
    teacher: keras.Model,
    student: keras.Model,
    layer: keras.layers.Layer,
    images: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Sums the products of what a layer takes in the student and the teacher.

  Args:
    teacher: gives what the layer takes there.
    student: the same.
    layer: says which windows of it.
    images: to look at.
    batch_size: at a time.

  Returns:
    Student with student and student with teacher, `[inputs, inputs]`.
  """
  random = np.random.default_rng(0)
  own = cross = 0.0
  rows = 0
  for start in range(0, len(images), batch_size):
    batch = images[start:start + batch_size]
    both = [_windows(net(batch, training=False).numpy(), layer)
            for net in (student, teacher)]
    count = both[0].shape[1] * both[0].shape[2]
    chosen = np.unravel_index(
        np.sort(random.permutation(count)[:POSITIONS]), both[0].shape[1:3])
    seen, wanted = (
        one[:, chosen[0], chosen[1]].reshape(-1, math.prod(one.shape[3:]))
        .astype(np.float64) for one in both)
    own, cross = own + seen.T @ seen, cross + seen.T @ wanted
    rows += len(seen)
  if not (np.isfinite(own).all() and np.isfinite(cross).all()):
    raise ValueError(
        f"model: on these images layer {layer.name!r} takes values that are "
        "not finite.")
  if rows < len(own):
    warnings.warn(
        f"prune_with_reconstruction: layer {layer.name!r} has {len(own)} "
        f"inputs and sees {rows} positions in these images; give more images, "
        "or leave it whole.", stacklevel=3)
  return own, cross


def _windows(inputs: np.ndarray, layer: keras.layers.Layer) -> np.ndarray:
  """What a layer multiplies its kernel with, position by position.

  Args:
    inputs: of the layer, `[batch, ..., channels]`.
    layer: a Conv2D or Dense.

  Returns:
    A view `[batch, rows, columns, ...]`, whose last axes are the kernel's but
    for its outputs.
  """
  if isinstance(layer, keras.layers.Dense):
    return inputs.reshape(len(inputs), -1, 1, inputs.shape[-1])
  spans = [(size - 1) * rate + 1 for size, rate in zip(
      layer.kernel_size, layer.dilation_rate, strict=True)]
  if layer.padding == "same":
    missing = [max((-(-length // stride) - 1) * stride + span - length, 0)
               for length, stride, span in zip(
                   inputs.shape[1:3], layer.strides, spans, strict=True)]
    inputs = np.pad(inputs, [(0, 0), *(
        (one // 2, one - one // 2) for one in missing), (0, 0)])
  windows = np.lib.stride_tricks.sliding_window_view(
      inputs, spans, axis=(1, 2))
  (down, right), (tall, wide) = layer.strides, layer.dilation_rate
  return np.moveaxis(
      windows[:, ::down, ::right, :, ::tall, ::wide], 3, -1)
