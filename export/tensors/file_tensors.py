"""Reads tensors that a .tflite file computes between images and scores."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from keras_attr_preserve.export.runtime.runtimes import RUNTIMES
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tensors.extra_outputs import exposed_run
from keras_attr_preserve.export.tflite.schema import (
  TensorSpec,
  operator_name,
  read_metadata,
  signatures,
  tensor_spec,
)
from keras_attr_preserve.models.inputs import ImageInput, shape_input

__all__ = ["FileTensor", "FileTensors"]


@dataclasses.dataclass(frozen=True)
class FileTensor:
  """A tensor that a file computes from its images.

  Attributes:
    index: its number in the subgraph.
    name: the file's name for it. Fused operations have all names, the last
      first, with ";" between.
    operator: the operator that computes it, such as "CONV_2D".
    spec: its shape, number type and quantization.
  """

  index: int
  name: str
  operator: str
  spec: TensorSpec

  def __str__(self):
    return f"tensor {self.index} {self.name.split(';')[0]!r} ({self.operator})"


class FileTensors:
  """Reads any tensor of a file, as floats for every number type.

      files = FileTensors(tflite_model)
      features = files.read(images, [52])[52]

  Attributes:
    tensors: tensors by number, in the order they are computed. They depend on
      the images, are floats or encode floats, and have a row for each image.
    input: how the images are stored.
    outputs: the numbers of the file's own outputs.
    model: the parsed file.
    subgraph: the number of the subgraph that is run.
    runtime: the chosen runtime.
    kernels: the runtime last in use; see `Interpreter.runtime`.
    preprocess: the function applied to images first, or None.
  """

  def __init__(
      self,
      tflite_model: bytes | str | os.PathLike,
      *,
      runtime: str = "reference",
      signature: str | None = None,
      preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
  ):
    """Reads a file; nothing runs yet.

    Args:
      tflite_model: its bytes, or its path.
      runtime: see `Interpreter`.
      signature: the signature to run; None for "predict", or the only
        signature.
      preprocess: maps the caller's images to the floats of the file's input,
        such as `lambda images: (images + 1) * 127.5`; None if both are the
        same. It must not quantize.

    Raises:
      OSError: the path cannot be read.
      TypeError, ValueError: not a .tflite file, a damaged one, no such runtime
        or signature, or a file of several inputs.
    """
    if runtime not in RUNTIMES:
      raise ValueError(
          f"runtime must be one of {RUNTIMES}; got {runtime!r}.")
    if isinstance(tflite_model, (str, os.PathLike)):
      tflite_model = Path(tflite_model).read_bytes()
    self.model = checked_model(tflite_model, runtime)
    self.runtime = self.kernels = runtime
    self.preprocess = preprocess
    entry = _signature(self.model, signature)
    self.subgraph = entry.subgraph
    graph = self.model.subgraphs[self.subgraph]
    name, others = _image_input(self.model, entry.inputs)
    self.input = entry.inputs[name]
    self._image = int(graph.inputs[self.input.position])
    self._others = {int(graph.inputs[spec.position]): spec for spec in others}
    declared = graph.tensors[self._image].shapeSignature
    if declared is None or not len(declared):
      declared = graph.tensors[self._image].shape
    self._declared = [None if size < 0 else int(size) for size in declared]
    self.outputs = [int(graph.outputs[spec.position])
                    for spec in entry.outputs.values()]
    self.tensors = _computed(
        self.model, graph, self._image, self._declared[0] or 1)
    self._runs = {}

  @property
  def image_shape(self) -> tuple[int | None, ...]:
    """The shape of one image; None for a size that the file leaves open."""
    return tuple(self._declared[1:])

  @property
  def image_input(self) -> ImageInput:
    """The file's image input; channels last if its shape does not tell."""
    return shape_input(
        self.image_shape, "tflite_model", default="channels_last")

  def read(
      self, images: np.ndarray, tensors: Iterable[int | str] | None = None,
  ) -> dict[int | str, np.ndarray]:
    """Runs the file and reads tensors.

    Args:
      images: `[images, ...]`, floats in the range that the file's originator
        trained on (see `preprocess`); this method quantizes them.
      tensors: numbers or names of `self.tensors`; None for all, by number.

    Returns:
      The values of each tensor, dequantized, float32 `[images, ...]`.

    Raises:
      TypeError, ValueError: images of another shape or range, or with NaN; no
        such tensor, or several of that name; the runtime refuses the file.
    """
    keys = list(self.tensors if tensors is None else tensors)
    numbers = [self.find(key).index for key in keys]
    images = self._prepared(images)
    values = self._run(frozenset(numbers))(self._feeds(images))
    joined = {number: self.tensors[number].spec.decode(values[number])
              for number in numbers}
    return {key: joined[number] for key, number in zip(keys, numbers)}

  def load(self, tensors: Iterable[int]) -> None:
    """Loads the file into its runtime, ready for `read` of these tensors.

    Raises:
      ValueError: the runtime refuses the file.
      ImportError: the runtime is not installed.
    """
    self._run(frozenset(tensors))

  def find(self, tensor: int | str) -> FileTensor:
    """Returns a tensor by its number or name.

    Raises:
      ValueError: there is none, or several.
    """
    if isinstance(tensor, str):
      indices = [candidate.index for candidate in self.tensors.values()
               if tensor in (candidate.name, candidate.name.split(";")[0])]
      if len(indices) != 1:
        raise ValueError(
            f"tensors: the file computes {len(indices)} of the name "
            f"{tensor!r}; it has "
            f"{[str(candidate) for candidate in self.tensors.values()]}.")
      return self.tensors[indices[0]]
    if tensor not in self.tensors:
      raise ValueError(
          f"tensors: number {tensor} is not computed from the images; those "
          f"are {[str(candidate) for candidate in self.tensors.values()]}.")
    return self.tensors[tensor]

  def source(self, number: int) -> FileTensor | None:
    """Returns the first input of a tensor's operator.

    None if that input is the image, or does not depend on it.
    """
    for operator in self.model.subgraphs[self.subgraph].operators:
      if number in operator.outputs:
        return self.tensors.get(int(operator.inputs[0]))
    return None

  def sources(self, number: int) -> list[FileTensor]:
    """Returns the inputs of a tensor's operator that are in `tensors`."""
    for operator in self.model.subgraphs[self.subgraph].operators:
      if number in operator.outputs:
        return [self.tensors[int(index)] for index in operator.inputs
                if int(index) in self.tensors]
    return []

  def _prepared(self, images: np.ndarray) -> np.ndarray:
    taken = self.image_input
    images = taken.entry(images)
    if self.preprocess is not None:
      images = self.preprocess(images)
    images = taken.check(images)
    low, high = self.input.range
    least, most = float(images.min()), float(images.max())
    slack = (high - low) / 2
    steps = (most - least) / self.input.scale if self.input.scale else np.inf
    if least < low - slack or most > high + slack or 0 < steps < 3:
      raise ValueError(
          f"images must be in the range that the file was made for, "
          f"{low:.4g}..{high:.4g} in steps of {self.input.scale:.4g}; got "
          f"{least:.4g}..{most:.4g}. Give `preprocess` where the model takes "
          "another range than the file.")
    return images

  def _feeds(self, images: np.ndarray) -> dict[int, np.ndarray]:
    """Returns each input's numbers; inputs other than images are zeros."""
    zeros = {number: spec.encode(np.zeros(
        [len(images), *spec.shape[1:]], np.float32))
             for number, spec in self._others.items()}
    return {**zeros, self._image: self.input.encode(images)}

  def _run(self, numbers: frozenset[int]):
    if numbers not in self._runs:
      self._runs[numbers], self.kernels = exposed_run(
          self.model, self.subgraph, numbers, self.runtime)
    return self._runs[numbers]


