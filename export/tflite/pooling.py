"""The pool between the features and a hidden layer of a .tflite file."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.schema import operator_name

__all__ = ["Pool"]


@dataclasses.dataclass(frozen=True)
class Pool:
  """A window that slides over the features; one pixel if there is no pool.

  Attributes:
    kind: "mean" or "max".
    size: height and width of the window.
    strides: the pixels it moves, down and to the right.
    start: row and column of its first pixel. Padding makes it negative and does
      not count; only "max" has padding.
    output: height and width of the pooled features.
  """

  kind: str
  size: tuple[int, int]
  strides: tuple[int, int]
  start: tuple[int, int]
  output: tuple[int, int]

  @classmethod
  def of(cls, model: schema.ModelT, graph: schema.SubGraphT, operators: list,
         shape: list[int]) -> "Pool | None":
    """Reads a pool off a file.

    Args:
      model: from `read_model`.
      graph: the subgraph.
      operators: the pools between features and hidden layer.
      shape: the shape of the features, with the batch.

    Returns:
      The pool. None if there are several, or if it averages over a padded edge
      or pools other axes than height and width.
    """
    size = (int(shape[1]), int(shape[2]))
    if not operators:
      return cls("mean", (1, 1), (1, 1), (0, 0), size)
    if len(operators) > 1:
      return None
    operator, = operators
    name = operator_name(model, operator)
    if name in ("MEAN", "REDUCE_MAX"):
      axes = np.frombuffer(bytes(model.buffers[graph.tensors[int(
          operator.inputs[1])].buffer].data), np.int32)
      if sorted(axes % 4) != [1, 2]:
        return None
      kind = "mean" if name == "MEAN" else "max"
      return cls(kind, size, (1, 1), (0, 0), (1, 1))
    options = operator.builtinOptions
    if options.fusedActivationFunction != schema.ActivationFunctionType.NONE:
      return None
    window = (options.filterHeight, options.filterWidth)
    strides = (options.strideH, options.strideW)
    output = tuple(int(side) for side in graph.tensors[
        int(operator.outputs[0])].shape[1:3])
    missing = [max((out - 1) * stride + length - have, 0)
               for out, stride, length, have in zip(
                   output, strides, window, size)]
    kind = "max" if name == "MAX_POOL_2D" else "mean"
    if kind == "mean" and any(missing):
      return None
    return cls(kind, window, strides, (-(missing[0] // 2), -(missing[1] // 2)),
               output)

  @property
  def count(self) -> int:
    """The number of pixels that are averaged; 1 for "max"."""
    return self.size[0] * self.size[1] if self.kind == "mean" else 1

  def apply(self, features: np.ndarray) -> np.ndarray:
    """Pools features.

    Args:
      features: `[images, height, width, channels]`, of any type of number.

    Returns:
      `[images, *output, channels]`, of the features' type.
    """
    reduce = np.mean if self.kind == "mean" else np.max
    return self._windows(features, reduce).astype(features.dtype)

  def sums(self, features: np.ndarray) -> np.ndarray:
    """Pools integers without rounding: `count` times the result of `apply`."""
    return self._windows(features, np.sum if self.kind == "mean" else np.max)

  def _windows(self, features, reduce) -> np.ndarray:
    rows, columns = (
        [slice(max(start + i * stride, 0), start + i * stride + length)
         for i in range(out)]
        for start, stride, length, out in zip(
            self.start, self.strides, self.size, self.output))
    return np.stack([
        np.stack([reduce(features[:, row, column], axis=(1, 2))
                  for column in columns], 1) for row in rows], 1)
