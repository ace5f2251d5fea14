"""Tests of builtin_gradients.py, each rule against TensorFlow's own."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.conversion.builtin_gradients import (
    BUILTIN_GRADIENTS,
)
from keras_attr_preserve.models.gradient_rules import gradient_rules
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared

PADDINGS = ("SAME", "VALID")
# Of pools.
SIZES, STRIDES = (2, 3, (3, 1)), (1, 2, 3, (2, 1))
# float32 sums in another order, or one rounding more.
RTOL, ATOL = 1e-5, 1e-6


def both_gradients(function, *inputs, sources=1):
  """Differentiates `function` by its first inputs, plainly and by the rules.

  Returns:
    Two lists of arrays: TensorFlow's gradients, and the gradients of the rules.
    Then the types of the function's operations.
  """
  types = set()
  inputs = [tf.constant(value) for value in inputs]

  @tf.function
  def gradients():
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(inputs)
      output = function(*inputs)
    types.update(operation.type for operation in output.graph.get_operations())
    incoming = np.random.default_rng(9).normal(size=output.shape)
    incoming = tf.constant(incoming.astype(np.float32))
    plain = tape.gradient(output, inputs[:sources], incoming)
    with gradient_rules(BUILTIN_GRADIENTS):
      by_rules = tape.gradient(output, inputs[:sources], incoming)
    return plain, by_rules

  plain, by_rules = gradients()
  return ([gradient.numpy() for gradient in plain],
          [gradient.numpy() for gradient in by_rules], types)


def operations(function, *inputs):
  """Names the operation types that a traced function of arrays has."""
  graph = tf.function(function).get_concrete_function(
      *[tf.constant(value) for value in inputs]).graph
  return {operation.type for operation in graph.get_operations()}


def picture(height=5, width=6, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=[1, height, width, channels]).astype(np.float32)


def steps(height=5, width=6, channels=3, seed=0):
  """An image after a ReLU: few values, many ties, half of it zero."""
  return np.maximum(np.round(picture(height, width, channels, seed)), 0)


class RuleTest(parameterized.TestCase):

  def check(self, operation, function, *inputs):
    self.assertIn(operation, BUILTIN_GRADIENTS)
    (plain,), (by_rules,), types = both_gradients(function, *inputs)
    self.assertIn(operation, types)
    self.assertEqual(by_rules.dtype, np.float32)
    np.testing.assert_allclose(by_rules, plain, RTOL, ATOL)
    self.assertGreater(np.abs(plain).max(), 0)

  @parameterized.parameters(
      ("Relu", tf.nn.relu), ("Relu6", tf.nn.relu6), ("Elu", tf.nn.elu),
      ("Sigmoid", tf.nn.sigmoid), ("Tanh", tf.nn.tanh),
      ("Softsign", tf.nn.softsign),
      ("LeakyRelu", tf.nn.leaky_relu),
      ("LeakyRelu", lambda x: tf.nn.leaky_relu(x, 0.013)))
  def test_activation(self, operation, function):
    # The kinks of all of them are among the values: 0 and 6.
    x = np.concatenate([picture(), 4 * picture(seed=1),
                        2 * np.round(3 * picture(seed=2))])[None]
    self.assertContainsSubset({0.0, 6.0}, set(x.flat))
    self.check(operation, function, x)

  @parameterized.parameters(1e-3, 0.1)
  def test_batch_norm_by_hand(self, epsilon):
    rng = np.random.default_rng(3)
    gamma, beta, mean = rng.normal(size=[3, 3]).astype(np.float32)
    variance = rng.uniform(0.01, 2, 3).astype(np.float32)

    def norm(x):
      return tf.compat.v1.nn.fused_batch_norm(
          x, gamma, beta, mean, variance, epsilon, is_training=False)[0]

    x = picture()
    self.check("FusedBatchNormV3", norm, x)
    _, (by_rules,), _ = both_gradients(norm, x)
    incoming = np.random.default_rng(9).normal(size=x.shape)
    np.testing.assert_allclose(
        by_rules, incoming * gamma / np.sqrt(variance + epsilon), 1e-5, 1e-6)

  def test_batch_norm_in_training_is_refused(self):
    def norm(x):
      return tf.compat.v1.nn.fused_batch_norm(
          x, [1., 2.], [0., 0.], is_training=True)[0]
    with self.assertRaisesRegex(ValueError, "inference mode"):
      both_gradients(norm, picture(channels=2))

  @parameterized.product(
      axis=([1, 2], [-3, -2], 3, -1, [1], [1, 2, 3], None),
      keepdims=(True, False))
  def test_mean(self, axis, keepdims):
    self.check("Mean", lambda x: tf.reduce_mean(x, axis, keepdims), picture())

  @parameterized.product(
      size=(3, (3, 1)), stride=(2, (2, 1)), padding=PADDINGS)
  def test_max_pool(self, size, stride, padding):
    self.check_max_pool(size, stride, padding)

  @parameterized.product(size=SIZES, stride=STRIDES, padding=PADDINGS)
  @pytest.mark.slow("files")
  def test_every_max_pool(self, size, stride, padding):
    self.check_max_pool(size, stride, padding)

  def check_max_pool(self, size, stride, padding):
    # Ties, which TensorFlow gives to the first of the window, row by row; and
    # values below zero, where nothing may come from the padding.
    x = np.concatenate([picture(), steps(), steps() - 9], -1)
    self.check(
        "MaxPool", lambda x: tf.nn.max_pool2d(x, size, stride, padding), x)

  @parameterized.parameters(*PADDINGS)
  def test_max_pool_after_relu(self, padding):
    def pool(x):
      return tf.nn.max_pool2d(tf.nn.relu(x), 3, 2, padding)
    self.check("MaxPool", pool, steps() - 1)

  def test_max_pool_by_hand(self):
    x = np.float32([[3, 1, 2], [3, 0, 2], [0, 0, 2]])[None, :, :, None]
    with gradient_rules(BUILTIN_GRADIENTS):
      @tf.function
      def gradient(x):
        with tf.GradientTape() as tape:
          tape.watch(x)
          y = tf.nn.max_pool2d(x, 2, 1, "VALID")
        return tape.gradient(y, x, tf.constant(
            [1., 2., 4., 8.], shape=[1, 2, 2, 1]))
      # Windows [3 1 3 0], [1 2 0 2], [3 0 0 0] and [0 2 0 2].
      np.testing.assert_array_equal(
          gradient(tf.constant(x))[0, :, :, 0],
          [[1, 0, 2], [4, 0, 8], [0, 0, 0]])

  @parameterized.product(
      size=(3, (3, 1)), stride=(2, (2, 1)), padding=PADDINGS)
  def test_average_pool(self, size, stride, padding):
    self.check_average_pool(size, stride, padding)

  @parameterized.product(size=SIZES, stride=STRIDES, padding=PADDINGS)
  @pytest.mark.slow("files")
  def test_every_average_pool(self, size, stride, padding):
    self.check_average_pool(size, stride, padding)

  def check_average_pool(self, size, stride, padding):
    self.check(
        "AvgPool", lambda x: tf.nn.avg_pool2d(x, size, stride, padding),
        picture())

  @parameterized.parameters("SAME", "VALID")
  def test_average_pool_of_everything(self, padding):
    self.check(
        "AvgPool", lambda x: tf.nn.avg_pool2d(x, (5, 6), (5, 6), padding),
        picture())

  @parameterized.product(
      size=((2, 2), (5, 3)), stride=(1, 2, 3), padding=PADDINGS,
      multiplier=(2,))
  def test_depthwise(self, size, stride, padding, multiplier):
    self.check_depthwise(size, stride, padding, multiplier)

  @parameterized.product(
      size=((1, 1), (2, 2), (3, 3), (5, 3)), stride=(1, 2, 3),
      padding=PADDINGS, multiplier=(1, 2))
  @pytest.mark.slow("files")
  def test_every_depthwise(self, size, stride, padding, multiplier):
    self.check_depthwise(size, stride, padding, multiplier)

  def check_depthwise(self, size, stride, padding, multiplier):
    kernel = np.random.default_rng(4).normal(
        size=[*size, 3, multiplier]).astype(np.float32)
    self.check(
        "DepthwiseConv2dNative",
        lambda x: tf.nn.depthwise_conv2d(
            x, kernel, [1, stride, stride, 1], padding), picture())

  @parameterized.product(
      size=((1, 1), (3, 3), (5, 3)), stride=(1, 2, 3), padding=PADDINGS)
  def test_convolution(self, size, stride, padding):
    kernel = np.random.default_rng(5).normal(
        size=[*size, 3, 4]).astype(np.float32)
    self.check(
        "Conv2D", lambda x: tf.nn.conv2d(x, kernel, stride, padding),
        picture())

  @parameterized.product(groups=(2, 3), stride=(1, 2), padding=PADDINGS)
  def test_convolution_in_groups(self, groups, stride, padding):
    kernel = np.random.default_rng(5).normal(
        size=[3, 3, 6 // groups, 12]).astype(np.float32)

    def convolve(x):
      return tf.nn.conv2d(x, kernel, stride, padding)

    def one_by_one(x):
      """The same; TensorFlow differentiates groups on some processors only."""
      return tf.concat([
          tf.nn.conv2d(group, weights, stride, padding)
          for group, weights in zip(
              tf.split(x, groups, -1), tf.split(kernel, groups, -1))], -1)

    x = tf.constant(picture(channels=6))
    np.testing.assert_allclose(convolve(x), one_by_one(x), RTOL, ATOL)
    self.assertIn("Conv2D", operations(convolve, x.numpy()))
    incoming = tf.constant(np.random.default_rng(9).normal(
        size=convolve(x).shape).astype(np.float32))
    with tf.GradientTape() as tape:
      tape.watch(x)
      output = one_by_one(x)
    plain = tape.gradient(output, x, incoming)

    @tf.function
    def ours():
      with tf.GradientTape() as tape:
        tape.watch(x)
        output = convolve(x)
      with gradient_rules(BUILTIN_GRADIENTS):
        return tape.gradient(output, x, incoming)

    np.testing.assert_allclose(ours(), plain, RTOL, ATOL)
    self.assertGreater(np.abs(plain).max(), 0)

  @parameterized.product(
      operation=("ResizeBilinear", "ResizeNearestNeighbor"),
      size=((10, 12), (15, 6), (3, 4)),
      settings=({}, {"half_pixel_centers": True}, {"align_corners": True}))
  def test_resize(self, operation, size, settings):
    self.check(operation, lambda x: getattr(tf.raw_ops, operation)(
        images=x, size=size, **settings), picture())

  def test_dilated_depthwise_is_refused(self):
    def dilated(x):
      return tf.raw_ops.DepthwiseConv2dNative(
          input=x, filter=np.ones([3, 3, 3, 1], np.float32),
          strides=[1, 1, 1, 1], padding="SAME", dilations=[1, 2, 2, 1])
    with self.assertRaisesRegex(ValueError, "dilated depthwise convolution"):
      both_gradients(dilated, picture())

  def test_keras_layers_use_these_operations(self):
    layers = keras.layers
    x = picture(8, 8, 4)
    for operation, layer in (
        ("Relu", layers.ReLU()), ("Relu6", layers.ReLU(6.0)),
        ("LeakyRelu", layers.LeakyReLU()), ("Elu", layers.ELU()),
        ("Sigmoid", layers.Activation("sigmoid")),
        ("Tanh", layers.Activation("tanh")),
        ("FusedBatchNormV3", layers.BatchNormalization()),
        ("Mean", layers.GlobalAveragePooling2D()),
        ("MaxPool", layers.MaxPooling2D()),
        ("AvgPool", layers.AveragePooling2D()),
        ("DepthwiseConv2dNative", layers.DepthwiseConv2D(3))):
      layer(x)  # Builds the weights outside the traced function.
      self.assertIn(operation, operations(layer, x), layer.name)

  def test_every_rule_is_tested_here(self):
    self.assertEqual(
        set(BUILTIN_GRADIENTS),
        {"AvgPool", "Conv2D", "DepthwiseConv2dNative", "Elu",
         "FusedBatchNormV3", "LeakyRelu", "MaxPool", "Mean", "Relu", "Relu6",
         "ResizeBilinear", "ResizeNearestNeighbor", "Sigmoid", "Softsign",
         "Tanh"})


@functools.cache
def every_rule_net(elu: bool = True) -> keras.Model:
  """Builds a tail with every operation that has a rule, and a residual sum."""
  layers = keras.layers
  x = images = keras.Input((12, 12, 2))
  x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
  x = layers.ReLU(name=helpers.LAYER)(x)
  x = layers.UpSampling2D(interpolation="bilinear")(x)
  x = layers.AveragePooling2D(2)(x)
  x = layers.DepthwiseConv2D(
      3, padding="same", depth_multiplier=2, use_bias=False)(x)
  x = layers.BatchNormalization()(x)
  x = layers.ReLU(6.0)(x)
  x = layers.Conv2D(6, 1)(x)
  y = layers.Activation("tanh")(x)
  y = layers.DepthwiseConv2D(3, padding="same")(y)
  y = layers.Activation("sigmoid")(y)
  x = layers.Add()([x, y])
  x = layers.MaxPooling2D(3, 2, "same")(x)
  x = layers.LeakyReLU(0.2)(layers.Conv2D(6, 3, padding="same")(x))
  if elu:
    x = layers.ELU()(layers.Conv2D(6, 3, padding="same")(x))
  x = layers.Concatenate()([x, layers.Conv2D(2, 3, padding="same")(x)])
  x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
  x = layers.DepthwiseConv2D(3, 2)(x)
  x = layers.UpSampling2D()(x)
  x = layers.AveragePooling2D(2, 1, "same")(x)
  x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
  x = layers.GlobalAveragePooling2D()(x)
  x = layers.Dense(5, "relu")(x)
  return tiny.shake(keras.Model(images, layers.Dense(3)(x)), 4)


@shared
def every_rule_file() -> bytes:
  return kap.export.convert(
      every_rule_net(), helpers.wcam(), mode="float32",
      target="microcontroller", road="gradient")


class EveryRuleTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.images = tiny.images(4, seed=1, size=12)
    cls.net = every_rule_net()
    cls.file = every_rule_file()

  def check(self, net, content, runtime):
    interpreter = kap.export.Interpreter(content, runtime=runtime)
    maps, logits = interpreter.explain(self.images, [0, 1, 2, 0])
    want = kap.attribution.grad_cam(
        net, self.images, [0, 1, 2, 0], helpers.LAYER)
    alive = want.max((1, 2)) > 0
    self.assertGreaterEqual(alive.sum(), 3)
    # Demanded: a cosine of .999. Measured: 1 - 1e-12.
    self.assertGreater(helpers.cosines(maps[alive], want[alive]).min(), 0.999)
    np.testing.assert_allclose(maps, want, 1e-4, 1e-5 * want.max())
    np.testing.assert_allclose(
        logits, net.predict(self.images, verbose=0), 1e-4, 1e-5)

  def test_the_net_has_every_operation(self):
    self.assertContainsSubset(
        # A softsign divides, which integers do not.
        BUILTIN_GRADIENTS.keys() - {"Softsign"},
        operations(self.net, self.images[:1]))

  @parameterized.parameters("xnnpack", "builtin")
  def test_litert_gives_the_float_map(self, runtime):
    self.check(self.net, self.file, runtime)

  @pytest.mark.slow("files")
  def test_reference_kernels_give_the_float_map(self):
    model = every_rule_net(elu=False)  # LiteRT registers no reference ELU.
    content = kap.export.convert(model, helpers.wcam(), mode="float32")
    self.check(model, content, "reference")

  @helpers.needs_tflm
  def test_tflm_gives_the_float_map(self):
    self.check(self.net, self.file, "tflm")

  def test_builtin_operators_only(self):
    names = set(itertools.chain(*helpers.operators(self.file)))
    self.assertNoCommonElements(
        names, {"CUSTOM", "SUM", "TILE", "ONE_HOT", "EMBEDDING_LOOKUP", "DIV"})

  def test_selections_are_of_the_kind_that_tflm_has(self):
    # TFLite Micro has SELECT_V2 but no SELECT; the converter writes the latter
    # where all three inputs of a tf.where are computed and of one shape.
    self.assertNotIn("SELECT", itertools.chain(*helpers.operators(self.file)))


if __name__ == "__main__":
  absltest.main()
