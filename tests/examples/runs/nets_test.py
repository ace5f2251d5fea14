"""The models of the experiments: shapes, weights and uses."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from examples.experiment.runs import nets
from tests import channel_nets, tiny
from tests.export.conversion import pretrained_test as pretrained

LEAST = {"vgg16": 32, "mobilenet": 32, "resnet8": 8, "small": 8}
IMAGENET = "imagenet_mobilenet_v1_025/mobilenet_v1_0.25_224.h5"


def pictures(size, low=0, high=1, count=2):
  rng = np.random.default_rng(0)
  return rng.uniform(low, high, (count, size, size, 3)).astype(np.float32)


def little(name):
  return channel_nets.settle(
      nets.build(name, size=LEAST[name], classes=3, width=1 / 8))


class BuildTest(parameterized.TestCase):

  def check(self, name):
    """Builds a model and takes it through every step of the experiments."""
    size = LEAST[name]
    original = little(name)
    images = pictures(size, *nets.PIXEL_RANGES[name])
    logits = original(images).numpy()
    self.assertEqual(logits.shape, (2, 3))
    self.assertEqual(original.layers[-1].name, "logits")
    self.assertTrue(np.isfinite(logits).all())
    # For two images, .7 and more was measured. A deep model whose norms do not
    # fit their inputs gives one answer to every image.
    self.assertGreater(np.ptp(logits, axis=0).max(), 0.1)

    layer = nets.layer_of(name, size)
    maps = kap.attribution.grad_cam(original, images, [0, 1], layer)
    self.assertEqual(
        maps.shape[1:], original.get_layer(layer).output.shape[1:3])
    narrowed, fewer = (
        kap.narrow(original, 0.5), kap.prune_filters(original, 0.5))
    for model in (narrowed, fewer):
      self.assertLess(model.count_params(), 0.7 * original.count_params())
    for model in (narrowed, fewer, tiny.prune(original),
                  tfmot.quantization.keras.quantize_model(
                      tiny.copy_of(original))):
      self.assertEqual(model(images).shape, (2, 3))
      kap.TrainStep(model, original, kap.WCAM(layer))  # Finds layer and head.

  def test_a_small_net(self):
    self.check("small")

  @parameterized.parameters("resnet8", "vgg16", "mobilenet")
  @pytest.mark.slow("experiments")
  def test_a_deeper_net(self, name):
    self.check(name)

  def test_vgg16_is_configuration_d(self):
    model = nets.build("vgg16", size=64, classes=4, width=1 / 8)
    convs = [layer for layer in model.layers
             if isinstance(layer, keras.layers.Conv2D)]
    self.assertEqual(
        [layer.filters for layer in convs],
        [8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64])
    self.assertEqual({layer.kernel_size for layer in convs}, {(3, 3)})
    self.assertLen([layer for layer in model.layers if isinstance(
        layer, keras.layers.BatchNormalization)], 13)
    self.assertEqual(model.get_layer("pool5").output.shape, (None, 2, 2, 64))

  def test_width_rounds_and_leaves_one(self):
    model = nets.build("small", size=8, classes=2, width=0.01)
    self.assertEqual(
        [model.get_layer(f"conv{i}").filters for i in (1, 2, 3, 4)],
        [1, 1, 1, 1])
    model = nets.build("mobilenet", size=32, classes=2, width=1 / 2)
    self.assertEqual(model.get_layer("conv_pw_13").filters, 128)

  def test_what_cannot_be_built(self):
    settings = {"size": 32, "classes": 2}
    with self.assertRaisesRegex(ValueError, "net must be one of .*'lenet'"):
      nets.build("lenet", **settings)
    for size in (31, 32.0, True):
      with self.assertRaisesRegex(ValueError, "size must be .* 32 or more"):
        nets.build("vgg16", size=size, classes=2)
    for classes in (0, 2.0, True):
      with self.assertRaisesRegex(ValueError, "classes must be an integer"):
        nets.build("small", size=32, classes=classes)
    for width in (0, -1, 1.5, float("nan")):
      with self.assertRaisesRegex(ValueError, "width must be above 0"):
        nets.build("small", width=width, **settings)
    with self.assertRaisesRegex(ValueError, "width must be 1/8 or more"):
      nets.build("mobilenet", width=1 / 9, **settings)
    for name, width in (("vgg16", 1), ("mobilenet", 0.5)):
      with self.assertRaisesRegex(ValueError, '"mobilenet" of width 1 only'):
        nets.build(name, width=width, weights="imagenet", **settings)


class LayerOfTest(parameterized.TestCase):

  @parameterized.parameters(
      ("vgg16", 224, "pool5"), ("vgg16", 223, "relu5_3"),
      ("vgg16", 160, "relu5_3"), ("vgg16", 64, "relu4_3"),
      ("vgg16", 32, "relu3_3"),
      ("mobilenet", 224, "conv_pw_13_relu"),
      ("mobilenet", 160, "conv_pw_11_relu"),
      ("mobilenet", 96, "conv_pw_5_relu"),
      ("resnet8", 32, "activation_6"), ("resnet8", 16, "activation_4"),
      ("small", 64, "relu4"), ("small", 32, "relu3"), ("small", 8, "relu1"))
  def test_layer(self, name, size, want):
    self.assertEqual(nets.layer_of(name, size), want)

  @parameterized.parameters(*nets.NETS)
  def test_the_map_is_large_enough_and_no_later_one_is(self, name):
    size = 63
    model = nets.build(name, size=size, classes=2, width=1 / 8)
    chosen = nets.layer_of(name, size)
    self.assertGreaterEqual(
        min(model.get_layer(chosen).output.shape[1:3]), nets.LEAST_MAP)
    # The next activation of a smaller map is too small.
    names = [layer.name for layer in model.layers]
    heights = [model.get_layer(layer).output.shape[1]
               for layer in names[names.index(chosen):-2]
               if "relu" in layer or "activation" in layer or "pool" in layer]
    smaller = [height for height in heights if height < heights[0]]
    self.assertLess(max(smaller, default=0), nets.LEAST_MAP)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, "net must be one of"):
      nets.layer_of("lenet", 64)
    with self.assertRaisesRegex(ValueError, "size must be"):
      nets.layer_of("mobilenet", 16)


def _in_double_precision(model: keras.Model) -> keras.Model:
  copy = keras.models.model_from_json(
      model.to_json().replace('"float32"', '"float64"'))
  copy.set_weights(model.get_weights())
  return copy


class WeightsTest(absltest.TestCase):

  def test_all_but_the_head_are_loaded(self):
    folder = tiny.folder(self)
    other = little("small")
    kap.save_model(other, folder / "net.h5")
    other.save_weights(folder / "weights.h5")
    for name in ("net.h5", "weights.h5"):
      model = nets.build("small", size=16, classes=5, width=1 / 8,
                         weights=folder / name)
      for layer in model.layers[:-1]:
        self.assertTrue(tiny.weights_equal(
            layer.get_weights(), other.get_layer(layer.name).get_weights()))
      self.assertEqual(model.output_shape, (None, 5))
    again = kap.load_model(folder / "net.h5")
    images = pictures(8)
    np.testing.assert_array_equal(again(images), other(images))

  def test_weights_of_another_net(self):
    path = kap.save_model(little("small"), tiny.folder(self) / "net.h5")
    with self.assertRaisesRegex(ValueError, "no layer 'conv1_1'.*26 of"):
      nets.build("vgg16", size=32, classes=3, width=1 / 8, weights=path)
    with self.assertRaisesRegex(ValueError, "do not fit the net 'small'"):
      nets.build("small", size=8, classes=3, width=1 / 4, weights=path)
    with self.assertRaisesRegex(
        ValueError, "of width 0.25: its layer 'conv1' has 4 filters and the "
        "net's has 8; these weights are of width 0.125.$"):
      nets.build("small", size=8, classes=3, width=1 / 4, weights=path)
    with self.assertRaisesRegex(FileNotFoundError, "no file .*nothing.h5"):
      nets.build("small", size=8, classes=3, weights="nothing.h5")
    text = path.with_name("text.h5")
    text.write_text("no weights")
    with self.assertRaisesRegex(ValueError, "text.h5' is no .h5 file"):
      nets.build("small", size=8, classes=3, weights=text)

  @pytest.mark.slow("experiments")
  def test_weights_of_another_alpha(self):
    """MobileNet of alpha 0.25 is of width 1, of alpha 1 wider than any."""
    path = str(tiny.folder(self) / "net.h5")
    body = {"input_shape": (32, 32, 3), "include_top": False, "weights": None}
    keras.applications.MobileNet(alpha=0.25, **body).save_weights(path)
    with self.assertRaisesRegex(
        ValueError, "'mobilenet' of width 0.25: its layer 'conv1' has 8 filters"
        " and the net's has 2; these weights are of width 1.$"):
      nets.build("mobilenet", size=32, classes=2, width=0.25, weights=path)
    keras.applications.MobileNet(alpha=0.5, **body).save_weights(path)
    with self.assertRaisesRegex(ValueError, "of a wider net than width 1"):
      nets.build("mobilenet", size=32, classes=2, weights=path)

  @pytest.mark.slow("pretrained")
  def test_imagenet_weights(self):
    path = pretrained.model_path(IMAGENET)
    source = pretrained.load(IMAGENET)
    model = nets.build("mobilenet", size=96, classes=2, weights=path)
    for layer in model.layers[:-1]:
      if layer.weights:
        self.assertTrue(tiny.weights_equal(
            layer.get_weights(), source.get_layer(layer.name).get_weights()))

  @pytest.mark.slow("pretrained")
  def test_mlperf_tinys_resnet(self):
    path = pretrained.RESNET / "pretrainedResnet.h5"
    source = pretrained.load(path)
    model = nets.build("resnet8", size=32, classes=10,
                       weights=pretrained.model_path(path))
    model.get_layer("logits").set_weights(source.layers[-1].get_weights())
    self.assertEqual(model.count_params(), source.count_params())
    # In double precision: what float32 gives hangs on the processor, which sums
    # in an order of its own.
    model, source = map(_in_double_precision, (model, source))
    images = pictures(32, 0, 255).astype(np.float64)
    # Float64 sums in another order; probabilities are 1 at most.
    np.testing.assert_allclose(
        keras.activations.softmax(model(images)), source(images), atol=1e-12)

  @pytest.mark.slow("pretrained")
  def test_the_person_detector_loads(self):
    path = pretrained.model_path(pretrained.VWW / "vww_96.h5")
    self.assertEqual(kap.load_model(path).output_shape, (None, 2))


if __name__ == "__main__":
  absltest.main()
