"""Tests of matching many classes: one graph for any number of them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, TrainStep
from tests import tiny

COUNT = 5
WEIGHT = 3.0


def _net(classes, seed):
  return tiny.smooth_net(seed, "depthwise", classes=classes)


def _labels(classes):
  """Images of three classes, one, none, all, and the last alone."""
  labels = np.zeros((COUNT, classes), np.float32)
  labels[0, [0, 2, classes - 1]] = 1
  labels[1, 1] = labels[4, -1] = 1
  labels[3] = 1
  return labels


def _plain(student, teacher, images, explained):
  """The loss and its gradients by plain tapes, class by class."""
  wide = [
      keras.Model(
          model.inputs, [model.get_layer("act").output, model.output])
      for model in (teacher, student)]
  with tf.GradientTape() as outer:
    total = 0.0
    for i, classes in enumerate(explained):
      for k in classes:
        units = []
        for model in wide:
          with tf.GradientTape() as tape:
            features, logits = model(images[i:i + 1])
            score = logits[0, k]
          weights = tf.reduce_sum(tape.gradient(score, features), [0, 1, 2])
          maps = tf.nn.relu(tf.reduce_sum(weights * features, -1))
          units.append(maps / tf.norm(maps))
        cosine = tf.reduce_sum(tf.stop_gradient(units[0]) * units[1])
        total += (1 - cosine) / len(classes)
    loss = WEIGHT * total / len(images)
  return loss, outer.gradient(loss, student.trainable_variables)


class ManyClassesTest(parameterized.TestCase):

  def _differentiate(self, target, classes=4, **settings):
    """Returns a function of the loss and gradients, and the two models."""
    student, teacher = tiny.compiled(_net(classes, 1)), _net(classes, 0)
    step = TrainStep(student, teacher, WCAM(
        "act", weight=WEIGHT, target=target, **settings))

    def differentiate(images, labels):
      with tf.GradientTape() as tape:
        loss, _ = step.loss(images, labels, training=False)
      return loss, tape.gradient(loss, student.trainable_variables)

    return differentiate, student, teacher

  def test_against_plain_tapes(self):
    self._check_against_plain_tapes("present", lambda function: function)

  @parameterized.product(
      target=("present", "all", "top_k"), jit=(False, True))
  @pytest.mark.slow("training")
  def test_graphs_against_plain_tapes(self, target, jit):
    """Of batches whose size is not known to the trace, as in `fit`."""
    self._check_against_plain_tapes(target, lambda function: tf.function(
        function, jit_compile=jit, input_signature=[
            tf.TensorSpec([None, 4, 4, 2]), tf.TensorSpec([None, 4])]))

  def _check_against_plain_tapes(self, target, wrap):
    differentiate, student, teacher = self._differentiate(target, top_k=2)
    images, labels = tiny.images(COUNT, size=4), _labels(4)
    explained = {
        "present": [np.flatnonzero(row) for row in labels],
        "all": [range(4)] * COUNT,
        "top_k": np.argsort(-teacher(images).numpy(), axis=1)[:, :2]}[target]
    want, want_gradients = _plain(student, teacher, images, explained)
    got, gradients = wrap(differentiate)(
        tf.constant(images), tf.constant(labels))
    # Sums of float32 over a few positions and images.
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # There is something to compare.
    self.assertGreater(max(np.abs(gradient).max() for gradient in want_gradients
                           if gradient is not None), 1e-3)
    for variable, gradient, expected in zip(
        student.trainable_variables, gradients, want_gradients):
      if expected is not None:
        # As above; the gradients are of size .01.
        np.testing.assert_allclose(
            gradient, expected, atol=1e-6, err_msg=variable.name)

  def test_the_graph_does_not_grow_with_the_labels(self):
    self.assertEqual(self._size("present", 3), self._size("present", 30))

  @pytest.mark.slow("training")
  def test_the_graph_does_not_grow_with_the_classes(self):
    self.assertEqual(self._size("all", 3), self._size("all", 30))
    self.assertEqual(self._size("top_k", 9, top_k=2),
                     self._size("top_k", 9, top_k=5))

  def _size(self, target, classes, **settings):
    """Counts operations, also those inside of loops."""
    differentiate, _, _ = self._differentiate(target, classes, **settings)
    graph = tf.function(differentiate).get_concrete_function(
        tf.TensorSpec([None, 4, 4, 2]), tf.TensorSpec([None, classes])
    ).graph.as_graph_def()
    return len(graph.node) + sum(
        len(function.node_def) for function in graph.library.function)


if __name__ == "__main__":
  absltest.main()
