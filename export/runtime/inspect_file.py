"""Inspects any .tflite file."""

import collections
import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.runtime import litert_process, tflm_process
from keras_attr_preserve.export.runtime.arena import (
  MeasuredArena,
  measure_arena,
  phone_arena,
  plan_arena,
)
from keras_attr_preserve.export.tflite.schema import (
  operator_name,
  read_metadata,
  read_model,
  type_name,
)
from keras_attr_preserve.export.tflite.seal import check_seal
from keras_attr_preserve.export.tflite.sizes import file_sizes
from keras_attr_preserve.export.tflite.tflm_operators import missing_operators

__all__ = ["Inspection", "TensorInfo", "inspect_file"]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """A tensor of a file.

  Attributes:
    subgraph: the number of its subgraph.
    index: its number in the subgraph.
    name: the converter's name for it.
    shape: with the batch.
    type: its number type, such as "INT8".
    kind: "input", "output", "constant", "variable" or "between".
    scale: real value of one step, the smallest and the largest over channels;
      None for floats.
    zero_point: the integer that stands for 0; None for floats.
    channels: the number of scales, 0 for floats.
  """

  subgraph: int
  index: int
  name: str
  shape: tuple[int, ...]
  type: str
  kind: str
  scale: tuple[float, float] | None
  zero_point: int | None
  channels: int


@dataclasses.dataclass(frozen=True)
class Inspection:
  """The result of `inspect_file`.

  Attributes:
    bytes: the file's size.
    bytes_gzipped: the compressed size, as in an update over the air.
    sparsity: the share of zeros among the weights, 0..1.
    sealed: whether it has the unbroken seal of `convert`.
    attribution: the metadata of `convert`: layer, method, mode and road; None
      in files not made by `convert`.
    signatures: by name: the number of the subgraph, and the tensor index of
      each input and output by name.
    operators: for each subgraph the count of each operator, in the order of
      first use.
    types: the number of tensors of each number type, constants included.
    tensors: all tensors.
    arena_head: bytes of TFLite Micro's plan; None if it does not take the file.
    arena_live: the most bytes in use at once.
    arena_measured: head, tail and smallest arena of the real interpreter; None
      if it is not installed or refuses the file.
    arena_phone: estimated bytes of LiteRT's arenas, of all subgraphs together;
      None if tensors have no fixed size.
    litert_reason: why LiteRT does not load and run the file; None if it does.
    tflm: whether TFLite Micro takes the file. The interpreter decides if it is
      installed, the list of operators otherwise.
    tflm_reasons: why it does not.
  """

  bytes: int
  bytes_gzipped: int
  sparsity: float
  sealed: bool
  attribution: dict[str, Any] | None
  signatures: dict[str, dict[str, Any]]
  operators: list[dict[str, int]]
  types: dict[str, int]
  tensors: list[TensorInfo]
  arena_head: int | None
  arena_live: int | None
  arena_measured: MeasuredArena | None
  arena_phone: int | None
  litert_reason: str | None
  tflm: bool
  tflm_reasons: list[str]

  def to_dict(self) -> dict[str, Any]:
    """Returns all attributes as plain values, for JSON."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    from keras_attr_preserve.export.runtime.inspection_text import text
    return text(self)


def inspect_file(tflite_model: bytes) -> Inspection:
  """Inspects a file; runs it in another process only.

  Args:
    tflite_model: its bytes.

  Returns:
    The inspection. `print` it, or read its attributes.

  Raises:
    TypeError, ValueError: not a .tflite file, or a damaged one.
  """
  if isinstance(tflite_model, bytearray):
    tflite_model = bytes(tflite_model)
  model = read_model(tflite_model)
  sealed = check_seal(tflite_model)
  tensors = [_tensor(model, number, index)
             for number, graph in enumerate(model.subgraphs)
             for index in range(len(graph.tensors))]
  plan = phone = measured = None
  reasons = _refusals(model, tflite_model)
  try:
    phone = phone_arena(tflite_model)
    plan = plan_arena(tflite_model)
  except ValueError as error:
    reasons.append(str(error))
  if not reasons and tflm_process.installed():
    try:
      measured = measure_arena(tflite_model)
    except ValueError as error:
      reasons.append(str(error))
  return Inspection(
      **file_sizes(tflite_model),
      sealed=sealed,
      attribution=read_metadata(model),
      signatures=_signatures(model),
      operators=[dict(collections.Counter(
          operator_name(model, operator) for operator in graph.operators))
          for graph in model.subgraphs],
      types=dict(collections.Counter(tensor.type for tensor in tensors)),
      tensors=tensors,
      arena_head=None if reasons or plan is None else plan.head,
      arena_live=None if reasons or plan is None else plan.live,
      arena_measured=measured,
      arena_phone=phone,
      litert_reason=litert_process.try_files([tflite_model])[0],
      tflm=not reasons,
      tflm_reasons=reasons)


def _refusals(model: schema.ModelT, content: bytes) -> list[str]:
  """Lists reasons why TFLite Micro refuses a file, without running it."""
  reasons = []
  if len(model.subgraphs) != 1:
    reasons.append(f"{len(model.subgraphs)} subgraphs, of which it takes one")
  missing = missing_operators(content)
  if missing:
    reasons.append(f"it lacks {', '.join(missing)}")
  return reasons


def _signatures(model: schema.ModelT) -> dict[str, dict[str, Any]]:
  named = lambda maps: {  # noqa: E731
      pair.name.decode(): int(pair.tensorIndex) for pair in maps}
  return {entry.signatureKey.decode(): {
      "subgraph": int(entry.subgraphIndex), "inputs": named(entry.inputs),
      "outputs": named(entry.outputs)} for entry in model.signatureDefs or []}


def _tensor(model: schema.ModelT, number: int, index: int) -> TensorInfo:
  graph = model.subgraphs[number]
  tensor = graph.tensors[index]
  data = model.buffers[tensor.buffer].data
  kind = next((name for name, holds in (
      ("input", index in graph.inputs), ("output", index in graph.outputs),
      ("variable", tensor.isVariable),
      ("constant", data is not None and len(data))) if holds), "between")
  values = tensor.quantization
  scales = np.atleast_1d(
      [] if values is None or values.scale is None else values.scale)
  points = np.atleast_1d(
      [] if values is None or values.zeroPoint is None else values.zeroPoint)
  return TensorInfo(
      number, index, tensor.name.decode(errors="replace"),
      tuple(int(size) for size in tensor.shape), type_name(tensor), kind,
      (float(scales.min()), float(scales.max())) if len(scales) else None,
      int(points[0]) if len(scales) and len(points) else None,
      len(scales))
