"""The functions behind a file's `predict` and `explain` signatures."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.export.conversion.builtin_gradients import (
  BUILTIN_GRADIENTS,
)
from keras_attr_preserve.map_formulas import (
  equal_weighted_map,
  sensitivity_weighted_map,
)
from keras_attr_preserve.models.gradient_rules import gradient_rules
from keras_attr_preserve.models.scores import top_class_seed
from keras_attr_preserve.models.tap import Tap, Tapped, feature_gradients

__all__ = ["ExplainedModel"]


class ExplainedModel:
  """A model as functions to convert to a .tflite file.

  Each function takes one image, since a file's batch is fixed to 1. Outputs are
  `logits [1, classes]`; `predictions [1, classes]`, where the model ends in a
  softmax or sigmoid; `features [1, height, width, channels]`; `sensitivity
  [1, 1, 1, channels]`.
  """

  def __init__(
      self, model: keras.Model, layer: str, images: np.ndarray | None = None):
    """Taps the model.

    Args:
      model: a `tf_keras` model without pruning wrappers.
      layer: the layer that is explained.
      images: have the size that the file takes; None for the model's own size.
    """
    self.model = model
    self._tap = Tap(model, [layer])
    self._traced = Tap(model, [layer], runs=False)
    size = self._tap.input.shape if images is None else images.shape[1:]
    self._image = tf.TensorSpec([1, *size], tf.float32, name="images")
    self._weights = tf.TensorSpec(
        [1, self._tap.classes], tf.float32, name="class_weights")
    self._gives_logits = self._tap.gives_logits

  def explain_features(self):
    """Returns a function from images to scores and features.

    It has no operator more than the model.
    """
    def explain(images):
      tapped = self._traced(images)
      return {**self._scores(tapped), "features": tapped.features[0]}
    return tf.function(explain, input_signature=[self._image])

  def explain_gradient(self):
    """Returns a function to scores, features and sensitivity.

    It takes images and weights of the logits. It includes the backward pass of
    the tail, written in operators that TFLite has.
    """
    def explain(images, class_weights):
      with tf.GradientTape() as tape:
        tape.watch(images)
        tapped = self._traced(images)
      with gradient_rules(BUILTIN_GRADIENTS):
        gradient, = feature_gradients(tape, tapped, class_weights)
        # A mean, since TFLite's int8 SUM is wrong in its reference kernels.
        sensitivity = tf.reduce_mean(gradient, axis=[1, 2], keepdims=True)
      return {**self._scores(tapped), "features": tapped.features[0],
              "sensitivity": sensitivity}
    return tf.function(explain, input_signature=[self._image, self._weights])

  def explain_map(self, method: str):
    """Returns a function to logits, features, sensitivity and map.

    It takes images and weights of the logits; weights that are all zero stand
    for the top class. It computes in floats, with operators that TFLite has.

    Args:
      method: "swa" or "ewa". A map of "ewa" has no class and no sensitivity;
        its function takes images alone.
    """
    def explain(images, class_weights):
      with tf.GradientTape() as tape:
        tape.watch(images)
        tapped = self._traced(images)
      features, = tapped.features
      seed = _seed(tapped.logits, class_weights)
      with gradient_rules(BUILTIN_GRADIENTS):
        gradient, = feature_gradients(tape, tapped, seed)
        sensitivity = tf.reduce_mean(gradient, axis=[1, 2], keepdims=True)
      return {"logits": tapped.logits, "features": features,
              "sensitivity": sensitivity,
              "map": sensitivity_weighted_map(features, sensitivity)}

    def explain_equally(images):
      tapped = self._traced(images)
      features, = tapped.features
      return {"logits": tapped.logits, "features": features,
              "map": equal_weighted_map(features)}

    if method == "ewa":
      return tf.function(explain_equally, input_signature=[self._image])
    return tf.function(explain, input_signature=[self._image, self._weights])

  def calibration(self, images: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yields inputs of `explain_gradient` on which its ranges are measured.

    The backward pass is measured for top classes, and for and against any
    class. Each gets a third of the images, or all of them if there are few.

    Args:
      images: `[images, height, width, channels]`.
    """
    few = len(images) < 30
    for number, image in enumerate(images):
      weights = self.calibration_weights(image[None], number)
      for seed in weights if few else [weights[number % len(weights)]]:
        yield {"images": image[None], "class_weights": seed}

  def calibration_weights(
      self, image: np.ndarray, number: int) -> list[tf.Tensor]:
    """Weighs logits for the top class, and for and against another class.

    Args:
      image: `[1, height, width, channels]`.
      number: the image's number; the other class changes with it.

    Returns:
      Three tensors `[1, classes]`.
    """
    classes = self._tap.classes
    other = tf.one_hot([number // 3 % classes], classes)
    return [top_class_seed(self._tap(image).logits), other, -other]

  def _scores(self, tapped: Tapped) -> dict[str, tf.Tensor]:
    if self._gives_logits:
      return {"logits": tapped.logits}
    return {"logits": tapped.logits, "predictions": tapped.output}


def _seed(logits: tf.Tensor, class_weights: tf.Tensor) -> tf.Tensor:
  """Returns the weights given, or the top class's if they are all zero.

  Among equal logits, common in integers, the first is the top. Class numbers
  are compared, since one-hot encoding is missing in some TFLite runtimes.
  """
  if logits.shape[-1] == 1:
    top = tf.where(logits >= 0, 1.0, -1.0)
  else:
    largest = tf.cast(tf.argmax(logits, -1, tf.int32), tf.float32)
    numbers = np.arange(logits.shape[-1], dtype=np.float32)[None]
    top = tf.nn.relu(1 - tf.abs(numbers - tf.reshape(largest, [1, 1])))
  given = tf.reduce_max(tf.abs(class_weights), axis=-1, keepdims=True) > 0
  return tf.where(given, class_weights, top)
