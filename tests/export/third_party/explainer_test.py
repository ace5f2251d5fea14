"""Files of somebody else's, explained: roads and class scores."""

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.export.third_party.explainer import explainer
from tests import export_helpers as helpers
from tests import foreign_files, tiny
from tests.foreign_files import opened

# Float32 sums of XNNPACK's in another order than TensorFlow's.
FLOAT32 = 1e-5
# Int8 steps of features and weights; the first test measured .9988 at worst.
LEAST_COSINE = 0.995


class RoadsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", "head", "float32"), ("gap", "head", "int8"),
      ("flatten", "head", "int8"), ("block", "teacher's tail", "float32"),
      ("block", "teacher's tail", "int8"),
      ("depthwise", "teacher's tail", "int8"))
  def test_maps_are_those_of_grad_cam(self, tail, road, mode):
    images, model = helpers.images(), helpers.net(tail)
    targets = np.arange(8) % 3
    file = opened(tail, mode)
    self.assertEqual((file.road, file.method), (road, "swa"))
    self.assertIn("matched by name and numbers, relative error", file.source)
    maps, logits = file.explain(images, targets)
    want = grad_cam(model, images, targets, "act")
    exact = mode == "float32"
    # Float32 sums in another order; or int8 steps of the logits.
    np.testing.assert_allclose(
        logits, model(images), atol=1e-5 if exact else 0.1)
    # Measured of int8: .9988 at worst.
    alive = want.any((1, 2))
    self.assertGreater(
        helpers.cosines(maps, want)[alive].min(), 1 - 1e-6 if exact else 0.995)
    # The same of maps: int8 steps of features and weights.
    self.assertLess(
        tiny.relative_error(maps, want), 1e-5 if exact else 0.05)

  @parameterized.parameters("dynamic", "int16x8")
  def test_other_types_of_number(self, mode):
    self.check_type(mode)

  @parameterized.parameters("float16", "uint8")
  @pytest.mark.slow("files")
  def test_the_rest_of_the_types_of_number(self, mode):
    self.check_type(mode)

  def check_type(self, mode):
    images = helpers.images()
    maps, _ = opened("gap", mode).explain(images, 1)
    want = grad_cam(helpers.net("gap"), images, 1, "act")
    # Rounding of weights, or of features too, to 16 or 8 bits.
    self.assertGreater(helpers.cosines(maps, want).min(), 0.998)

  @parameterized.parameters(
      ("ewa", "xnnpack"), ("swa", "builtin"), ("swa", "reference"))
  def test_methods_and_runtimes(self, method, runtime):
    images = helpers.images()
    maps, _ = opened("block", "int8", method=method, runtime=runtime).explain(
        images, 0)
    want = (grad_cam(helpers.net("block"), images, 0, "act")
            if method == "swa" else
            equal_weighted(helpers.net("block"), images, layer="act"))
    self.assertGreater(helpers.cosines(maps, want).min(), LEAST_COSINE)

  @helpers.needs_tflm
  @pytest.mark.slow("files")
  def test_tflite_micro(self):
    images = helpers.images(3)
    micro, reference = (opened("gap", "int8", runtime=runtime).explain(images)
                        for runtime in ("tflm", "reference"))
    # Both hold the same integers; only float32 sums behind them may differ.
    np.testing.assert_allclose(micro.maps, reference.maps, rtol=1e-5, atol=1e-6)

  def test_no_name_and_any_order(self):
    self.check_no_name("int8")

  @pytest.mark.slow("files")
  def test_no_name_and_any_order_in_floats(self):
    self.check_no_name("float32")

  def check_no_name(self, mode):
    images = helpers.images()
    content = foreign_files.converted("block", mode)
    want = opened("block", mode).explain(images, 1).maps
    for changed in (foreign_files.renamed(content),
                    foreign_files.shuffled(content)):
      file = opened("block", content=changed)
      np.testing.assert_array_equal(file.explain(images, 1).maps, want)
    self.assertIn("matched by numbers", opened(
        "block", content=foreign_files.renamed(content)).source)

  def test_several_outputs(self):
    model = helpers.net("gap")
    wide = keras.Model(model.input, [
        model.get_layer("act").output, model.output,
        model.get_layer("pool").output])
    images = helpers.images()
    content = foreign_files.convert(wide, "int8")
    got = opened(content=content).explain(images, 1)
    want = opened("gap", "int8").explain(images, 1)
    # The same layer of the same ranges: at most a stray int8 step.
    self.assertGreater(helpers.cosines(got.maps, want.maps).min(), 0.9999)
    # Int8 steps of the logits.
    np.testing.assert_allclose(got.logits, want.logits, atol=0.05)

  @parameterized.parameters(None, 4)
  def test_any_declared_batch(self, batch):
    images = helpers.images(7)
    content = foreign_files.converted("flatten", batch=batch)
    got = opened("flatten", content=content).explain(images, 2)
    np.testing.assert_allclose(
        got.maps, grad_cam(helpers.net("flatten"), images, 2, "act"),
        atol=FLOAT32)

  def test_the_teacher_is_left_as_it_came(self):
    model = tiny.conv_net(tail="block", size=helpers.SIZE, width=helpers.WIDTH)
    before = model.get_weights()
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    opened("block", net=model).explain(helpers.images(2))
    self.assertTrue(tiny.weights_equal(model.get_weights(), before))
    self.assertEqual(
        nodes, [len(layer.inbound_nodes) for layer in model.layers])


