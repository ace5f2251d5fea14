"""Tests of compat.py: which models are taken, and copies."""

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import compat
from tests import tiny


class CheckModelTest(absltest.TestCase):

  def test_keras_is_the_one_that_tfmot_takes(self):
    self.assertIs(compat.keras, tf_keras)
    model = compat.check_model(tiny.conv_net())
    tfmot.quantization.keras.quantize_model(tiny.copy_of(model))

  def test_gives_the_model_back(self):
    for wrap in (tiny.copy_of, tiny.prune, tiny.quantize):
      model = wrap(tiny.conv_net())
      self.assertIs(compat.check_model(model), model)
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    self.assertIs(compat.check_model(model), model)

  def test_a_keras_3_model_is_told_the_way_out(self):
    import keras as keras_3
    model = keras_3.Sequential(
        [keras_3.Input((3,)), keras_3.layers.Dense(2)])
    with self.assertRaisesRegex(
        TypeError, "teacher must be a tf_keras model.*got the Keras 3 model "
        r"keras.*kap.from_keras3\(teacher\).*import tf_keras as keras.*"
        "TF_USE_LEGACY_KERAS=1"):
      compat.check_model(model, "teacher")

  def test_something_else_is_named(self):
    with self.assertRaisesRegex(
        TypeError, "model must be a tf_keras.Model; got builtins.str"):
      compat.check_model("model.h5")

  def test_a_model_without_a_graph(self):
    class Subclassed(tf_keras.Model):
      def call(self, inputs):
        return inputs
    for model in (Subclassed(name="mine"),
                  tf_keras.Sequential([tf_keras.layers.Dense(2)], name="mine")):
      with self.assertRaisesRegex(
          ValueError, "model must be a Functional.*'mine'.*input_shape"):
        compat.check_model(model)

  def test_two_outputs(self):
    inputs = tf_keras.Input((3,))
    model = tf_keras.Model(inputs, [inputs, inputs], name="mine")
    with self.assertRaisesRegex(
        ValueError, "model must have one output.*'mine' has 2"):
      compat.check_model(model)


class AtLeastFloat32Test(parameterized.TestCase):

  @parameterized.parameters(
      (tf.float16, tf.float32), (tf.bfloat16, tf.float32),
      (tf.float32, tf.float32), (tf.float64, tf.float64))
  def test_half_precision_alone_is_cast(self, dtype, want):
    got = compat.at_least_float32(tf.constant([1.5], dtype))
    self.assertEqual(got.dtype, want)
    np.testing.assert_array_equal(got, [1.5])


class CloneModelTest(absltest.TestCase):

  def test_equal_and_apart(self):
    model = tiny.conv_net(head="softmax", tail="depthwise")
    copy = compat.clone_model(model)
    self.assertTrue(tiny.weights_equal(
        copy.get_weights(), model.get_weights()))
    self.assertEmpty({variable.ref() for variable in copy.variables}
                     & {variable.ref() for variable in model.variables})
    self.assertEmpty(set(copy.layers) & set(model.layers))
    pictures = tiny.images(2)
    self.assertTrue(tiny.weights_equal(
        [copy(pictures)], [model(pictures)]))

  def test_pruning_the_copy_leaves_the_model(self):
    model = tiny.conv_net()
    weights, names = model.get_weights(), [
        variable.name for variable in model.variables]
    tfmot.sparsity.keras.prune_low_magnitude(compat.clone_model(model))
    self.assertTrue(tiny.weights_equal(model.get_weights(), weights))
    self.assertEqual([variable.name for variable in model.variables], names)

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      compat.clone_model(None)


class WrappedCloneTest(parameterized.TestCase):

  @parameterized.parameters("quantize", "quantize_sparse", "sparse_clusters")
  def test_what_a_config_does_not_tell_is_refused(self, wrap):
    plain = tiny.conv_net()
    if wrap == "sparse_clusters":
      clustering = tfmot.clustering.keras
      model = clustering.cluster_weights(
          plain, 3, clustering.CentroidInitialization.LINEAR,
          preserve_sparsity=True)
    else:
      model = getattr(tiny, wrap)(plain)
    with self.assertRaisesRegex(ValueError, "in ways that a copy would lose"):
      compat.clone_model(model)

  def test_a_pruned_model(self):
    model = tiny.prune(tiny.conv_net())
    copy = compat.clone_model(model)
    pictures = tiny.images(2)
    np.testing.assert_array_equal(copy(pictures), model(pictures))


if __name__ == "__main__":
  absltest.main()
