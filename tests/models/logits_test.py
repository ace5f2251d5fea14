"""Tests of logits.py: the logits behind whatever ends a model."""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.models.tap import Tap
from tests import tiny

_layers = keras.layers
# Layers that may follow a softmax or sigmoid and change nothing.
FOLLOWERS = {
    "nothing": lambda x: x,
    "reshape": lambda x: _layers.Reshape((3,))(x),
    "two reshapes": lambda x: _layers.Flatten()(_layers.Reshape((1, 1, 3))(x)),
    "linear": lambda x: _layers.Activation("linear", dtype="float32")(x),
    "dropout": lambda x: _layers.Dropout(0.5)(x),
    "an operator with arguments": lambda x: tf.reshape(x, [-1, 3]),
    "a cut that cuts nothing": lambda x: x[:, :3],
    "a mean of one": lambda x: _layers.GlobalAveragePooling2D()(
        _layers.Reshape((1, 1, 3))(x)),
}
SQUASHES = {
    "softmax": lambda x: _layers.Activation("softmax")(x),
    "softmax layer": lambda x: _layers.Softmax()(x),
    "sigmoid": lambda x: _layers.Activation("sigmoid")(x),
    "in the convolution's place": lambda x: _layers.Softmax()(
        _layers.Reshape((1, 1, 3))(x)),
    "function": lambda x: _layers.Lambda(lambda z: tf.nn.softmax(z))(x),
    "operator": lambda x: tf.nn.softmax(x, axis=-1),
    "by hand": lambda x: _layers.Lambda(lambda z: 1 / (1 + tf.exp(-z)))(x),
    "hard sigmoid": lambda x: _layers.Activation("hard_sigmoid")(x),
    "log softmax": lambda x: _layers.Activation("log_softmax")(x),
    "for each time": lambda x: _layers.TimeDistributed(
        _layers.Activation("softmax"))(_layers.Reshape((1, 3))(x)),
    "traced": lambda x: _layers.Lambda(tf.function(tf.nn.sigmoid))(x),
}


def _model(head, scale=20.0):
  """A model with a head, and the model of its logits."""
  keras.utils.set_random_seed(0)
  inputs = keras.Input((6, 6, 2))
  x = _layers.Conv2D(4, 3, activation="relu", name="act")(inputs)
  dense = _layers.Dense(3, name="logits")
  logits = dense(_layers.GlobalAveragePooling2D()(x))
  model = keras.Model(inputs, head(logits))
  tiny.shake(model)
  # Sure of itself: the gradient of a probability is next to nothing.
  dense.kernel.assign(scale * dense.kernel)
  return model, keras.Model(inputs, logits)


