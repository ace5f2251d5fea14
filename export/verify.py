"""Holding the maps of a shipped file against its teacher's."""

import hashlib
import os
from pathlib import Path

import numpy as np

from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.attribution.batches import class_weights
from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.evaluation.agreement import agreement, dead_maps
from keras_attr_preserve.evaluation.report import Report
from keras_attr_preserve.export.interpreter import Interpreter
from keras_attr_preserve.export.sizes import file_sizes
from keras_attr_preserve.images import check_images
from keras_attr_preserve.regularizer import WCAM, check_wcam
from keras_attr_preserve.tap import Tap
from keras_attr_preserve.wcam import same_size

__all__ = ["verify"]


def verify(
    tflite_model: bytes | str | os.PathLike,
    teacher: keras.Model,
    wcam: WCAM,
    images: np.ndarray,
    *,
    runtime: str = "xnnpack",
) -> Report:
  """Compares what a file looks at with what its teacher looks at.

  Both explain the teacher's top class of each image: the file by what
  `Interpreter.explain` reads from its bytes, the teacher by Grad-CAM (or the
  equal-weighted map) of the layer the WCAM names.

  Args:
    tflite_model: the file's bytes or path, made by `convert`.
    teacher: the float model it is to agree with; not changed.
    wcam: names the teacher's layer and the method; the first layer is compared.
    images: `[images, height, width, channels]`, in the range the teacher takes;
      pictures that neither training nor choosing has seen.
    runtime: see `Interpreter`.

  Returns:
    The report. Where the two maps differ in size the larger is brought down to
    the smaller.

  Raises:
    OSError: the path cannot be read.
    TypeError, ValueError: an argument is not as above, or the file explains by
      another method, or has other classes.
  """
  check_model(teacher, "teacher")
  check_wcam(wcam)
  images = check_images(images, teacher.inputs[0].shape[1:])
  if isinstance(tflite_model, (str, os.PathLike)):
    tflite_model = Path(tflite_model).read_bytes()
  interpreter = Interpreter(tflite_model, runtime=runtime)
  metadata = interpreter.metadata or {}
  if metadata and metadata["method"] != wcam.method:
    raise ValueError(
        f"wcam has method {wcam.method!r}, but the file was converted for "
        f"{metadata['method']!r}.")

  layer = wcam.layers[0]
  logits = _logits(teacher, images)
  top = _top_class(logits)
  method = {"swa": grad_cam, "ewa": equal_weighted}[wcam.method]
  reference = method(teacher, images, class_weights(top, *logits.shape), layer)
  classes = interpreter.signatures["explain"].outputs["logits"].shape[
      -1] if "explain" in interpreter.signatures else logits.shape[1]
  if classes != logits.shape[1]:
    raise ValueError(
        f"teacher must have the file's {classes} classes; got "
        f"{logits.shape[1]}.")
  maps, file_logits = interpreter.explain(images, top)
  reference, maps = (one.numpy() for one in same_size(
      tf.convert_to_tensor(reference), tf.convert_to_tensor(maps)))

  scores = agreement(reference, maps)
  scores["same_class"] = (_top_class(file_logits) == top).astype(float)
  alive = ~dead_maps(reference)
  dead = dead_maps(maps)[alive].mean() if alive.any() else 0.0
  return Report(scores, dead, {
      "images": len(images),
      **file_sizes(tflite_model),
      "sha256": hashlib.sha256(tflite_model).hexdigest(),
      "runtime": runtime,
      "layer": layer,
      "method": wcam.method,
      "mode": metadata["mode"],
      "road": metadata["road"],
      "teacher_dead": float(1 - alive.mean()),
  })


def _logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
  tap = tf.function(Tap(model), reduce_retracing=True)
  return np.concatenate([tap(tf.convert_to_tensor(images[i:i + 64])).logits
                         for i in range(0, len(images), 64)])


def _top_class(logits: np.ndarray) -> np.ndarray:
  if logits.shape[1] == 1:
    return (logits[:, 0] >= 0).astype(int)
  return logits.argmax(1)
