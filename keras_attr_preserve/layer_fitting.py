"""Least squares for one layer: pruning and refitting its kernel.

A Conv2D or Dense layer is a matrix that its windows are multiplied with, row
by row. What a student's layer can do for a teacher's hangs on two sums over all
rows: the products of what the student's takes with itself, and with what the
teacher's takes.
"""

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.layer_sparsity import is_prunable

__all__ = ["DAMPING", "ROUND_SHARE", "damping", "input_moments",
           "input_products", "is_fittable", "prune_linear", "refit_linear"]

ROUND_SHARE = 0.1
"""Share of what is left that one round removes; OBS itself removes one weight
at a time."""

ITERATIONS = 40
"""Of conjugate gradients, at most, to refit what a round leaves."""

ROUND_TOLERANCE = 1e-2
"""What is left of the residual where a round's refit ends; the next round opens
another. The last round's goes on to `TOLERANCE`."""

TOLERANCE = 1e-9
"""What is left of it in the end."""

DAMPING = 1e-2
"""How much the weights are held to what they were, in units of the inputs' mean
square: what the pictures say nothing of stays."""

POSITIONS = 100
"""Positions drawn from a feature map of each picture, where it has more."""


def is_fittable(layer: keras.layers.Layer) -> bool:
  """Says whether one matrix is all that the layer does: Conv2D, Dense.

  Of one group, channels last, and called once.
  """
  return (is_prunable(layer)
          and not isinstance(layer, keras.layers.Conv2DTranspose)
          and getattr(layer, "groups", 1) == 1
          and getattr(layer, "data_format", "channels_last") == "channels_last"
          and len(layer.inbound_nodes) == 1)


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
  amount = damping(inputs)
  products = inputs + amount * np.eye(len(inputs))
  wanted = cross @ weights + amount * weights
  spread = np.diag(np.linalg.inv(products))[:, None]
  left = np.ones(weights.shape, bool)
  rounds = max(1, math.ceil(
      math.log(kept / left.size) / math.log(1 - ROUND_SHARE)))
  fitted = _refitted(
      weights.astype(np.float64), products, wanted, left, ROUND_TOLERANCE)
  for number in range(1, rounds + 1):
    losses = np.where(left, np.square(fitted) / spread, np.inf)
    stay = round(left.size * (kept / left.size) ** (number / rounds))
    gone = np.argsort(losses, axis=None, kind="stable")[:left.sum() - stay]
    left.flat[gone] = False
    fitted = _refitted(
        fitted, products, wanted, left,
        ROUND_TOLERANCE if number < rounds else TOLERANCE)
  return fitted.astype(weights.dtype)


def refit_linear(
    start: np.ndarray,
    weights: np.ndarray,
    inputs: np.ndarray,
    cross: np.ndarray,
) -> np.ndarray:
  """Refits a linear layer that takes less than it did.

  Args:
    start: what its weights are held to, `[inputs, outputs]`.
    weights: `W`, of the teacher's layer, `[all, outputs]`.
    inputs: `sum x^T x`, as for `prune_linear`, `[inputs, inputs]`.
    cross: `sum x^T z`, `[inputs, all]`.

  Returns:
    `V`, which minimizes the sum of `|x V - z W|^2`, of `start`'s shape and
    dtype.
  """
  amount = damping(inputs)
  return np.linalg.solve(
      inputs + amount * np.eye(len(inputs)),
      cross @ weights + amount * start).astype(start.dtype)


def damping(inputs: np.ndarray) -> float:
  """What is added to the diagonal, to hold weights to what they were."""
  return DAMPING * np.trace(inputs) / len(inputs) or 1.0


def _refitted(
    weights: np.ndarray, products: np.ndarray, wanted: np.ndarray,
    left: np.ndarray, tolerance: float) -> np.ndarray:
  """Solves `products V = wanted` in the places left, from the weights there.

  By conjugate gradients, preconditioned by the diagonal, all columns at once.
  """
  scale = np.diag(products)[:, None]
  fitted = weights * left
  residual = (wanted - products @ fitted) * left
  enough = max(tolerance * np.linalg.norm(residual),
               TOLERANCE * np.linalg.norm(wanted))
  step, last = 0.0, np.ones(weights.shape[1])
  for _ in range(ITERATIONS):
    if np.linalg.norm(residual) <= enough:
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


