"""Reading scores and maps back from a .tflite file."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import interpreter as litert

from keras_attr_preserve.attribution.batches import class_weights
from keras_attr_preserve.export import tflm_worker
from keras_attr_preserve.export.flatbuffer import (
  Signature,
  read_metadata,
  read_model,
  signatures,
)
from keras_attr_preserve.export.head import head_weights
from keras_attr_preserve.images import check_images

__all__ = ["RUNTIMES", "Explanation", "Interpreter", "tflm_installed"]

_RESOLVERS = {
    "xnnpack": litert.OpResolverType.BUILTIN,
    "builtin": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": litert.OpResolverType.BUILTIN_REF,
}
RUNTIMES = (*_RESOLVERS, "tflm")


class Explanation(NamedTuple):
  """What `Interpreter.explain` gives.

  Attributes:
    maps: float32 `[images, height, width]`, not negative; of a WCAM with method
      "swa" in the units of Grad-CAM.
    logits: float32 `[images, classes]`.
  """

  maps: np.ndarray
  logits: np.ndarray


def tflm_installed() -> bool:
  """Says whether the TFLite Micro interpreter (`tflite-micro`) is installed."""
  return tflm_worker.installed()


class Interpreter:
  """Runs a .tflite file, floats in and out whatever its number types.

      maps, logits = Interpreter(tflite_model).explain(images)

  Attributes:
    metadata: what `convert` wrote: layer, method, mode and road; None in a file
      of somebody else's, which can `predict` but not `explain`.
    signatures: the file's signatures, by name.
  """

  def __init__(
      self, tflite_model: bytes | str | os.PathLike, *,
      runtime: str = "xnnpack"):
    """Loads a file.

    Args:
      tflite_model: its bytes, or its path.
      runtime: "xnnpack", LiteRT as phones run it; "builtin", LiteRT without
        XNNPACK; "reference", LiteRT's reference kernels; "tflm", the real
        TFLite Micro interpreter, in a process of its own.

    Raises:
      OSError: the path cannot be read.
      TypeError, ValueError: not a .tflite file, a damaged one, one that the
        runtime refuses, or no such runtime.
      ImportError: "tflm" without the package tflite-micro.
    """
    if runtime not in RUNTIMES:
      raise ValueError(f"runtime must be one of {RUNTIMES}; got {runtime!r}.")
    if isinstance(tflite_model, (str, os.PathLike)):
      tflite_model = Path(tflite_model).read_bytes()
    self._content = bytes(tflite_model) if isinstance(
        tflite_model, bytearray) else tflite_model
    model = read_model(self._content)
    self.metadata = read_metadata(model)
    self.signatures = signatures(model)
    if self.metadata is not None:
      _check_explain(self.metadata, self.signatures)
    self._head = self._head_weights(model)
    run = _Tflm if runtime == "tflm" else _LiteRT
    self._runtime = run(self._content, runtime, len(model.subgraphs))

  @property
  def input_shape(self) -> tuple[int, ...]:
    """The shape of one image: `(height, width, channels)`."""
    return self._signature("predict").inputs[self._image_name].shape[1:]

  def predict(self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Runs the model.

    Args:
      images: `[images, height, width, channels]`, in the range that the Keras
        model takes; quantizing them is this method's business.
      logits: whether to return the scores before a softmax or sigmoid.

    Returns:
      What the Keras model gives, float32 `[images, classes]`.

    Raises:
      TypeError, ValueError: images of another shape, range or with NaN; a file
        with several outputs and no signature.
    """
    images = self._checked(images)
    signature = self._signature("predict")
    outputs = self._run("predict", {self._image_name: images})
    if "predict" not in self.signatures:
      if len(signature.outputs) != 1:
        raise ValueError(
            f"tflite_model has {len(signature.outputs)} outputs and no "
            "'predict' signature, so its scores are not known.")
      return next(iter(outputs.values()))
    return outputs["logits" if logits else (
        "predictions" if "predictions" in outputs else "logits")]

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Explains each image's score by the file's own features.

    Args:
      images: as for `predict`.
      targets: None for the file's top class, a class number, class numbers
        `[images]`, or float weights of the logits `[images, classes]`.

    Returns:
      Maps and logits.

    Raises:
      TypeError, ValueError: an argument is not as above, or the file carries no
        attribution.
    """
    if self.metadata is None:
      raise ValueError(
          "tflite_model carries no attribution: it was not made by "
          "kap.export.convert.")
    images = self._checked(images)
    classes = self._signature("explain").outputs["logits"].shape[-1]
    feeds = {"images": images}
    if self.metadata["road"] == "gradient":
      weights = self._weights(
          targets, self.predict(images, logits=True)
          if targets is None else np.empty([len(images), classes]))
      # The ranges of the backward pass are those of weights up to 1.
      size = np.abs(weights).max(1, keepdims=True)
      size[size == 0] = 1
      outputs = self._run("explain", {**feeds, "class_weights": weights / size})
      sensitivity = outputs["sensitivity"] * size[:, None, None]
    else:
      outputs = self._run("explain", feeds)
      weights = self._weights(targets, outputs["logits"])
      positions = np.prod(outputs["features"].shape[1:3])
      sensitivity = 0 if self._head is None else (
          weights @ self._head / positions)[:, None, None]
    features = outputs["features"]
    if self.metadata["method"] == "ewa":
      maps = np.mean(features**2, axis=-1)
    else:
      maps = np.maximum(np.sum(features * sensitivity, axis=-1), 0)
    return Explanation(maps.astype(np.float32), outputs["logits"])

  @property
  def _image_name(self) -> str:
    return next(name for name in self._signature("predict").inputs
                if name != "class_weights")

  def _signature(self, name: str) -> Signature:
    if name in self.signatures:
      return self.signatures[name]
    return next(iter(self.signatures.values()))

  def _checked(self, images: np.ndarray) -> np.ndarray:
    images = check_images(images, self.input_shape)
    spec = self._signature("predict").inputs[self._image_name]
    low, high = spec.range
    least, most = float(images.min()), float(images.max())
    slack = (high - low) / 2
    steps = (most - least) / spec.scale if spec.scale else np.inf
    if least < low - slack or most > high + slack or 0 < steps < 2:
      raise ValueError(
          f"images must be in the range the model was trained on; the file "
          f"takes {low:.4g}..{high:.4g} in steps of {spec.scale:.4g}, got "
          f"{least:.4g}..{most:.4g}.")
    return images

  @staticmethod
  def _weights(targets: Any, logits: np.ndarray) -> np.ndarray:
    if targets is None:
      targets = (logits.argmax(1) if logits.shape[1] > 1
                 else (logits[:, 0] >= 0).astype(int))
    return class_weights(targets, *logits.shape)

  def _run(
      self, name: str, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Runs a signature on floats, an image at a time, and joins the floats."""
    key = name if name in self.signatures else next(iter(self.signatures))
    signature = self.signatures[key]
    count = len(next(iter(feeds.values())))
    # Of a file with one subgraph `predict` has the inputs of `explain`, too.
    encoded = {one: spec.encode(feeds.get(
        one, np.zeros([count, *spec.shape[1:]], np.float32)))
               for one, spec in signature.inputs.items()}
    numbers = self._runtime.run(key, signature, encoded)
    return {one: spec.decode(numbers[one])
            for one, spec in signature.outputs.items()}

  def _head_weights(self, model: Any) -> np.ndarray | None:
    if not self.metadata or self.metadata["road"] != "features" or (
        self.metadata["method"] == "ewa"):
      return None
    explain = self.signatures["explain"]
    return head_weights(
        model, explain.subgraph, explain.outputs["logits"].position,
        explain.outputs["features"].position)


