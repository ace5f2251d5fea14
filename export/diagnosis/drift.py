"""Where a file's features, sensitivities and maps part from the Keras model's.

An error that arrives at a layer says little of who made it. Three views of each
layer tell them apart: how far its features are off (what has arrived), how far
they are off given the file's own inputs of that layer (what it added), and what
the addition alone does to the map that the file is shipped for (what it broke).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.export.diagnosis.drift_passes import (
  INPUT,
  Passes,
  cosines,
)
from keras_attr_preserve.export.diagnosis.drift_table import Drift, LayerDrift
from keras_attr_preserve.export.diagnosis.own_sensitivity import own_sensitivity
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.export.runtime.known_facts import (
  file_metadata,
  known_wcam,
)
from keras_attr_preserve.export.tensors.file_tensors import (
  FileTensor,
  FileTensors,
)
from keras_attr_preserve.export.tensors.find_tensor import Match, layer_tensors
from keras_attr_preserve.export.tensors.layer_outputs import LayerOutputs
from keras_attr_preserve.models.layer_changes import layers_by_name
from keras_attr_preserve.models.running import run_batches
from keras_attr_preserve.models.scores import class_weights, top_class_seed
from keras_attr_preserve.models.tap import Tap
from keras_attr_preserve.training.wcam import WCAM

__all__ = ["Drift", "LayerDrift", "drift"]

# As many images tell which tensor is which layer's.
_TO_MATCH = 8


def drift(
    model: keras.Model,
    tflite_model: bytes | str | os.PathLike,
    wcam: WCAM | None,
    images: np.ndarray,
    *,
    targets: Any = None,
    runtime: str = "reference",
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 8,
) -> Drift:
  """Compares a file with its Keras model layer by layer.

  What is compared at each layer of which the file holds a tensor:

  - features: the file's tensor, dequantized, with the Keras layer's output.
  - sensitivities and maps: Keras's own with those that Keras computes when this
    layer's output is the file's tensor and all the rest stays in floats; so
    they tell what the file's features at this layer mean to the score and the
    map, whether or not the file itself has a backward pass. What the file's own
    sensitivity and map of the WCAM's layer are worth is said in `facts`; of a
    file of road "whole", whose map has floats of its own, that says nothing of
    the layers of `predict`, which the rows are about.
  - the layer's own error: the file's tensor with what the Keras layer gives for
    the file's own inputs of it, taken from the nearest tensors before it, so
    that a fused chain is one step.
  - harm: the WCAM's map of the Keras model with that of the Keras model to
    which this layer's own error was added.

  Args:
    model: the `tf_keras` model that the file was made from; as it is in floats,
      so that with a quantize-aware model the file is compared with its fake
      quantizers. Left as it came.
    tflite_model: the file's bytes or path, of whatever number types and
      whoever's making.
    wcam: names the layer and the method; the first layer is taken. Of a file
      made by `convert` both must be the file's own; None takes them from it.
    images: `[images, height, width, channels]`, in the range the model takes; a
      few dozen.
    targets: the class explained, as for `attribution.grad_cam`; None for the
      Keras model's top class of each image.
    runtime: what runs the file, as for `FileTensors`.
    preprocess: turns images as the model takes them into those that the file
      takes, as for `FileTensors`; None where they are the same.
    batch_size: images a batch.

  Returns:
    The table; `str` prints it.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above, or the file is not this
      model's: it holds not one layer's tensor.

  References:
    Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.6, debugging
    a quantized net one layer at a time.
  """
  check_model(model)
  if isinstance(tflite_model, (str, os.PathLike)):
    tflite_model = Path(tflite_model).read_bytes()
  ours = file_metadata(tflite_model)
  wcam = known_wcam(ours, wcam)
  if batch_size < 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  tap = Tap(model, [wcam.layers[0]])
  images = tap.input.check(images)
  file = FileTensors(tflite_model, runtime=runtime, preprocess=preprocess)
  weights = _weights(tap, images, targets)
  found, named = _matches(file, model, images[:_TO_MATCH])
  if not found:
    raise ValueError(
        f"tflite_model: of the layers of model {model.name!r} it holds not one "
        "tensor; it is not this model's file, or takes images of another "
        "range.")
  passes = Passes(tap, file, found, wcam.method, preprocess is None)
  for start in range(0, len(images), batch_size):
    batch = slice(start, start + batch_size)
    passes.look(images[batch], weights[batch])
  rows = [LayerDrift(
      layer=layer, tensor=str(found.get(layer, "the images")), place=place,
      matched="name" if layer in named else "numbers", **passes.figures(layer))
          for place, layer in enumerate([INPUT, *found])
          if layer in passes.layers]
  rows.sort(key=lambda row: (
      -np.nan_to_num(row.harm), -np.nan_to_num(row.added), row.place))
  left_out = tuple(name for name in LayerOutputs(model).names
                   if name not in found)
  return Drift(tuple(rows), left_out, {
      "images": len(images), "layer": wcam.layers[0], "method": wcam.method,
      "runtime": file.kernels, "road": (ours or {}).get("road"),
      **_own(tflite_model, ours, runtime, passes, wcam, images, weights)})


def _weights(tap: Tap, images: np.ndarray, targets: Any) -> np.ndarray:
  if targets is not None:
    return class_weights(targets, len(images), tap.classes)
  top = tf.function(lambda batch: (top_class_seed(tap(batch).logits),),
                    reduce_retracing=True)
  return run_batches(top, images, batch_size=32)[0]


def _matches(file: FileTensors, model: keras.Model, images: np.ndarray):
  """Finds each layer's tensor, in the order of computing.

  Returns:
    The tensors by layer, and the names of the layers whose numbers are too far
    off to tell, so that the file's name for the tensor had to.
  """
  known = layers_by_name(model)
  found = _one_each(file, {
      name: match for name, match
      in layer_tensors(file, model, images).items() if name in known})
  taken = {tensor.index for tensor in found.values()}
  named = set()
  for name, values in LayerOutputs(model).run(images[:1]).items():
    if name in found or name not in known:
      continue
    same = [tensor for tensor in file.tensors.values()
            if tensor.index not in taken and _bears(tensor.name, name)
            and np.prod(tensor.spec.shape[1:]) == values[0].size]
    if len(same) == 1:
      found[name] = same[0]
      named.add(name)
  order = list(file.tensors)
  names = LayerOutputs(model).names
  return dict(sorted(found.items(), key=lambda one: (
      order.index(one[1].index), names.index(one[0])))), named


def _one_each(
    file: FileTensors, matches: dict[str, Match]) -> dict[str, FileTensor]:
  """Leaves each tensor to one layer: the last one that it is named for.

  Where a ReLU changes next to nothing, its tensor is near to what it is given,
  too; and a layer that hands on what it gets has the tensor of the one before.
  """
  owners = {}
  for name, match in matches.items():
    origin = match.tensor
    while origin.operator in ("QUANTIZE", "DEQUANTIZE") and file.source(
        origin.index):
      origin = file.source(origin.index)
    before = owners.get(origin.index)
    if before is None or match.named or not before[1].named:
      owners[origin.index] = name, match
  return {name: match.tensor for name, match in owners.values()}


def _bears(tensor: str, layer: str) -> bool:
  """Says whether a tensor's last operation is named for the layer."""
  last = tensor.split(";")[0].split("/")
  return layer in last and "gradient_tape" not in last


def _own(content, facts, runtime, passes: Passes, wcam: WCAM, images, weights):
  """Holds the file's own map and sensitivity against the model's."""
  found = {"map": None, "sensitivity": None, "not_measured": ""}
  if facts is None:
    found["not_measured"] = (
        "road, map and sensitivity: kap.export.convert has not made the file, "
        "so that it carries none; kap.export.explainer finds a way to a map")
    return found
  maps = Interpreter(content, runtime=runtime).explain(
      images, weights).maps
  scores = agreement(passes.maps, maps)["cosine"]
  found["map"] = float(np.nanmedian(scores))
  theirs = None if wcam.method == "ewa" else own_sensitivity(
      content, images, weights)
  if theirs is not None:
    found["sensitivity"] = float(np.median(cosines(passes.sensitivity, theirs)))
  elif wcam.method == "ewa":
    found["not_measured"] = "sensitivity: a map of method 'ewa' has none"
  else:
    found["not_measured"] = (
        "sensitivity: the file has no backward pass, and no head whose weights "
        "can be read")
  return found
