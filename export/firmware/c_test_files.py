"""Writes test vectors and test programs for the C sources, as texts."""

from collections.abc import Mapping

import numpy as np

from keras_attr_preserve.export.firmware.c_writing import array, filled, named
from keras_attr_preserve.export.firmware.device_model import DeviceModel

__all__ = ["test_files"]

_SENSITIVITY = ",\n                        const int8_t *sensitivity"
_ASK = """
/* Fills the model's input "class_weights" to explain its top class. */
void kapnet_test_ask(int image, int8_t *input);
"""
_TFLM_ASK = """\
    kapnet_test_ask(image,
                    interpreter.input(KAPNET_CLASS_WEIGHTS_INPUT)->data.int8);
"""
_TFLM_EXPLAIN = {
    "features": """\
    wrong += kapnet_test_outputs(image, logits, features);
    kapnet_status status = kapnet_explain_top(features, logits, &explanation);
""",
    "ewa": """\
    wrong += kapnet_test_outputs(image, logits, features);
    kapnet_status status = kapnet_explain(features, &explanation);
""",
    "gradient": """\
    const int8_t* sensitivity =
        interpreter.output(KAPNET_SENSITIVITY_OUTPUT)->data.int8;
    wrong += kapnet_test_outputs(image, logits, features, sensitivity);
    kapnet_status status = kapnet_explain(features, sensitivity, &explanation);
""",
}


def test_files(
    device: DeviceModel, name: str, vectors: Mapping[str, np.ndarray]
) -> dict[str, str]:
  """Writes test vectors and the programs that check a device with them.

  Args:
    device: the file.
    name: the model's name.
    vectors: the result of `test_vectors`.

  Returns:
    Texts by file name.
  """
  road = "features" if device.kind in ("linear", "hidden") else device.kind
  maps, images = len(vectors["images"]), len(vectors["inputs"])
  defines = f"#define KAPNET_VECTOR_MAPS {maps}\n"
  if road == "gradient":
    # The last image's additional map stands at the end.
    defines += "#define KAPNET_VECTOR_PER_IMAGE 3\n"
  guard = f"{name.upper()}_VECTORS_H_"
  header = (
      f"/* What {name} must answer; see {name}_test.h. */\n"
      f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n{defines}\n"
      + "\n".join(array(f"kapnet_vector_{key}", values)
                  for key, values in vectors.items())
      + f"\n#endif  /* {guard} */\n")
  gradient = road == "gradient"
  words = {
      "images": images,
      "sensitivity_parameter": _SENSITIVITY if gradient else "",
      "test_declarations": _ASK if gradient else "",
      "test_body": filled([f"test_{road}.c"], name, {}),
      "tflm_ask": _TFLM_ASK if gradient else "",
      "tflm_explain": _TFLM_EXPLAIN[road],
  }
  return {
      f"{name}_test.h": filled(["test.h"], name, words),
      f"{name}_test.c": filled(["test.c"], name, words),
      f"{name}_vectors.h": named(header, name),
      f"{name}_tflm_test.cc": filled(["tflm_test.cc"], name, words),
  }
