"""Shipping a model to TFLite with its attribution on board, and proving it."""

from keras_attr_preserve.export.convert import convert
from keras_attr_preserve.export.interpreter import (
    Explanation,
    Interpreter,
    tflm_installed,
)
from keras_attr_preserve.export.sizes import file_sizes
from keras_attr_preserve.export.verify import verify

__all__ = [
    "Explanation",
    "Interpreter",
    "convert",
    "file_sizes",
    "tflm_installed",
    "verify",
]
