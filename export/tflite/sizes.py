"""The size of a .tflite file, plain and compressed."""

import gzip

import numpy as np

from keras_attr_preserve.export.tflite.schema import (
    constant,
    operator_name,
    read_model,
)

__all__ = ["file_sizes"]

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
             "TRANSPOSE_CONV")


def file_sizes(tflite_model: bytes) -> dict[str, float]:
  """Measures the size of a file.

  Args:
    tflite_model: its bytes.

  Returns:
    "bytes"; "bytes_gzipped", the compressed size, as in an update over the air;
    "sparsity", the share of zeros among the weights of convolutions and dense
    layers, 0..1. Sparsity saves bytes only in the compressed file.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one.
  """
  model = read_model(tflite_model)
  zeros = total = 0
  for graph in model.subgraphs:
    producers = {int(output): operator for operator in graph.operators
                 for output in operator.outputs}
    for operator in graph.operators:
      if operator_name(model, operator) not in _WEIGHTED:
        continue
      weights = int(operator.inputs[1])
      if weights in producers:  # float16 weights pass a DEQUANTIZE first.
        weights = int(producers[weights].inputs[0])
      values = constant(model, graph.tensors[weights])
      if values is not None:
        zeros += np.count_nonzero(values == 0)
        total += values.size
  return {
      "bytes": len(tflite_model),
      "bytes_gzipped": len(gzip.compress(tflite_model, 9, mtime=0)),
      "sparsity": zeros / total if total else 0.0,
  }
