"""Tests of convert.py: every mode, both roads, wrapped models, and errors."""

import keras as keras3
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.tflite.schema import (
    constant,
    read_model,
    signatures,
)
from keras_attr_preserve.models.held_weights import strip
from keras_attr_preserve.models.layers import is_quantize_aware
from tests import export_helpers as helpers
from tests import tiny

# Of the file's map with the Keras model's, at the mean and at worst over eight
# images; measured at worst 1 - 1e-11, .9999999, .9998, .9994 and .99999.
COSINES = {"float32": (1 - 1e-7, 1 - 1e-7), "float16": (0.99999, 0.99999),
           "dynamic": (0.999, 0.998), "int8": (0.999, 0.998),
           "int16x8": (0.9999, 0.9998)}
# Of the logits, as a share of the largest; measured 2e-7, 3e-4, 5e-3, 9e-3.
LOGIT_ERRORS = {"float32": 1e-5, "float16": 2e-3, "dynamic": 0.03, "int8": 0.03,
                "int16x8": 0.02}
INTEGERS = {"int8": np.int8, "int16x8": np.int16}
# For each target the tail, the method and the road that is taken.
ROADS = (("phone", "gap", "swa", "tail"), ("phone", "block", "swa", "tail"),
         ("phone", "block", "ewa", "tail"),
         ("microcontroller", "gap", "swa", "features"),
         ("microcontroller", "block", "swa", "gradient"),
         ("microcontroller", "block", "ewa", "features"))
MICRO_MODES = ("float32", "int8", "int16x8")


def cases():
  """Every road in the modes that its target runs; EWA in the two extremes."""
  for road in ROADS:
    target, _, method, name = road
    modes = ("float32", "int8") if method == "ewa" else (
        helpers.MODES if target == "phone" else MICRO_MODES)
    yield from ((mode, *road) for mode in modes
                if (mode, name) != ("int16x8", "gradient"))


def is_quick(case) -> bool:
  """Chooses every mode for phones once, and int8 on every road."""
  mode, target, tail, method, _ = case
  return mode == "int8" or (target, tail, method) == (
      "phone", "block", "swa") or (mode, target, tail) == (
          "int16x8", "microcontroller", "gap")


QUICK = tuple(filter(is_quick, cases()))


def maps_of(net, images, method="swa"):
  """Maps of each image's top class, by the library's own methods for Keras."""
  if method == "ewa":
    return kap.attribution.equal_weighted(net, images, layer=helpers.LAYER)
  return kap.attribution.grad_cam(net, images, layer=helpers.LAYER)


def weight_types(content):
  """Names the number types of the weights in a file."""
  model = read_model(content)
  names = {0: "float32", 1: "float16", 9: "int8"}
  return {names.get(tensor.type) for graph in model.subgraphs
          for tensor in graph.tensors
          if len(tensor.shape) == 4 and np.prod(tensor.shape) > 100
          and constant(model, tensor) is not None}


