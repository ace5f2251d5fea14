"""Writes C sources of a compressed model with its attribution maps."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.compat import check_model, keras
from keras_attr_preserve.evaluation.agreement import agreement, dead_maps
from keras_attr_preserve.export.conversion.convert import convert
from keras_attr_preserve.export.firmware.c_files import (
  explain_files,
  model_files,
  table_bytes,
)
from keras_attr_preserve.export.firmware.c_readme import readme
from keras_attr_preserve.export.firmware.c_test_files import test_files
from keras_attr_preserve.export.firmware.c_writing import check_name
from keras_attr_preserve.export.firmware.device_model import DeviceModel
from keras_attr_preserve.export.firmware.test_vectors import (
  VECTOR_IMAGES,
  test_vectors,
)
from keras_attr_preserve.export.runtime.arena import measure_arena, plan_arena
from keras_attr_preserve.export.runtime.interpreter import tflm_installed
from keras_attr_preserve.export.tflite.schema import read_model
from keras_attr_preserve.export.tflite.tflm_operators import resolver_calls
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.training.wcam import WCAM, check_wcam
from keras_attr_preserve.utils.atomic_files import replace_folder

__all__ = ["microcontroller"]

_ENDINGS = (".tflite", ".json", "_model.h", "_model.cc", "_resolver.h",
            "_explain.h", "_explain.c", "_test.h", "_test.c", "_vectors.h",
            "_vectors.npz", "_tflm_test.cc")


def microcontroller(
    model: keras.Model,
    wcam: WCAM,
    folder: str | os.PathLike,
    *,
    name: str,
    representative_images: np.ndarray | None = None,
    test_images: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Writes the C sources with which firmware classifies and explains.

  - `<name>.tflite`, and the same as an array in `<name>_model.h/.cc`, with the
    size of its tensor arena, its scales and zero points; `<name>_resolver.h`,
    its operators for TensorFlow Lite for Microcontrollers.
  - `<name>_explain.h/.c`: C99 that turns the model's features and logits into
    the map, in integers, without allocation or libraries, the same bits on
    every machine.
  - `<name>_test.h/.c`, `<name>_vectors.h/.npz`: inputs, the answers that a
    device must give, and a program that compares; `<name>_tflm_test.cc` runs
    the interpreter, too.
  - `README.md` and `<name>.json`: instructions and measured figures.

  The folder appears with all files or not at all. The call replaces an earlier
  export of the same name.

  Args:
    model: as for `convert`; not changed.
    wcam: as for `convert`.
    folder: new, empty, or from an earlier call with this name.
    name: a C identifier; files, functions and constants begin with it.
    representative_images: as for `convert` in mode "int8".
    test_images: `[images, height, width, channels]`, float images in the
      model's range, not used in training. The first four become test vectors.
      On all of them the device's maps are compared with the model's. None for
      no test files and no figures.
    labels: names of the classes; None for none.

  Returns:
    The content of `<name>.json`: sizes, road, agreement.

  Raises:
    OSError: the folder cannot be written to.
    TypeError, ValueError: an argument is not as above, or TensorFlow Lite for
      Microcontrollers cannot run the model.
  """
  check_model(model)
  check_wcam(wcam)
  check_name(name)
  _check_labels(labels, model)
  model_input(model).maps_places()
  if test_images is not None:
    test_images = model_input(model).check(test_images, "test_images")
  allowed = {"README.md", *(name + ending for ending in _ENDINGS)}
  replace_folder(folder, {}, allowed, dry_run=True)

  device = DeviceModel(_converted(model, wcam, representative_images))
  calls, arena = _operators(device.content), _arena(device.content)
  files = {
      f"{name}.tflite": device.content,
      **model_files(device, name, labels, arena, calls),
      **explain_files(device, name),
  }
  facts = {
      "name": name, **device.metadata, "kind": device.kind,
      "sha256": hashlib.sha256(device.content).hexdigest(),
      "labels": None if labels is None else list(labels),
      "operators": calls,
      "arena": arena[1],
      "bytes": {
          "model": len(device.content), "arena": arena[0],
          "explanation": _explanation_bytes(device),
          "tables": table_bytes(device)},
      "tensors": {
          tensor: {"shape": spec.shape, "scale": spec.scale,
                   "zero_point": spec.zero_point}
          for tensor, spec in (
              *device.inputs.items(), *device.outputs.items())},
      "raw_unit": device.raw_unit,
      "agreement": None,
  }
  if test_images is not None:
    device.encode(test_images, "test_images")
    vectors = test_vectors(device, test_images[:VECTOR_IMAGES])
    files.update(test_files(device, name, vectors))
    files[f"{name}_vectors.npz"] = _packed(vectors)
    facts["agreement"] = _agreement(device, model, wcam, test_images)
  files[f"{name}.json"] = json.dumps(facts, indent=2) + "\n"
  files["README.md"] = readme(device, name, facts)
  replace_folder(folder, files, allowed)
  return facts


