"""Shipping a model to TFLite with its attribution on board, and proving it."""

from keras_attr_preserve.export.conversion.convert import convert
from keras_attr_preserve.export.conversion.selective import (
    SelectiveResult,
    selective,
)
from keras_attr_preserve.export.diagnosis.drift import Drift, LayerDrift, drift
from keras_attr_preserve.export.firmware.device_model import DeviceModel
from keras_attr_preserve.export.firmware.microcontroller import microcontroller
from keras_attr_preserve.export.runtime.arena import (
    measure_arena,
    phone_arena,
    plan_arena,
)
from keras_attr_preserve.export.runtime.explain_cost import explain_cost
from keras_attr_preserve.export.runtime.inspect_file import inspect_file
from keras_attr_preserve.export.runtime.interpreter import (
    Explanation,
    Interpreter,
    tflm_installed,
)
from keras_attr_preserve.export.tensors.find_tensor import (
    FileTensors,
    find_tensor,
    layer_tensors,
)
from keras_attr_preserve.export.tflite.sizes import file_sizes
from keras_attr_preserve.export.tflite.tflm_operators import (
    missing_operators,
    resolver_calls,
)
from keras_attr_preserve.export.third_party.explainer import explainer
from keras_attr_preserve.export.verification.verify import verify
from keras_attr_preserve.training.quantizer_ranges import (
    RangeMonitor,
    quantizer_ranges,
)

__all__ = [
    "DeviceModel",
    "Drift",
    "Explanation",
    "FileTensors",
    "Interpreter",
    "LayerDrift",
    "RangeMonitor",
    "SelectiveResult",
    "convert",
    "drift",
    "explain_cost",
    "explainer",
    "file_sizes",
    "find_tensor",
    "inspect_file",
    "layer_tensors",
    "measure_arena",
    "microcontroller",
    "missing_operators",
    "phone_arena",
    "plan_arena",
    "quantizer_ranges",
    "resolver_calls",
    "selective",
    "tflm_installed",
    "verify",
]