def _signature(model, name):
  entries = signatures(model)
  if name is None:
    name = "predict" if "predict" in entries else (
        next(iter(entries)) if len(entries) == 1 else None)
  if name not in entries:
    raise ValueError(
        f"signature must be one of the file's, {sorted(entries)}; got "
        f"{name!r}.")
  return entries[name]


def _image_input(model, inputs: Mapping[str, TensorSpec]):
  """Returns the name of the image input, and the other inputs."""
  annotated = read_metadata(model) is not None
  names = [name for name in inputs
           if not (annotated and name == "class_weights")]
  if len(names) != 1:
    raise ValueError(
        f"tflite_model must take one input, the images; it takes {names}.")
  return names[0], [inputs[name] for name in inputs if name != names[0]]


def _computed(model, graph, image: int, rows: int) -> dict[int, FileTensor]:
  """Lists tensors that depend on the images, with a row for each, in order."""
  depends, tensors = {image}, {}
  for operator in graph.operators:
    if not depends & {int(number) for number in operator.inputs}:
      continue
    for index in map(int, operator.outputs):
      depends.add(index)
      tensor = graph.tensors[index]
      spec = tensor_spec(tensor)
      if spec is None or spec.shape[:1] != (rows,):
        continue
      # Plain integers, such as a shape or a class number, are no features.
      if spec.dtype.kind == "f" or spec.scale:
        tensors[index] = FileTensor(
            index, tensor.name.decode(), operator_name(model, operator), spec)
  return tensors