def _converted(model, wcam, images) -> bytes:
  return convert(model, wcam, mode="int8", representative_images=images,
                 target="microcontroller")


def _operators(content: bytes) -> list[str]:
  return resolver_calls(content)


def _arena(content: bytes) -> tuple[int, str]:
  """Returns the bytes of the tensor arena, and their composition in words."""
  if tflm_installed():
    measured = measure_arena(content)
    return measured.smallest, (
        f"{measured.head} of tensors and {measured.tail} of the interpreter's "
        "own, as the interpreter takes with reference kernels on a 64-bit "
        "computer. Kernels tuned for a processor may need more.")
  head = plan_arena(content).head
  model = read_model(content)
  graph = model.subgraphs[0]
  # The memory of a 64-bit interpreter per tensor, operator and channel.
  tail = 4096 + 128 * (len(graph.tensors) + len(graph.operators)) + 8 * sum(
      len(tensor.quantization.scale) for tensor in graph.tensors
      if tensor.quantization is not None
      and tensor.quantization.scale is not None)
  return -(-(head + tail) // 16) * 16, (
      f"{head} of tensors, as the interpreter plans them, and an upper "
      "estimate of the interpreter's own. Kernels tuned for a processor may "
      "need more.")


def _check_labels(labels: Any, model: keras.Model) -> None:
  classes = max(model.outputs[0].shape[-1], 2)
  if labels is None:
    return
  if not isinstance(labels, Sequence) or isinstance(labels, str) or not all(
      isinstance(label, str) and "\0" not in label for label in labels):
    raise TypeError(f"labels must be a list of str; got {labels!r}.")
  if len(labels) != classes:
    raise ValueError(
        f"labels must name the model's {classes} classes; got {len(labels)}.")


def _explanation_bytes(device: DeviceModel) -> int:
  """Returns the size of the C functions' structure on 32-bit machines."""
  _, height, width, channels = device.outputs["features"].shape
  size = -(-height * width // 4) * 4 + 4 * height * width
  if device.head is not None:
    size += 4 + -(-2 * channels // 4) * 4
    if device.head.hidden is not None:
      size = -(-size // 8) * 8 + 8 * len(device.head.bias)
  return size


def _packed(vectors: dict[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **vectors)
  return buffer.getvalue()


def _agreement(device, model, wcam, images) -> dict[str, float]:
  """Compares maps of device and model for the device's top class."""
  maps, top = device.explain(images)
  maps = np.stack([result.map for result in maps])
  method = {"swa": grad_cam, "ewa": equal_weighted}[wcam.method]
  layer = wcam.student_layers[0]
  reference = method(model, images, top, layer)
  cosine = agreement(reference, maps)["cosine"]
  alive = ~np.isnan(cosine)
  if not alive.any():
    cosine, alive = np.zeros(1), np.ones(1, bool)
  return {
      "images": len(images),
      "runtime": device.kernels,
      "cosine_median": float(np.median(cosine[alive])),
      "cosine_mean": float(np.mean(cosine[alive])),
      "cosine_worst": float(np.min(cosine[alive])),
      "dead": float(dead_maps(maps).mean()),
      "model_dead": float(dead_maps(reference).mean()),
  }
