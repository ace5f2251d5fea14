"""Writes the files of a firmware project, as texts."""

import hashlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.export.firmware.c_writing import (
    array,
    filled,
    float_literal,
    string_literal,
)
from keras_attr_preserve.export.firmware.device_model import DeviceModel

__all__ = ["explain_files", "model_files", "table_bytes"]


def model_files(
    device: DeviceModel,
    name: str,
    labels: Sequence[str] | None,
    arena: tuple[int, str],
    calls: Sequence[str],
) -> dict[str, str]:
  """Writes the model as an array, its constants and its operators.

  Args:
    device: the file.
    name: the model's name.
    labels: labels of its classes.
    arena: bytes of the tensor arena, and their composition in words.
    calls: the resolver's methods, such as "AddConv2D".

  Returns:
    Texts by file name.
  """
  height, width, channels = device.input.pixel_shape
  words = {
      **_common(device),
      "model_size": len(device.content),
      "arena_size": arena[0], "arena_words": textwrap.fill(
          arena[1], 76, initial_indent=" * ", subsequent_indent=" * "),
      "tensors": "".join(
          _tensor(tensor, spec, way) for way, specs in (
              ("INPUT", device.inputs), ("OUTPUT", device.outputs))
          for tensor, spec in specs.items()),
      "image_height": height, "image_width": width, "image_channels": channels,
      "labels": "", "label_array": "", "bytes": _hexadecimal(device.content),
      "count": len(calls),
      "calls": "".join(
          f"  if (status == kTfLiteOk) status = resolver.{call}();\n"
          for call in calls),
  }
  if labels is not None:
    declared = f"const char *const kapnet_labels[{len(labels)}]"
    words["labels"] = (
        f"/* Names of the classes, UTF-8. */\nextern {declared};\n")
    words["label_array"] = (
        f"{declared} = {{\n"
        + "".join(f"  {string_literal(label)},\n" for label in labels)
        + "};\n\n")
  return {
      f"{name}_model.h": filled(["model.h"], name, words),
      f"{name}_model.cc": filled(["model.cc"], name, words),
      f"{name}_resolver.h": filled(["resolver.h"], name, words),
  }


def explain_files(device: DeviceModel, name: str) -> dict[str, str]:
  """Writes the sources that make maps.

  Args:
    device: the file.
    name: the model's name.

  Returns:
    Texts by file name.
  """
  kind = device.kind
  has_head = kind in ("linear", "hidden")
  declarations = filled(
      [f"declarations_{'features' if has_head else kind}.h"], name, {})
  _, height, width, channels = device.outputs["features"].shape
  words = {
      **_common(device), "height": height, "width": width,
      "channels": channels, "logits": device.logits,
      "features_zero_point": device.outputs["features"].zero_point,
      "logits_zero_point": device.outputs["logits"].zero_point,
      "declarations": declarations, "constants": _constants(device),
      "fields": _fields(device),
      "includes": '\n#include "kapnet_model.h"\n' * (
          has_head and device.head.in_place),
      **(_tables(device) if has_head else {}),
  }
  sources = ["map.c", "fit.c", f"{kind}.c", "targets.c"] if has_head else [
      "map.c", f"{kind}.c"]
  return {f"{name}_explain.h": filled(["explain.h"], name, words),
          f"{name}_explain.c": filled(sources, name, words)}


def _common(device: DeviceModel) -> dict[str, Any]:
  return {"layer": device.metadata["layer"].replace("*/", "* /"),
          "method": device.metadata["method"],
          "sha256": hashlib.sha256(device.content).hexdigest()}


def _tensor(name: str, spec, way: str) -> str:
  macro = f"KAPNET_{name.upper()}"
  size = int(np.prod(spec.shape))
  return (f"#define {macro}_{way} {spec.position}\n"
          f"#define {macro}_SIZE {size}\n"
          f"#define {macro}_SCALE {float_literal(spec.scale)}\n"
          f"#define {macro}_ZERO_POINT ({spec.zero_point})\n")


