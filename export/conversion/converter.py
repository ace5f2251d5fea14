"""Runs TensorFlow's converter to TFLite on functions of one image."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from keras_attr_preserve.compat import tf
from keras_attr_preserve.models.model_files import shortened

__all__ = ["MODES", "run_converter"]

MODES = ("float32", "float16", "dynamic", "int8", "int16x8")

_Samples = Callable[[], Iterable[Mapping[str, Any]]]


def run_converter(
    function: Any,
    mode: str,
    samples: _Samples | None = None,
    run: Callable[[Any], bytes] = lambda converter: converter.convert(),
) -> bytes:
  """Converts a function to a file with one signature, "explain".

  Args:
    function: a `tf.function` with an input signature, of named tensors.
    mode: one of `MODES`.
    samples: gives the inputs that ranges are measured on, by name. Integer
      modes need it, unless the function has quantizers.
    run: called with TensorFlow's converter, once that is set up.

  Returns:
    The file's bytes. Inputs and outputs are integers in the integer modes.

  Raises:
    ValueError: TFLite cannot express the function.
  """
  with tempfile.TemporaryDirectory() as folder:
    # Only variables are saved: saving a Keras model traces each of its layers.
    # Gradients stay out: TFLite has none, and a tail with a custom gradient
    # would not load.
    concrete = function.get_concrete_function()
    holder = tf.Module()
    holder.held = list(concrete.variables)
    tf.saved_model.save(
        holder, folder, signatures={"explain": concrete},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False))
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["explain"])
    _set_mode(converter, mode, samples)
    try:
      return run(converter)
    # The converter raises private error classes, among others.
    except Exception as error:
      raise ValueError(
          f"model: TFLite cannot express it. {shortened(error)}") from error


def _set_mode(
    converter: tf.lite.TFLiteConverter, mode: str, samples: _Samples | None
) -> None:
  if mode != "float32":
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  if mode == "float16":
    converter.target_spec.supported_types = [tf.float16]
  if mode not in ("int8", "int16x8"):
    return
  integer = tf.int8 if mode == "int8" else tf.int16
  converter.inference_input_type = integer
  converter.inference_output_type = integer
  if samples is not None:
    sets = tf.lite.OpsSet
    converter.target_spec.supported_ops = [
        sets.TFLITE_BUILTINS_INT8 if mode == "int8" else
        sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    converter.representative_dataset = samples

