"""Tests of phone.py and merge.py: the map inside the file, and its roads."""

import functools
import warnings
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert

import keras_attr_preserve as kap
from keras_attr_preserve.export.conversion import map_accuracy
from keras_attr_preserve.export.conversion.converter import run_converter
from keras_attr_preserve.export.conversion.first_run import FirstRun
from keras_attr_preserve.export.conversion.phone import phone_file
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_model,
    signatures,
)
from keras_attr_preserve.export.tflite.weight_storage import store_weights
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared

CLASSES = 3


@functools.cache
def bypassed() -> keras.Model:
  """A model in which the image reaches the logits past the layer, too."""
  layers = keras.layers
  images = keras.Input((8, 8, 2))
  x = layers.Conv2D(8, 3, padding="same", name=helpers.LAYER,
                    activation="relu")(images)
  x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
  x = layers.Add()([x, layers.Conv2D(8, 1)(images)])
  x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
  return tiny.shake(keras.Model(images, layers.Dense(CLASSES)(x)))


@functools.cache
def with_equal_classes() -> keras.Model:
  """A model whose last two classes always have equal scores, the largest."""
  model = tiny.conv_net(tail="block", size=helpers.SIZE)
  kernel = model.get_layer("logits").kernel.numpy()
  kernel[:, 2] = kernel[:, 1]
  model.get_layer("logits").kernel.assign(kernel)
  model.get_layer("logits").bias.assign([-50.0, 0.0, 0.0])
  return model


@functools.cache
def varied(tail: str) -> keras.Model:
  """A model whose top class differs from image to image."""
  model = tiny.conv_net(tail=tail, size=helpers.SIZE, width=helpers.WIDTH)
  logits = model.predict(helpers.calibration(), verbose=0)
  model.get_layer("logits").bias.assign_add(-logits.mean(0))
  return model


def convert(net, mode="int8", road="auto"):
  return kap.export.convert(
      net, helpers.wcam(), mode=mode, road=road,
      representative_images=helpers.calibration())


@shared
def features_file() -> bytes:
  """An int8 file of "block", before it has an attribution map."""
  return run_converter(
      ExplainedModel(helpers.net("block"), helpers.LAYER).explain_features(),
      "int8", lambda: (
          {"images": image[None]} for image in helpers.calibration()))


def file_at(cosines: list[float]) -> bytes:
  """Puts a map into a file, told how near each way comes."""
  with mock.patch.object(
      map_accuracy.MapAccuracy, "median_cosine", side_effect=cosines):
    return phone_file(
        features_file(), ExplainedModel(helpers.net("block"), helpers.LAYER),
        {"layer": helpers.LAYER, "method": "swa", "mode": "int8",
         "target": "phone"}, helpers.calibration(),
        FirstRun(helpers.net("block"), helpers.LAYER, "int8", None))


def call(content, class_weights, images):
  """Calls `explain` as a program on the phone does: nothing but LiteRT."""
  interpreter = litert.Interpreter(model_content=content)
  runner = interpreter.get_signature_runner("explain")
  details = runner.get_input_details()["images"]
  scale, zero_point = details["quantization"]
  outputs = []
  for image, weights in zip(images, class_weights, strict=True):
    if scale:
      image = np.clip(np.round(image / scale) + zero_point, -128, 127)
    outputs.append(runner(images=image[None].astype(details["dtype"]),
                          class_weights=np.float32(weights)[None]))
  return outputs


