"""Real files of others, explained and held against their Keras originals.

Folders as for pretrained_test.py. Every bound has a comment with what was
measured when it was set, on ai-edge-litert 2.3 and TensorFlow 2.21.
"""

import functools

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized
from PIL import Image

import keras_attr_preserve as kap
from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.export.tensors.find_tensor import (
  find_tensor,
  layer_tensors,
)
from keras_attr_preserve.export.third_party.explainer import explainer
from keras_attr_preserve.export.verification.verify import verify
from tests import export_helpers as helpers
from tests.export.conversion import pretrained_test as real

KWS = real.MLPERF / "keyword_spotting"
STREAMING = real.MLPERF / "streaming_wakeword"
MOBILENET = "test_images/mobilenet_v1_0.25_128_quant.tflite"
RESNET_NET = real.RESNET / "pretrainedResnet.h5"
VWW_NET = real.VWW / "vww_96.h5"


def cifar() -> np.ndarray:
  return real.cifar("test", 48)


def persons() -> np.ndarray:
  return real.voc(2, 48, 96) / 255


@functools.cache
def sounds() -> np.ndarray:
  with np.load(real.model_path(STREAMING / "calibration_samples.npz")) as file:
    return np.float32(file["specs"])


@functools.cache
def mobilenet() -> keras.Model:
  """MobileNetV1 0.25 for 128 px; another training than the file's."""
  model = keras.applications.MobileNet((128, 128, 3), 0.25, weights=None)
  model.load_weights(real.model_path(
      "imagenet_mobilenet_v1_025/mobilenet_v1_0.25_224.h5"))
  return model


def pictures(*names: str) -> np.ndarray:
  folder = real.model_path("test_images")
  return np.stack([
      np.asarray(Image.open(folder / name).convert("RGB").resize(
          (128, 128), Image.Resampling.BILINEAR))
      for name in names]) / np.float32(127.5) - 1


class OriginalTest(parameterized.TestCase):
  """Against the very model that the file was made from."""

  def check(self, path, original, images, layer, method, road, median, worst):
    report = verify(
        real.model_path(path), real.load(original),
        kap.WCAM(layer, method=method), images)
    self.assertEqual(report.facts["road"], road, report.facts["source"])
    cosines = report.scores["cosine"]
    self.assertGreater(np.median(cosines), median)
    self.assertGreater(cosines.min(), worst)

  # Measured of float32: 1 to six digits. Of int8 the median and the worst:
  # .9967 .982, .9896 .879, .9893 .727, .9998 .9996.
  @parameterized.parameters(
      ("pretrainedResnet.tflite", "activation_6", "swa", "head", 1 - 1e-6,
       1 - 1e-5),
      ("pretrainedResnet.tflite", "activation_4", "swa", "teacher's tail",
       1 - 1e-6, 1 - 1e-5),
      ("pretrainedResnet_quant.tflite", "activation_6", "swa", "head", 0.99,
       0.96),
      ("pretrainedResnet_quant.tflite", "activation_4", "swa",
       "teacher's tail", 0.98, 0.8),
      ("pretrainedResnet_quant.tflite", "activation_2", "swa",
       "teacher's tail", 0.98, 0.6),
      ("pretrainedResnet_quant.tflite", "activation_4", "ewa", "features",
       0.999, 0.998))
  @pytest.mark.slow("pretrained")
  def test_resnet_8(self, name, *expected):
    self.check(real.RESNET / name, RESNET_NET, cifar(), *expected)

  # Measured of int8: .9993 .938, .9987 .975, .9987 .967.
  @parameterized.parameters(
      ("vww_96_float.tflite", "activation_26", "swa", "head", 1 - 1e-6,
       1 - 1e-5),
      ("vww_96_int8.tflite", "activation_26", "swa", "head", 0.995, 0.9),
      ("vww_96_int8.tflite", "activation_18", "swa", "teacher's tail", 0.995,
       0.95),
      ("vww_96_int8.tflite", "activation_24", "ewa", "features", 0.995, 0.94))
  @pytest.mark.slow("pretrained")
  def test_visual_wake_words(self, name, *expected):
    self.check(real.VWW / name, VWW_NET, persons(), *expected)

  # Measured: .9996 .985, .9999 .998.
  @parameterized.parameters(("activation_1", 0.97), ("activation_2", 0.99))
  @pytest.mark.slow("pretrained")
  def test_streaming_wakeword(self, layer, worst):
    self.check(STREAMING / "str_ww_ref_model.tflite",
               STREAMING / "str_ww_ref_model.h5", sounds(), layer, "swa",
               "teacher's tail", 0.998, worst)

  @helpers.needs_tflm
  @pytest.mark.slow("pretrained")
  def test_resnet_8_on_every_runtime(self):
    comparison = verify(
        real.model_path(real.RESNET / "pretrainedResnet_quant.tflite"),
        real.load(RESNET_NET), kap.WCAM("activation_6"), cifar()[:16],
        runtime="all")
    self.assertLen(comparison.reports, 4)
    for report in comparison.reports.values():
      report.require(cosine=0.99)  # Measured: .9959 to .9961.


