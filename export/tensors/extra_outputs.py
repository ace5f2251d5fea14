"""Runs a .tflite file with inner tensors among its outputs.

A runtime reuses the memory of a tensor once no operator needs it, so an inner
tensor is garbage after a run. Here a copy of the file gives the tensors as
further outputs. Its operators, and so its numbers, stay the same on every
runtime.
"""

import copy
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.runtime.runtimes import start
from keras_attr_preserve.export.tflite.schema import (
  read_model,
  signatures,
  write_model,
)

__all__ = ["exposed_run", "with_outputs"]

_KEY = "tensors"

Run = Callable[[Mapping[int, np.ndarray]], dict[int, np.ndarray]]
"""From numbers by input tensor, `[images, ...]`, to numbers by tensor."""


def with_outputs(
    model: schema.ModelT, subgraph: int, numbers: Iterable[int]
) -> schema.ModelT:
  """Returns the model with other outputs; the given model does not change.

  Args:
    model: from `read_model`.
    subgraph: the number of the subgraph.
    numbers: the numbers of its new output tensors, in this order.
  """
  changed, graph = copy.copy(model), copy.copy(model.subgraphs[subgraph])
  graph.outputs = np.array([*numbers], np.int32)
  changed.subgraphs = [*model.subgraphs]
  changed.subgraphs[subgraph] = graph
  return changed


def exposed_run(
    model: schema.ModelT, subgraph: int, numbers: Iterable[int], runtime: str,
) -> tuple[Run, str]:
  """Loads a file with tensors among its outputs.

  Args:
    model: from `read_model`.
    subgraph: the number of the subgraph to run.
    numbers: the numbers of the tensors to read. Outputs stay outputs.
    runtime: see `Interpreter`.

  Returns:
    A function that runs it, and its kernels; see `Interpreter.runtime`.

  Raises:
    ValueError: the runtime refuses the file, at once or when it runs.
    ImportError: "tflm" without the package tflite-micro.
  """
  outputs = [int(number) for number in model.subgraphs[subgraph].outputs]
  numbers = sorted(numbers)
  wide = with_outputs(
      model, subgraph,
      [*outputs, *(number for number in numbers if number not in outputs)])
  entry = schema.SignatureDefT()
  entry.signatureKey, entry.subgraphIndex = _KEY, subgraph
  entry.inputs = [_named(number) for number in wide.subgraphs[subgraph].inputs]
  entry.outputs = [_named(number) for number in numbers]
  wide.signatureDefs = [entry]
  content = write_model(wide)
  signature = signatures(read_model(content))[_KEY]
  runner = start(content, runtime, len(model.subgraphs))

  def run(feeds):
    values = runner.run(_KEY, signature, {
        str(number): array for number, array in feeds.items()})
    return {number: values[str(number)] for number in numbers}
  return run, runner.kernels


def _named(index: int) -> schema.TensorMapT:
  pair = schema.TensorMapT()
  pair.name, pair.tensorIndex = str(int(index)), int(index)
  return pair
