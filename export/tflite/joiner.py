"""Copies operators of one .tflite file into a subgraph of another."""

import copy
from collections.abc import Iterable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

__all__ = ["Joiner"]


class Joiner:
  """Copies operators of another file to the end of a subgraph.

  Tensors and constants are copied with the operators that use them. Tensors
  named by `connect` are taken from the subgraph instead.
  """

  def __init__(
      self, model: schema.ModelT, graph: schema.SubGraphT,
      other: schema.ModelT):
    """Prepares to copy.

    Args:
      model: the file to add to; changes.
      graph: its subgraph to add to; changes.
      other: a file of one subgraph; does not change.
    """
    self._model, self._graph, self._other = model, graph, other
    self._places: dict[int, int] = {}
    self._codes = {_code_key(code): i
                   for i, code in enumerate(model.operatorCodes)}

  def tensor(self, theirs: int) -> int:
    """Returns the number of the copy of a tensor, which it copies if needed.

    An input left out, -1, stays -1.
    """
    if theirs < 0:
      return theirs
    if theirs not in self._places:
      tensor = copy.copy(self._other.subgraphs[0].tensors[theirs])
      data = self._other.buffers[tensor.buffer].data
      tensor.buffer = 0
      if data is not None and len(data):
        buffer = schema.BufferT()
        buffer.data = data
        self._model.buffers.append(buffer)
        tensor.buffer = len(self._model.buffers) - 1
      self._graph.tensors.append(tensor)
      self._places[theirs] = len(self._graph.tensors) - 1
    return self._places[theirs]

  def connect(self, theirs: int, ours: int) -> None:
    """Uses the subgraph's tensor `ours`, as floats, in place of `theirs`."""
    floats = self._other.subgraphs[0].tensors[theirs]
    if self._graph.tensors[ours].type == floats.type:
      self._places[theirs] = ours
      return
    operator = schema.OperatorT()
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.DEQUANTIZE
    code.deprecatedBuiltinCode = code.builtinCode
    # DEQUANTIZE of 16 bits is version 3, of 8 bits version 2.
    code.version = 3
    operator.opcodeIndex = self._code(code)
    operator.inputs = np.int32([ours])
    operator.outputs = np.int32([self.tensor(theirs)])
    self._graph.operators.append(operator)

  def append(
      self, operators: Iterable[schema.OperatorT]) -> list[schema.OperatorT]:
    """Copies operators to the end of the subgraph; returns the copies."""
    copies = []
    for operator in operators:
      copied = copy.copy(operator)
      copied.opcodeIndex = self._code(
          self._other.operatorCodes[operator.opcodeIndex])
      copied.inputs, copied.outputs = (
          np.int32([self.tensor(int(i)) for i in numbers])
          for numbers in (operator.inputs, operator.outputs))
      copies.append(copied)
    self._graph.operators.extend(copies)
    return copies

  def _code(self, code: schema.OperatorCodeT) -> int:
    key = _code_key(code)
    if key not in self._codes:
      self._model.operatorCodes.append(copy.copy(code))
      self._codes[key] = len(self._model.operatorCodes) - 1
    return self._codes[key]


def _code_key(code: schema.OperatorCodeT) -> tuple:
  return (max(code.builtinCode, code.deprecatedBuiltinCode), code.version,
          code.customCode)
