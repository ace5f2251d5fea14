"""Costs of models: by hand, and as published."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from examples.experiment.runs import costs, nets
from tests import tiny

layers = keras.layers


def net(*stack, shape=(8, 6, 3)):
  return keras.Sequential([keras.Input(shape), *stack])


def zeroed(model):
  """Puts three zeros into the first kernel, one into the first bias."""
  model = tiny.shake(model)
  kernel = next(w for w in model.weights if "kernel" in w.name)
  values = kernel.numpy()
  values.reshape(-1)[:3] = 0
  kernel.assign(values)
  return model


def clustered(model):
  clustering = tfmot.clustering.keras
  return clustering.cluster_weights(
      tiny.copy_of(model), number_of_clusters=4,
      cluster_centroids_init=clustering.CentroidInitialization.LINEAR)


class MacsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # Positions x kernel x channels in x channels out.
      ("conv", layers.Conv2D(5, 3, padding="same"), 48 * 9 * 3 * 5),
      ("valid", layers.Conv2D(5, (3, 2)), 6 * 5 * 6 * 3 * 5),
      ("strided", layers.Conv2D(5, 3, 2, "same"), 4 * 3 * 9 * 3 * 5),
      ("groups", layers.Conv2D(6, 3, padding="same", groups=3), 48 * 9 * 1 * 6),
      ("dilated", layers.Conv2D(5, 3, dilation_rate=2), 4 * 2 * 9 * 3 * 5),
      ("depthwise", layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2),
       4 * 3 * 9 * 3 * 2),
      ("separable", layers.SeparableConv2D(5, 3, 2, "same"),
       4 * 3 * (9 * 3 + 3 * 5)),
      ("transposed", layers.Conv2DTranspose(5, 3, 2, "same"), 48 * 9 * 3 * 5),
      ("dense", layers.Dense(4), 48 * 3 * 4),
      ("others", layers.MaxPooling2D(), 0))
  def test_a_layer(self, layer, want):
    self.assertEqual(costs.count_macs(net(layer)), want)
    norm = net(layer, layers.BatchNormalization(), layers.ReLU())
    self.assertEqual(costs.count_macs(norm), want)

  def test_a_nested_net_and_a_dense_head(self):
    inner = net(layers.Conv2D(4, 1))
    model = net(inner, layers.Flatten(), layers.Dense(7))
    self.assertEqual(costs.count_macs(model), 48 * 12 + 48 * 4 * 7)

  @pytest.mark.slow("experiments")
  def test_published_counts_of_a_large_net(self):
    # VGG16's convolutions: 15,346,630,656; its head is ours.
    self.assertEqual(
        costs.count_macs(nets.build("vgg16", size=224, classes=10)),
        15_346_630_656 + 5120)

  def test_published_counts(self):
    # 41 million, Howard et al. 2017, table 6.
    mobilenet = nets.build("mobilenet", size=224, classes=1000)
    self.assertEqual(costs.count_macs(mobilenet), 41_030_272)
    self.assertEqual(costs.count_parameters(mobilenet), 475_544)
    # 12.5 million and 78,666, Banbury et al. 2021.
    resnet = nets.build("resnet8", size=32, classes=10)
    self.assertEqual(costs.count_macs(resnet), 12_501_632)
    self.assertEqual(costs.count_parameters(resnet), 78_666)

  @parameterized.named_parameters(
      ("pruned", tiny.prune), ("quantized", tiny.quantize),
      ("clustered", clustered))
  def test_wrapped_nets(self, wrap):
    model = zeroed(tiny.conv_net(tail="depthwise"))
    wrapped = wrap(model)
    wrapped(tiny.images())  # Some wrappers replace kernels in the first call.
    self.assertEqual(costs.count_macs(wrapped), costs.count_macs(model))
    self.assertEqual(costs.count_parameters(wrapped), model.count_params())
    self.assertEqual(costs.count_zeros(wrapped), costs.count_zeros(model))

  def test_what_cannot_be_counted(self):
    with self.assertRaisesRegex(ValueError, "fixed input size"):
      costs.count_macs(net(layers.Conv2D(2, 3), shape=(None, None, 3)))
    with self.assertRaisesRegex(ValueError, "'odd'.*a PReLU costs"):
      costs.count_macs(net(layers.PReLU(name="odd")))
    with self.assertRaisesRegex(TypeError, "tf_keras"):
      costs.count_macs("net")
    inputs, twice = keras.Input((4, 4, 3)), layers.Conv2D(3, 1)
    with self.assertRaisesRegex(ValueError, "2 outputs"):
      costs.count_macs(keras.Model(inputs, twice(twice(inputs))))


class ZerosTest(absltest.TestCase):

  def test_kernels_alone_count(self):
    model = zeroed(net(
        layers.SeparableConv2D(4, 3), layers.BatchNormalization(),
        layers.Flatten(), layers.Dense(2)))
    model.layers[-1].bias.assign([0, 0])
    total = 27 + 12 + 6 * 4 * 4 * 2
    self.assertEqual(costs.count_zeros(model), (3, total))
    self.assertAlmostEqual(costs.kernel_sparsity(model), 3 / total)

  def test_no_kernel(self):
    self.assertEqual(costs.kernel_sparsity(net(layers.ReLU())), 0)

  def test_a_stripped_net(self):
    model = tiny.prune(tiny.conv_net(), 0.75)
    model.compile("sgd", tiny.cross_entropy(), run_eagerly=True)
    model.fit(
        tiny.images(), tiny.labels(), verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    stripped = tfmot.sparsity.keras.strip_pruning(model)
    want = np.mean(np.concatenate([
        (w.numpy() == 0).ravel() for w in stripped.weights
        if "kernel" in w.name]))
    # Three quarters of each kernel were pruned; unpruned ones have no zeros.
    self.assertGreater(want, 0.7)
    self.assertAlmostEqual(costs.kernel_sparsity(stripped), want)


if __name__ == "__main__":
  absltest.main()