class ModesAndRoadsTest(parameterized.TestCase):

  @parameterized.parameters(*QUICK)
  def test_maps_and_logits(self, *case):
    self.check_maps_and_logits(*case)

  def check_maps_and_logits(self, mode, target, tail, method, road):
    content = helpers.converted(tail, mode, method, target)
    model, images = helpers.net(tail), helpers.images()
    interpreter = kap.export.Interpreter(content)
    facts = {"layer": helpers.LAYER, "method": method, "mode": mode,
             "target": target, "road": road}
    self.assertEqual({**interpreter.metadata, **facts}, interpreter.metadata)
    self.assertLen(
        helpers.operators(content), 2 if target == "phone" else 1)

    logits = model.predict(images, verbose=0)
    got_maps, got_logits = interpreter.explain(images, logits.argmax(1))
    cosines = helpers.cosines(got_maps, maps_of(model, images, method))
    mean, worst = COSINES[mode]
    self.assertGreater(cosines.mean(), mean)
    self.assertGreater(cosines.min(), worst)
    np.testing.assert_allclose(
        got_logits, logits, 0, LOGIT_ERRORS[mode] * np.abs(logits).max())
    # predict and explain give the same logits, to the last bit.
    np.testing.assert_array_equal(interpreter.predict(images), got_logits)

  @parameterized.parameters(*QUICK)
  def test_number_types(self, *case):
    self.check_number_types(*case)

  def check_number_types(self, mode, target, tail, method, road):
    content = helpers.converted(tail, mode, method, target)
    whole = INTEGERS.get(mode, np.float32)
    for name, signature in signatures(read_model(content)).items():
      types = {key: spec.dtype for key, spec in (
          *signature.inputs.items(), *signature.outputs.items())}
      floats = {"class_weights", "map", "sensitivity"} & types.keys() if (
          road == "tail") else set()
      self.assertEqual(types, {key: np.dtype(
          np.float32 if key in floats else whole) for key in types}, name)
    self.assertEqual(
        weight_types(content),
        {"float32": {"float32"}, "float16": {"float16"}, "int8": {"int8"},
         "int16x8": {"int8"},
         # The converter leaves kernels of less than 1024 weights as they are.
         "dynamic": {"float32", "int8"} if tail == "block" else {"float32"},
        }[mode])

  @parameterized.parameters(*QUICK)
  def test_builtin_operators_only(self, *case):
    self.check_operators(*case)

  def check_operators(self, mode, target, tail, method, road):
    del road
    for names in helpers.operators(
        helpers.converted(tail, mode, method, target)):
      self.assertNoCommonElements(names, {"CUSTOM", "SUM", "TILE", "ONE_HOT"})

  @parameterized.parameters(*(case for case in cases() if not is_quick(case)))
  @pytest.mark.slow("files")
  def test_the_rest_of_the_modes_and_roads(self, *case):
    self.check_maps_and_logits(*case)
    self.check_number_types(*case)
    self.check_operators(*case)

  def test_the_features_road_costs_no_operator(self):
    self.check_no_operator("int8")

  @pytest.mark.slow("files")
  def test_the_features_road_costs_no_operator_in_floats(self):
    self.check_no_operator("float32")

  def check_no_operator(self, mode):
    bare, = helpers.operators(helpers.bare("gap", mode))
    annotated, = helpers.operators(
        helpers.converted("gap", mode, target="microcontroller"))
    self.assertEqual(annotated, bare)

  @parameterized.parameters("float32", "int8")
  def test_predict_pays_nothing(self, mode):
    self.check_predict(mode, "block", "swa")

  @parameterized.parameters(("float32", "gap", "swa"), ("int8", "gap", "ewa"))
  @pytest.mark.slow("files")
  def test_predict_pays_nothing_of_a_linear_tail(self, mode, tail, method):
    self.check_predict(mode, tail, method)

  def check_predict(self, mode, tail, method):
    content = helpers.converted(tail, mode, method)
    plain = helpers.bare(tail, mode)
    bare, = helpers.operators(plain)
    predict = signatures(read_model(content))["predict"]
    self.assertEqual(set(predict.inputs), {"images"})
    self.assertEqual(set(predict.outputs), {"logits"})
    self.assertEqual(predict.subgraph, 0)  # Callers without a name run it.
    self.assertEqual(helpers.operators(content)[predict.subgraph], bare)
    np.testing.assert_array_equal(
        *(kap.export.Interpreter(file).predict(helpers.images())
          for file in (content, plain)))

  def test_a_microcontroller_s_file_has_one_subgraph(self):
    self.check_subgraph("int8")

  @pytest.mark.slow("files")
  def test_a_microcontroller_s_file_of_floats_has_one_subgraph(self):
    self.check_subgraph("float32")

  def check_subgraph(self, mode):
    content = helpers.converted("block", mode, target="microcontroller")
    self.assertLen(helpers.operators(content), 1)
    specs = signatures(read_model(content))
    self.assertEqual(set(specs), {"predict", "explain"})
    self.assertEqual(set(specs["predict"].outputs), {"logits"})
    first, second = (kap.export.Interpreter(first).explain(
        helpers.images(), 1) for first in (
            content, helpers.converted("block", mode)))
    # The ranges of two conversions: a step, at most.
    np.testing.assert_allclose(
        first.logits, second.logits, 0, 0.01 * np.abs(second.logits).max())
    # A backward pass in integers against one in floats.
    np.testing.assert_allclose(
        first.maps, second.maps, 0, 0.08 * second.maps.max())

  def test_the_model_is_left_as_it_came(self):
    model = tiny.conv_net(tail="block", size=helpers.SIZE)
    model.get_layer("bn").trainable = False
    model.compile("sgd", "mse", run_eagerly=True)
    before = model.get_weights()
    trainable = [weight.name for weight in model.trainable_weights]
    layers, optimizer = list(model.layers), model.optimizer
    nodes = [len(layer.inbound_nodes) for layer in layers]
    outputs = model.predict(helpers.images(), verbose=0)
    kap.export.convert(model, helpers.wcam(), mode="int8",
                       representative_images=helpers.calibration())
    self.assertTrue(tiny.weights_equal(model.get_weights(), before))
    self.assertEqual(
        [weight.name for weight in model.trainable_weights], trainable)
    self.assertEqual(
        [id(layer) for layer in model.layers], [id(x) for x in layers])
    self.assertEqual([len(layer.inbound_nodes) for layer in layers], nodes)
    self.assertIs(model.optimizer, optimizer)
    np.testing.assert_array_equal(
        model.predict(helpers.images(), verbose=0), outputs)
    model.fit(helpers.images(), np.zeros([8, 3]), verbose=0)

  def test_the_first_student_layer_is_explained(self):
    wcam = kap.WCAM(["teachers", "other"], student_layer=["act2", "act"])
    content = kap.export.convert(
        helpers.net("block"), wcam, mode="float32")
    interpreter = kap.export.Interpreter(content)
    self.assertEqual(interpreter.metadata["layer"], "act2")
    want = kap.attribution.grad_cam(
        helpers.net("block"), helpers.images(), 2, "act2")
    np.testing.assert_allclose(
        interpreter.explain(helpers.images(), 2).maps, want, 1e-4, 1e-6)

  def test_batch_size_one_is_no_matter_of_the_model_s(self):
    self.check_batch_size("block")

  @pytest.mark.slow("files")
  def test_batch_size_one_is_no_matter_of_a_linear_tail_s(self):
    self.check_batch_size("gap")

  def check_batch_size(self, tail):
    model = helpers.net(tail)
    images = keras.Input(batch_shape=(4, helpers.SIZE, helpers.SIZE, 2))
    fixed = keras.models.clone_model(model, images)
    fixed.set_weights(model.get_weights())
    content = kap.export.convert(fixed, helpers.wcam(), mode="float32")
    np.testing.assert_allclose(
        kap.export.Interpreter(content).predict(helpers.images(3)),
        model.predict(helpers.images(3), verbose=0), 1e-5, 1e-5)

  def test_a_class_without_weights(self):
    self.check_class_without_weights(quantize_aware=True)

  @pytest.mark.slow("files")
  def test_a_class_without_weights_in_floats(self):
    self.check_class_without_weights(quantize_aware=False)

  def check_class_without_weights(self, quantize_aware):
    # As heavy pruning leaves it: nothing speaks for class 0.
    model = tiny.conv_net(size=helpers.SIZE)
    kernel = model.get_layer("logits").kernel
    kernel.assign(kernel * np.float32([0, 1, 1]))
    content = kap.export.convert(
        tiny.quantize(model) if quantize_aware else model, helpers.wcam(),
        mode="int8" if quantize_aware else "float32")
    interpreter = kap.export.Interpreter(content)
    self.assertEqual(interpreter.explain(helpers.images(), 0).maps.max(), 0)


class QuantizeAwareTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", "phone"), ("gap", "microcontroller"),
      ("block", "microcontroller"))
  def test_int8_in_and_out(self, tail, target):
    self.check_int8(tail, False, target)

  @parameterized.product(
      tail=("gap", "block", "depthwise"), sparse=(False, True),
      target=("phone", "microcontroller"))
  @pytest.mark.slow("files")
  def test_int8_in_and_out_of_the_rest(self, tail, sparse, target):
    self.check_int8(tail, sparse, target)

  def check_int8(self, tail, sparse, target):
    student = helpers.quantize_aware(tail, sparse)
    self.assertTrue(is_quantize_aware(student))
    gradient = tail != "gap" and target == "microcontroller"
    content = helpers.converted_quantize_aware(
        tail, sparse, target, calibrated=gradient)
    for signature in signatures(read_model(content)).values():
      for name in ("images", "logits", "features"):
        spec = {**signature.inputs, **signature.outputs}.get(name)
        if spec:
          self.assertEqual(spec.dtype, np.int8)
    for names in helpers.operators(content):
      self.assertNotIn("CUSTOM", names)

    images = helpers.images()
    logits = student.predict(images, verbose=0)
    interpreter = kap.export.Interpreter(content)
    maps, got = interpreter.explain(images, logits.argmax(1))
    # The training's own ranges: equal numbers but for rounding, 1 step or 2.
    step = interpreter.signatures["predict"].outputs["logits"].scale
    self.assertLessEqual(np.abs(got - logits).max(), 2.01 * step)
    # Measured at worst: .99995 (tail), .9999 (features), .9976 (gradient).
    cosines = helpers.cosines(maps, maps_of(student, images))
    self.assertGreater(cosines.min(), 0.9998 if target == "phone" else 0.995)

  def test_representative_images_change_no_output(self):
    images = helpers.images()
    plain, given = (
        kap.export.Interpreter(
            helpers.converted_quantize_aware(calibrated=calibrated))
        for calibrated in (False, True))
    np.testing.assert_array_equal(
        plain.predict(images), given.predict(images))
    np.testing.assert_array_equal(
        plain.explain(images).maps, given.explain(images).maps)
    for name, spec in plain.signatures["explain"].outputs.items():
      self.assertEqual(spec, given.signatures["explain"].outputs[name])
    # But they tell how near the maps are.
    self.assertIsNone(plain.metadata["median_cosine"])
    self.assertIn("not measured", plain.metadata["reason"])
    # Steps of 8 bits, as in COSINES for int8 at the mean.
    self.assertGreater(given.metadata["median_cosine"], 0.999)

  def test_an_integer_backward_pass_needs_representative_images(self):
    with self.assertRaisesRegex(
        ValueError, "representative_images must be given: what follows layer "
        "'act' is more than pooling and a linear layer"):
      kap.export.convert(
          helpers.quantize_aware("block"), helpers.wcam(), mode="int8",
          target="microcontroller")
    # Not for EWA, which has no backward pass.
    content = kap.export.convert(
        helpers.quantize_aware("block"), helpers.wcam("ewa"), mode="int8",
        target="microcontroller")
    self.assertEqual(kap.export.Interpreter(content).metadata["road"],
                     "features")

  def test_zeros_are_kept_in_the_file(self):
    model = tiny.conv_net(size=helpers.SIZE, width=16)
    student = tiny.prune(model, sparsity=0.75)
    student.compile("sgd", "mse", run_eagerly=True)
    student.fit(helpers.images(), np.zeros([8, 3]), epochs=1, verbose=0,
                callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    stripped = tfmot.sparsity.keras.strip_pruning(student)
    quantized = tiny.quantize_sparse(stripped)
    quantized.compile("sgd", "mse", run_eagerly=True)
    quantized.fit(helpers.images(), np.zeros([8, 3]), epochs=2, verbose=0)
    content = kap.export.convert(
        quantized, helpers.wcam("ewa"), mode="int8")
    # A hundredth below what was pruned; zeros that train leave far fewer.
    self.assertGreaterEqual(kap.export.file_sizes(content)["sparsity"], 0.74)


class PrunedTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.student = tiny.prune(tiny.conv_net(size=helpers.SIZE), 0.5)
    self.student.compile("sgd", "mse", run_eagerly=True)
    self.train()

  def train(self):
    self.student.fit(
        helpers.images(), np.zeros([8, 3]), epochs=1, verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])

  def test_stripped_without_touching_the_caller_s_model(self):
    student, images = self.student, helpers.images()
    kinds = [type(layer).__name__ for layer in student.layers]
    self.assertIn("PruneLowMagnitude", kinds)
    layers = list(student.layers)
    before = student.get_weights()
    steps = tiny.pruning_steps(student)
    trainable = [weight.name for weight in student.trainable_weights]
    want = maps_of(student, images)

    content = kap.export.convert(student, helpers.wcam(), mode="float32")
    self.assertEqual([id(layer) for layer in student.layers],
                     [id(layer) for layer in layers])
    self.assertEqual([type(layer).__name__ for layer in student.layers], kinds)
    self.assertTrue(tiny.weights_equal(student.get_weights(), before))
    self.assertEqual(tiny.pruning_steps(student), steps)
    self.assertEqual(
        [weight.name for weight in student.trainable_weights], trainable)
    np.testing.assert_array_equal(maps_of(student, images), want)

    interpreter = kap.export.Interpreter(content)
    np.testing.assert_allclose(
        interpreter.predict(images), student.predict(images, verbose=0),
        1e-5, 1e-5)
    np.testing.assert_allclose(
        interpreter.explain(images).maps, want, 1e-4, 1e-6)
    # A hundredth below the half that was pruned; weights that wake would show.
    self.assertGreaterEqual(kap.export.file_sizes(content)["sparsity"], 0.49)
    self.assertEqual(interpreter.metadata["layer"], "act")

  def test_training_goes_on_and_the_next_file_shows_it(self):
    content = kap.export.convert(self.student, helpers.wcam(), mode="float32")
    steps = tiny.pruning_steps(self.student)
    before = self.student.predict(helpers.images(), verbose=0)
    self.train()
    self.assertEqual(
        tiny.pruning_steps(self.student), [step + 1 for step in steps])
    later = kap.export.convert(self.student, helpers.wcam(), mode="float32")
    for file, want in (
        (content, before),
        (later, self.student.predict(helpers.images(), verbose=0))):
      np.testing.assert_allclose(
          kap.export.Interpreter(file).predict(helpers.images()), want,
          1e-5, 1e-5)

  def test_strip(self):
    stripped = strip(self.student)
    self.assertIsNot(stripped, self.student)
    self.assertNotIn("PruneLowMagnitude",
                     [type(layer).__name__ for layer in stripped.layers])
    model = helpers.net()
    self.assertIs(strip(model), model)
    self.assertFalse(is_quantize_aware(model))
    self.assertFalse(is_quantize_aware(self.student))


class ClusteredTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    clustering = tfmot.clustering.keras
    self.student = clustering.cluster_weights(
        tiny.conv_net(size=helpers.SIZE), number_of_clusters=4,
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR)

  def kinds(self, net):
    return [type(layer).__name__ for layer in net.layers]

  def test_strip(self):
    stripped = strip(self.student)
    self.assertNotIn("ClusterWeights", self.kinds(stripped))
    self.assertIn("ClusterWeights", self.kinds(self.student))
    # The same weights in the same order of sums, but for float32 rounding.
    np.testing.assert_allclose(
        stripped(helpers.images()), self.student(helpers.images()), 1e-5, 1e-5)

  @pytest.mark.slow("files")
  def test_the_file(self):
    model = self.student
    content = kap.export.convert(model, helpers.wcam(), mode="float32")
    self.assertIn("ClusterWeights", self.kinds(model))
    np.testing.assert_allclose(
        kap.export.Interpreter(content).predict(helpers.images()),
        model.predict(helpers.images(), verbose=0), 1e-5, 1e-5)


class ErrorsTest(parameterized.TestCase):

  def convert(
      self, *, net=None, wcam=None, mode="float32", images=None, **settings):
    return kap.export.convert(
        helpers.net() if net is None else net, wcam or helpers.wcam(),
        mode=mode, representative_images=images, **settings)

  @parameterized.parameters("INT8", "int16", None)
  def test_mode(self, mode):
    with self.assertRaisesRegex(
        ValueError, "mode must be one of .*'float32'.*'int8'.*; got "):
      self.convert(mode=mode)

  def test_wcam(self):
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM"):
      self.convert(wcam="act")

  def test_target(self):
    with self.assertRaisesRegex(
        ValueError, "target must be one of .*'phone', 'microcontroller'.*; got "
        "'watch'"):
      self.convert(target="watch")

  @parameterized.parameters(
      ("phone", "gradient"), ("microcontroller", "tail"), ("phone", None))
  def test_road(self, target, road):
    with self.assertRaisesRegex(
        ValueError, f"road must be one of .*'auto'.* for target '{target}'; "
        f"got {road!r}"):
      self.convert(target=target, road=road)

  @parameterized.parameters("phone", "microcontroller")
  def test_features_that_are_not_enough(self, target):
    with self.assertRaisesRegex(
        ValueError, "road 'features' does not lead to the map of layer 'act'"):
      self.convert(net=helpers.net("block"), target=target, road="features")

  def test_no_backward_pass_for_ewa(self):
    with self.assertRaisesRegex(ValueError, "road 'gradient'.*'ewa'"):
      self.convert(wcam=helpers.wcam("ewa"), target="microcontroller",
                   road="gradient")

  @parameterized.parameters("int8", "int16x8")
  def test_integers_need_representative_images(self, mode):
    with self.assertRaisesRegex(
        ValueError, f"representative_images must be given for mode '{mode}'.*"
        "quantize-aware.*got None"):
      self.convert(mode=mode)

  def test_no_backward_pass_in_16_bits(self):
    with self.assertRaisesRegex(
        ValueError, "mode 'int16x8'.*no comparisons.*target='phone'"):
      self.convert(net=helpers.net("block"), mode="int16x8",
                   images=helpers.calibration(), target="microcontroller")

  def test_int16x8_of_a_quantize_aware_model(self):
    with self.assertRaisesRegex(
        ValueError, "mode 'int16x8' is for models that are not quantize-aware"):
      self.convert(net=helpers.quantize_aware(), mode="int16x8",
                   images=helpers.calibration())

  @parameterized.parameters(
      ((0, 8, 8, 2),), ((8, 8, 2),), ((4, 8, 9, 2),), ((4, 8, 8, 3),))
  def test_shape_of_representative_images(self, shape):
    with self.assertRaisesRegex(
        ValueError, r"representative_images must have shape \[at least 1, 8, "
        r"8, 2\]; got"):
      self.convert(mode="int8", images=np.zeros(shape))

  def test_representative_images_with_nan(self):
    images = helpers.images(3)
    images[1, 0, 0, 0] = np.nan
    with self.assertRaisesRegex(
        ValueError, "representative_images must be finite; 1 of 3"):
      self.convert(mode="int8", images=images)

  def test_representative_images_that_are_no_numbers(self):
    with self.assertRaisesRegex(
        TypeError, "representative_images must be numbers"):
      self.convert(mode="int8", images=["a.png"])

  def test_keras_3(self):
    images = keras3.Input((8, 8, 2))
    x = keras3.layers.Conv2D(4, 3, name="act")(images)
    x = keras3.layers.GlobalAveragePooling2D()(x)
    with self.assertRaisesRegex(
        TypeError, "model must be a tf_keras model.*Keras 3 model"):
      self.convert(net=keras3.Model(images, keras3.layers.Dense(3)(x)))

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      self.convert(net="net.h5")

  def test_layer(self):
    with self.assertRaisesRegex(ValueError, "layer 'relu9'.*conv, bn, act"):
      self.convert(wcam=kap.WCAM("relu9"))
    with self.assertRaisesRegex(ValueError, "layer 'pool'.* no spatial map"):
      self.convert(wcam=kap.WCAM("pool"))


