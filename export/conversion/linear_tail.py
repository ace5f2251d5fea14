"""Tells whether a layer is followed by a head that can be read off the file.

With a head of pooling and a linear layer alone, the gradient of a score is the
same for every image.
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
  images = model_input(model).probes(4)
  for classes in range(min(2, model.outputs[0].shape[-1])):
    values = _sensitivity(model, layer, images, classes)
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
  """Returns a score's sensitivities, `[images, channels]`, and the features."""
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
  # Some of the sizes 1 to 256 turn hidden units on, whatever the model's range.
  taken = model_input(model)
  images = taken.probes(8)
  if taken.is_float:
    sizes = np.geomspace(1, 256, 8, dtype=np.float32)
    images *= sizes.reshape(8, *[1] * (images.ndim - 1))
  classes = len(head.last.weights)
  for target in {0, classes // 2, classes - 1}:
    seed = np.eye(classes, dtype=np.float32)[[target] * 8]
    expected, features = _differentiated(model, layer, images, seed)
    computed = head.sensitivity(features, seed)
    # A share of .15 allows for the rounding of int8 weights, which may also
    # switch a hidden unit. The median forgives single images; both sides may be
    # zero.
    error = np.linalg.norm(expected - computed, axis=1)
    size = np.maximum(*(
        np.linalg.norm(values, axis=1) for values in (expected, computed)))
    if np.median(error - 0.15 * size) > 0:
      return False
  return True