class ScoresTest(parameterized.TestCase):

  @parameterized.parameters("float32", "int8")
  def test_predictions_are_the_files_own(self, mode):
    self.check_predictions(mode)

  @parameterized.parameters("uint8", "int16x8")
  @pytest.mark.slow("files")
  def test_predictions_are_the_files_own_in_other_integers(self, mode):
    self.check_predictions(mode)

  def check_predictions(self, mode):
    images = helpers.images()
    content = foreign_files.converted("block", mode, head="softmax")
    file = opened(content=content, net=helpers.net("block", head="softmax"))
    for runtime in helpers.LITERT_RUNTIMES:
      np.testing.assert_array_equal(
          explainer(content, runtime=runtime).predict(images),
          Interpreter(content, runtime=runtime).predict(images))
    logits = file.predict(images, logits=True)
    # The softmax of an int8 file has steps of 1/256.
    np.testing.assert_allclose(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        file.predict(images), atol=0.01)
    np.testing.assert_array_equal(logits, file.explain(images).logits)
    self.assertEqual(file.classes, 3)

  @parameterized.parameters((True, "int8"), (False, "float32"))
  def test_one_class_more(self, first, mode):
    model, images = helpers.net("gap"), helpers.images()
    content = foreign_files.convert(
        foreign_files.with_background(model, first), mode)
    file = opened(content=content)
    self.assertIn("classes 1..3 of 4" if first else "classes 0..2 of 4",
                  file.source)
    maps, logits = file.explain(images, np.arange(8) % 3)
    exact = mode == "float32"
    # Float32 sums; or four steps of .011, two were measured. The class beside
    # it is off by far more.
    np.testing.assert_allclose(
        logits, model(images), atol=FLOAT32 if exact else 0.04)
    want = grad_cam(model, images, np.arange(8) % 3, "act")
    # Measured of int8: .99985 at worst.
    self.assertGreater(
        helpers.cosines(maps, want)[want.any((1, 2))].min(),
        1 - 1e-6 if exact else 0.9995)
    self.assertEqual(file.predict(images).shape, (8, 3))
    with self.assertRaisesRegex(ValueError, "0..2"):
      file.explain(images, 3)
    with self.assertRaisesRegex(ValueError, "its classes in another order"):
      opened(content=content, class_offset=int(not first))

  def test_other_numbers_of_classes(self):
    for classes in (2, 5):
      content = foreign_files.converted(classes=classes)
      with self.assertRaisesRegex(
          ValueError, "outputs that could be its class scores for 3 classes"):
        opened(content=content)
    with self.assertRaisesRegex(ValueError, "class_offset"):
      opened(class_offset=1)
    with self.assertRaisesRegex(ValueError, "class_offset needs a teacher"):
      explainer(foreign_files.converted(), class_offset=1)

  def test_classes_in_another_order(self):
    model = tiny.copy_of(helpers.net("gap", classes=5))
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights(
        [np.roll(kernel, 2, 1), np.roll(bias, 2)])
    with self.assertRaisesRegex(ValueError, "its classes in another order"):
      opened(content=foreign_files.convert(model), net=helpers.net(
          "gap", classes=5))