class _LiteRT:
  """Runs signatures in LiteRT, in this process."""

  def __init__(self, content: bytes, runtime: str, subgraphs: int):
    del subgraphs
    self._name = runtime
    try:
      self._interpreter = litert.Interpreter(
          model_content=content,
          experimental_op_resolver_type=_RESOLVERS[runtime])
      self._interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
      raise ValueError(
          f"tflite_model is refused by the runtime {runtime!r}: "
          f"{error}") from error

  def run(
      self, key: str, signature: Signature, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    call = (self._interpreter.get_signature_runner(key) if key
            else self._plain(signature))
    rows = []
    try:
      for i in range(len(next(iter(feeds.values())))):
        rows.append(call(**{name: array[i:i + 1]
                            for name, array in feeds.items()}))
    except (ValueError, RuntimeError) as error:
      raise ValueError(
          f"tflite_model is refused by the runtime {self._name!r}: "
          f"{error}") from error
    return {name: np.concatenate([row[name] for row in rows])
            for name in signature.outputs}

  def _plain(self, signature: Signature):
    """Calls a file without signatures, as a signature runner would."""
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


class _Tflm:
  """Runs a file in the TFLite Micro interpreter, in a process of its own.

  That interpreter ends its process on files it cannot take, and prints.
  """

  def __init__(self, content: bytes, runtime: str, subgraphs: int):
    del runtime
    if not tflm_worker.installed():
      raise ImportError(
          "runtime 'tflm' needs the package tflite-micro (Linux x86-64): "
          "pip install tflite-micro")
    if subgraphs != 1:
      raise ValueError(
          f"tflite_model must have one subgraph for the runtime 'tflm'; got "
          f"{subgraphs}. Convert with one_subgraph=True.")
    self._content = content

  def run(
      self, key: str, signature: Signature, feeds: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    del key
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder)
      (path / "model.tflite").write_bytes(self._content)
      np.savez(path / "in.npz", **{
          str(spec.position): feeds[name]
          for name, spec in signature.inputs.items()})
      (path / "outputs.json").write_text(json.dumps(
          [spec.position for spec in signature.outputs.values()]))
      done = subprocess.run(
          [sys.executable, tflm_worker.__file__, folder],
          capture_output=True, text=True, check=False)
      if done.returncode:
        raise ValueError(
            "tflite_model is refused by the runtime 'tflm' (exit "
            f"{done.returncode}): {_reason(done.stderr)}")
      with np.load(path / "out.npz") as out:
        return {name: out[str(spec.position)]
                for name, spec in signature.outputs.items()}


def _check_explain(
    metadata: Any, entries: Mapping[str, Signature]) -> None:
  """Raises ValueError where a file lacks what its metadata promises."""
  known = isinstance(metadata, dict) and (
      metadata.get("road") in ("features", "gradient")
      and metadata.get("method") in ("swa", "ewa"))
  explain = entries.get("explain")
  gradient = known and metadata["road"] == "gradient"
  predict = entries.get("predict")
  if not known or explain is None or predict is None or (
      "logits" not in predict.outputs) or not (
      {"logits", "features", *(["sensitivity"] if gradient else [])}
      <= explain.outputs.keys()) or not (
          {"images", *(["class_weights"] if gradient else [])}
          <= explain.inputs.keys()) or (
              len(explain.outputs["logits"].shape) != 2) or (
                  len(explain.outputs["features"].shape) != 4):
    raise ValueError(
        "tflite_model is damaged: its signatures are not those that its "
        f"metadata promise; got {metadata} and {sorted(entries)}.")


def _reason(text: str) -> str:
  """What a failed process said: its last words before and in its traceback."""
  before, *trace = text.strip().split("Traceback (most recent call last)")
  lines = before.strip().splitlines()[-2:] + "".join(trace).splitlines()[-1:]
  return " / ".join(lines) or "it said nothing"
