"""What the methods share: running in batches, and what is kept."""

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layers import graphs_in

__all__ = ["full_batch", "graph_of", "has_tanh", "kept",
           "run_batches", "run_model"]

_PIXELS = 64 * 96 * 96  # Of a batch.

# What was made for a model. Graphs hold its variables but not the model.
_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def full_batch(batch_size: int | None, images: np.ndarray) -> int:
  """Says how many images run at once.

  Args:
    batch_size: what the user asked for, or None: 64, and of small images as
      many as have the pixels of 64 of 96x96. A call of a graph takes its time
      however small its batch.
    images: `[images, height, width, ...]`.

  Returns:
    The number, 1 or more.

  Raises:
    ValueError: the batch size is not positive.
  """
  if batch_size is None:
    return max(64, _PIXELS // int(np.prod(images.shape[1:3])))
  if isinstance(batch_size, bool) or not batch_size >= 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  return batch_size


def run_batches(
    function: Callable[..., Any], *arrays: np.ndarray, batch_size: int | None
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time.

  Args:
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: rows a batch, the last may have less; None as in `full_batch`
      of the first array.

  Returns:
    What the function returned, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  parts = [function(*map(tf.convert_to_tensor, batch))
           for batch in _slices(arrays, full_batch(batch_size, arrays[0]))]
  return [np.concatenate([one.numpy() for one in column])
          for column in zip(*parts, strict=True)]


def run_model(
    model: keras.Model,
    key: Hashable,
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int | None,
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time, as one graph.

  The graph is kept for as long as the model lives: asked again with the same
  key, it runs at once. It reads the model's weights as they then are.

  Args:
    model: what the function runs.
    key: says all that the function's graph depends on besides the model.
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: rows a batch, the last may have less; None as in `full_batch`
      of the first array.

  Returns:
    What the function returned, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  return run_batches(graph_of(model, key, function, *arrays), *arrays,
                     batch_size=batch_size)


def graph_of(
    model: keras.Model,
    key: Hashable,
    function: Callable[..., Any],
    *arrays: np.ndarray | tf.Tensor,
) -> Callable[..., Any]:
  """Traces a function of tensors, once for each model and key.

  Args:
    model: what the function runs.
    key: see `run_model`.
    function: takes one tensor for each array.
    *arrays: arrays of the types and shapes to come; the first axis may differ.

  Returns:
    The graph, for tensors of any number of rows.
  """
  specs = tuple(tf.TensorSpec([None, *array.shape[1:]], array.dtype)
                for array in arrays)
  return kept(model, (key, specs), lambda: tf.function(
      function, autograph=False).get_concrete_function(*specs))


def has_tanh(graph: tf.Graph) -> bool:
  """Says whether a graph may be one that TensorFlow fails to run.

  TensorFlow 2.21 fuses a convolution, a batch normalization that no gradient
  reads, and a tanh into an operation that has no kernel for the CPU.
  """
  return any(op.type == "Tanh" for op in graph.get_operations())


def kept(model: keras.Model, key: Hashable, make: Callable[[], Any]) -> Any:
  """Returns what was made for a model before, or makes it.

  Args:
    model: for as long as it lives, and has the same layers with the same
      activations, what is made is kept.
    key: says all that it depends on besides the model.
    make: makes it; it must not hold the model.

  Returns:
    What `make` returned.
  """
  # Layers and activations may be swapped in a model that lives on.
  parts = [key]
  for graph in (model, *graphs_in(model)):
    layers = graph.layers
    parts += map(id, layers)
    parts += [id(getattr(layer, "activation", None)) for layer in layers]
  whole = tuple(parts)
  things = _kept.setdefault(model, {})
  if whole not in things:
    things[whole] = make()
  return things[whole]


def _slices(arrays: tuple, size: int) -> Iterator[list[np.ndarray]]:
  for start in range(0, len(arrays[0]), size):
    yield [array[start:start + size] for array in arrays]
