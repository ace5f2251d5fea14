"""Shipping a model to TFLite with its attribution on board, and proving it."""

from keras_attr_preserve.export.converting.convert import convert
from keras_attr_preserve.export.converting.selective import (
    SelectiveResult,
    selective,
)
from keras_attr_preserve.export.files.sizes import file_sizes
from keras_attr_preserve.export.files.tflm_operators import (
    missing_operators,
    resolver_calls,
)
from keras_attr_preserve.export.judging.drift import Drift, LayerDrift, drift
from keras_attr_preserve.export.judging.quantizer_ranges import (
    RangeMonitor,
    quantizer_ranges,
)
from keras_attr_preserve.export.judging.verify import verify
from keras_attr_preserve.export.microcontrollers.device import DeviceModel
from keras_attr_preserve.export.microcontrollers.microcontroller import (
    microcontroller,
)
from keras_attr_preserve.export.reading.foreign import explainer
from keras_attr_preserve.export.reading.tensors import (
    FileTensors,
    find_tensor,
    layer_tensors,
)
from keras_attr_preserve.export.running.arena import (
    measure_arena,
    phone_arena,
    plan_arena,
)
from keras_attr_preserve.export.running.cost import explain_cost
from keras_attr_preserve.export.running.inspection import inspect_file
from keras_attr_preserve.export.running.interpreter import (
    Explanation,
    Interpreter,
    tflm_installed,
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