class TensorsTest(parameterized.TestCase):

  @parameterized.product(
      name=("vww_96_float.tflite", "vww_96_int8.tflite"))
  @pytest.mark.slow("pretrained")
  def test_every_activation_is_found_and_no_other_layer(self, name):
    model = real.load(VWW_NET)
    matches = layer_tensors(
        real.model_path(real.VWW / name), model, persons()[:8])
    activations = {layer.name for layer in model.layers
                   if layer.name.startswith("activation")}
    self.assertLen(activations, 27)
    self.assertEqual(
        {*matches}, activations | {"average_pooling2d", "flatten", "dense"})
    for layer in activations:
      self.assertTrue(matches[layer].named, layer)
    # Measured: 1e-6; .235 in the last one, .067 in the middle.
    self.assertLess(max(matches[layer].error for layer in activations),
                    0.3 if "int8" in name else 1e-5)

  @pytest.mark.slow("pretrained")
  def test_what_was_fused_is_named(self):
    with self.assertRaisesRegex(
        ValueError, "'add_2' has no tensor.*that the file holds is "
        "'activation_6': tensor 33"):
      find_tensor(
          real.model_path(real.RESNET / "pretrainedResnet_quant.tflite"),
          real.load(RESNET_NET), "add_2", cifar()[:8])


class OtherTrainingTest(parameterized.TestCase):
  """Files whose features are not the teacher's."""

  @pytest.mark.slow("pretrained")
  def test_uint8_mobilenet_of_1001_classes(self):
    images = real.voc(2, 48, 128) / 127.5 - 1
    file = explainer(
        real.model_path(MOBILENET), teacher=mobilenet(), images=images,
        wcam=kap.WCAM("conv_pw_13_relu"))
    self.assertEqual((file.road, file.classes), ("head", 1000))
    self.assertIn("classes 1..1000 of 1001", file.source)
    self.assertIn("their numbers are not the teacher's", file.source)
    top = mobilenet().predict(images, verbose=0).argmax(1)
    scores = agreement(
        kap.attribution.grad_cam(mobilenet(), images, top, "conv_pw_13_relu"),
        file.explain(images, top).maps)
    # Measured: .917; the two models agree on the class of 8 % of the images.
    self.assertBetween(np.median(scores["cosine"]), 0.85, 0.97)

  @pytest.mark.slow("pretrained")
  def test_an_earlier_layer_of_it_is_refused(self):
    images = real.voc(2, 16, 128) / 127.5 - 1
    with self.assertRaisesRegex(ValueError, "'conv_pw_11_relu' has no tensor"):
      explainer(real.model_path(MOBILENET), teacher=mobilenet(), images=images,
                wcam=kap.WCAM("conv_pw_11_relu"))

  # Measured of the large models: .66; int8 against float .9995.
  @pytest.mark.slow("pretrained")
  def test_a_larger_resnet(self):
    files = [explainer(
        real.model_path(real.RESNET / f"pretrainedResnet_large_{mode}.tflite"),
        teacher=real.load(RESNET_NET), images=cifar(),
        wcam=kap.WCAM("activation_6")) for mode in ("float", "int8")]
    first, second = (file.explain(cifar(), 3).maps for file in files)
    scores = agreement(first, second)["cosine"]
    # Int8 steps alone part the two files: .9995, as above.
    self.assertGreater(np.nanmedian(scores), 0.99)

  @parameterized.parameters("kws_ref_model.tflite",
                            "kws_ref_model_float32.tflite")
  @pytest.mark.slow("pretrained")
  def test_a_saved_model_that_is_not_the_files(self, name):
    model = keras.models.load_model(real.model_path(KWS / "kws_ref_model"))
    images = np.random.default_rng(0).normal(-30, 10, (16, 49, 10, 1))
    with self.assertRaisesRegex(ValueError, "is not this teacher's"):
      explainer(real.model_path(KWS / name), teacher=model, images=images,
                wcam=kap.WCAM("dropout_1"))


