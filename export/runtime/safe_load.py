"""Files are whole before a runtime sees them."""

import hashlib

from ai_edge_litert import schema_py_generated as schema

from keras_attr_preserve.export.runtime import litert_process
from keras_attr_preserve.export.tflite.schema import read_model
from keras_attr_preserve.export.tflite.seal import check_seal

__all__ = ["checked_model"]

# What was wrong with files without a seal, by digest and runtime.
_tried: dict[tuple[str, str], str | None] = {}


def checked_model(
    tflite_model: bytes, runtime: str = "xnnpack") -> schema.ModelT:
  """Parses a file that can be given to a runtime without harm.

  A file that `convert` wrote must bear its seal unbroken. One of somebody
  else's is first loaded and run once in another process, once in the life of
  this one, so that a file that crashes LiteRT does not end the caller's.

  Args:
    tflite_model: the file's bytes.
    runtime: which of `Interpreter`'s it is for; "tflm" has its own process.

  Returns:
    The schema's object for the whole file.

  Raises:
    TypeError: not bytes.
    ValueError: not a .tflite file, a damaged one, or one that crashes the
      runtime, or that it refuses.
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
