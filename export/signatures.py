"""The functions behind a file's `predict` and `explain` signatures."""

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.export.builtin_gradients import BUILTIN_GRADIENTS
from keras_attr_preserve.gradient_rules import gradient_rules
from keras_attr_preserve.tap import (
  Tap,
  Tapped,
  feature_gradients,
  top_class_seed,
)

__all__ = ["ExplainedModel"]


class ExplainedModel(tf.Module):
  """A model with the functions that a .tflite file is made of.

  Each takes one image, since a file's batch is fixed to 1. Outputs are
  `logits [1, classes]`; `predictions`, the same, where the model ends in a
  softmax or sigmoid; `features [1, height, width, channels]`; `sensitivity
  [1, 1, 1, channels]`.
  """

  def __init__(self, model: keras.Model, layer: str):
    """Taps the model.

    Args:
      model: a `tf_keras` model without pruning wrappers.
      layer: whose features are explained.
    """
    super().__init__()
    self.model = model  # Tracked, so that its variables are saved.
    self._tap = Tap(model, [layer])
    shape = [1, *model.inputs[0].shape[1:]]
    if None in shape:
      raise ValueError(
          f"model must have a fixed input size; got {model.inputs[0].shape}.")
    self._image = tf.TensorSpec(shape, tf.float32, name="images")
    self._weights = tf.TensorSpec(
        [1, self._tap.classes], tf.float32, name="class_weights")
    self._gives_logits = self._tap.gives_logits

  def predict(self):
    """The model as it is: images to logits and predictions."""
    def predict(images):
      return self._scores(self._tap(images))
    return tf.function(predict, input_signature=[self._image])

  def explain_features(self):
    """Images to scores and features; not one operator more than `predict`."""
    def explain(images):
      tapped = self._tap(images)
      return {**self._scores(tapped), "features": tapped.features[0]}
    return tf.function(explain, input_signature=[self._image])

  def explain_gradient(self):
    """Images and weights of the logits to scores, features and sensitivity.

    The backward pass of the tail is part of the function, written in operators
    that TFLite has.
    """
    def explain(images, class_weights):
      with tf.GradientTape() as tape:
        tape.watch(images)
        tapped = self._tap(images)
      with gradient_rules(BUILTIN_GRADIENTS):
        gradient, = feature_gradients(tape, tapped, class_weights)
        # A mean, since TFLite's int8 SUM is wrong in its reference kernels.
        sensitivity = tf.reduce_mean(gradient, axis=[1, 2], keepdims=True)
      return {**self._scores(tapped), "features": tapped.features[0],
              "sensitivity": sensitivity}
    return tf.function(explain, input_signature=[self._image, self._weights])

  def calibration_weights(
      self, image: np.ndarray, number: int) -> list[tf.Tensor]:
    """Weights of the logits for the image's top class, and for and against one.

    Args:
      image: `[1, height, width, channels]`.
      number: which image it is; the classes take turns.

    Returns:
      Three times `[1, classes]`.
    """
    classes = self._tap.classes
    other = tf.one_hot([number // 3 % classes], classes)
    return [top_class_seed(self._tap(image).logits), other, -other]

  def _scores(self, tapped: Tapped) -> dict[str, tf.Tensor]:
    if self._gives_logits:
      return {"logits": tapped.logits}
    return {"logits": tapped.logits, "predictions": tapped.output}