def input_moments(
    student: Iterable[np.ndarray],
    teacher: Iterable[np.ndarray],
    layer: keras.layers.Layer,
) -> tuple[np.ndarray, np.ndarray]:
  """Sums the products of what a layer takes in a student and its teacher.

  Args:
    student: what it takes there, batches of `[images, ..., channels]`.
    teacher: the same, batch by batch.
    layer: says which windows of that.

  Returns:
    Student with student, `[inputs, inputs]`, and student with teacher,
    `[inputs, all]`, whose layer may take more; over all positions of a small
    map and `POSITIONS` drawn from a large one.

  Raises:
    ValueError: the layer takes what is not finite.
  """
  random = np.random.default_rng(0)
  own = cross = 0.0
  rows = 0
  for batches in zip(student, teacher, strict=True):
    both = [_windows(batch, layer) for batch in batches]
    chosen = _positions(both[0], random)
    seen, wanted = (_rows(one, chosen) for one in both)
    own, cross = own + seen.T @ seen, cross + seen.T @ wanted
    rows += len(seen)
  _check(layer, rows, own, cross)
  return own, cross


def input_products(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    images: np.ndarray,
    batch_size: int,
) -> list[np.ndarray]:
  """The first of `input_moments`, of several layers in one pass.

  Args:
    model: whose input is `images`.
    layers: of it.
    images: `[count, height, width, channels]`.
    batch_size: how many to run at a time.

  Returns:
    For each layer `[inputs, inputs]`.

  Raises:
    ValueError: a layer takes what is not finite.
  """
  net = keras.Model(model.inputs, [layer.input for layer in layers])
  randoms = [np.random.default_rng(0) for _ in layers]
  products, rows = [0.0] * len(layers), [0] * len(layers)
  for start in range(0, len(images), batch_size):
    features = tf.nest.flatten(
        net(images[start:start + batch_size], training=False))
    for number, (layer, one) in enumerate(zip(layers, features, strict=True)):
      windows = _windows(one, layer)
      seen = _rows(windows, _positions(windows, randoms[number]))
      products[number] = products[number] + seen.T @ seen
      rows[number] += len(seen)
  for layer, own, count in zip(layers, products, rows, strict=True):
    _check(layer, count, own)
  return products


def _positions(
    windows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, ...]:
  """Draws places of a map, in order."""
  tall, wide = windows.shape[1:3]
  return np.unravel_index(
      np.sort(random.permutation(tall * wide)[:POSITIONS]), (tall, wide))


def _rows(
    windows: np.ndarray, chosen: tuple[np.ndarray, ...]) -> np.ndarray:
  """The windows at these places, each flat: `[rows, inputs]`, float64."""
  return windows[:, chosen[0], chosen[1]].reshape(
      -1, math.prod(windows.shape[3:])).astype(np.float64)


def _check(
    layer: keras.layers.Layer, rows: int, *products: np.ndarray) -> None:
  """Raises or warns where the sums over so many rows are no good."""
  if not all(np.isfinite(one).all() for one in products):
    raise ValueError(
        f"model: on these images layer {layer.name!r} takes values that are "
        "not finite.")
  if rows < len(products[0]):
    warnings.warn(
        f"Layer {layer.name!r} has {len(products[0])} inputs and sees {rows} "
        "positions in these images; give more images, or leave it whole.",
        stacklevel=4)


def _windows(inputs: tf.Tensor, layer: keras.layers.Layer) -> np.ndarray:
  """What a layer multiplies its kernel with, position by position.

  Args:
    inputs: of the layer, `[batch, ..., channels]`.
    layer: a Conv2D or Dense.

  Returns:
    A view `[batch, rows, columns, ...]`, whose last axes are the kernel's but
    for its outputs.
  """
  inputs = np.asarray(inputs)
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
