"""Runs models in batches, and keeps graphs for later calls."""

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.models.layers import graphs_in

__all__ = ["full_batch", "graph_of", "has_tanh", "kept",
           "run_batches", "run_model"]

_PIXELS = 64 * 96 * 96  # Per batch.

# Objects made for a model. Graphs hold its variables but not the model.
_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def full_batch(batch_size: int | None, images: np.ndarray) -> int:
  """Returns the number of images per batch.

  Args:
    batch_size: the user's number, or None for 64. For small images None gives
      more, up to the pixels of 64 images of 96x96, because even a small batch
      costs a graph call.
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
    batch_size: rows per batch, the last may have fewer; None as in
      `full_batch` of the first array.

  Returns:
    The function's results, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  results = [function(*map(tf.convert_to_tensor, batch))
           for batch in _slices(arrays, full_batch(batch_size, arrays[0]))]
  return [np.concatenate([tensor.numpy() for tensor in column])
          for column in zip(*results, strict=True)]


def run_model(
    model: keras.Model,
    key: Hashable,
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int | None,
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time, as one graph.

  The graph is kept as long as the model lives. A later call with the same key
  runs it without tracing, with the model's current weights.

  Args:
    model: the model that the function runs.
    key: everything that the function's graph depends on besides the model.
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: rows per batch, the last may have fewer; None as in
      `full_batch` of the first array.

  Returns:
    The function's results, joined along the first axis.

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
    model: the model that the function runs.
    key: see `run_model`.
    function: takes one tensor for each array.
    *arrays: examples of the types and shapes; the first axis may differ.

  Returns:
    The graph, for tensors of any number of rows.
  """
  specs = tuple(tf.TensorSpec([None, *array.shape[1:]], array.dtype)
                for array in arrays)
  return kept(model, (key, specs), lambda: tf.function(
      function, autograph=False).get_concrete_function(*specs))


def has_tanh(graph: tf.Graph) -> bool:
  """Says whether a graph has a tanh, which TensorFlow may fail to run.

  TensorFlow 2.21 fuses a convolution, a batch normalization that no gradient
  reads, and a tanh. The fused operation has no CPU kernel.
  """
  return any(op.type == "Tanh" for op in graph.get_operations())


def kept(model: keras.Model, key: Hashable, make: Callable[[], Any]) -> Any:
  """Returns an object made for a model before, or makes it.

  Args:
    model: the object is kept as long as the model lives and has the same layers
      with the same activations.
    key: everything that the object depends on besides the model.
    make: makes the object, which must not hold the model.

  Returns:
    The result of `make`.
  """
  # Layers and activations may be swapped in a model that lives on.
  entries = [key]
  for graph in (model, *graphs_in(model)):
    layers = graph.layers
    entries += map(id, layers)
    entries += [id(getattr(layer, "activation", None)) for layer in layers]
  whole = tuple(entries)
  things = _kept.setdefault(model, {})
  if whole not in things:
    things[whole] = make()
  return things[whole]


def _slices(arrays: tuple, size: int) -> Iterator[list[np.ndarray]]:
  for start in range(0, len(arrays[0]), size):
    yield [array[start:start + size] for array in arrays]