class SignatureTest(parameterized.TestCase):

  def test_zeros_stand_for_the_top_class(self):
    self.check_zeros("int8", "block")

  @parameterized.parameters(
      ("float32", "gap"), ("float32", "block"), ("int8", "gap"))
  @pytest.mark.slow("files")
  def test_zeros_stand_for_the_top_class_of_the_rest(self, mode, tail):
    self.check_zeros(mode, tail)

  def check_zeros(self, mode, tail):
    model, images = varied(tail), helpers.images()
    content = convert(model, mode)
    zeros = call(content, np.zeros([8, CLASSES]), images)
    top = [row["logits"][0].argmax() for row in zeros]
    self.assertGreater(len(set(top)), 1)
    chosen = call(content, np.eye(CLASSES)[top], images)
    for row, other in zip(zeros, chosen):
      np.testing.assert_array_equal(row["map"], other["map"])
    want = kap.attribution.grad_cam(
        model, images, np.array(top), helpers.LAYER)
    maps = np.concatenate([row["map"] for row in zeros])
    self.assertEqual(maps.dtype, np.float32)
    self.assertEqual(maps.shape, (8, 8, 8))
    floats = mode == "float32"
    self.assertGreater(
        helpers.cosines(maps, want).min(), 0.99999 if floats else 0.99)
    np.testing.assert_allclose(
        maps, want, 0, (1e-5 if floats else 0.1) * want.max())

  @parameterized.parameters("float32", "int8")
  def test_this_class_rather_than_that(self, mode):
    weights = np.float32([[1, -1, 0], [0, 1, -1]] * 4)
    outputs = call(
        helpers.converted("block", mode), weights, helpers.images())
    want = kap.attribution.grad_cam(
        helpers.net("block"), helpers.images(), weights, helpers.LAYER)
    maps = np.concatenate([row["map"] for row in outputs])
    # Float32 rounding; steps of 8 bits in int8, of which .9996 was measured.
    self.assertGreater(helpers.cosines(maps, want).min(),
                       {"float32": 1 - 1e-7, "int8": 0.999}[mode])

  def test_of_equal_scores_the_first(self):
    self.check_equal_scores("int8")

  @pytest.mark.slow("files")
  def test_of_equal_scores_the_first_in_floats(self):
    self.check_equal_scores("float32")

  def check_equal_scores(self, mode):
    # Integer logits are often equal: not both classes' map, twice as strong.
    content = convert(with_equal_classes(), mode)
    zeros, first = (
        call(content, [weights], helpers.images(1))[0]
        for weights in ([0, 0, 0], [0, 1, 0]))
    self.assertEqual(*zeros["logits"][0, 1:])
    np.testing.assert_array_equal(zeros["map"], first["map"])
    self.assertGreater(first["map"].max(), 0)

  def test_one_logit_has_two_sides(self):
    self.check_one_logit("int8")

  @pytest.mark.slow("files")
  def test_one_logit_has_two_sides_in_floats(self):
    self.check_one_logit("float32")

  def check_one_logit(self, mode):
    content = helpers.converted("block", mode, head="sigmoid", classes=1)
    runner = kap.export.Interpreter(content)
    images = helpers.images()
    outputs = call(content, np.zeros([8, 1]), images)
    logits = runner.predict(images, logits=True)[:, 0]
    self.assertGreater(np.abs(np.sign(logits).sum()), 0)
    want = runner.explain(images, (logits >= 0).astype(int)).maps
    np.testing.assert_array_equal(
        np.concatenate([row["map"] for row in outputs]), want)

  def test_names(self):
    for method, inputs, outputs in (
        ("swa", {"images", "class_weights"},
         {"logits", "map", "features", "sensitivity"}),
        ("ewa", {"images"}, {"logits", "map", "features"})):
      specs = signatures(read_model(
          helpers.converted("block", "int8", method)))
      self.assertEqual(set(specs["explain"].inputs), inputs)
      self.assertEqual(set(specs["explain"].outputs), outputs)
    specs = signatures(read_model(
        helpers.converted("gap", "float32", head="softmax")))
    for name in ("predict", "explain"):
      self.assertContainsSubset(
          {"logits", "predictions"}, specs[name].outputs)

  def test_the_map_is_made_of_features_and_sensitivity(self):
    for content in (helpers.converted("block", "int8"),
                    helpers.converted("block", "int8", road="whole")):
      spec = signatures(read_model(content))["explain"].outputs["features"]
      for row in call(content, [[0, 1, 0]] * 4, helpers.images(4)):
        by_hand = np.maximum(
            (spec.decode(row["features"]) * row["sensitivity"]).sum(-1), 0)
        np.testing.assert_allclose(
            row["map"], by_hand, 1e-4, 1e-5 * by_hand.max())


