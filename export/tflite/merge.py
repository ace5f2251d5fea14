"""Joining the file that predicts with the piece that draws its map.

A phone's file has two subgraphs. `predict` is the converted model. `explain` is
a copy of it, operator by operator, so that its logits are those of `predict` to
the last bit, followed by a piece converted apart, in floats, that makes the map
from the features and logits which the copy has computed. Both read the same
constants, which stand in the file once.

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
  """Something reaches the logits from the images without the features."""


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
    from_features: whether only those operators of the piece are taken that
      follow the features, which then are the forward file's own. Otherwise
      all that the map needs, from the images on.
    weights: how the piece's larger constants are stored: "float32", "float16"
      or "int8", in steps of their own for each channel. Those that the forward
      file has already are shared.

  Returns:
    The bytes of a file with two subgraphs, the first `predict`. `explain` has
    the logits and predictions of the forward file; "map", "features" and
    "sensitivity" beside them.

  Raises:
    BypassError: the map cannot be had from the features alone.
  """
  model, other = read_model(forward), read_model(piece)
  predict, = model.subgraphs
  names = _tensors(model.signatureDefs[0])
  their_inputs, theirs = _tensors(other.signatureDefs[0])
  inputs, outputs = dict(names[0]), dict(names[1])
  explain = copy.deepcopy(predict)
  explain.name = "explain"
  predict.name = "predict"
  model.subgraphs.append(explain)

  wanted = [theirs[name] for name in ("map", "sensitivity") if name in theirs]
  given = {theirs["logits"]: outputs["logits"]}
  if from_features:
    given[theirs["features"]] = outputs["features"]
  else:
    given[their_inputs["images"]] = inputs["images"]
    wanted.append(theirs["features"])
  operators = needed_operators(other.subgraphs[0], wanted, given)
  used = {int(one) for operator in operators for one in operator.inputs}
  if from_features and their_inputs["images"] in used:
    raise BypassError(
        "something reaches the logits from the images without the features.")

  joiner = Joiner(model, explain, other)
  for tensor in sorted(used & given.keys()):
    joiner.connect(tensor, given[tensor])
  joined = joiner.append(operators)
  store_weights(model, explain, joined, weights)

  for name in their_inputs.keys() - inputs.keys():
    if their_inputs[name] in used:
      inputs[name] = joiner.tensor(their_inputs[name])
  for name in ("map", "sensitivity", "features"):
    if theirs.get(name) in wanted:
      outputs[name] = joiner.tensor(theirs[name])
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
  return tuple({one.name.decode(): int(one.tensorIndex) for one in maps}
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
  """Lists the operators that compute some tensors from others.

  Args:
    graph: a subgraph.
    wanted: the numbers of the tensors.
    given: numbers of tensors that need not be computed.

  Returns:
    Operators of the subgraph, in its order.
  """
  needed = set(wanted) - set(given)
  operators = []
  for operator in reversed(graph.operators):
    if needed & {int(one) for one in operator.outputs}:
      operators.append(operator)
      needed |= {int(one) for one in operator.inputs} - set(given)
  return operators[::-1]


def drop_unused(model: schema.ModelT) -> None:
  """Drops tensors and buffers that nothing refers to; changes the model."""
  for number, graph in enumerate(model.subgraphs):
    ends = {*map(int, graph.inputs), *map(int, graph.outputs)}
    used = sorted(ends.union(*(
        {*map(int, one.inputs), *map(int, one.outputs)} - {-1}
        for one in graph.operators)))
    places = {tensor: i for i, tensor in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[tensor] for tensor in used]
    for holder in (graph, *graph.operators):
      holder.inputs, holder.outputs = (
          np.int32([places[int(i)] for i in numbers])
          for numbers in (holder.inputs, holder.outputs))
    for entry in model.signatureDefs:
      if entry.subgraphIndex == number:
        for one in (*entry.inputs, *entry.outputs):
          one.tensorIndex = places[one.tensorIndex]
  _drop_unused_buffers(model)


def _drop_unused_buffers(model: schema.ModelT) -> None:
  tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
  for tensor in tensors:
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
      tensor.buffer = 0  # By the schema the empty one.
  holders = [*tensors, *(model.metadata or [])]
  kept = sorted({0, *(one.buffer for one in holders)})
  places = {number: i for i, number in enumerate(kept)}
  model.buffers = [model.buffers[number] for number in kept]
  for one in holders:
    one.buffer = places[one.buffer]
