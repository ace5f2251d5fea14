"""What the methods share: targets, and running in batches."""

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.layers import graphs_in

__all__ = ["class_weights", "run_batches", "run_model"]

# The graphs of methods, by model; they hold its variables but not the model.
_graphs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def class_weights(targets: Any, count: int, classes: int) -> np.ndarray:
  """Says which score is explained, as weights of the logits.

  Args:
    targets: a class number for all images; class numbers `[count]`; or float
      weights of the logits `[count, classes]`. Of one logit, class 1 is its
      positive side and class 0 its negative.
    count: how many images.
    classes: how many logits.

  Returns:
    Weights, float32 `[count, classes]`.

  Raises:
    ValueError: the targets have another shape, or name no class.
  """
  targets = np.asarray(targets)
  if targets.shape == (count, classes) and targets.dtype.kind == "f":
    return targets.astype(np.float32)
  if targets.shape not in ((), (count,)) or targets.dtype.kind not in "iub":
    raise ValueError(
        f"targets must be None, a class number, {count} class numbers, or "
        f"float weights [{count}, {classes}]; got {targets.dtype} of shape "
        f"{list(targets.shape)}.")
  targets = np.broadcast_to(targets.astype(int), count)
  if targets.min() < 0 or targets.max() >= max(classes, 2):
    raise ValueError(
        f"targets must be class numbers in 0..{max(classes, 2) - 1}; got "
        f"{targets.min()}..{targets.max()}.")
  if classes == 1:
    return np.where(targets, 1, -1).astype(np.float32)[:, None]
  return np.eye(classes, dtype=np.float32)[targets]


def run_batches(
    function: Callable[..., Any], *arrays: np.ndarray, batch_size: int
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time.

  Args:
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: images a batch; the last batch may be smaller.

  Returns:
    What the function returned, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  if isinstance(batch_size, bool) or not batch_size >= 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  parts = [function(*map(tf.convert_to_tensor, batch))
           for batch in _slices(arrays, batch_size)]
  return [np.concatenate([one.numpy() for one in column])
          for column in zip(*parts, strict=True)]


def run_model(
    model: keras.Model,
    key: Hashable,
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int,
) -> list[np.ndarray]:
  """Runs a function of tensors over arrays, a batch at a time, as one graph.

  The graph is kept for as long as the model lives: asked again with the same
  key, it runs at once. It reads the model's weights as they then are.

  Args:
    model: what the function runs.
    key: says all that the function's graph depends on besides the model.
    function: takes one tensor for each array, returns a tuple of tensors.
    *arrays: arrays of one length.
    batch_size: images a batch; the last batch may be smaller.

  Returns:
    What the function returned, joined along the first axis.

  Raises:
    ValueError: the batch size is not positive.
  """
  return run_batches(_graph(model, key, function, arrays), *arrays,
                     batch_size=batch_size)


def _graph(model, key, function, arrays) -> Callable[..., Any]:
  specs = tuple(tf.TensorSpec([None, *array.shape[1:]], array.dtype)
                for array in arrays)
  # Layers and activations may be swapped in a model that lives on.
  parts = tuple((id(layer), id(getattr(layer, "activation", None)))
                for graph in (model, *graphs_in(model))
                for layer in graph.layers)
  graphs = _graphs.setdefault(model, {})
  whole = (key, specs, parts)
  if whole not in graphs:
    graphs[whole] = tf.function(
        function, autograph=False).get_concrete_function(*specs)
  return graphs[whole]


def _slices(arrays: tuple, size: int) -> Iterator[list[np.ndarray]]:
  for start in range(0, len(arrays[0]), size):
    yield [array[start:start + size] for array in arrays]