class AloneTest(parameterized.TestCase):

  @parameterized.parameters("gap", "flatten", "block")
  def test_the_last_features_and_the_files_own_head(self, tail):
    images = helpers.images()
    file = explainer(foreign_files.converted(tail, "int8"))
    layer = {"block": "act2"}.get(tail, "act")
    self.assertEqual(file.road, "head")
    self.assertIn("the last before the head", file.source)
    want = grad_cam(helpers.net(tail), images, 1, layer)
    maps = file.explain(images, 1).maps
    alive = want.any((1, 2))
    self.assertGreater(helpers.cosines(maps, want)[alive].min(), LEAST_COSINE)

  def test_a_black_box_where_there_is_no_head_to_read(self):
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(inputs)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(6, "tanh")(x)
    model = tiny.shake(keras.Model(inputs, keras.layers.Dense(3)(x)))
    content, images = foreign_files.convert(model), helpers.images(3)
    file = explainer(content)
    self.assertEqual((file.road, file.method), ("black box", "occlusion"))
    self.assertIn("black box (occlusion)", file.source)
    maps, logits = file.explain(images, 1)
    want = kap.attribution.occlusion(
        lambda batch: model(batch).numpy(), images, 1)
    np.testing.assert_allclose(maps, np.maximum(want, 0), atol=FLOAT32)
    np.testing.assert_allclose(logits, model(images), atol=FLOAT32)

  def test_black_boxes_by_name(self):
    images = helpers.images(2)
    for name in ("occlusion", "rise"):
      file = opened("gap", black_box=name)
      self.assertEqual((file.road, file.method), ("black box", name))
      self.assertEqual(file.explain(images).maps.shape, (2, 8, 8))
      self.assertIsNone(file.features)
    with self.assertRaisesRegex(ValueError, "black_box must be one of.*'lime'"):
      opened(black_box="lime")

  def test_inputs_that_are_no_pictures(self):
    inputs = keras.Input((5,))
    model = tiny.shake(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    with self.assertRaisesRegex(ValueError, r"must take pictures.*\[5\]"):
      explainer(foreign_files.convert(model))


class ErrorsTest(parameterized.TestCase):

  def test_a_layer_that_was_fused_away(self):
    with self.assertRaisesRegex(
        ValueError, "layer 'conv' has no tensor.*that the file holds is 'act'"):
      opened("block", layer="conv")

  def test_arguments_that_belong_together(self):
    content, model = foreign_files.converted(), helpers.net("gap")
    with self.assertRaisesRegex(ValueError, "given together"):
      explainer(content, teacher=model, wcam=kap.WCAM("act"))
    with self.assertRaisesRegex(ValueError, "wcam must say"):
      explainer(content, teacher=model, images=helpers.images())
    with self.assertRaisesRegex(TypeError, "WCAM"):
      explainer(content, wcam="act")

  def test_images(self):
    file, images = opened(), helpers.images(2)
    for broken in (np.nan, np.inf):
      images[0, 0, 0, 0] = broken
      with self.assertRaisesRegex(ValueError, "must be finite"):
        file.explain(images)
      with self.assertRaisesRegex(ValueError, "must be finite"):
        explainer(foreign_files.converted(), teacher=helpers.net("gap"),
                  wcam=kap.WCAM("act"), images=images)
    with self.assertRaisesRegex(ValueError, "must have shape"):
      file.predict(helpers.images(2)[:, :4])

  def test_a_file_that_overflows(self):
    model = tiny.copy_of(helpers.net("gap"))
    model.get_layer("bn").gamma.assign(1e38 * model.get_layer("bn").gamma)
    content = foreign_files.convert(model)
    file = explainer(content)
    with self.assertRaisesRegex(
        ValueError, "computes NaN or infinity from these images, in tensor"):
      file.explain(100 * helpers.images(2))
    with self.assertRaisesRegex(ValueError, "tflite_model is not|no tensor"):
      opened(content=content)

  def test_one_score_against_two(self):
    with self.assertRaisesRegex(ValueError, "2 classes and the teacher 1"):
      opened(content=foreign_files.converted(classes=2),
             net=helpers.net(classes=1, head="sigmoid"))

  def test_a_damaged_file(self):
    content = foreign_files.converted()
    with self.assertRaisesRegex(ValueError, "tflite_model"):
      explainer(content[:len(content) // 2])


if __name__ == "__main__":
  absltest.main()
