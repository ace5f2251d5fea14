"""A teacher's tail on features from elsewhere."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.third_party.teacher_tail import TeacherTail
from keras_attr_preserve.models.tap import Tap, sensitivities
from tests import export_helpers as helpers
from tests import tiny


def own_sensitivity(net, layer, images, weights) -> np.ndarray:
  """The gradient at the model's own features."""
  tap = Tap(net, [layer])
  with tf.GradientTape() as tape:
    batch = tf.constant(images)
    tape.watch(batch)
    tapped = tap(batch)
  values, = sensitivities(tape, tapped, tf.constant(weights))
  return values.numpy()[:, 0, 0]


class TeacherTailTest(parameterized.TestCase):

  @parameterized.parameters(
      ("flatten", "softmax", "act"), ("block", "linear", "act"),
      ("depthwise", "sigmoid", "act"), ("depthwise", "linear", "act2"),
      ("block", "softmax_layer", "bn"),
      # A way leads around these: the sum has two arms.
      ("depthwise", "softmax", "bn2"), ("depthwise", "linear", "conv2"))
  def test_at_its_own_features_it_is_the_nets_gradient(self, tail, head, layer):
    model, images = helpers.net(tail, head=head), helpers.images()
    weights = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    features = keras.Model(model.input, model.get_layer(layer).output)(images)
    got = TeacherTail(model, layer).sensitivity(
        features.numpy(), weights, images)
    # The same gradient by another graph: float32 sums in another order.
    np.testing.assert_allclose(
        got, own_sensitivity(model, layer, images, weights), atol=1e-5)

  def test_other_features_have_another_gradient(self):
    model, images = helpers.net("block"), helpers.images()
    weights = np.ones([8, 3], np.float32)
    features = keras.Model(model.input, model.get_layer("act").output)(images)
    tail = TeacherTail(model, "act")
    moved = features.numpy() + 0.1
    got = tail.sensitivity(moved, weights, images)
    # By finite differences along each channel.
    rest = keras.Model(model.get_layer("act").output, model.output)
    for channel in (0, 7):
      step = np.zeros(16)
      step[channel] = 1e-3
      ends = [rest(np.float32(moved + sign * step)).numpy().sum(1)
              for sign in (1, -1)]
      # ReLUs of the tail may cross zero within the step, and float32 scores
      # are rounded before they are subtracted.
      np.testing.assert_allclose(
          (ends[0] - ends[1]) / 2e-3, got[:, channel], atol=0.02, rtol=0.02)
    # Moved by 0.1, ReLUs of the tail have changed sides; a tail deaf to its
    # features would give 0 here.
    self.assertGreater(tiny.relative_error(got, tail.sensitivity(
        features.numpy(), weights, images)), 0.01)

  def test_the_teacher_stays_as_it_is(self):
    model = tiny.conv_net(tail="depthwise", size=helpers.SIZE)
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    TeacherTail(model, "act")
    TeacherTail(model, "bn2")
    self.assertEqual(
        nodes, [len(layer.inbound_nodes) for layer in model.layers])

  def test_nested_models_are_refused(self):
    inner = helpers.net("block")
    inputs = keras.Input(inner.input_shape[1:])
    model = keras.Model(inputs, keras.layers.Softmax()(inner(inputs)))
    with self.assertRaisesRegex(ValueError, "'act' lies in a model nested"):
      TeacherTail(model, "act")


if __name__ == "__main__":
  absltest.main()
