"""Tests of layers.py: finding layers in any model."""

import functools
import re

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.models import layers
from tests import tiny


def _cluster(model):
  return tfmot.clustering.keras.cluster_weights(
      tiny.copy_of(model), number_of_clusters=2,
      cluster_centroids_init=(
          tfmot.clustering.keras.CentroidInitialization.LINEAR))


WRAPS = {
    "plain": lambda model: model,
    "prune": tiny.prune,
    "quantize": tiny.quantize,
    "quantize_sparse": tiny.quantize_sparse,
    "cluster": _cluster,
}
WRAPPED_NAMES = {
    "plain": "act", "prune": "prune_low_magnitude_act", "quantize": "quant_act",
    "quantize_sparse": "quant_act", "cluster": "cluster_act"}


@functools.cache
def wrapped(wrap, tail="gap"):
  """One model for all tests: they only look."""
  return WRAPS[wrap](tiny.conv_net(tail=tail))


class FindLayerTest(parameterized.TestCase):

  @parameterized.parameters(
      ("act", "act"), ("quant_act", "act"), ("prune_low_magnitude_act", "act"),
      ("cluster_act", "act"), ("quant_prune_low_magnitude_act", "act"),
      ("quantize_layer", "quantize_layer"), ("my_quant_act", "my_quant_act"))
  def test_unwrapped_name(self, name, want):
    self.assertEqual(layers.unwrapped_name(name), want)

  @parameterized.parameters(*WRAPPED_NAMES)
  def test_finds_it_behind(self, wrap):
    model = wrapped(wrap)
    self.assertEqual(
        layers.find_layer(model, "act").name, WRAPPED_NAMES[wrap])
    # A name read off the wrapped model works on every other.
    for name in WRAPPED_NAMES.values():
      self.assertIs(layers.find_layer(model, name),
                    layers.find_layer(model, "act"))

  def test_an_exact_name_goes_first(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="act")(inputs)
    x = keras.layers.Conv2D(2, 1, name="quant_act")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.find_layer(model, "act").name, "act")
    self.assertEqual(layers.find_layer(model, "quant_act").name, "quant_act")
    with self.assertRaisesRegex(ValueError, "'cluster_act'.* 2 layers"):
      layers.find_layer(model, "cluster_act")

  def test_a_layer_called_twice_is_refused(self):
    """Which of its two outputs would be meant?"""
    inputs = keras.Input((4, 4, 2))
    relu = keras.layers.ReLU(name="relu")
    x = relu(keras.layers.Conv2D(2, 1, name="conv")(inputs))
    x = relu(keras.layers.Conv2D(2, 1, name="conv2")(x))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.find_layer(model, "conv2").name, "conv2")
    with self.assertRaisesRegex(ValueError, "layer 'relu'"):
      layers.find_layer(model, "relu")

  def test_no_such_layer_lists_those_with_a_map(self):
    for wrap in WRAPS:
      with self.assertRaisesRegex(
          ValueError, "'relu9'.*'net.*no layer of that name.* conv, bn, act"):
        layers.find_layer(wrapped(wrap), "relu9")

  def test_a_separable_convolution_that_was_split(self):
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.SeparableConv2D(3, 3, name="separable")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    plain = tiny.shake(keras.Model(inputs, keras.layers.Dense(3)(x)))
    model = tiny.quantize(plain)
    with self.assertRaisesRegex(
        ValueError, "splits a SeparableConv2D .* give its second part, "
        "conv2d[_0-9]*, as layer, or as the student's") as caught:
      layers.find_layer(model, "separable")
    second = re.search("part, (.*), as layer", str(caught.exception))[1]
    # This layer ends in the same 1x1 kernel.
    self.assertTrue(any(
        np.array_equal(weight, plain.get_layer("separable").pointwise_kernel)
        for weight in layers.find_layer(model, second).get_weights()))

  def test_a_layer_without_positions_lists_those_that_have_some(self):
    for name in ("pool", "logits"):
      with self.assertRaisesRegex(
          ValueError, f"'{name}'.*no spatial map.*None.* conv, bn, act"):
        layers.find_layer(tiny.conv_net(), name)

  def test_a_long_list_is_cut_to_the_last(self):
    model = keras.Sequential([keras.Input((4, 4, 1))] + [
        keras.layers.ReLU(name=f"layer{i}") for i in range(20)])
    with self.assertRaisesRegex(
        ValueError, r"are \.\.\., layer8, .*layer19\."):
      layers.find_layer(model, "other")

  def test_one_position_is_no_map(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="wide")(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="point")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    self.assertEqual(layers.spatial_layers(model), ["wide"])
    with self.assertRaisesRegex(ValueError, "more than one position"):
      layers.find_layer(model, "point")

  def test_sizes_that_are_not_known_are_maps(self):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 1, name="any")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.last_spatial_layer(model), "any")

  @parameterized.parameters(*WRAPS)
  def test_last_spatial_layer(self, wrap):
    model = wrapped(wrap, "depthwise")
    self.assertEqual(layers.last_spatial_layer(model), "act2")
    self.assertEqual(
        [name for name in layers.spatial_layers(model)
         if not name.startswith("quantize_layer")],
        ["conv", "bn", "act", "depthwise", "conv2", "bn2", "sum", "act2"])

  def test_no_spatial_layer(self):
    model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    with self.assertRaisesRegex(ValueError, "sequential.* no layer with a sp"):
      layers.last_spatial_layer(model)


class StageEndsTest(parameterized.TestCase):

  def _net(self):
    """Maps of 16, 16, 9 (padded), 8, 4, 4, 2 and 1."""
    inputs = keras.Input((16, 16, 2))
    x = keras.layers.Conv2D(2, 3, padding="same", name="conv1")(inputs)
    x = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.MaxPool2D(2, name="pool1")(x)
    x = keras.layers.ZeroPadding2D(1, name="pad")(x)
    x = keras.layers.Conv2D(2, 3, 2, "same", name="conv2")(x)
    x = keras.layers.MaxPool2D(2, 1, name="pool2")(x)
    x = keras.layers.Conv2D(2, 3, 2, "same", name="conv3")(x)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    return keras.Model(inputs, keras.layers.Flatten()(x))

  def test_the_last_layer_of_each_size(self):
    model = self._net()
    self.assertEqual(
        layers.stage_ends(model, 9),
        ("relu1", "pool1", "conv2", "pool2", "conv3"))
    self.assertEqual(layers.stage_ends(model, 2), ("pool2", "conv3"))
    self.assertEqual(
        layers.stage_ends(model), ("pool1", "conv2", "pool2", "conv3"))

  @parameterized.parameters(*WRAPS)
  def test_without_the_names_of_wrappers(self, wrap):
    model = wrapped(wrap, "depthwise")
    self.assertEqual(layers.stage_ends(model), ("act", "act2"))

  def test_in_nested_models_of_any_size(self):
    inputs = keras.Input((None, None, 2))
    inner = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="conv")(inputs))
    model = keras.Sequential([inner, keras.layers.GlobalMaxPool2D()])
    self.assertEqual(layers.stage_ends(model), ("conv",))

  def test_no_map(self):
    model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,))])
    with self.assertRaisesRegex(ValueError, "no layer with a spatial map"):
      layers.stage_ends(model)


if __name__ == "__main__":
  absltest.main()
