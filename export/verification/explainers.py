"""Who explains: the two sides that `verify` holds against each other."""

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
  """What `verify` asks either side for; `Interpreter` is one.

  Attributes:
    input: what either side takes.
  """

  input: ImageInput

  def predict(
      self, images: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """Images to logits, float32 `[images, classes]`; `logits` is True."""

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Images and class numbers `[images]` to maps and logits."""


class KerasExplainer:
  """Explains a Keras model by Grad-CAM or the equal-weighted map of a layer."""

  def __init__(self, model: keras.Model, layer: str, method: str = "swa"):
    """Taps the model, which stays as it is.

    Args:
      model: a `tf_keras` model, wrapped by tfmot or not.
      layer: whose features are explained.
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
      images: `[images, height, width, channels]`, in the range the model takes.
      logits: must be True: the scores are those before a softmax.

    Returns:
      The logits, float32 `[images, classes]`.
    """
    if not logits:
      raise ValueError("logits must be True; got False.")
    # Judges ask for what they make of images, which are no whole numbers.
    scores, = run_batches(self._logits, self.input.check(images, whole=False),
                          batch_size=_BATCH_SIZE)
    return scores

  def explain(self, images: np.ndarray, targets: Any = None) -> Explanation:
    """Explains each image's score; arguments as of `Interpreter.explain`."""
    logits = self.predict(images)
    targets = top_classes(logits, True) if targets is None else targets
    maps = self._method(
        self._model, images, class_weights(targets, *logits.shape),
        self._layer, batch_size=_BATCH_SIZE)
    return Explanation(maps, logits)


def file_content(
    tflite_model: bytes | str | os.PathLike) -> bytes:
  """Returns a file's bytes, read if need be."""
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
    layer: whose layer the file's must be: the WCAM's first of the student, or
      where the file stands in for the teacher of that.
    runtime: see `Interpreter`.
    name: what the error calls the file.
    teacher: by whose numbers a file of somebody else's is searched, if it is a
      `tf_keras` model.
    images: what the two are held against each other on.
    foreign: settings of `explainer` for a file of somebody else's.

  Raises:
    TypeError, ValueError: no such file, or it explains by another method or
      another layer.
  """
  # Checked first: a damaged file of ours is nobody else's.
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
  """Opens a file that `convert` has not made."""
  if isinstance(teacher, keras.Model):
    settings.update(teacher=teacher, images=images)
  found = explainer(content, wcam=wcam, runtime=runtime, **settings)
  if found.method != wcam.method:
    raise ValueError(
        f"{name} can only be explained by its scores ({found.source}), which "
        f"is no match for method {wcam.method!r}. Compare maps of `explainer` "
        "with those of kap.attribution.occlusion.")
  return found


def teacher_explainer(
    teacher: keras.Model | bytes | str | os.PathLike, wcam: WCAM
) -> KerasExplainer | Interpreter | ForeignExplainer:
  """Opens the teacher: a model, or a .tflite file that is its stand-in.

  Args:
    teacher: a `tf_keras` model; or a file's bytes or path.
    wcam: whose first layer and method are explained.

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
    return  # `explain` says what is amiss.
  if got != classes:
    raise ValueError(
        f"teacher must have the file's {got} classes; got {classes}.")


def file_facts(
    file: Interpreter | ForeignExplainer, wcam: WCAM) -> dict[str, Any]:
  """What a report says of a file: what `convert` wrote into it, and ranges.

  "runtime" is what ran it; "layer" is the teacher's, "file_layer" the file's
  own; "input_range" is what its input can hold, None where it takes floats. Of
  a file of somebody else's, what was found out.
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
  """What the last bit of a file's logits is worth; 0 where they are floats."""
  if isinstance(file, ForeignExplainer):
    return file.logit_step
  return float(file.signatures["predict"].outputs["logits"].scale)
