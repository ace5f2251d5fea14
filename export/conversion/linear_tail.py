"""Whether what follows a layer is a head that can be read off the file.

Where that is pooling and a linear layer, no more, the gradient of a score is
the same for every image.
"""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.export.tflite.head import read_head
from keras_attr_preserve.export.tflite.schema import read_model, signatures
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.scores import class_weights
from keras_attr_preserve.models.tap import Tap, sensitivities

__all__ = ["has_constant_sensitivity", "head_is_found"]


def has_constant_sensitivity(model: keras.Model, layer: str) -> bool:
  """Says whether the gradient at a layer is the same for every image."""
  some = model_input(model).probes(4)
  for classes in range(min(2, model.outputs[0].shape[-1])):
    values = _sensitivity(model, layer, some, classes)
    if not np.allclose(values, values[:1], rtol=1e-4,
                       atol=1e-5 * np.abs(values).max()):
      return False
  return True


def _sensitivity(
    model: keras.Model, layer: str, images: np.ndarray, target: Any
) -> np.ndarray:
  return _differentiated(model, layer, images, target)[0]


def _differentiated(
    model: keras.Model, layer: str, images: np.ndarray, target: Any
) -> tuple[np.ndarray, np.ndarray]:
  """A score's sensitivities, `[images, channels]`, and the features."""
  tap = Tap(model, [layer])
  with tf.GradientTape() as tape:
    images = tf.convert_to_tensor(images)
    tape.watch(images)
    tapped = tap(images)
  seed = class_weights(target, len(images), tap.classes)
  values, = sensitivities(tape, tapped, seed)
  return values.numpy()[:, 0, 0], tapped.features[0].numpy()


def head_is_found(
    content: bytes, model: keras.Model, layer: str) -> bool:
  """Says whether the file's head gives the model's sensitivities."""
  parsed = read_model(content)
  explain = signatures(parsed)["explain"]
  head = read_head(
      parsed, explain.subgraph, explain.outputs["logits"].position,
      explain.outputs["features"].position)
  if head is None:
    return False
  # Whatever range of pictures the model takes, some turn hidden units on.
  taken = model_input(model)
  some = taken.probes(8)
  if taken.is_float:
    sizes = np.geomspace(1, 256, 8, dtype=np.float32)
    some *= sizes.reshape(8, *[1] * (some.ndim - 1))
  classes = len(head.last.weights)
  for target in {0, classes // 2, classes - 1}:
    seed = np.eye(classes, dtype=np.float32)[[target] * 8]
    ours, features = _differentiated(model, layer, some, seed)
    theirs = head.sensitivity(features, seed)
    # A share for the rounding of int8 weights, which may also turn a hidden
    # unit of some image; both may be zero.
    error = np.linalg.norm(ours - theirs, axis=1)
    size = np.maximum(*(np.linalg.norm(one, axis=1) for one in (ours, theirs)))
    if np.median(error - 0.15 * size) > 0:
      return False
  return True
