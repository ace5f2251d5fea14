"""Checks that a file is whole before a runtime loads it."""

import hashlib

from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.runtime import litert_process
from keras_attr_preserve.export.tflite.schema import read_model
from keras_attr_preserve.export.tflite.seal import check_seal

__all__ = ["checked_model"]

# Faults of files without a seal, by digest and runtime.
_tried: dict[tuple[str, str], str | None] = {}


def checked_model(
    tflite_model: bytes, runtime: str = "xnnpack") -> schema.ModelT:
  """Parses a file after checking that a runtime can load it safely.

  A file of `convert` must have an unbroken seal. Any other file is first loaded
  and run in another process, so that a crash of LiteRT does not end the
  caller's process. This happens once in the life of the caller's process.

  Args:
    tflite_model: the file's bytes.
    runtime: the `Interpreter`'s runtime; "tflm" runs in a separate process.

  Returns:
    The schema's object for the whole file.

  Raises:
    TypeError: not bytes.
    ValueError: not a .tflite file, a damaged one, or the runtime crashes on the
      file or refuses it.
  """
  if isinstance(tflite_model, (bytes, bytearray)):
    tflite_model = bytes(tflite_model)
    whole = check_seal(tflite_model)
  model = read_model(tflite_model)
  if whole or runtime == "tflm":
    return model
  key = hashlib.sha256(tflite_model).hexdigest(), runtime
  if key not in _tried:
    _tried[key], = litert_process.try_files([tflite_model], runtime)
  if _tried[key] is not None:
    raise ValueError(
        f"tflite_model is damaged, or refused by the runtime {runtime!r}: "
        f"{_tried[key]}")
  return model
