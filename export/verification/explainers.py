"""The explainers of the two sides that `verify` compares."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.export.runtime.interpreter import (
  Explanation,
  Interpreter,
)
from keras_attr_preserve.export.runtime.known_facts import (
  check_layer,
  check_method,
  file_metadata,
)
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.third_party.explainer import (
  ForeignExplainer,
  explainer,
)
from keras_attr_preserve.models.inputs import ImageInput
from keras_attr_preserve.models.running import run_batches
from keras_attr_preserve.models.scores import class_weights, top_classes
from keras_attr_preserve.models.tap import Tap
from keras_attr_preserve.training.wcam import WCAM

__all__ = ["Explainer", "KerasExplainer", "check_classes", "file_content",
           "file_explainer", "file_facts", "logit_step", "teacher_explainer"]

_BATCH_SIZE = 64


class Explainer(Protocol):
  """The methods that `verify` calls on each side; `Interpreter` has them.

  Attributes:
    input: the side's input.
  """

  input: ImageInput

  def predict(
      self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Maps images to logits, float32 `[images, classes]`; `logits` is True."""

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Turns images and class numbers `[images]` into maps and logits."""


class KerasExplainer:
  """Explains a Keras model by Grad-CAM or the equal-weighted map of a layer."""

  def __init__(self, model: keras.Model, layer: str, method: str = "swa"):
    """Taps the model; the model is not changed.

    Args:
      model: a `tf_keras` model, wrapped by tfmot or not.
      layer: the explained layer.
      method: "swa" or "ewa"; see `WCAM`.

    Raises:
      TypeError, ValueError: an argument is not as above.
    """
    check_model(model, "teacher")
    self._model, self._layer = model, layer
    self._method = {"swa": grad_cam, "ewa": equal_weighted}[method]
    tap = Tap(model, [layer])
    self.input = tap.input
    self._logits = tf.function(
        lambda batch: (tap(batch).logits,),
        input_signature=[tf.TensorSpec([None, *self.input.shape])])

  def predict(self, images: np.ndarray, *, logits: bool = True) -> np.ndarray:
    """Scores images.

    Args:
      images: `[images, height, width, channels]`, in the model's range.
      logits: must be True: the scores come before a softmax.

    Returns:
      The logits, float32 `[images, classes]`.
    """
    if not logits:
      raise ValueError("logits must be True; got False.")
    # Judges change images, so values may be no whole numbers.
    scores, = run_batches(self._logits, self.input.check(images, whole=False),
                          batch_size=_BATCH_SIZE)
    return scores

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Explains each image's score; see `Interpreter.explain`."""
    logits = self.predict(images)
    targets = top_classes(logits, True) if targets is None else targets
    maps = self._method(
        self._model, images, class_weights(targets, *logits.shape),
        self._layer, batch_size=_BATCH_SIZE)
    return Explanation(maps, logits)


def file_content(
    tflite_model: bytes | str | os.PathLike) -> bytes:
  """Returns a file's bytes; reads them from a path."""
  if isinstance(tflite_model, (str, os.PathLike)):
    return Path(tflite_model).read_bytes()
  return tflite_model


def file_explainer(
    content: bytes, wcam: WCAM, layer: str, runtime: str,
    name: str = "the file", teacher: Any = None,
    images: np.ndarray | None = None,
    foreign: Mapping[str, Any] | None = None,
) -> Interpreter | ForeignExplainer:
  """Opens a file for explaining.

  Args:
    content: the file's bytes.
    wcam: its method must be the file's.
    layer: the layer that the file must explain. That is the WCAM's first
      student layer, or its first layer for a file in the teacher's place.
    runtime: see `Interpreter`.
    name: the file's name in errors.
    teacher: a `tf_keras` model; its numbers identify the tensors of a third
      party's file.
    images: images on which the two are compared.
    foreign: settings of `explainer` for a third party's file.

  Raises:
    TypeError, ValueError: `content` is no such file, or it explains by another
      method or another layer.
  """
  # Checked first, so that a damaged file does not pass as a third party's.
  checked_model(content, runtime)
  if file_metadata(content) is None:
    return _foreign_explainer(
        content, wcam, runtime, name, teacher, images, dict(foreign or {}))
  interpreter = Interpreter(content, runtime=runtime)
  check_method(interpreter.metadata, wcam.method, name)
  check_layer(interpreter.metadata, layer, name)
  return interpreter


def _foreign_explainer(
    content, wcam, runtime, name, teacher, images, settings):
  """Opens a third party's file."""
  if isinstance(teacher, keras.Model):
    settings.update(teacher=teacher, images=images)
  foreign = explainer(content, wcam=wcam, runtime=runtime, **settings)
  if foreign.method != wcam.method:
    raise ValueError(
        f"{name} can only be explained by its scores ({foreign.source}), which "
        f"is no match for method {wcam.method!r}. Compare maps of `explainer` "
        "with those of kap.attribution.occlusion.")
  return foreign


def teacher_explainer(
    teacher: keras.Model | bytes | str | os.PathLike, wcam: WCAM
) -> KerasExplainer | Interpreter | ForeignExplainer:
  """Opens the teacher: a model, or a .tflite file in its place.

  Args:
    teacher: a `tf_keras` model; or a file's bytes or path.
    wcam: its first layer and its method are explained.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: the teacher is neither.
  """
  if isinstance(teacher, (bytes, bytearray, str, os.PathLike)):
    try:
      return file_explainer(
          file_content(teacher), wcam, wcam.layers[0], "xnnpack",
          "the teacher's file")
    except ValueError as error:
      raise ValueError(
          "teacher must be a tf_keras model, or a .tflite file that explains; "
          f"{error}") from error
  return KerasExplainer(teacher, wcam.layers[0], wcam.method)


def check_classes(
    file: Interpreter | ForeignExplainer, classes: int) -> None:
  """Raises ValueError where a file has other classes than its teacher."""
  if isinstance(file, ForeignExplainer):
    got = file.classes
  elif "explain" in file.signatures:
    got = file.signatures["explain"].outputs["logits"].shape[-1]
  else:
    return  # `explain` raises the error.
  if got != classes:
    raise ValueError(
        f"teacher must have the file's {got} classes; got {classes}.")


def file_facts(
    file: Interpreter | ForeignExplainer, wcam: WCAM) -> dict[str, Any]:
  """Returns a report's facts about a file: metadata of `convert`, and ranges.

  "runtime" ran the file. "layer" is the teacher's, "file_layer" the file's.
  "input_range" is the range of the file's input, None for floats. A third
  party's file has the facts of `ForeignExplainer`.
  """
  if isinstance(file, ForeignExplainer):
    return {**file.facts, "layer": wcam.layers[0]}
  spec = file.signatures["predict"].inputs["images"]
  return {
      **file.metadata,
      "runtime": file.runtime,
      "layer": wcam.layers[0],
      "file_layer": file.metadata["layer"],
      "input_range": list(spec.range) if spec.scale else None,
  }


def logit_step(file: Interpreter | ForeignExplainer) -> float:
  """Returns the value of the last bit of a file's logits; 0 for floats."""
  if isinstance(file, ForeignExplainer):
    return file.logit_step
  return float(file.signatures["predict"].outputs["logits"].scale)
