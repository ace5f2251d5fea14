"""Joins a file that predicts with a piece that computes its map.

A phone's file has two subgraphs. `predict` is the converted model. `explain`
begins with a copy of it, operator by operator, so that the logits of both are
equal to the last bit. A piece in floats, converted separately, follows: it
computes the map from the copy's features and logits. Both subgraphs read the
same constants, which the file holds once.

Uses LiteRT's own schema (`ai_edge_litert.schema_py_generated`).
"""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.tflite.joiner import Joiner
from keras_attr_preserve.export.tflite.schema import read_model, write_model
from keras_attr_preserve.export.tflite.weight_storage import store_weights

__all__ = ["BypassError", "drop_unused", "merge", "needed_operators"]

_PREDICT = ("logits", "predictions")


class BypassError(ValueError):
  """A branch reaches the logits from the images without the features."""


def merge(
    forward: bytes,
    piece: bytes,
    *,
    from_features: bool,
    weights: str = "float32",
) -> bytes:
  """Makes a file with the signatures `predict` and `explain`.

  Args:
    forward: a file with one signature, from "images" to "logits", perhaps
      "predictions", and "features", of any number types.
    piece: a file with one signature, from "images" and, for a map of a class,
      "class_weights", to "logits", "features", "map" and perhaps "sensitivity",
      all of them floats: the same model again, and its map.
    from_features: True takes only the piece's operators behind the features,
      and reads the forward file's features. False takes all operators that the
      map needs, from the images on.
    weights: how the piece's larger constants are stored: "float32", "float16"
      or "int8", with a scale for each channel. Constants that the forward file
      already has are shared.

  Returns:
    The bytes of a file with two subgraphs, `predict` first. `explain` has the
    logits and predictions of the forward file, and "map", "features" and
    "sensitivity".

  Raises:
    BypassError: the map cannot be computed from the features alone.
  """
  model, other = read_model(forward), read_model(piece)
  predict, = model.subgraphs
  names = _tensors(model.signatureDefs[0])
  piece_inputs, piece_outputs = _tensors(other.signatureDefs[0])
  inputs, outputs = dict(names[0]), dict(names[1])
  explain = copy.deepcopy(predict)
  explain.name = "explain"
  predict.name = "predict"
  model.subgraphs.append(explain)

  targets = [piece_outputs[name] for name in ("map", "sensitivity")
             if name in piece_outputs]
  given = {piece_outputs["logits"]: outputs["logits"]}
  if from_features:
    given[piece_outputs["features"]] = outputs["features"]
  else:
    given[piece_inputs["images"]] = inputs["images"]
    targets.append(piece_outputs["features"])
  operators = needed_operators(other.subgraphs[0], targets, given)
  used = {int(number) for operator in operators for number in operator.inputs}
  if from_features and piece_inputs["images"] in used:
    raise BypassError(
        "something reaches the logits from the images without the features.")

  joiner = Joiner(model, explain, other)
  for tensor in sorted(used & given.keys()):
    joiner.connect(tensor, given[tensor])
  joined = joiner.append(operators)
  store_weights(model, explain, joined, weights)

  for name in piece_inputs.keys() - inputs.keys():
    if piece_inputs[name] in used:
      inputs[name] = joiner.tensor(piece_inputs[name])
  for name in ("map", "sensitivity", "features"):
    if piece_outputs.get(name) in targets:
      outputs[name] = joiner.tensor(piece_outputs[name])
  explain.inputs = np.int32(list(inputs.values()))
  explain.outputs = np.int32(list(outputs.values()))
  narrow = {name: tensor for name, tensor in names[1].items()
            if name in _PREDICT}
  predict.outputs = np.int32(list(narrow.values()))
  model.signatureDefs = [
      _signature("predict", 0, names[0], narrow),
      _signature("explain", 1, inputs, outputs)]
  ends = {*inputs.values(), *outputs.values()}
  for i, tensor in enumerate(explain.tensors):
    if i not in ends:
      tensor.name = b""
  drop_unused(model)
  return write_model(model)


def _tensors(entry: schema.SignatureDefT) -> tuple[dict[str, int], ...]:
  return tuple({pair.name.decode(): int(pair.tensorIndex) for pair in maps}
               for maps in (entry.inputs, entry.outputs))


def _signature(
    name: str, subgraph: int, inputs: Mapping[str, int],
    outputs: Mapping[str, int]) -> schema.SignatureDefT:
  entry = schema.SignatureDefT()
  entry.signatureKey, entry.subgraphIndex = name, subgraph
  entry.inputs, entry.outputs = ([
      _named(*pair) for pair in maps.items()] for maps in (inputs, outputs))
  return entry


def _named(name: str, tensor: int) -> schema.TensorMapT:
  entry = schema.TensorMapT()
  entry.name, entry.tensorIndex = name, tensor
  return entry


def needed_operators(
    graph: schema.SubGraphT, wanted: Iterable[int], given: Iterable[int]
) -> list[schema.OperatorT]:
  """Lists the operators that compute tensors from given ones.

  Args:
    graph: a subgraph.
    wanted: the numbers of the tensors to compute.
    given: the numbers of tensors that need not be computed.

  Returns:
    Operators of the subgraph, in its order.
  """
  needed = set(wanted) - set(given)
  operators = []
  for operator in reversed(graph.operators):
    if needed & {int(number) for number in operator.outputs}:
      operators.append(operator)
      needed |= {int(number) for number in operator.inputs} - set(given)
  return operators[::-1]


def drop_unused(model: schema.ModelT) -> None:
  """Drops tensors and buffers that nothing refers to; changes the model."""
  for number, graph in enumerate(model.subgraphs):
    ends = {*map(int, graph.inputs), *map(int, graph.outputs)}
    used = sorted(ends.union(*(
        {*map(int, operator.inputs), *map(int, operator.outputs)} - {-1}
        for operator in graph.operators)))
    places = {tensor: i for i, tensor in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[tensor] for tensor in used]
    for holder in (graph, *graph.operators):
      holder.inputs, holder.outputs = (
          np.int32([places[int(i)] for i in numbers])
          for numbers in (holder.inputs, holder.outputs))
    for entry in model.signatureDefs:
      if entry.subgraphIndex == number:
        for pair in (*entry.inputs, *entry.outputs):
          pair.tensorIndex = places[pair.tensorIndex]
  _drop_unused_buffers(model)


def _drop_unused_buffers(model: schema.ModelT) -> None:
  tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
  for tensor in tensors:
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
      tensor.buffer = 0  # The schema's empty buffer.
  holders = [*tensors, *(model.metadata or [])]
  numbers = sorted({0, *(holder.buffer for holder in holders)})
  places = {number: i for i, number in enumerate(numbers)}
  model.buffers = [model.buffers[number] for number in numbers]
  for holder in holders:
    holder.buffer = places[holder.buffer]
