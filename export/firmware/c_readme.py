"""Writes the README beside the C sources."""

from typing import Any

from keras_attr_preserve.export.firmware.c_writing import filled
from keras_attr_preserve.export.firmware.device_model import DeviceModel
from keras_attr_preserve.export.firmware.test_vectors import VECTOR_IMAGES

__all__ = ["readme"]

_RUNTIMES = {
    "tflm": "TensorFlow Lite for\nMicrocontrollers, run on a computer with its "
            "reference kernels (kernels tuned for a\nprocessor may differ by a "
            "step)",
    "reference": "LiteRT's\nreference kernels (on a device a logit may differ "
                 "by a step, for which look before\nyou blame the device)",
}
_KINDS = {
    "linear": "The map is made from the features that the model hands out and "
              "from the weights of\nits last layer; the model has no operator "
              "more than without a map.",
    "hidden": "The map is made from the features that the model hands out and "
              "from the weights of\nits last two layers: which hidden units "
              "are on is reckoned from the features. The\nmodel has no "
              "operator more than without a map.",
    "gradient": "The model runs the backward pass of what follows the layer, "
                "and hands out features\nand sensitivities; which score is "
                "differentiated is its second input.",
    "ewa": "The map is the mean of the squared features, which the model hands "
           "out; it has no\noperator more than without a map.",
}


def readme(device: DeviceModel, name: str, facts: dict[str, Any]) -> str:
  """Writes the README of an export.

  Args:
    device: the file.
    name: the model's name.
    facts: the result of `microcontroller`.

  Returns:
    The README's text, in Markdown.
  """
  image, features = device.inputs["images"], device.outputs["features"]
  sizes, has_head = facts["bytes"], device.head is not None
  in_place = has_head and device.head.in_place
  agreement = facts["agreement"]
  words = {
      **device.metadata, "sha256": facts["sha256"],
      "kind_words": _KINDS[device.kind],
      "model_size": sizes["model"], "arena_size": sizes["arena"],
      "arena_words": facts["arena"], "explanation_size": sizes["explanation"],
      "table_size": sizes["tables"],
      "image": "x".join(map(str, image.shape[1:])),
      "map": "x".join(map(str, features.shape[1:3])),
      "classes": ", ".join(facts["labels"]) if facts["labels"] else (
          device.classes),
      "operators": ", ".join(facts["operators"]),
      "in_place": f"; reads the head's weights in `{name}_model.cc`" * in_place,
      "image_scale": f"{image.scale:.9g}", "image_zero": image.zero_point,
      "exponent": " times `2^explanation.exponent`" * has_head,
      "use": filled([f"use_{'features' if has_head else device.kind}.txt"],
                    name, {}),
      "test_list": "", "checks": ""}
  if agreement:
    words["test_list"] = filled(["README_files.md"], name, {})
    words["checks"] = filled(["README_checks.md"], name, {
        **agreement, "runtime": _RUNTIMES.get(device.kernels, device.kernels),
        "vectors": min(agreement["images"], VECTOR_IMAGES),
        **{key: f"{value:.4f}" for key, value in agreement.items()
           if key not in ("images", "runtime")}})
  return filled(["README.md"], name, words)