class RoadsTest(parameterized.TestCase):

  @parameterized.product(
      road=("tail", "whole"), runtime=helpers.LITERT_RUNTIMES)
  def test_logits_are_those_of_predict(self, road, runtime):
    self.check_logits("int8", road, runtime)

  @parameterized.product(
      mode=helpers.MODES, road=("tail", "whole"),
      runtime=helpers.LITERT_RUNTIMES)
  @pytest.mark.slow("files")
  def test_logits_are_those_of_predict_in_every_mode(
      self, mode, road, runtime):
    self.check_logits(mode, road, runtime)

  def check_logits(self, mode, road, runtime):
    content = helpers.converted("block", mode, road=road)
    runner = kap.export.Interpreter(content, runtime=runtime)
    maps, logits = runner.explain(helpers.images(), 1)
    np.testing.assert_array_equal(logits, runner.predict(helpers.images()))
    want = kap.attribution.grad_cam(
        helpers.net("block"), helpers.images(), 1, helpers.LAYER)
    # Float32 rounding, 11 bits of weights, or steps of 8 bits in the other
    # modes, of which .9990 was measured.
    self.assertGreater(
        helpers.cosines(maps, want).min(),
        {"float32": 1 - 1e-7, "float16": 0.99999}.get(mode, 0.998))

  def test_past_the_layer(self):
    content = convert(bypassed())
    runner = kap.export.Interpreter(content)
    self.assertEqual(runner.metadata["road"], "whole")
    self.assertRegex(
        runner.metadata["reason"], "reaches the median cosine 0.99; tail with "
        "int8 weights: something reaches the logits past the layer; the map is "
        "that of the same weights in floats$")
    maps, logits = runner.explain(helpers.images(), [0, 1] * 4)
    want = kap.attribution.grad_cam(
        bypassed(), helpers.images(), [0, 1] * 4, helpers.LAYER)
    cosines = kap.evaluation.agreement(want, maps)["cosine"]
    # Steps of 8 bits in the weights alone; the map is computed in floats.
    self.assertGreater(np.nanmedian(cosines), 0.995)
    np.testing.assert_array_equal(logits, runner.predict(helpers.images()))
    with self.assertRaisesRegex(
        ValueError, "road 'tail' does not lead to the map of layer 'act': "
        "something reaches the logits.*road='whole'"):
      convert(bypassed(), road="tail")

  @parameterized.parameters(
      ([0.999], "tail", "int8", 0.999, "reaches the median cosine 0.99"),
      # Reached, but with nothing to spare.
      ([0.991, 0.996], "whole", "int8", 0.996, "tail with int8 weights: 0.99"),
      ([0.5, 0.9, 0.998], "whole", "float16", 0.998,
       "reaches the median cosine 0.99; tail with int8 weights: 0.5000; whole "
       "with int8 weights: 0.9000"))
  def test_the_first_that_is_near_enough(
      self, cosines, road, weights, cosine, reason):
    content = file_at(cosines)
    metadata = kap.export.Interpreter(content).metadata
    self.assertEqual(
        (metadata["road"], metadata["weights"], metadata["median_cosine"]),
        (road, weights, cosine))
    self.assertIn(reason, metadata["reason"])

  def test_none_is_near_enough(self):
    with self.assertWarnsRegex(
        UserWarning, "median cosine of 0.7000.*0.99 is"):
      content = file_at([0.5, 0.7, 0.6, 0.4])
    metadata = kap.export.Interpreter(content).metadata
    self.assertEqual((metadata["road"], metadata["weights"]), ("whole", "int8"))
    self.assertIn("the best, short of", metadata["reason"])

  def test_without_images(self):
    content = helpers.converted("block", "float32")
    metadata = kap.export.Interpreter(content).metadata
    self.assertEqual((metadata["road"], metadata["median_cosine"],
                      metadata["measured_on"]), ("tail", None, 0))
    self.assertIn("not measured", metadata["reason"])

  def test_maps_that_are_all_zero(self):
    model = tiny.conv_net(size=helpers.SIZE)
    model.get_layer("logits").kernel.assign(
        -np.abs(model.get_layer("logits").kernel))
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      content = convert(model, "float32")
    metadata = kap.export.Interpreter(content).metadata
    self.assertIsNone(metadata["median_cosine"])
    self.assertIn("all zero", metadata["reason"])

  def test_the_figure_is_that_of_the_representative_images(self):
    content = helpers.converted("block", "int8")
    model, images = helpers.net("block"), helpers.calibration()
    top = model.predict(images, verbose=0).argmax(1)
    maps, _ = kap.export.Interpreter(content).explain(images, top)
    cosines = helpers.cosines(
        maps, kap.attribution.grad_cam(model, images, top, helpers.LAYER))
    metadata = kap.export.Interpreter(content).metadata
    # The file keeps six decimals of it.
    self.assertAlmostEqual(
        metadata["median_cosine"], np.median(cosines), places=5)
    self.assertEqual(metadata["measured_on"], 32)

  def test_asked_for(self):
    metadata = kap.export.Interpreter(
        helpers.converted("block", "int8", road="whole")).metadata
    self.assertIn("road='whole' was asked for", metadata["reason"])
    content = helpers.converted("gap", "int8", road="features")
    self.assertLen(helpers.operators(content), 1)


