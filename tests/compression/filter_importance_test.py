"""Tests of filter_importance.py: by NumPy and by finite differences."""

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution import grad_cam
from keras_attr_preserve.compression.channel_graph import ChannelGraph
from keras_attr_preserve.compression.filter_importance import (
  map_contributions,
  score_contributions,
)
from tests import channel_nets as nets
from tests import tiny


def of_layer(model, graph, contributions, name):
  return contributions[graph.uses[name].outputs]


class ScoreContributionsTest(parameterized.TestCase):

  @parameterized.parameters(
      "linear", "softmax", "softmax_layer", "activation_layer")
  @tiny.eager()
  def test_pooling_and_a_linear_head_by_numpy(self, head):
    model = nets.settle(tiny.conv_net(head=head, width=5))
    images = tiny.images(6)
    graph = ChannelGraph(model)
    features = keras.Model(
        model.inputs, model.get_layer("act").output)(images).numpy()
    kernel = model.get_layer("logits").kernel.numpy()
    for targets in (None, 2, [0, 1, 2, 2, 1, 0]):
      classes = (model(images).numpy().argmax(1) if targets is None
                 else np.broadcast_to(targets, 6))
      # A channel's share in the score, its mean times its weight.
      shares = features.mean((1, 2)) * kernel[:, classes].T
      got = score_contributions(model, graph, images, targets, batch_size=4)
      # Float32 means over 36 positions and six images.
      np.testing.assert_allclose(
          of_layer(model, graph, got, "act"), np.abs(shares).mean(0),
          rtol=1e-4, atol=1e-6)
      # And its share in the sum of the map before its rectifier, which weights
      # it by the sensitivity, a sum over positions.
      sensitivity = kernel[:, classes].T
      # The same in sums over positions, 36 times as large.
      np.testing.assert_allclose(
          np.abs(np.einsum("bhwc,bc->bc", features, sensitivity)).mean(0),
          of_layer(model, graph, got, "act") * tiny.SIZE ** 2, rtol=1e-4,
          atol=1e-5)

  @parameterized.named_parameters(
      ("resnet", nets.resnet_8, "s0_sum"), ("dense", nets.densenet, "join0"),
      ("smooth", nets.smooth, "a"), ("functions", nets.functions, "a_bn"),
      ("flatten", lambda: nets.vgg(False), "conv2_b"))
  @tiny.eager()
  def test_is_the_slope_of_closing_all_gates_of_a_channel(self, build, name):
    # A gate before a layer is a factor of the columns that read the channel.
    with tiny.float64():
      model = build()
    graph = ChannelGraph(model)
    images = nets.pictures(model, 1)
    got = score_contributions(model, graph, images, 1)
    with tiny.float64():
      model = tiny.copy_of(model)
    if model.layers[-1].activation is keras.activations.softmax:
      model.layers[-1].activation = keras.activations.linear
    readers = {layer: layer.get_weights() for layer in model.layers
               if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))}

    def score(channel, gate):
      for layer, (kernel, *bias) in readers.items():
        there = graph.uses[layer.name].inputs == channel
        layer.set_weights(
            [kernel * np.where(there, gate, 1.0)[:, None], *bias])
      return float(model(images)[0, 1])

    channels = np.unique(graph.uses[name].outputs)
    step = 1e-5
    slopes = [(score(channel, 1 + step) - score(channel, 1 - step)) / (2 * step)
              for channel in channels]
    # A thousand times the absolute tolerance: not all slopes are zero.
    self.assertGreater(np.abs(slopes).max(), 0.01)
    # Gates are float32, and so are their gradients; a ReLU's kink may lie
    # inside a step.
    np.testing.assert_allclose(
        got[channels], np.abs(slopes), rtol=1e-3, atol=1e-5)

  def test_does_not_depend_on_the_batch(self):
    model = nets.settle(tiny.conv_net(tail="depthwise"))
    graph = ChannelGraph(model)
    images = tiny.images(7)
    first, second = (score_contributions(model, graph, images, batch_size=size)
                     for size in (7, 2))
    # Float32 convolutions of batches of another size.
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-7)

  @tiny.eager()
  def test_leaves_the_model(self):
    model = nets.resnet_8()
    before = model.get_weights()
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    score_contributions(model, ChannelGraph(model), nets.pictures(model))
    self.assertTrue(tiny.weights_equal(model.get_weights(), before))
    self.assertEqual(
        [len(layer.inbound_nodes) for layer in model.layers], nodes)

  def test_one_logit(self):
    model = nets.settle(tiny.conv_net(head="sigmoid", classes=1))
    graph = ChannelGraph(model)
    got = score_contributions(model, graph, tiny.images(), 1)
    self.assertGreater(of_layer(model, graph, got, "act").max(), 0)
    np.testing.assert_allclose(
        score_contributions(model, graph, tiny.images(), 0), got)

  def test_refuses(self):
    model = tiny.conv_net()
    graph = ChannelGraph(model)
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      score_contributions(model, graph, tiny.images()[..., :1])
    with self.assertRaisesRegex(ValueError, "images must be finite"):
      score_contributions(model, graph, tiny.images() * np.nan)
    with self.assertRaisesRegex(ValueError, "targets must be"):
      score_contributions(model, graph, tiny.images(), 3)
    with self.assertRaisesRegex(ValueError, "batch_size must be"):
      score_contributions(model, graph, tiny.images(), batch_size=0)


