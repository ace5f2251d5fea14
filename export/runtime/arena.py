"""Computes the memory that a file's tensors need at run time.

TFLite Micro keeps everything in one block, the tensor arena, which the program
reserves beforehand. The head of the arena holds tensors and the scratch of
kernels, planned as below. The tail holds data that live as long as the
interpreter: structures, multipliers of each channel, variables.

Source of the plan: tensorflow/lite/micro/micro_allocation_info.cc and
memory_planner/greedy_memory_planner.cc of tflite-micro.
"""

import dataclasses

from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.runtime import tflm_process
from keras_attr_preserve.export.runtime.tensor_bytes import (
  scratch_bytes,
  tensor_bytes,
)
from keras_attr_preserve.export.tflite.schema import operator_name, read_model

__all__ = ["ArenaPlan", "MeasuredArena", "measure_arena", "phone_arena",
           "plan_arena"]

_OTHER_GRAPHS = ("CALL", "CALL_ONCE", "IF", "WHILE")


@dataclasses.dataclass(frozen=True)
class ArenaPlan:
  """The places of a subgraph's tensors in TFLite Micro's arena.

  Attributes:
    head: bytes from the first tensor's beginning to the last one's end.
    live: the most bytes in use at once, rounded up to 16 for each tensor. Every
      plan needs at least these.
    operator: the operator that needs them: its number in the subgraph and its
      name, such as "3 CONV_2D".
    offsets: the offset of each tensor, by its number in the subgraph. Constants
      and variables have none.
  """

  head: int
  live: int
  operator: str
  offsets: dict[int, int]


@dataclasses.dataclass(frozen=True)
class MeasuredArena:
  """The bytes that the TFLite Micro interpreter uses.

  Measured on this machine, with reference kernels. The tail is smaller where
  pointers have 32 bits. Kernels tuned for a processor (CMSIS-NN) may ask for
  more scratch in the head.

  Attributes:
    head: the head, as the interpreter planned it.
    tail: data that live as long as the interpreter.
    smallest: the smallest arena, in steps of 16, in which the file can be set
      up: head and tail, and for small files the room that planning takes.
  """

  head: int
  tail: int
  smallest: int


@dataclasses.dataclass
class _Buffer:
  """Memory that needs a place: a tensor, or an operator's scratch."""

  size: int
  first: int
  last: int
  tensor: int | None = None

  def meets(self, other: "_Buffer") -> bool:
    return self.first <= other.last and other.first <= self.last


def plan_arena(tflite_model: bytes, subgraph: int = 0) -> ArenaPlan:
  """Plans the head of a tensor arena as TFLite Micro does.

  The plan is greedy: buffers are placed by size, the largest first. Each goes
  into the first gap between buffers that are alive at the same time.

  Args:
    tflite_model: the file's bytes.
    subgraph: the number of the subgraph.

  Returns:
    The plan, with the scratch that reference kernels ask for.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one; no such
      subgraph; a subgraph that calls others, or has tensors of no fixed size.
  """
  model = read_model(tflite_model)
  buffers = _buffers(model, _graph(model, subgraph), 16)
  places = _placed(buffers)
  # Bytes alive at each time; time 0 is before the first operator.
  alive = {time: sum(buffer.size for buffer in buffers
                     if buffer.first <= time <= buffer.last)
           for time in {buffer.first for buffer in buffers}}
  busiest = max(sorted(alive), key=alive.get, default=0)
  operators = model.subgraphs[subgraph].operators
  number = min(max(busiest - 1, 0), len(operators) - 1)
  return ArenaPlan(
      head=max((place + buffer.size for buffer, place in zip(buffers, places)),
               default=0),
      live=max(alive.values(), default=0),
      operator=f"{number} {operator_name(model, operators[number])}"
      if operators else "",
      offsets={buffer.tensor: place for buffer, place in zip(buffers, places)
               if buffer.tensor is not None})


def phone_arena(tflite_model: bytes) -> int:
  """Estimates LiteRT's bytes for tensors after all subgraphs have been called.

  This is a sum over subgraphs: each keeps an arena from its first call on.
  Tensors are aligned to 64 bytes. XNNPACK's packed weights and workspace come
  on top.

  Args:
    tflite_model: the file's bytes.

  Returns:
    Bytes.

  Raises:
    TypeError, ValueError: as for `plan_arena`.
  """
  model = read_model(tflite_model)
  total = 0
  for number in range(len(model.subgraphs)):
    buffers = [buffer for buffer in _buffers(model, _graph(model, number), 64)
               if buffer.tensor is not None]
    total += max(
        (place + buffer.size
         for buffer, place in zip(buffers, _placed(buffers))), default=0)
  return total


def measure_arena(tflite_model: bytes) -> MeasuredArena:
  """Measures an arena with the real interpreter, in a separate process.

  Args:
    tflite_model: the bytes of a file with one subgraph.

  Returns:
    The bytes of the TFLite Micro interpreter.

  Raises:
    ImportError: the package tflite-micro is not installed.
    TypeError, ValueError: not a .tflite file, or the interpreter refuses it.
  """
  graphs = len(read_model(tflite_model).subgraphs)
  if graphs != 1:
    raise ValueError(
        f"tflite_model must have one subgraph for TFLite Micro; got {graphs}.")
  return MeasuredArena(**tflm_process.measure(tflite_model))


def _graph(model: schema.ModelT, number: int) -> schema.SubGraphT:
  if not 0 <= number < len(model.subgraphs):
    raise ValueError(
        f"subgraph must be one of the file's {len(model.subgraphs)}, counted "
        f"from 0; got {number}.")
  return model.subgraphs[number]


def _buffers(model, graph, alignment: int) -> list[_Buffer]:
  """Lists the buffers to place, each with its first and last operator."""
  first, last = {}, {}
  for tensor in (*graph.inputs, *graph.outputs):
    first[int(tensor)] = last[int(tensor)] = 0
  scratch = []
  for time, operator in enumerate(graph.operators, 1):
    name = operator_name(model, operator)
    if name in _OTHER_GRAPHS:
      raise ValueError(
          "tflite_model: the arena of a file whose operators run other "
          f"subgraphs is not planned here; got {name}.")
    for tensor in operator.outputs:
      first[int(tensor)] = time
    for tensor in (*operator.inputs, *operator.outputs):
      last[int(tensor)] = time
    scratch += [_Buffer(_aligned(size, alignment), time, time)
                for size in scratch_bytes(name, graph, operator)]
  for tensor in graph.outputs:
    last[int(tensor)] = len(graph.operators)
  buffers = []
  for number, tensor in enumerate(graph.tensors):
    data = model.buffers[tensor.buffer].data
    if (data is None or not len(data)) and not tensor.isVariable:
      size = _aligned(tensor_bytes(tensor), alignment)
      if size:
        buffers.append(_Buffer(
            size, first.get(number, -1), last.get(number, -1), number))
  return buffers + scratch


def _placed(buffers: list[_Buffer]) -> list[int]:
  """Returns each buffer's offset."""
  places = {}
  # Among equal sizes TFLite Micro places later buffers first.
  order = sorted(
      reversed(range(len(buffers))), key=lambda i: -buffers[i].size)
  for i in order:
    place = 0
    for start, end in sorted(
        (start, start + buffers[j].size) for j, start in places.items()
        if buffers[j].meets(buffers[i])):
      if start - place >= buffers[i].size:
        break
      place = max(place, end)
    places[i] = place
  return [places[i] for i in range(len(buffers))]


def _aligned(size: int, alignment: int) -> int:
  return -(-size // alignment) * alignment
