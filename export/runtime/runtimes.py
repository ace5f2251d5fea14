"""The runtimes that run a .tflite file."""

import re
import threading
from collections.abc import Mapping

import numpy as np
from ai_edge_litert import interpreter as litert

from keras_attr_preserve.export.runtime import tflm_process
from keras_attr_preserve.export.tflite.schema import Signature
from keras_attr_preserve.export.tflite.tflm_operators import missing_operators

__all__ = ["RUNTIMES", "LiteRT", "Tflm", "start"]

_RESOLVERS = {
    "xnnpack": litert.OpResolverType.BUILTIN,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": litert.OpResolverType.BUILTIN_REF,
}
RUNTIMES = (*_RESOLVERS, "tflm")


def start(content: bytes, runtime: str, subgraphs: int) -> "LiteRT | Tflm":
  """Loads a file in one of the runtimes.

  Raises:
    ValueError: the runtime refuses the file.
    ImportError: the runtime is not installed.
  """
  if runtime == "tflm":
    return Tflm(content, subgraphs)
  return LiteRT(content, runtime)


class LiteRT:
  """Runs signatures in LiteRT, in this process, for one thread at a time.

  Attributes:
    kernels: the runtime in use: the chosen one, or "builtin" and the reason, if
      the reference kernels lack an operator.
  """

  def __init__(self, content: bytes, runtime: str):
    self._name = self.kernels = runtime
    # All calls share the memory of LiteRT's inputs and outputs.
    self._lock = threading.Lock()
    try:
      self._interpreter = _loaded(content, runtime)
    except (ValueError, RuntimeError) as error:
      lacking = _lacking_kernel(runtime, error)
      if lacking is None:
        raise ValueError(
            f"tflite_model is refused by the runtime {runtime!r}: "
            f"{error}") from error
      self._interpreter = _loaded(content, "builtin")
      self.kernels = f"builtin: the reference kernels lack {lacking}"

  def run(
      self, key: str, signature: Signature, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    with self._lock:
      return self._run(key, signature, feeds)

  def _run(
      self, key: str, signature: Signature, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    call = (self._interpreter.get_signature_runner(key) if key
            else self._plain(signature))
    count = len(next(iter(feeds.values())))
    # Most files take one image at a time; others declare a batch size.
    size = max(1, next(iter(signature.inputs.values())).shape[0])
    batches = []
    try:
      for i in range(0, count, size):
        # A model with state must not carry it to the next call.
        self._interpreter.reset_all_variables()
        batches.append(call(**{name: _filled(array[i:i + size], size)
                             for name, array in feeds.items()}))
    except (ValueError, RuntimeError) as error:
      raise ValueError(
          f"tflite_model is refused by the runtime {self._name!r}: "
          f"{error}") from error
    return {name: np.concatenate([batch[name] for batch in batches])[:count]
            for name in signature.outputs}

  def _plain(self, signature: Signature):
    """Returns a function that calls a file without signatures."""
    inputs = self._interpreter.get_input_details()
    outputs = self._interpreter.get_output_details()

    def call(**feeds):
      for name, spec in signature.inputs.items():
        self._interpreter.set_tensor(
            inputs[spec.position]["index"], feeds[name])
      self._interpreter.invoke()
      return {name: self._interpreter.get_tensor(
          outputs[spec.position]["index"])
              for name, spec in signature.outputs.items()}
    return call


def _loaded(content: bytes, runtime: str) -> litert.Interpreter:
  interpreter = litert.Interpreter(
      model_content=content,
      experimental_op_resolver_type=_RESOLVERS[runtime])
  interpreter.allocate_tensors()
  return interpreter


def _lacking_kernel(runtime: str, error: Exception) -> str | None:
  """Names the operator that the reference kernels lack, or None."""
  match = re.search(
      r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'", str(error))
  if not match or runtime != "reference":
    return None
  name, version = match.groups()
  return name if version == "1" else f"{name} of version {version}"


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row until the batch has `size` rows."""
  return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])


class Tflm:
  """Runs a file in the TFLite Micro interpreter, in a separate process.

  That interpreter prints, and ends its process on files that it cannot take.

  Attributes:
    kernels: as for `LiteRT`.
  """

  kernels = "tflm"

  def __init__(self, content: bytes, subgraphs: int):
    if not tflm_process.installed():
      raise ImportError(
          "runtime 'tflm' needs the package tflite-micro (Linux x86-64): "
          "pip install tflite-micro")
    if subgraphs != 1:
      raise ValueError(
          f"tflite_model must have one subgraph for the runtime 'tflm'; got "
          f"{subgraphs}. Convert with target='microcontroller'.")
    missing = missing_operators(content)
    if missing:
      raise ValueError(
          "tflite_model is refused by the runtime 'tflm', which lacks "
          f"{', '.join(missing)}.")
    self._content = content

  def run(
      self, key: str, signature: Signature, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    del key
    out = tflm_process.run(
        self._content,
        {spec.position: feeds[name]
         for name, spec in signature.inputs.items()},
        [spec.position for spec in signature.outputs.values()])
    return {name: out[spec.position]
            for name, spec in signature.outputs.items()}
