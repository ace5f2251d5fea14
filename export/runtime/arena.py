"""How much memory a file's tensors need while it runs.

TFLite Micro keeps everything in one block, the tensor arena, which the program
sets aside beforehand. Its head holds the tensors and the scratch of kernels,
planned as below; its tail what lives as long as the interpreter: structures,
multipliers of each channel, variables.

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
  """Where TFLite Micro puts the tensors of a subgraph.

  Attributes:
    head: bytes from the first tensor's beginning to the last one's end.
    live: the most bytes that are in use at once, 16-byte rounding included: no
      plan can do with less.
    operator: where that is: its number in the subgraph and its name, such as
      "3 CONV_2D".
    offsets: where each tensor begins, by its number in the subgraph; constants
      and variables have no place.
  """

  head: int
  live: int
  operator: str
  offsets: dict[int, int]


@dataclasses.dataclass(frozen=True)
class MeasuredArena:
  """What the TFLite Micro interpreter takes, in bytes.

  Measured on this machine, with reference kernels: where pointers have 32 bits
  the tail is smaller; kernels tuned for a processor (CMSIS-NN) may ask for more
  scratch in the head.

  Attributes:
    head: the plan as the interpreter made it.
    tail: what lives as long as the interpreter.
    smallest: the smallest arena, in steps of 16, in which the file is set up:
      head and tail, and where these are small the room that planning takes.
  """

  head: int
  tail: int
  smallest: int


@dataclasses.dataclass
class _Buffer:
  """What is to be placed: a tensor, or an operator's scratch."""

  size: int
  first: int
  last: int
  tensor: int | None = None

  def meets(self, other: "_Buffer") -> bool:
    return self.first <= other.last and other.first <= self.last


def plan_arena(tflite_model: bytes, subgraph: int = 0) -> ArenaPlan:
  """Plans the head of a tensor arena as TFLite Micro does.

  Greedily: buffers by size, the largest first, each into the first gap between
  those that are alive at the same time.

  Args:
    tflite_model: the file's bytes.
    subgraph: its number.

  Returns:
    The plan, with the scratch that reference kernels ask for.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one; no such
      subgraph; one that calls others, or has tensors of no fixed size.
  """
  model = read_model(tflite_model)
  buffers = _buffers(model, _graph(model, subgraph), 16)
  places = _placed(buffers)
  # Where most is alive; time 0 is before the first operator.
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
  """Estimates the bytes LiteRT sets aside for tensors once all has been called.

  The sum over the subgraphs, since each keeps an arena of its own from its
  first call on; tensors aligned to 64 bytes. XNNPACK's packed weights and
  workspace come on top.

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
  """Asks the real TFLite Micro interpreter, in a process of its own.

  Args:
    tflite_model: the bytes of a file with one subgraph.

  Returns:
    What it takes.

  Raises:
    ImportError: the package tflite-micro is not installed.
    TypeError, ValueError: not a .tflite file, or one that the interpreter
      refuses.
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
  """Lists what needs a place, with the first and last operator that uses it."""
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
  """Gives each buffer's offset."""
  places = {}
  # Of equal sizes TFLite Micro takes the later one first.
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
