"""Identities of the attribution methods on real models and images.

Slow, each of them. What was measured stands beside each bound: TensorFlow 2.21
on a CPU. Conservation, the share of the score that arrives at the pixels, as
median over the images:

                          VWW    ResNet-8   MobileNet 96   MobileNet 224
    z_plus                .24    1          .025           .020
    epsilon_plus(_flat)   .23    .96        .025           .021
    the same, bias=False  .34    1          .025           .023
    z_plus_even           1      1          1              1
    epsilon_plus_even     .91    .96        1.00           .94
    the same, bias=False  1      1          1              1
    epsilon               -.87   .58        .97            .02
    alpha_beta            -44    .35        .001           .000

z+ loses what reaches an output that nothing positive supports: behind a
depthwise layer of nine inputs there are many, and each layer of thirteen loses
some. A dense layer under epsilon absorbs its bias, which for a small score is
much of it; so does each layer under epsilon alone, which is the gradient times
the input. alpha_beta multiplies by 2 and by -1 where a sign is missing.
"""

import functools
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution.relevance.lrp import PRESETS
from keras_attr_preserve.models.tap import Tap
from tests import tiny
from tests.export.conversion import pretrained_test as pretrained

pytestmark = pytest.mark.slow("pretrained")
_NETS = ("vww", "resnet", "mobilenet_96", "mobilenet_224")


@functools.cache
def _net(name: str) -> keras.Model:
  if name.startswith("mobilenet"):
    return pretrained.mobile_net(int(name[-3:].strip("_")))
  return pretrained.load({
      "vww": pretrained.VWW / "vww_96.h5",
      "resnet": pretrained.RESNET / "pretrainedResnet.h5"}[name])


@functools.cache
def _pictures(name: str) -> np.ndarray:
  if name == "resnet":
    return pretrained.cifar("test", 8)
  if name == "vww":
    return pretrained.voc(2, 8, 96) / 255
  size = int(name[-3:].strip("_"))
  return pretrained.voc(2, 8 if size == 96 else 3, size) / 127.5 - 1


@functools.cache
def _logits(name: str) -> np.ndarray:
  return Tap(_net(name))(_pictures(name)).logits.numpy()


@functools.cache
def _bias(name: str) -> np.ndarray:
  """The last layer's bias, for the top class of each image."""
  last = [layer for layer in _net(name).layers if layer.weights][-1]
  return last.get_weights()[1][_logits(name).argmax(1)]


class ConservationTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_lrp(self, name):
    share = {}
    for preset in PRESETS:
      for bias in (True, False):
        report = kap.attribution.lrp_conservation(
            _net(name), _pictures(name), preset=preset, bias=bias)
        # Float32 scores of up to 14, of batches of another size.
        np.testing.assert_allclose(
            report.sent, _logits(name).max(1), rtol=1e-3, atol=1e-3)
        share[preset, bias] = report.share
        print(f"{name} {preset} bias={bias}: {np.median(report.share):.3f} "
              f"({report.share.min():.3f}..{report.share.max():.3f})")
    for preset, bias in (("z_plus_even", True), ("z_plus_even", False),
                         ("epsilon_plus_even", False)):
      # Measured: 1 to four digits.
      np.testing.assert_allclose(share[preset, bias], 1, atol=1e-3)
    # All that the epsilon rule absorbs is the dense layer's own bias.
    # ImageNet's MobileNet has a convolution in its place.
    absorbed = 0 if name.startswith("mobilenet") else (
        _bias(name) / _logits(name).max(1))
    # Float32 relevance: a small score, which divides both, makes more of it.
    np.testing.assert_allclose(
        share["epsilon_plus_even", True], 1 - absorbed, atol=2e-3)
    for preset in ("z_plus", "epsilon_plus", "epsilon_plus_flat",
                   "epsilon_plus_box"):
      if name == "resnet":
        # The table at the top has 1: nothing is lost but float32 digits.
        np.testing.assert_allclose(share[preset, False], 1, atol=1e-3)
      else:
        # Measured: .34 at most, as in the table at the top.
        self.assertLess(np.median(share[preset, False]), 0.5)

  @parameterized.parameters("vww", "mobilenet_96")
  def test_z_plus_loses_at_depthwise_layers(self, name):
    model = _net(name)
    # One ReLU behind each layer: pointwise, depthwise, pointwise, ...
    layers = [layer.name for layer in model.layers
              if layer.name.startswith("activation") or (
                  layer.name.endswith("_relu"))][::-1][:9]
    shares = np.array([np.median(kap.attribution.lrp_conservation(
        model, _pictures(name)[:3], layer=layer, preset="z_plus").share)
                       for layer in layers])
    ratios = shares[1:] / shares[:-1]
    pointwise, depthwise = ratios[0::2], ratios[1::2]
    print(name, layers, shares, "kept by pointwise layers", pointwise,
          "by depthwise ones", depthwise)
    # Measured of four of each: 1 and .998 at least; together .88 and .08.
    np.testing.assert_allclose(pointwise, 1, atol=0.01)
    # Layers that lose nothing would keep 1.
    self.assertLess(depthwise.prod(), 0.92)

  @parameterized.parameters(*_NETS)
  def test_excitation_backprop(self, name):
    maps = kap.attribution.excitation_backprop(_net(name), _pictures(name))
    sums = maps.sum((1, 2))
    print(name, sums)
    self.assertGreaterEqual(maps.min(), 0)
    if name == "resnet":
      # No walk ends on its way: float32 sums of chances over the image.
      np.testing.assert_allclose(sums, 1, atol=1e-3)
    else:
      # Measured: .18 to .35, and .02.
      self.assertBetween(sums.max(), 0.01, 0.5)

  @parameterized.parameters(*_NETS)
  def test_relative_attributing_propagation(self, name):
    maps = kap.attribution.relative_attributing_propagation(
        _net(name), _pictures(name))
    score = _logits(name).max(1)
    size = np.abs(maps).sum((1, 2)) / np.abs(score)
    print(name, maps.sum((1, 2)) / score, size)
    # Relevance of either sign is much more than its sum on a MobileNet.
    np.testing.assert_allclose(
        maps.sum((1, 2)), score - _bias(name),
        atol=1e-3 + 2e-5 * float((size * np.abs(score)).max()))