class SharingTest(parameterized.TestCase):

  @parameterized.parameters("float16", "int8")
  def test_the_backward_pass_reads_the_forward_weights(self, mode):
    self.check_backward_pass(mode)

  @pytest.mark.slow("files")
  def test_the_backward_pass_reads_the_forward_weights_in_floats(self):
    self.check_backward_pass("float32")

  def check_backward_pass(self, mode):
    model = read_model(_wide_file(mode, "tail"))
    large = [[tensor.buffer for tensor in graph.tensors
              if np.prod(tensor.shape) in (64 * 40, 64 * 64) and (
                  model.buffers[tensor.buffer].data is not None)]
             for graph in model.subgraphs]
    self.assertLen(set(large[0]), 2)
    self.assertEqual(set(large[0]), set(large[1]))

  def test_the_whole_model_again_reads_them_too(self):
    self.check_whole_model("int8")

  @pytest.mark.slow("files")
  def test_the_whole_model_again_reads_them_in_floats(self):
    self.check_whole_model("float32")

  def check_whole_model(self, mode):
    model = read_model(_wide_file(mode, "whole"))
    once = sum(len(model.buffers[i].data) for i in {
        tensor.buffer for tensor in model.subgraphs[0].tensors}
               if model.buffers[i].data is not None)
    total = sum(len(buffer.data) for buffer in model.buffers
                if buffer.data is not None)
    self.assertLess(total, 1.5 * once)

  def test_forward_dequantizers_keep_to_forward_operators(self):
    self.check_dequantizers("tail")

  @pytest.mark.slow("files")
  def test_forward_dequantizers_keep_to_those_beside_the_whole_model(self):
    self.check_dequantizers("whole")

  def check_dequantizers(self, road):
    # XNNPACK takes float16 weights for constants only where it runs all that
    # reads them: one reader more, and explain's logits would be another
    # kernel's.
    model = read_model(_wide_file("float16", road))
    predict, explain = model.subgraphs
    readers = [
        [sum(int(operator.outputs[0]) in other.inputs
             for other in graph.operators)
         for operator in graph.operators[:len(predict.operators)]
         if operator_name(model, operator) == "DEQUANTIZE"]
        for graph in (predict, explain)]
    self.assertNotEmpty(readers[0])
    self.assertEqual(*readers)

  def test_kinds_of_weights(self):
    with self.assertRaisesRegex(
        ValueError, "weights must be one of .*'int8'.*; got 'int4'"):
      store_weights(None, None, [], "int4")


@functools.cache
def _wide_net() -> keras.Model:
  """Has a head of 64 x 40 and a convolution by one pixel of 64 x 64."""
  layers = keras.layers
  images = keras.Input((8, 8, 2))
  x = layers.Conv2D(64, 3, activation="relu", name=helpers.LAYER)(images)
  x = layers.Conv2D(64, 1, activation="relu")(x)
  x = layers.GlobalAveragePooling2D()(x)
  return tiny.shake(keras.Model(images, layers.Dense(40)(x)))


@shared
def _wide_file(mode: str, road: str) -> bytes:
  return convert(_wide_net(), mode, road)


if __name__ == "__main__":
  absltest.main()