class FollowersTest(parameterized.TestCase):

  @parameterized.parameters(
      *(("softmax", follower) for follower in FOLLOWERS),
      *((squash, "reshape") for squash in SQUASHES if squash != "softmax"))
  def test_logits_behind_what_changes_nothing(self, squash, follower):
    model, plain = _model(lambda x: _layers.Reshape((3,))(
        FOLLOWERS[follower](SQUASHES[squash](x))))
    images = tiny.images()
    tapped = Tap(model, ["act"])(images)
    np.testing.assert_array_equal(tapped.logits, plain(images))
    np.testing.assert_array_equal(tapped.output, model(images))
    self.assertFalse(Tap(model).gives_logits)
    classes = [0, 1, 2, 0]
    # The same operations but for the order of float32 sums.
    np.testing.assert_allclose(
        kap.attribution.grad_cam(model, images, classes, "act"),
        tiny.plain_grad_cam(plain, images, classes), rtol=1e-4, atol=1e-6)

  def test_layers_behind_logits_are_left_alone(self):
    model, plain = _model(lambda x: _layers.Activation("linear")(
        _layers.Reshape((3,))(x)))
    self.assertTrue(Tap(model).gives_logits)
    images = tiny.images()
    np.testing.assert_array_equal(Tap(model)(images).logits, plain(images))

  def test_in_a_nested_model(self):
    inner, plain = _model(SQUASHES["softmax"])
    model = keras.Sequential([inner, _layers.Reshape((3,))])
    images = tiny.images()
    np.testing.assert_array_equal(Tap(model)(images).logits, plain(images))

  def test_behind_a_nested_model_that_changes_nothing(self):
    inner, plain = _model(SQUASHES["softmax"])
    model = keras.Sequential([inner, keras.Sequential([
        _layers.Reshape((1, 1, 3), input_shape=(3,)), _layers.Flatten()])])
    images = tiny.images()
    np.testing.assert_array_equal(Tap(model)(images).logits, plain(images))

  def test_an_operator_that_makes_logits(self):
    model, plain = _model(lambda x: x / 2 + 1)
    self.assertTrue(Tap(model).gives_logits)
    images = tiny.images()
    np.testing.assert_array_equal(
        Tap(model)(images).logits, plain(images) / 2 + 1)

  @parameterized.parameters(
      tf.nn.softmax, tf.nn.sigmoid, tf.nn.log_softmax,
      keras.activations.hard_sigmoid, lambda x: tf.nn.softmax(x, -1),
      _layers.Softmax())
  def test_other_activations_inside_a_layer(self, activation):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = _layers.Conv2D(4, 3, activation="relu", name="act")(inputs)
    x = _layers.GlobalAveragePooling2D()(x)
    dense = _layers.Dense(3, activation=activation)
    model = keras.Model(inputs, dense(x))
    images = tiny.images()
    tapped = Tap(model, ["act"])(images)
    pooled = keras.Model(inputs, x)(images)
    np.testing.assert_allclose(
        tapped.logits, pooled @ dense.kernel + dense.bias,
        atol=1e-6)  # Float32 sums of four products in another order.
    np.testing.assert_array_equal(tapped.output, model(images))
    self.assertIs(dense.activation, activation)
    self.assertNotIn("call", vars(dense))

  def test_a_file_of_one(self):
    model, plain = _model(lambda x: _layers.Reshape((3,))(
        SQUASHES["softmax"](x)), scale=1.0)
    content = kap.export.convert(model, kap.WCAM("act"), mode="float32")
    images = tiny.images()
    maps, logits = kap.export.Interpreter(content).explain(images, 1)
    # Float32 sums in the runtime's order.
    np.testing.assert_allclose(logits, plain(images), atol=1e-5)
    np.testing.assert_allclose(
        maps, tiny.plain_grad_cam(plain, images, [1] * 4), atol=1e-5)


class RefusedTest(parameterized.TestCase):

  @parameterized.parameters(
      lambda x: _layers.Lambda(
          lambda p: tf.clip_by_value(p, 1e-7, 1 - 1e-7), name="last")(
              _layers.Softmax()(x)),
      lambda x: _layers.Softmax(name="last")(_layers.Softmax()(x)),
      lambda x: _layers.Activation("sigmoid", name="last")(
          tf.nn.sigmoid(x)),
      lambda x: (lambda p: _layers.Concatenate(name="last")([1 - p, p]))(
          _layers.Dense(1, "sigmoid")(x)),
      lambda x: _layers.Average(name="last")(
          [_layers.Softmax()(x), _layers.Softmax()(-x)]),
      lambda x: _layers.Rescaling(0.9, 0.05, name="last")(
          _layers.Activation("sigmoid")(x)))
  def test_what_is_computed_from_probabilities(self, head):
    model, _ = _model(head)
    with self.assertRaisesRegex(
        ValueError, "computes something from the probabilities of its softmax "
        "or sigmoid, in layer 'last'"):
      Tap(model)

  def test_what_mixes_them_with_others_has_scores_of_its_own(self):
    model, _ = _model(
        lambda x: _layers.Multiply()([_layers.Softmax()(x), x]))
    self.assertTrue(Tap(model).gives_logits)

  def test_weights_behind_probabilities_make_scores(self):
    model, _ = _model(lambda x: _layers.Dense(3)(_layers.Softmax()(x)))
    self.assertTrue(Tap(model).gives_logits)

  def test_a_function_that_hides_its_softmax(self):
    model, _ = _model(
        lambda x: _layers.Lambda(
            lambda z: tf.nn.softmax(z / 2), name="last")(x))
    with self.assertRaisesRegex(ValueError, "cannot be read, in layer 'last'"):
      Tap(model)


if __name__ == "__main__":
  absltest.main()