class CompletenessTest(parameterized.TestCase):

  @parameterized.parameters(*_NETS)
  def test_integrated_gradients(self, name):
    model, pictures = _net(name), _pictures(name)[:3]
    misses = []
    for steps in (4, 16, 64, 256):
      gap = kap.attribution.integrated_gradients_completeness(
          model, pictures, steps=steps)
      misses.append(np.median(np.abs(gap.total - gap.difference)
                              / np.abs(gap.difference)))
    print(name, np.round(misses, 4))
    # The trapezoid rule steps over kinks of ReLUs: 256 steps may miss 5 %.
    self.assertLess(misses[-1], 0.05)
    self.assertLess(misses[-1], 0.5 * misses[0])

  @parameterized.parameters(*_NETS)
  def test_linearization(self, name):
    model, pictures = _net(name), _pictures(name)[:3]
    form = kap.attribution.linearize(model, pictures, [0, 1])
    terms = np.abs(form.offset).max()
    print(name, np.abs(form.residual).max(), np.abs(form.scores).max(), terms)
    # Float32 scores of up to 14, of batches of another size.
    np.testing.assert_allclose(form.scores, _logits(name)[:3, :2], atol=1e-4)
    # Measured: 6e-6, 2e-5, 1e-4, 7e-5 for scores of 3, 14, 12, 4.
    self.assertLess(np.abs(form.residual).max(), 5e-5 * max(terms, 1))
    # W as a matrix is the Jacobian of the logits.
    x = tf.constant(pictures)
    with tf.GradientTape() as tape:
      tape.watch(x)
      logits = Tap(model)(x).logits[:, :2]
    jacobian = tape.batch_jacobian(logits, x).numpy()
    # Float32 gradients, of a graph and of a batch Jacobian.
    self.assertLess(tiny.relative_error(form.weights, jacobian), 1e-3)

  @parameterized.parameters("vww", "resnet", "mobilenet_224")
  def test_cam(self, name):
    maps = kap.attribution.cam(_net(name), _pictures(name))
    # Float32 means over positions, of scores of up to 14.
    np.testing.assert_allclose(
        maps.mean((1, 2)), _logits(name).max(1) - _bias(name), rtol=1e-4,
        atol=1e-3)

  @parameterized.parameters("vww", "resnet", "mobilenet_96")
  def test_pathways(self, name):
    model, pictures = _net(name), _pictures(name)[:3]
    few, many = (kap.attribution.select_pathway(model, pictures, keep=keep)
                 for keep in (0.1, 0.3))
    for unit in few.units:
      self.assertTrue((few.units[unit] <= many.units[unit]).all())
      self.assertTrue((few.units[unit] <= few.alive[unit]).all())
    count = sum(units.reshape(3, -1).sum(1) for units in few.units.values())
    size = sum(units[0].size for units in few.units.values())
    # The share is rounded up to a whole unit, and ties with the last are in.
    np.testing.assert_allclose(count / size, 0.1, atol=2e-3)
    np.testing.assert_array_equal(few.overlap(few), 1)
    maps = kap.attribution.pathway_gradient(model, pictures, keep=0.3)
    self.assertTrue((maps.reshape(3, -1).max(1) > 0).all())


