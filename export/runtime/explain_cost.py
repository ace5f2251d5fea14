"""Measures the cost of `explain` beside `predict`: bytes, time and memory."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from keras_attr_preserve.export.runtime.arena import phone_arena
from keras_attr_preserve.export.runtime.runtimes import RUNTIMES, start
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tflite.merge import (
  drop_unused,
  needed_operators,
)
from keras_attr_preserve.export.tflite.schema import (
  Signature,
  annotate,
  read_metadata,
  read_model,
  signatures,
  write_model,
)

__all__ = ["ExplainCost", "explain_cost"]


@dataclasses.dataclass(frozen=True)
class ExplainCost:
  """The cost of a file's `explain`; its `str` is a paragraph to read.

  Attributes:
    road: how the file computes its map.
    bytes: the bytes of the file.
    predict_bytes: the bytes of the same file with `predict` alone.
    predict_ms: milliseconds of a call of `predict`, the median.
    explain_ms: milliseconds of a call of `explain`, the median.
    time_ratio: explain's time over predict's, the median over pairs of
      successive calls, so that other load on the machine affects both.
    predict_arena: bytes for tensors in a program that only predicts.
    arena: bytes for tensors in a program that has called both. See
      `phone_arena`; XNNPACK's packed weights come on top.
    runtime: the runtime that was timed.
  """

  road: str
  bytes: int
  predict_bytes: int
  predict_ms: float
  explain_ms: float
  time_ratio: float
  predict_arena: int
  arena: int
  runtime: str

  def __str__(self) -> str:
    more = self.bytes / self.predict_bytes - 1
    return (
        f"road {self.road!r}: {self.bytes:,} bytes, {more:+.1%} over the "
        f"{self.predict_bytes:,} of predict alone; explain takes "
        f"{self.time_ratio:.2f} times predict's time ({self.explain_ms:.3f} "
        f"and {self.predict_ms:.3f} ms, {self.runtime}); tensors take "
        f"{self.arena:,} bytes, predict's alone {self.predict_arena:,}.")


def explain_cost(
    tflite_model: bytes | str | os.PathLike,
    *,
    runtime: str = "xnnpack",
    calls: int = 30,
) -> ExplainCost:
  """Measures the cost of `explain`.

  Args:
    tflite_model: a file's bytes or path, made by `convert`.
    runtime: "xnnpack", "builtin" or "reference"; see `Interpreter`.
    calls: the number of pairs of calls to time, after three untimed pairs.

  Returns:
    The figures.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above.
  """
  if isinstance(tflite_model, (str, os.PathLike)):
    tflite_model = Path(tflite_model).read_bytes()
  if runtime not in RUNTIMES[:-1]:
    raise ValueError(
        f"runtime must be one of {RUNTIMES[:-1]}; got {runtime!r}.")
  if not isinstance(calls, int) or calls < 1:
    raise ValueError(f"calls must be a whole number, 1 or more; got {calls!r}.")
  model = checked_model(tflite_model, runtime)
  metadata = read_metadata(model)
  if metadata is None:
    raise ValueError(
        "tflite_model carries no attribution: it was not made by "
        "kap.export.convert.")
  alone = _predict_alone(tflite_model, metadata)
  times = _timed(tflite_model, alone, runtime, calls)
  return ExplainCost(
      road=metadata["road"], bytes=len(tflite_model), predict_bytes=len(alone),
      predict_ms=float(1e3 * np.median(times[0])),
      explain_ms=float(1e3 * np.median(times[1])),
      time_ratio=float(np.median(times[1] / times[0])),
      predict_arena=phone_arena(alone), arena=phone_arena(tflite_model),
      runtime=runtime)


def _predict_alone(tflite_model: bytes, metadata: dict) -> bytes:
  """Returns the file with only the tensors and operators of `predict`."""
  model = read_model(tflite_model)
  entry, = [signature for signature in model.signatureDefs
            if signature.signatureKey == b"predict"]
  graph = model.subgraphs[entry.subgraphIndex]
  outputs = [pair.tensorIndex for pair in entry.outputs]
  graph.operators = needed_operators(graph, outputs, ())
  entry.inputs = [pair for pair in entry.inputs if pair.name == b"images"]
  graph.inputs = np.int32([pair.tensorIndex for pair in entry.inputs])
  graph.outputs = np.int32(outputs)
  model.subgraphs, model.signatureDefs = [graph], [entry]
  entry.subgraphIndex = 0
  model.metadata = []
  drop_unused(model)
  # The same metadata and a seal, so that their bytes do not count.
  return annotate(write_model(model), metadata, {})


def _timed(
    tflite_model: bytes, alone: bytes, runtime: str, calls: int
) -> np.ndarray:
  """Times `predict` and `explain` in turns; returns seconds `[2, calls]`."""
  rng = np.random.default_rng(0)
  ready = []
  for content, name in ((alone, "predict"), (tflite_model, "explain")):
    model = read_model(content)
    signature = signatures(model)[name]
    ready.append((start(content, runtime, len(model.subgraphs)), name,
                  signature, _noise(signature, rng)))
  seconds = np.empty([2, 3 + calls])
  for i in range(seconds.shape[1]):
    for row, (runner, *call) in zip(seconds, ready):
      begin = time.perf_counter()
      runner.run(*call)
      row[i] = time.perf_counter() - begin
  return seconds[:, 3:]


def _noise(
    signature: Signature, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Returns an image of noise; zeros as class weights mean the top class."""
  feeds = {}
  for name, spec in signature.inputs.items():
    values = np.zeros(spec.shape, np.float32)
    if name == "images":
      low, high = spec.range if spec.scale else (0, 1)
      values = rng.uniform(low, high, spec.shape).astype(np.float32)
    feeds[name] = spec.encode(values)
  return feeds
