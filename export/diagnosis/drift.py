"""Compares a file's features, sensitivities and maps with the Keras model's.

An error at a layer can come from that layer or from an earlier one. So each
layer has three measures. `error` is the difference of its features. `added` is
the difference given the file's own inputs of that layer. `harm` is the change
of the file's attribution map by `added` alone.
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

# This many images match tensors to layers.
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

  The comparisons, at each layer whose tensor is in the file:

  - features: the file's tensor, dequantized, with the Keras layer's output.
  - sensitivities and maps: the Keras model's, with the same model's when this
    layer gives the file's tensor and the others stay in floats. They show the
    effect of the file's features at this layer on score and map. They need no
    backward pass in the file. `facts` compares the file's own sensitivity and
    map of the WCAM's layer. With road "whole" the file's map has float layers
    of its own. It then says nothing about the layers of `predict`, which the
    rows describe.
  - the layer's own error: the file's tensor with the Keras layer's output for
    the file's inputs of that layer. The inputs are the nearest earlier tensors,
    so that a fused chain is one step.
  - harm: the WCAM's map of the Keras model with the map after this layer's own
    error is added.

  Args:
    model: the file's `tf_keras` model, in floats. A quantize-aware model runs
      with its fake quantizers. Not changed.
    tflite_model: the file's bytes or path, of any number types and any origin.
    wcam: names the layer and the method; the first layer is taken. For a file
      made by `convert` both must be the file's; None takes them from it.
    images: `[images, height, width, channels]`, in the model's range; a few
      dozen.
    targets: the explained class, as for `attribution.grad_cam`; None for the
      Keras model's top class of each image.
    runtime: the runtime of the file, as for `FileTensors`.
    preprocess: turns the model's images into the file's, as for `FileTensors`;
      None where they are the same.
    batch_size: images per batch.

  Returns:
    The table; `str` prints it.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above, or the file is not this
      model's: it holds no layer's tensor.

  References:
    Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.6, debugging
    a quantized model one layer at a time.
  """
  check_model(model)
  if isinstance(tflite_model, (str, os.PathLike)):
    tflite_model = Path(tflite_model).read_bytes()
  facts = file_metadata(tflite_model)
  wcam = known_wcam(facts, wcam)
  if batch_size < 1:
    raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
  tap = Tap(model, [wcam.layers[0]])
  images = tap.input.check(images)
  file = FileTensors(tflite_model, runtime=runtime, preprocess=preprocess)
  weights = _weights(tap, images, targets)
  tensors, named = _matches(file, model, images[:_TO_MATCH])
  if not tensors:
    raise ValueError(
        f"tflite_model: of the layers of model {model.name!r} it holds not one "
        "tensor; it is not this model's file, or takes images of another "
        "range.")
  passes = Passes(tap, file, tensors, wcam.method, preprocess is None)
  for start in range(0, len(images), batch_size):
    batch = slice(start, start + batch_size)
    passes.look(images[batch], weights[batch])
  rows = [LayerDrift(
      layer=layer, tensor=str(tensors.get(layer, "the images")), place=place,
      matched="name" if layer in named else "numbers", **passes.figures(layer))
          for place, layer in enumerate([INPUT, *tensors])
          if layer in passes.layers]
  rows.sort(key=lambda row: (
      -np.nan_to_num(row.harm), -np.nan_to_num(row.added), row.place))
  left_out = tuple(name for name in LayerOutputs(model).names
                   if name not in tensors)
  return Drift(tuple(rows), left_out, {
      "images": len(images), "layer": wcam.layers[0], "method": wcam.method,
      "runtime": file.kernels, "road": (facts or {}).get("road"),
      **_own(tflite_model, facts, runtime, passes, wcam, images, weights)})


def _weights(tap: Tap, images: np.ndarray, targets: Any) -> np.ndarray:
  if targets is not None:
    return class_weights(targets, len(images), tap.classes)
  top = tf.function(lambda batch: (top_class_seed(tap(batch).logits),),
                    reduce_retracing=True)
  return run_batches(top, images, batch_size=32)[0]


def _matches(file: FileTensors, model: keras.Model, images: np.ndarray):
  """Finds each layer's tensor, in the order of computing.

  Returns:
    The tensors by layer, and the names of the layers matched by name, since
    their numbers differ too much.
  """
  known = layers_by_name(model)
  tensors = _one_each(file, {
      name: match for name, match
      in layer_tensors(file, model, images).items() if name in known})
  taken = {tensor.index for tensor in tensors.values()}
  named = set()
  for name, values in LayerOutputs(model).run(images[:1]).items():
    if name in tensors or name not in known:
      continue
    same = [tensor for tensor in file.tensors.values()
            if tensor.index not in taken and _bears(tensor.name, name)
            and np.prod(tensor.spec.shape[1:]) == values[0].size]
    if len(same) == 1:
      tensors[name] = same[0]
      named.add(name)
  order = list(file.tensors)
  names = LayerOutputs(model).names
  return dict(sorted(tensors.items(), key=lambda item: (
      order.index(item[1].index), names.index(item[0])))), named


def _one_each(
    file: FileTensors, matches: dict[str, Match]) -> dict[str, FileTensor]:
  """Assigns each tensor to one layer: its last match, by name where possible.

  A tensor can match two layers. A ReLU may change its input very little. A
  layer that passes on its input has the tensor of the layer before it.
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
  """Returns whether a tensor's last operation has the layer's name."""
  last = tensor.split(";")[0].split("/")
  return layer in last and "gradient_tape" not in last


def _own(content, facts, runtime, passes: Passes, wcam: WCAM, images, weights):
  """Compares the file's own map and sensitivity with the model's."""
  values = {"map": None, "sensitivity": None, "not_measured": ""}
  if facts is None:
    values["not_measured"] = (
        "road, map and sensitivity: kap.export.convert has not made the file, "
        "so that it carries none; kap.export.explainer finds a way to a map")
    return values
  maps = Interpreter(content, runtime=runtime).explain(
      images, weights).maps
  scores = agreement(passes.maps, maps)["cosine"]
  values["map"] = float(np.nanmedian(scores))
  sensitivity = None if wcam.method == "ewa" else own_sensitivity(
      content, images, weights)
  if sensitivity is not None:
    values["sensitivity"] = float(np.median(
        cosines(passes.sensitivity, sensitivity)))
  elif wcam.method == "ewa":
    values["not_measured"] = "sensitivity: a map of method 'ewa' has none"
  else:
    values["not_measured"] = (
        "sensitivity: the file has no backward pass, and no head whose weights "
        "can be read")
  return values