class AloneTest(parameterized.TestCase):

  def maps(self, path, images, **settings):
    return explainer(real.model_path(path), **settings).explain(
        images, np.zeros(len(images), int)).maps

  # Measured: .9967, .9893 (random inputs), .9993.
  @parameterized.parameters(
      (real.RESNET / "pretrainedResnet_quant.tflite",
       real.RESNET / "pretrainedResnet.tflite", 0.98),
      (real.VWW / "vww_96_int8.tflite", real.VWW / "vww_96_float.tflite", 0.98),
      (KWS / "kws_ref_model.tflite", KWS / "kws_ref_model_float32.tflite",
       0.95))
  @pytest.mark.slow("pretrained")
  def test_integers_against_floats(self, integers, floats, least):
    images = {
        real.RESNET: cifar, real.VWW: persons, KWS: lambda: (
            np.random.default_rng(0).normal(-30, 10, (16, 49, 10, 1)))}[
                integers.parent]()
    report = verify(real.model_path(integers), real.model_path(floats),
                    kap.WCAM("any"), images)
    self.assertGreater(np.nanmedian(report.scores["cosine"]), least)

  @pytest.mark.slow("pretrained")
  def test_known_pictures(self):
    file = explainer(real.model_path(MOBILENET))
    self.assertIn("Conv2d_13_pointwise/Relu6", str(file.features))
    maps, logits = file.explain(
        pictures("bird.bmp", "cat.bmp", "parrot.jpg"))
    self.assertEqual(maps.shape, (3, 4, 4))
    names = real.model_path(
        "test_images/imagenet_labels.txt").read_text().splitlines()
    self.assertEqual([names[i] for i in logits.argmax(1)],
                     ["chickadee", "tiger cat", "macaw"])

  @pytest.mark.slow("pretrained")
  def test_speech_commands(self):
    inputs = np.random.default_rng(0).uniform(0, 26, (4, 1960))
    file = explainer(real.model_path("tflm/micro_speech_quantized.tflite"))
    self.assertEqual(file.features.name, "Relu")
    self.assertEqual(file.explain(inputs).maps.shape, (4, 25, 20))

  @pytest.mark.slow("pretrained")
  def test_an_lstm_has_no_features_to_show(self):
    with self.assertRaisesRegex(ValueError, r"must take pictures.*\[28, 28\]"):
      explainer(real.model_path("tflm/trained_lstm_int8.tflite"))

  @parameterized.parameters(*helpers.LITERT_RUNTIMES)
  @pytest.mark.slow("pretrained")
  def test_a_file_that_litert_refuses(self, runtime):
    with self.assertRaisesRegex(
        ValueError, f"refused by the runtime '{runtime}': .*"
        "quantized_dimension must be in range"):
      explainer(real.model_path("tflm/person_detect.tflite"), runtime=runtime)

  @helpers.needs_tflm
  @pytest.mark.slow("pretrained")
  def test_which_tflite_micro_explains(self):
    images = np.stack([
        np.asarray(Image.open(real.model_path(f"tflm/{name}.bmp")).convert("L"))
        for name in ("person", "no_person")])[..., None] / 127.5 - 1
    file = explainer(
        real.model_path("tflm/person_detect.tflite"), runtime="tflm")
    maps, logits = file.explain(images, 1)
    self.assertEqual(maps.shape, (2, 3, 3))
    self.assertTrue(maps[0].any())
    self.assertGreater(*(logits[:, 1] - logits[:, 0]))


if __name__ == "__main__":
  absltest.main()