class WrappedTest(parameterized.TestCase):

  METHODS = ("grad_cam", "lrp", "excitation_backprop", "full_grad", "saliency",
             "relative_attributing_propagation", "pathway_gradient")

  @parameterized.parameters("vww", "resnet")
  def test_pruned_quantized_stripped(self, name):
    model, pictures = _net(name), _pictures(name)[:3]
    top = model.predict(pictures, verbose=0).argmax(1)
    pruned = tiny.prune(model, 0.0)
    stripped = tfmot.sparsity.keras.strip_pruning(tiny.prune(model, 0.0))
    linear = tiny.copy_of(model)
    linear.layers[-1].activation = keras.activations.linear
    quantized = tfmot.quantization.keras.quantize_model(tiny.copy_of(model))
    for _ in range(4):
      quantized(pictures, training=True)
    for method in self.METHODS:
      explain = getattr(kap.attribution, method)
      want = explain(model, pictures, top)
      for other in (pruned, stripped, linear):
        # The same weights and logits: float32 gradients in another graph.
        self.assertLess(
            tiny.relative_error(explain(other, pictures, top), want), 1e-4,
            (method, other.name))
      close = explain(quantized, pictures, top)
      cosine = kap.evaluation.agreement(
          want, close, scores=("cosine",))["cosine"]
      print(name, method, "quantize-aware cosine", np.round(cosine, 3))
      self.assertTrue(np.isfinite(close).all())
      if method in ("grad_cam", "lrp", "excitation_backprop"):
        # Eight bits turn a map; four runs on three images set their ranges.
        # Measured: .966 at worst. NaN, of a dead map, fails.
        self.assertGreater(cosine.min(), 0.93)


_RELEVANCE = ("lrp", "excitation_backprop", "relative_attributing_propagation")
_METHODS = (
    ("cam", {}), ("equal_weighted", {}), ("grad_cam", {}),
    ("grad_cam_plus_plus", {}), ("hires_cam", {}), ("layer_cam", {}),
    ("saliency", {}), ("gradient_x_input", {}), ("guided_backprop", {}),
    ("full_grad", {}), ("integrated_gradients", {"steps": 2}),
    ("smooth_grad", {"samples": 2}), ("var_grad", {"samples": 2}),
    ("occlusion", {"patch": 32}), ("rise", {"masks": 4, "cells": 2}),
    ("pathway_gradient", {}), ("lrp", {}), ("lrp", {"preset": "epsilon"}),
    ("excitation_backprop", {}), ("relative_attributing_propagation", {}))


# Where a model has another layer behind its average, or none, or a last map of
# one position at this size; and where it has swish throughout.
_REFUSALS = {"cam": "CAM needs a global average",
             "pathway_gradient": "has no ReLU"}


class ApplicationsTest(parameterized.TestCase):
  """Every method on models of tf_keras.applications, with random weights."""

  @parameterized.parameters(
      ("MobileNetV2", 64), ("MobileNetV3Small", 64, "cam"),
      ("EfficientNetB0", 32, "cam", "pathway_gradient"), ("ResNet50V2", 64),
      ("VGG16", 32, "cam"))
  @pytest.mark.slow("applications")
  def test_every_method(self, name, size, *refused):
    self._check_every_method(name, size, refused)

  @parameterized.parameters(
      ("DenseNet121", 64), ("Xception", 71), ("InceptionV3", 75, "cam"),
      ("NASNetMobile", 64))
  @pytest.mark.slow("deep_applications")
  def test_every_method_on_deeper_models(self, name, size, *refused):
    self._check_every_method(name, size, refused)

  def _check_every_method(self, name, size, refused):
    rng = np.random.default_rng(0)
    model = getattr(keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=10)
    top = 255 if name in ("MobileNetV3Small", "EfficientNetB0") else 1
    pictures = rng.uniform(0, top, (2, size, size, 3)).astype(np.float32)
    self._settle(model, pictures, rng)
    for method, options in _METHODS:
      if method in refused:
        with self.assertRaisesRegex(ValueError, _REFUSALS[method]):
          getattr(kap.attribution, method)(model, pictures, **options)
      else:
        self._check(name, model, pictures, method, options)
    form = kap.attribution.linearize(model, pictures, [3])
    self.assertTrue(np.isfinite(form.weights).all())
    for preset in ("z_plus_even", "epsilon_plus_even"):
      report = kap.attribution.lrp_conservation(
          model, pictures, preset=preset, bias=False)
      print(name, preset, report.share, flush=True)
      # The epsilon of dense layers takes as much of a score. NASNet averages
      # windows of padding alone, whose share no pixel gets: measured .992.
      np.testing.assert_allclose(
          report.arrived, report.sent, atol=5e-6,
          rtol=2e-2 if name == "NASNetMobile" else 1e-3)

  def _settle(self, model, pictures, rng):
    """Makes each norm fit what it sees; else the signal dies on its way."""
    for layer in model.layers:
      if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.0
        layer.beta.assign(0.3 * rng.normal(size=layer.beta.shape))
    model(np.concatenate([pictures, pictures[:, ::-1] / 2]), training=True)

  def _check(self, name, model, pictures, method, options):
    start = time.time()
    maps = getattr(kap.attribution, method)(model, pictures, **options)
    self.assertEqual(len(maps), 2)
    self.assertEqual(maps.ndim, 3, (name, method))
    self.assertTrue(np.isfinite(maps).all(), (name, method))
    if method in _RELEVANCE:
      self.assertEqual(maps.shape, pictures.shape[:3])
    print(f"{name} {method} {options}: sum {maps.sum((1, 2))}, "
          f"{time.time() - start:.1f} s", flush=True)


if __name__ == "__main__":
  absltest.main()