class MapContributionsTest(parameterized.TestCase):

  def turns(self, model, graph, images, layer, channels):
    """Half the squared slopes of the unit maps, by finite differences."""
    readers = {reader: reader.get_weights() for reader in model.layers
               if isinstance(reader, (keras.layers.Conv2D, keras.layers.Dense))}
    classes = model(images).numpy().argmax(1)

    def unit_maps(channel, gate):
      for reader, (kernel, *bias) in readers.items():
        there = graph.uses[reader.name].inputs == channel
        reader.set_weights(
            [kernel * np.where(there, gate, 1.0)[:, None], *bias])
      return tiny.unit(grad_cam(model, images, classes, layer))

    step = 1e-3
    return np.array([
        np.square((unit_maps(channel, 1 + step) - unit_maps(channel, 1 - step))
                  / (2 * step)).sum(1).mean() / 2 for channel in channels])

  @parameterized.parameters(
      ("block", "act2"), ("block", "act"), ("depthwise", "act2"))
  @tiny.eager()
  def test_is_the_square_of_the_unit_maps_slope(self, tail, layer):
    model = tiny.smooth_net(3, tail=tail, width=6, size=6)
    graph = ChannelGraph(model)
    images = tiny.images(4)
    got = map_contributions(
        model, graph, np.repeat(images, 100, 0), None, layer, batch_size=400)
    channels = graph.uses["act"].outputs
    want = self.turns(model, graph, images, layer, channels)
    # 1600 directions give a standard error of 3.5 %.
    np.testing.assert_allclose(got[channels], want, rtol=0.15)

  def test_what_the_map_does_not_rest_on_is_worth_nothing(self):
    model = nets.settle(tiny.conv_net(width=4))
    kernel = np.zeros((4, 3), np.float32)
    kernel[[1, 3]] = 1
    model.get_layer("logits").kernel.assign(kernel)
    graph = ChannelGraph(model)
    got = map_contributions(model, graph, tiny.images(8))[
        graph.uses["act"].outputs]
    np.testing.assert_array_equal(got > 0, [False, True, False, True])

  @tiny.eager()
  def test_dead_maps_give_no_nan(self):
    model = tiny.conv_net(width=4)
    model.get_layer("logits").kernel.assign(-np.ones((4, 3)))
    graph = ChannelGraph(model)
    np.testing.assert_array_equal(
        map_contributions(model, graph, tiny.images(4)), 0)

  @tiny.eager()
  def test_the_class_explained_matters(self):
    model = nets.settle(tiny.conv_net(width=4))
    graph = ChannelGraph(model)
    first, other, again = (
        map_contributions(model, graph, tiny.images(4), target)
        for target in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    # The same class gives 0, as asked just now.
    self.assertGreater(np.abs(first - other).max(), 1e-3)

  def test_refuses_a_layer(self):
    model = tiny.conv_net()
    with self.assertRaisesRegex(ValueError, "layer 'no': .*no layer of that"):
      map_contributions(
          model, ChannelGraph(model), tiny.images(), layer="no")


if __name__ == "__main__":
  absltest.main()
