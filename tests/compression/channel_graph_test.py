"""Tests of channel_graph.py: numbers followed by hand."""

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.compression.channel_graph import BORDER, ChannelGraph
from tests import channel_nets as nets
from tests import tiny

_layers = keras.layers


def groups(model):
  return {group.layers: len(group.channels)
          for group in ChannelGraph(model).groups}


class FollowTest(parameterized.TestCase):

  def test_a_chain(self):
    model = tiny.conv_net(tail="block", width=4)
    graph = ChannelGraph(model)
    self.assertEqual(groups(model), {("conv",): 4, ("conv2",): 4})
    first, second = (group.channels for group in graph.groups)
    for name in ("bn", "act"):
      np.testing.assert_array_equal(graph.uses[name].inputs, first)
      np.testing.assert_array_equal(graph.uses[name].outputs, first)
    np.testing.assert_array_equal(graph.uses["conv2"].inputs, first)
    np.testing.assert_array_equal(graph.uses["conv2"].outputs, second)
    np.testing.assert_array_equal(graph.uses["logits"].inputs, second)
    self.assertEqual(graph.held, {"logits": BORDER[1]})

  def test_residual_sums(self):
    self.assertEqual(groups(nets.resnet_8()), {
        ("stem", "s0_b"): 8, ("s0_a",): 8, ("s1_a",): 12,
        ("s1_short", "s1_b"): 12, ("s2_a",): 16, ("s2_short", "s2_b"): 16})

  def test_concatenation(self):
    graph = ChannelGraph(nets.densenet())
    stem, *grown = (group.channels for group in graph.groups)
    np.testing.assert_array_equal(
        graph.uses["last"].outputs, np.concatenate([stem, *grown]))

  def test_flatten_counts_a_channel_once_a_place(self):
    graph = ChannelGraph(nets.vgg(False))
    last = next(group.channels for group in graph.groups
                if group.layers == ("conv2_b",))
    np.testing.assert_array_equal(
        graph.uses["fc1"].inputs, np.tile(last, 2 * 2))

  def test_a_depth_multiplier_gives_neighbours(self):
    graph = ChannelGraph(nets.separable(2))
    channels = next(group.channels for group in graph.groups
                    if group.layers == ("separable",))
    np.testing.assert_array_equal(
        graph.uses["depthwise"].outputs, np.repeat(channels, 2))

  def test_a_part_of_a_sum_is_a_group_of_its_own(self):
    self.assertEqual(groups(nets.merges()), {
        ("a", "c", "d"): 4, ("b", "c", "d"): 6, ("spot",): 1,
        ("e", "f", "g", "h"): 5})

  @parameterized.parameters(True, False)
  def test_squeeze_and_excitation(self, reshape):
    self.assertEqual(groups(nets.squeeze_excite(reshape)), {
        ("stem", "expand"): 8, ("reduce",): 4, ("conv",): 6})

  def test_products_of_a_flat_and_a_spatial_tensor(self):
    def build(x):
      x = nets.conv(x, 6, "conv")
      gate = _layers.GlobalAveragePooling2D(name="squeeze")(x)
      return _layers.Multiply(name="excite")(
          [x, _layers.Dense(6, "sigmoid", name="expand")(gate)])
    self.assertEqual(groups(nets.net(build)), {("conv", "expand"): 6})

  def test_a_reshape_that_splits_channels_holds_them(self):
    def build(x):
      x = nets.conv(x, 6, "conv")
      x = _layers.Reshape((8, 16, 3), name="split")(x)
      return nets.conv(x, 4, "conv2")
    graph = ChannelGraph(nets.net(build))
    self.assertEqual([group.layers for group in graph.groups], [("conv2",)])
    self.assertIn("layer 'split' (Reshape)", graph.held["conv"])

  def test_flatten_and_back(self):
    def build(x):
      x = nets.conv(x, 6, "conv")
      x = _layers.Flatten(name="flatten")(x)
      return _layers.Reshape((4, 16, 6), name="back")(x)
    self.assertEqual(groups(nets.net(build)), {("conv",): 6})

  def test_an_unknown_size_is_held_where_it_is_flattened(self):
    inputs = keras.Input((None, None, 2))
    x = _layers.Conv2D(4, 3, name="conv")(inputs)
    x = _layers.Conv2D(4, 3, name="conv2")(x)
    x = _layers.Reshape((-1, 4), name="rows")(x)
    x = _layers.Dense(3)(_layers.GlobalAveragePooling1D()(x))
    self.assertEqual(groups(keras.Model(inputs, x)), {("conv",): 4})


class HoldTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("lambda", lambda x: _layers.Lambda(lambda maps: maps[..., ::-1])(x)),
      ("layer_norm", lambda x: _layers.LayerNormalization()(x)),
      ("softmax", lambda x: _layers.Softmax()(x)),
      ("softmax_activation", lambda x: _layers.Activation("softmax")(x)),
      ("own_activation", lambda x: _layers.Activation(
          lambda features: features[..., ::-1])(x)),
      ("slice", lambda x: x[..., ::-1]),
      ("constant", lambda x: x * np.arange(4, dtype=np.float32)),
      ("scales", lambda x: _layers.Rescaling([1., 2., 3., 4.])(x)),
      ("permute", lambda x: _layers.Permute((3, 1, 2))(x)),
      ("norm_of_rows", lambda x: _layers.BatchNormalization(axis=1)(x)),
      ("noise_shape", lambda x: _layers.Dropout(
          0.5, noise_shape=(None, 1, 1, 4))(x)),
      ("grouped", lambda x: _layers.Conv2D(4, 3, groups=2)(x)),
      ("conv_softmax", lambda x: _layers.Add()(
          [x, _layers.Conv2D(4, 1, activation="softmax")(x)])),
      ("nested", lambda x: keras.Sequential(
          [_layers.ReLU(input_shape=(8, 8, 4))])(x)),
      ("subclass", lambda x: type("Own", (_layers.ReLU,), {})()(x)),
      ("to_the_input", lambda x: _layers.Add()([x, _layers.Concatenate()(
          [keras.Input((8, 8, 2))] * 2)])),
  )
  def test_channels_that_reach_it_stay(self, act):
    inputs = keras.Input((8, 8, 2))
    x = nets.conv(inputs, 5, "before")
    x = act(nets.conv(x, 4, "conv"))
    x = _layers.Dense(3, name="logits")(_layers.Flatten()(x))
    ends = keras.utils.get_source_inputs(x)
    graph = ChannelGraph(keras.Model(ends, x))
    self.assertEqual([group.layers for group in graph.groups], [("before",)])
    self.assertIn("conv", graph.held)

  def test_the_input_itself(self):
    def build(x):
      y = nets.conv(x, 2, "tied")
      return nets.conv(_layers.Add()([x, y]), 4, "free")
    graph = ChannelGraph(nets.net(build))
    self.assertEqual([group.layers for group in graph.groups], [("free",)])
    self.assertEqual(graph.held["tied"], BORDER[0])

  def test_channels_first(self):
    inputs = keras.Input((2, 8, 8))
    x = _layers.Conv2D(4, 3, data_format="channels_first")(inputs)
    x = _layers.GlobalAveragePooling2D("channels_first")(x)
    self.assertEmpty(
        groups(keras.Model(inputs, _layers.Dense(3)(x))))

  def test_a_loss_of_its_own_holds_nothing_else(self):
    model = tiny.conv_net(width=4)
    model.add_loss(keras.backend.mean(model.get_layer("act").output))
    graph = ChannelGraph(model)
    self.assertEmpty(graph.groups)  # The mean over all of them is not known.
    self.assertIn("conv", graph.held)


class SharedTest(absltest.TestCase):

  def test_a_layer_called_twice(self):
    def build(x):
      twice = _layers.Conv2D(6, 3, padding="same", name="twice")
      first, second = nets.conv(x, 4, "a"), nets.conv(x, 4, "b")
      return _layers.Concatenate()([twice(first), twice(second)])
    self.assertEqual(groups(nets.net(build)), {("a", "b"): 4, ("twice",): 6})

  def test_an_activation_called_twice_ties_nothing(self):
    def build(x):
      relu = _layers.ReLU()
      x = relu(nets.conv(x, 4, "a", activation=None))
      return relu(nets.conv(x, 6, "b", activation=None))
    self.assertEqual(groups(nets.net(build)), {("a",): 4, ("b",): 6})

  def test_a_reshape_called_on_two_widths(self):
    def build(x):
      flat = _layers.Reshape((-1,), name="flat")
      first = _layers.GlobalAveragePooling2D(keepdims=True)(
          nets.conv(x, 4, "a"))
      second = _layers.GlobalAveragePooling2D(keepdims=True)(
          nets.conv(x, 6, "b"))
      x = _layers.Concatenate()([flat(first), flat(second)])
      return _layers.Dense(3, name="logits")(x)
    graph = ChannelGraph(nets.net(build, head=False))
    self.assertEmpty(graph.groups)
    self.assertContainsSubset(["a", "b"], graph.held)

  def test_calls_in_other_models_do_not_count(self):
    model = tiny.conv_net(width=4)
    inputs = keras.Input((tiny.SIZE, tiny.SIZE, 2))
    keras.Model(inputs, _layers.Softmax()(model.get_layer("conv")(inputs)))
    self.assertEqual(groups(model), {("conv",): 4})

  def test_a_stripped_model(self):
    model = tfmot.sparsity.keras.strip_pruning(tiny.prune(tiny.conv_net()))
    self.assertEqual(groups(model), {("conv",): 4})


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(tiny.prune, tiny.quantize, tiny.quantize_sparse)
  def test_wrapped(self, wrap):
    with self.assertRaisesRegex(
        ValueError, "is wrapped by tfmot, at '.*strip_pruning.*prune filters "
        "before quantizing"):
      ChannelGraph(wrap(tiny.conv_net()))

  def test_wrapped_inside(self):
    inside = tiny.prune(tiny.conv_net())
    inputs = keras.Input((tiny.SIZE, tiny.SIZE, 2))
    with self.assertRaisesRegex(ValueError, "is wrapped by tfmot"):
      ChannelGraph(keras.Model(inputs, inside(inputs)))

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      ChannelGraph("model.h5")


if __name__ == "__main__":
  absltest.main()
