"""Finds the tensor of a .tflite file that is a Keras layer's output.

Names prove nothing: a converter folds and fuses layers, and other converters
use other names. So numbers on real images decide. The tensor must be by far the
nearest to the layer's output among tensors of its shape. No other layer may be
nearer to the tensor. Names only break ties.
"""

import os
from typing import NamedTuple

import numpy as np

from keras_attr_preserve.compat import check_keras, has_graph, keras
from keras_attr_preserve.export.tensors.file_tensors import (
    FileTensor,
    FileTensors,
)
from keras_attr_preserve.export.tensors.layer_outputs import LayerOutputs
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layers import unwrapped_name

__all__ = ["FileTensors", "Match", "find_tensor", "layer_tensors"]

# The largest relative errors that quantization may cause: for integers, and for
# floats, whose weights may be integers. Unrelated features have 1 or more.
_LIMIT = 0.5
_FLOAT_LIMIT = 0.2
# The factor by which other tensors must be farther than the nearest.
_MARGIN = 1.5
_FLOOR = 1e-5  # Smaller errors are rounding of a file in floats.
_CHUNK = 4  # Images at a time, so that all layer outputs fit in memory.
# Operators that pass on the same numbers in another type or shape.
_COPIES = frozenset({"QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE",
                     "EXPAND_DIMS", "CAST"})


class Match(NamedTuple):
  """A tensor compared with a layer.

  Attributes:
    layer: the layer's name.
    tensor: a tensor of the file.
    error: `|tensor - output| / |output|` over all images.
    cosine: the cosine of tensor and output, over all images, -1..1.
    named: whether the tensor has the layer's name.
  """

  layer: str
  tensor: FileTensor
  error: float
  cosine: float
  named: bool

  def __str__(self):
    by = "by name and numbers" if self.named else "by numbers"
    return (f"{self.tensor}, matched {by}, relative error {self.error:.2g}, "
            f"cosine {self.cosine:.4f}")


def find_tensor(
    tflite_model: bytes | str | os.PathLike | FileTensors,
    model: keras.Model,
    layer: str,
    images: np.ndarray,
) -> Match:
  """Finds the tensor of a file that is a Keras layer's output.

  Args:
    tflite_model: the file's bytes or path; or a `FileTensors`, which sets the
      runtime and the preprocessing of images.
    model: the `tf_keras` model that the file was made from, or a model of equal
      layers and nearly equal weights; not changed.
    layer: the name of one of its layers, without wrapper prefixes.
    images: `[images, ...]`, in the range the model takes; eight real images
      mostly suffice.

  Returns:
    The match.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above; no tensor is the layer's
      output, since it was fused with the next layer or the file is not this
      model's; or several tensors are as near. The message gives figures.
  """
  table = _Table(tflite_model, model, images)
  name = unwrapped_name(layer)
  if name not in table.layers:
    raise ValueError(
        f"layer must be one of model {model.name!r}'s with one output, "
        f"{list(table.layers)}; got {layer!r}.")
  return table.match(name)


def layer_tensors(
    tflite_model: bytes | str | os.PathLike | FileTensors,
    model: keras.Model,
    images: np.ndarray,
) -> dict[str, Match]:
  """Finds the tensors of all of a model's layers that a file still has.

  Args:
    tflite_model: as for `find_tensor`.
    model: as for `find_tensor`.
    images: as for `find_tensor`.

  Returns:
    The match of each layer that has a tensor, the input side first. Layers that
    were fused away, or cannot be told from others, are left out.

  Raises:
    OSError, TypeError, ValueError: as for `find_tensor`, for the arguments.
  """
  table = _Table(tflite_model, model, images)
  matches = {name: table.found(name)[0] for name in table.layers}
  return {name: match for name, match in matches.items() if match}


