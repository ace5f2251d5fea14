"""Tests of the rule that docs/compressions.md gives for what tfmot refuses."""

import re
import textwrap

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compat import keras
from tests import channel_nets
from tests.places import ROOT

PAGE = ROOT / "docs" / "compressions.md"
TITLE = "## Nets that quantization-aware training does not take"


def documented() -> str:
  """The program of that section."""
  section = PAGE.read_text().split(TITLE)[1].split("\n## ")[0]
  lines = re.findall(r"^(?:    .*)?$", section, re.MULTILINE)
  return textwrap.dedent("\n".join(lines))


def net() -> keras.Model:
  """Of each kind of layer that the section names, and the common ones."""
  layers = keras.layers
  inputs = keras.Input([12, 12, 3])
  x = layers.Rescaling(1 / 255)(inputs)
  x = layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)(x)
  x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
  x = block = layers.ReLU()(layers.BatchNormalization()(x))
  x = keras.Sequential([layers.BatchNormalization(name="before")])(x)
  x = layers.ReLU(6.0)(x + 3.0) * x
  x = layers.Conv2D(8, 3, padding="same", name="conv")(x)
  gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
  gate = layers.Dense(8, activation="sigmoid")(gate)
  x = layers.Add(name="last")([layers.Multiply()([x, gate]), block])
  x = layers.GlobalAveragePooling2D()(x)
  return channel_nets.settle(keras.Model(inputs, layers.Dense(3)(x)))


def made_by_the_page(teacher, images):
  names = {"quantization": tfmot.quantization.keras, "keras": keras,
           "kap": kap, "teacher": teacher, "images": images}
  exec(documented(), names)
  return names["student"]


class OwnRulesTest(parameterized.TestCase):

  @pytest.mark.slow("saving")
  def test_it_trains_with_maps_held_and_ships(self):
    teacher = net()
    rng = np.random.default_rng(0)
    images = 255 * rng.uniform(size=[32, 12, 12, 3]).astype(np.float32)
    for refused in (teacher, kap.unnest(teacher)):
      with self.assertRaisesRegex(
          (ValueError, RuntimeError), "is not supported"):
        tfmot.quantization.keras.quantize_model(kap.clone_model(refused))
    student = made_by_the_page(teacher, images)
    want = teacher(images).numpy()
    np.testing.assert_allclose(
        student(images), want, atol=0.1 * np.abs(want).max())

    student.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        run_eagerly=True)
    logs = student.fit(
        images, np.eye(3)[np.arange(32) % 3], batch_size=8, verbose=0,
        callbacks=[kap.PreserveAttribution(
            teacher, kap.WCAM("last"), hints=kap.Hints())]).history
    # Steps of 8 bits in every layer turn maps by some; four small training
    # steps mend little of it.
    self.assertGreater(logs["attr_agreement"][-1], 0.8)

    content = kap.export.convert(
        student, kap.WCAM("last"), mode="int8", representative_images=images)
    maps, scores = kap.export.Interpreter(content).explain(images)
    np.testing.assert_allclose(
        scores, student(images), atol=0.1 * np.abs(want).max())
    expected = kap.attribution.grad_cam(
        student, images, scores.argmax(1), "last")
    cosines = kap.evaluation.agreement(
        expected, maps, scores=("cosine",))["cosine"]
    # The file rounds where fake quantizers do, but sums near half a step may go
    # the other way, and a sensitivity with them.
    self.assertGreater(cosines.mean(), 0.9)

  @parameterized.parameters(
      "VGG16", "MobileNet", "MobileNetV2", "ResNet50", "Xception",
      "InceptionV3")
  @pytest.mark.slow("saving")
  def test_nets_that_are_taken(self, name):
    size = {"Xception": 71, "InceptionV3": 75}.get(name, 32)
    tfmot.quantization.keras.quantize_model(getattr(keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=2))

  @parameterized.parameters(
      "ResNet50V2", "ResNetRS50", "DenseNet121", "EfficientNetB0",
      "EfficientNetV2B0", "MobileNetV3Small", "RegNetX002", "RegNetY002",
      "NASNetMobile")
  @pytest.mark.slow("saving")
  def test_nets_that_the_page_has_taken(self, name):
    teacher = getattr(keras.applications, name)(
        input_shape=(32, 32, 3), weights=None, classes=2)
    with self.assertRaises((RuntimeError, AttributeError, ValueError)):
      tfmot.quantization.keras.quantize_model(kap.clone_model(teacher))
    images = np.random.default_rng(0).uniform(size=[8, 32, 32, 3]).astype("f")
    student = made_by_the_page(teacher, images)
    self.assertTrue(np.isfinite(student(images)).all())


if __name__ == "__main__":
  absltest.main()
