"""The sensitivity of a teacher's tail at another model's features."""

import contextlib

import numpy as np

from keras_attr_preserve.compat import clone_model, keras, tf
from keras_attr_preserve.models.layers import layer_output, locate
from keras_attr_preserve.models.logits import find_head
from keras_attr_preserve.models.running import run_batches

__all__ = ["TeacherTail"]

_BATCH_SIZE = 64


class TeacherTail:
  """Runs the layers after one layer of a Keras model, on given features."""

  def __init__(self, teacher: keras.Model, layer: str):
    """Cuts the tail off a copy; the teacher is not changed.

    Args:
      teacher: a plain `tf_keras` model.
      layer: the layer whose output the features stand for.

    Raises:
      TypeError, ValueError: the model cannot be copied, or the layer or the
        head lies in a nested model.
    """
    if locate(teacher, layer)[0] is not teacher:
      raise ValueError(
          f"layer {layer!r} lies in a model nested in {teacher.name!r}, whose "
          "tail cannot be cut off.")
    # Cutting adds nodes to the layers, so cut a copy.
    copy = clone_model(teacher)
    features = layer_output(copy, locate(copy, layer)[1])
    self._head = find_head(copy)
    if self._head.graph is not copy:
      raise ValueError(
          f"the head of {teacher.name!r} lies in a model nested in it, so that "
          "its tail cannot be cut off.")
    # A connection around the layer needs the images, too.
    self._tail = keras.Model(
        [features, *self._bypass(copy, features)], self._head.tensor)
    self.shape = tuple(features.shape[1:])

  def sensitivity(
      self, features: np.ndarray, class_weights: np.ndarray,
      images: np.ndarray,
  ) -> np.ndarray:
    """Differentiates scores with respect to the features, at these features.

    Args:
      features: `[images, height, width, channels]`.
      class_weights: `[images, classes]`, the weights of the logits in each
        image's score.
      images: `[images, ...]`, used where a connection leads around the layer.

    Returns:
      `[images, channels]`: `sum_{h,w} d score / d features_c`.
    """
    sums, = run_batches(self._sensitivity, features, class_weights, images,
                        batch_size=_BATCH_SIZE)
    return sums

  def _sensitivity(self, features, class_weights, images):
    with tf.GradientTape() as tape:
      tape.watch(features)
      feeds = [features, images][:len(self._tail.inputs)]
      with self._head.swap.on() if self._head.swap else (
          contextlib.nullcontext()):
        logits = self._head.logits(self._tail(feeds, training=False))
    gradient = tape.gradient(
        logits, features,
        output_gradients=tf.cast(class_weights, logits.dtype))
    return (tf.reduce_sum(gradient, [1, 2]),)

  def _bypass(self, model, features):
    """Returns the model's inputs if the head needs them, else no inputs."""
    try:
      keras.Model(features, self._head.tensor)
    except ValueError:  # "Graph disconnected": a connection skips the layer.
      return model.inputs
    return []
