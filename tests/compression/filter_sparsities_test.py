"""Costs of channels, held against models without them."""

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

from examples.experiment.runs import costs
from keras_attr_preserve import filter_sparsities, prune_filters
from keras_attr_preserve.compression.channel_graph import ChannelGraph
from keras_attr_preserve.compression.channel_slicing import slice_model
from keras_attr_preserve.compression.filter_sparsities import (
  COSTS,
  ChannelCosts,
)
from tests import channel_nets as nets
from tests import tiny

_layers = keras.layers


def _odd(x):
  """A transposed, a separable, a widening depthwise and a grouped one."""
  x = nets.conv(x, 6, "first")
  x = _layers.Conv2DTranspose(8, 3, 2, "same", name="up")(x)
  x = _layers.SeparableConv2D(
      6, 3, 2, "same", depth_multiplier=2, name="separable")(x)
  x = _layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
  x = nets.conv(x, 4, "second")
  return _layers.Conv2D(4, 3, groups=2, name="grouped")(x)


def _twice(x):
  x = nets.conv(x, 4, "first")
  shared = _layers.Conv2D(4, 3, padding="same", name="shared")
  return shared(_layers.MaxPooling2D(name="pool2")(shared(x)))


_NETS = {**nets.NETS, "odd": lambda: nets.net(_odd)}


def _two_spare(early=6, late=6):
  """Two layers, half of each twins of the other half, the first on 8x8."""
  def build(x):
    x = nets.conv(x, early, "early")
    x = _layers.MaxPooling2D(4, name="shrink")(x)
    x = nets.conv(x, late, "late")
    return nets.conv(x, 4, "last")
  model = nets.net(build)
  for name in ("early", "early_bn", "late", "late_bn"):
    weights = model.get_layer(name).get_weights()
    for weight in weights:
      half = weight.shape[-1] // 2
      weight[..., -half:] = weight[..., :half]
    model.get_layer(name).set_weights(weights)
  return model


class CostsTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_that_of_a_model_without_the_channels(self, name):
    model = _NETS[name]()
    graph = ChannelGraph(model)
    groups = [group.channels for group in graph.groups]
    counted = {of: ChannelCosts(model, graph, groups, of) for of in COSTS}
    generator = np.random.default_rng(0)
    gone = np.zeros(len(groups), int)
    for _ in range(3):
      removed = np.zeros(graph.count, bool)
      for channels, count in zip(groups, gone, strict=True):
        removed[generator.permutation(channels)[:count]] = True
      small = slice_model(model, graph, removed)
      left = {"filters": sum(map(len, groups)) - gone.sum(),
              "weights": costs.count_zeros(small)[1],
              "macs": costs.count_macs(small)}
      for of, channel_costs in counted.items():
        # Whole numbers of float64 shares; a wrong count is off by 1 or more.
        self.assertAlmostEqual(
            channel_costs.left(gone), left[of], places=6, msg=of)
        np.testing.assert_allclose(channel_costs.savings(gone), [
            channel_costs.left(gone) - channel_costs.left(gone + more)
            for more in np.eye(len(groups), dtype=int)], err_msg=of)
      gone = np.array([generator.integers(len(channels))
                       for channels in groups])

  def test_a_layer_called_twice(self):
    model = nets.net(_twice)
    graph = ChannelGraph(model)
    groups = [group.channels for group in graph.groups]
    none = np.zeros(len(groups), int)
    # Two channels come in, kernels are 3x3, four channels go to three classes.
    self.assertEqual(
        ChannelCosts(model, graph, groups, "weights").left(none),
        9 * (2 * 4 + 4 * 4) + 12)
    self.assertEqual(
        ChannelCosts(model, graph, groups, "macs").left(none),
        9 * (64 * 2 * 4 + (64 + 16) * 4 * 4) + 12)


class SharesTest(parameterized.TestCase):

  @parameterized.parameters(
      ("weights", 0.3, "vgg"), ("macs", 0.3, "resnet_8"),
      ("macs", 0.8, "merges"))
  def test_as_much_as_asked_goes(self, of, sparsity, name):
    self.check_share(of, sparsity, name)

  @parameterized.parameters(
      ("weights", 0.8, "vgg"), ("macs", 0.3, "vgg"), ("macs", 0.8, "vgg"),
      ("weights", 0.3, "resnet_8"), ("weights", 0.8, "resnet_8"),
      ("macs", 0.8, "resnet_8"), ("weights", 0.3, "merges"),
      ("weights", 0.8, "merges"), ("macs", 0.3, "merges"))
  @pytest.mark.slow("pruning")
  def test_as_much_as_asked_goes_of_others(self, of, sparsity, name):
    self.check_share(of, sparsity, name)

  def check_share(self, of, sparsity, name):
    model = _NETS[name]()
    before = model.get_weights()
    images = nets.pictures(model, 8)
    shares = filter_sparsities(model, sparsity, images, of=of)
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))
    student = prune_filters(model, shares)
    whole, left = ((costs.count_macs(version) if of == "macs"
                    else costs.count_zeros(version)[1])
                   for version in (model, student))
    # One filter more or less, and in "merges" shares rounded apart.
    largest = whole * (0.2 if name == "merges" else 0.1)
    self.assertAlmostEqual(left, (1 - sparsity) * whole, delta=largest)

  def test_what_costs_nothing_goes_where_most_is_saved(self):
    model, images = _two_spare(), tiny.images(60, size=nets.SIZE)
    # On 8x8 the first makes 64 x 9 x 2 products a filter and has the next do
    # 4 x 9 x 6, together 1,368 of some 8,700; a filter of the second 4 x 9 x
    # (6 + 4). Of weights these are 9 x (2 + 6) and 9 x (6 + 4).
    for of, first in (("macs", "early"), ("weights", "late")):
      shares = filter_sparsities(model, 0.1, images, of=of)
      (other,) = {"early", "late"} - {first}
      self.assertGreater(shares[first], 0, of)
      self.assertEqual(shares[other], 0, of)

  def test_no_more_than_there_is(self):
    model = nets.vgg(True)
    images = nets.pictures(model, 8)
    shares = filter_sparsities(
        model, 0.99, images, of="weights", min_filters=2)
    student = prune_filters(model, shares, min_filters=2)
    self.assertEqual({
        student.get_layer(name).filters for name in shares}, {2})

  def test_pictures_of_any_size_have_no_count(self):
    inputs = keras.Input((None, None, 2))
    x = nets.conv(nets.conv(inputs, 4, "first"), 4, "second")
    model = keras.Model(inputs, _layers.GlobalAveragePooling2D()(x))
    images = tiny.images(4, size=nets.SIZE)[..., :2]
    with self.assertRaisesRegex(ValueError, "must have a fixed input size"):
      filter_sparsities(model, 0.5, images, of="macs")
    self.assertEqual(
        filter_sparsities(model, 0.4, images, of="weights"), {"first": 0.5})

  def test_a_cost_that_there_is_not(self):
    with self.assertRaisesRegex(
        ValueError, r"of must be one of \('filters', 'weights', 'macs'\); got "
                    "'bytes'"):
      filter_sparsities(tiny.conv_net(), 0.5, tiny.images(2), of="bytes")


if __name__ == "__main__":
  absltest.main()