class _Table:
  """Every layer compared with every tensor of its shape."""

  def __init__(self, tflite_model, model, images):
    check_keras(model)
    if not has_graph(model) or len(model.inputs) != 1:
      raise ValueError(
          f"model {model.name!r} must be Functional, or Sequential with a "
          "known input shape, and take one input, the images.")
    images = model_input(model).check(images)
    self._file = tflite_model if isinstance(
        tflite_model, FileTensors) else FileTensors(tflite_model)
    self._graph = LayerOutputs(model)
    self._matches, self._alive = _compared(self._graph, self._file, images)
    self.layers = tuple(self._alive)
    self._nearest = {}
    for matches in self._matches.values():
      for match in matches:
        self._nearest[match.tensor.index] = min(
            match.error, self._nearest.get(match.tensor.index, np.inf))
    self._sources = _sources(self._file)

  def match(self, layer: str) -> Match:
    """Returns a layer's match, or raises ValueError with the reason."""
    match, why = self.found(layer)
    if match:
      return match
    nearest = self._after(layer)
    if nearest:
      why += (f" The nearest layer after it that the file holds is "
              f"{nearest.layer!r}: {nearest}.")
    raise ValueError(why)

  def found(self, layer: str) -> tuple[Match | None, str]:
    """Returns a layer's match, or None and the reason."""
    if not self._alive[layer]:
      return None, (f"layer {layer!r} gives nothing but zeros on these images, "
                    "so no tensor can be told by its numbers.")
    matches = self._matches[layer]
    near = [match for match in matches if match.error <= (
        _LIMIT if match.tensor.spec.scale else _FLOAT_LIMIT) and _reaches(
            match.error, self._nearest[match.tensor.index])]
    if not near:
      return None, (
          f"layer {layer!r} has no tensor in the file: it was fused with what "
          "follows it, or the file is not this model's, or takes images of "
          f"another range. {_listed(matches)}")
    rivals = self._distinct(
        [match for match in near if _reaches(match.error, near[0].error)])
    if len(rivals) > 1:
      rivals = [match for match in rivals if match.named] or rivals
    if len(rivals) > 1:
      return None, (
          f"layer {layer!r} could be several tensors of the file, which the "
          "numbers and names do not tell apart: name one yourself, or give "
          f"more varied images. {_listed(rivals)}")
    return rivals[0], ""

  def _distinct(self, matches: list[Match]) -> list[Match]:
    """Keeps one tensor of each group of copies, if possible in layer shape."""
    groups = {}
    for match in matches:
      groups.setdefault(self._sources[match.tensor.index], []).append(match)
    return [min(group, key=lambda match: (
        len(match.tensor.spec.shape) != self._graph.rank(match.layer),
        list(self._file.tensors).index(match.tensor.index)))
            for group in groups.values()]

  def _after(self, layer: str) -> Match | None:
    for name in self._graph.following(layer):
      match = self.found(name)[0] if name in self._alive else None
      if match:
        return match
    return None


def _reaches(error: float, best: float) -> bool:
  return max(error, _FLOOR) <= _MARGIN * max(best, _FLOOR)


def _listed(matches: list[Match], keep: int = 3) -> str:
  if not matches:
    return "It has no tensor of that shape."
  return "Best candidates: " + "; ".join(
      f"{match.tensor}, relative error {match.error:.2g}, cosine "
      f"{match.cosine:.4f}"
      for match in matches[:keep]) + "."


def _sources(file: FileTensors) -> dict[int, int]:
  """Returns, for each tensor, the first tensor with the same numbers."""
  graph, sources = file.model.subgraphs[file.subgraph], {}
  for operator in graph.operators:
    for index in map(int, operator.outputs):
      if index not in file.tensors:
        continue
      before = int(operator.inputs[0])
      copies = file.tensors[index].operator in _COPIES
      sources[index] = sources.get(before, index) if copies else index
  return sources


def _compared(
    layers: LayerOutputs, file: FileTensors, images: np.ndarray
) -> tuple[dict[str, list[Match]], dict[str, bool]]:
  """Compares every layer with every tensor of its shape.

  Returns:
    The matches of each layer, the nearest first; and whether its output is not
    all zero.
  """
  sums, energy, tensor_energy = {}, dict.fromkeys(layers.names, 0.0), {}
  for start in range(0, len(images), _CHUNK):
    chunk = images[start:start + _CHUNK]
    outputs = {name: _flat(value) for name, value in layers.run(chunk).items()}
    tensors = {index: _flat(value) for index, value in file.read(chunk).items()}
    for index, (_, values) in tensors.items():
      tensor_energy[index] = (
          tensor_energy.get(index, 0) + np.vdot(values, values))
    for name, (shape, output) in outputs.items():
      energy[name] += np.vdot(output, output)
      for index, (other, values) in tensors.items():
        if shape == other:
          difference = values - output
          sums[name, index] = sums.get((name, index), 0) + np.array(
              [np.vdot(difference, difference), np.vdot(values, output)])
  result = {name: [] for name in layers.names}
  for (name, index), (difference, product) in sums.items():
    if not energy[name]:
      continue
    # NaN, from a layer or a tensor that overflows, counts as infinitely far.
    error = np.nan_to_num(np.sqrt(difference / energy[name]), nan=np.inf)
    size = np.sqrt(energy[name] * tensor_energy[index])
    cosine = float(product / size) if 0 < size < np.inf else 0.0
    result[name].append(Match(
        name, file.tensors[index], float(error), cosine,
        _is_named(file.tensors[index], name)))
  for matches in result.values():
    matches.sort(key=lambda match: match.error)
  return result, {name: bool(total) for name, total in energy.items()}


def _flat(values: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
  """Returns a shape without sizes of 1, and the values as a vector.

  Converters add and remove such sizes.
  """
  shape = tuple(size for size in values.shape[1:] if size != 1)
  return shape, values.reshape(-1).astype(np.float64)


def _is_named(tensor: FileTensor, layer: str) -> bool:
  """Says whether a tensor's last operation has the layer's name."""
  return layer.split("/")[-1] in tensor.name.split(";")[0].split("/")
