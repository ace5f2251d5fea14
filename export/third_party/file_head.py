"""Reads the head of a .tflite file, and the features before it."""

from keras_attr_preserve.export.tensors.extra_outputs import with_outputs
from keras_attr_preserve.export.tensors.file_tensors import (
  FileTensor,
  FileTensors,
)
from keras_attr_preserve.export.tflite.head import Head, read_head

__all__ = ["file_head", "last_features"]

_BEFORE_FEATURES = frozenset({
    "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "REDUCE_MAX", "RESHAPE",
    "SQUEEZE", "QUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED", "CONV_2D",
})


def file_head(
    file: FileTensors, features: FileTensor, logits: FileTensor
) -> Head | None:
  """Reads the layers of a file between features and logits.

  Args:
    file: the file.
    features: `[1, height, width, channels]`.
    logits: the class scores before their softmax.

  Returns:
    The head; None where `read_head` cannot read it.
  """
  if len(features.spec.shape) != 4:
    return None
  model = with_outputs(
      file.model, file.subgraph, [logits.index, features.index])
  return read_head(model, file.subgraph, 0, 1)


def last_features(
    file: FileTensors, logits: FileTensor) -> FileTensor | None:
  """Finds the last features with a height and a width before the logits.

  Args:
    file: the file.
    logits: the class scores before their softmax.

  Returns:
    The tensor that the head pools or flattens; None for no such tensor, or
    where an operator that no head has lies behind it.
  """
  tensor = logits
  while tensor is not None:
    shape = tensor.spec.shape
    if len(shape) == 4 and shape[1] * shape[2] > 1 and shape[3] > 1:
      return tensor
    if tensor.operator not in _BEFORE_FEATURES:
      return None
    tensor = file.source(tensor.index)
  return None