class TailsThatTFLiteCannotExpressTest(parameterized.TestCase):
  """Said when converting, in one sentence, not found out on the device."""

  def net(self, *tail):
    x = images = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="act")(x)
    for layer in tail:
      x = layer(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return tiny.shake(keras.Model(images, keras.layers.Dense(3)(x)))

  def test_gelu(self):
    # Erf in TensorFlow 2.16, Erfc in 2.21.
    model = self.net(keras.layers.Conv2D(4, 3, activation="gelu"))
    with self.assertRaisesRegex(
        ValueError, "layer 'act': TFLite cannot express.*Erfc?") as caught:
      kap.export.convert(model, helpers.wcam(), mode="float32")
    # Not the converter's whole listing of the graph.
    self.assertLess(len(str(caught.exception)), 1000)

  @parameterized.parameters("swa", "ewa")
  def test_the_net_itself(self, method):
    # No fault of the attribution's: the bare model does not convert either.
    images = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, activation="gelu")(images)
    x = keras.layers.ReLU(name="act")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, keras.layers.Dense(3)(x))
    with self.assertRaisesRegex(ValueError, "TFLite.*Erfc?") as caught:
      kap.export.convert(model, helpers.wcam(method), mode="float32")
    self.assertLess(len(str(caught.exception)), 1000)

  @parameterized.product(
      policy=("mixed_float16", "mixed_bfloat16", "float64"),
      nested=(False, True))
  def test_types_that_tflite_does_not_take(self, policy, nested):
    keras.mixed_precision.set_global_policy(policy)
    try:
      model = tiny.conv_net(size=helpers.SIZE)
    finally:
      keras.mixed_precision.set_global_policy("float32")
    if nested:
      model = keras.Sequential([model, keras.layers.Reshape((3,))])
    with self.assertRaisesRegex(
        ValueError, f"computes in {policy.removeprefix('mixed_')}, which "
        ".*build it under the policy float32 and set the same weights"):
      kap.export.convert(model, helpers.wcam(), mode="float32")


if __name__ == "__main__":
  absltest.main()