def _hexadecimal(content: bytes) -> str:
  return "\n".join(
      "  " + "".join(f"0x{byte:02x}," for byte in content[i:i + 15])
      for i in range(0, len(content), 15))


def _constants(device: DeviceModel) -> str:
  unit = float_literal(device.raw_unit)
  lines = []
  if device.kind in ("linear", "hidden"):
    lines += [
        "/* raw * 2^exponent * RAW_UNIT is the map as Grad-CAM has it. */"]
  elif device.kind == "gradient":
    spec = device.inputs["class_weights"]
    lines += [
        f"#define KAPNET_SENSITIVITY_ZERO_POINT "
        f"({device.outputs['sensitivity'].zero_point})",
        f"#define KAPNET_CLASS_WEIGHTS_ZERO_POINT ({spec.zero_point})",
        "/* How many steps of the input make a class weight of 1. */",
        f"#define KAPNET_CLASS_WEIGHTS_ONE {device.one}",
        "/* raw * RAW_UNIT is the map as Grad-CAM has it, for class weights "
        "whose\n * largest is 1. */"]
  else:
    lines += ["/* raw * RAW_UNIT is the mean of the squared features. */"]
  return "\n".join([*lines, f"#define KAPNET_RAW_UNIT {unit}", ""])


def _fields(device: DeviceModel) -> str:
  if device.head is None:
    return ""
  fields = ("  int exponent;\n  /* Room to reckon in. */\n"
            "  int16_t sensitivity[KAPNET_CHANNELS];\n")
  if device.kind == "hidden":
    fields += f"  int64_t units[{len(device.head.bias)}];\n"
  return fields


def _tables(device: DeviceModel) -> dict[str, Any]:
  head = device.head
  tables = [f"#define KAPNET_CLASS_SCALE_BITS {head.last.bits}",
            _kernel("class", head.last)]
  tables.append(array("class_scales", head.last.scales))
  words = {"cells": head.last.kernel.shape[1], "limit": head.limit}
  if head.hidden is not None:
    tables += [
        f"#define KAPNET_UNIT_SCALE_BITS {head.hidden.bits}",
        _kernel("hidden", head.hidden),
        array("unit_scales", head.hidden.scales),
        array("hidden_bias", head.bias)]
    test = "1"
    if head.ceiling is not None:
      tables.append(array("unit_ceiling", head.ceiling))
      test = "((value) < unit_ceiling[number])"
    tables.append(f"#define UNIT_IS_BELOW_CEILING(value, number) {test}")
    pool = head.pool
    words.update(
        hidden=len(head.bias), rows=pool.output[0], columns=pool.output[1],
        pool_is_max=int(pool.kind == "max"), pool_count=pool.count,
        start_row=pool.start[0], start_column=pool.start[1],
        stride_row=pool.strides[0], stride_column=pool.strides[1],
        window_height=pool.size[0], window_width=pool.size[1])
  return {**words, "tables": "\n".join(tables)}


def _kernel(name: str, layer) -> str:
  if layer.offset is None:
    return array(f"{name}_kernel", layer.kernel.reshape(-1))
  return (f"/* In the model, where its own layer reads it. */\n"
          f"#define {name}_kernel \\\n"
          f"  ((const int8_t *)(const void *)(kapnet_model + {layer.offset}))")


def table_bytes(device: DeviceModel) -> int:
  """Counts the bytes of the head's constants outside the model."""
  head = device.head
  if head is None:
    return 0
  arrays = [head.last.scales]
  for layer in (head.last, head.hidden):
    if layer is not None and layer.offset is None:
      arrays.append(layer.kernel)
  if head.hidden is not None:
    arrays += [head.hidden.scales, head.bias]
    arrays += [] if head.ceiling is None else [head.ceiling]
  return sum(values.nbytes for values in arrays)
