"""Every public function on every kind of input: the same numbers, or a refusal.

Models here take integers, a dict, images without an axis of channels, or images
with that axis first. Each has a twin that takes float images [height, width,
channels] and computes the same. Each function must return the same for both.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.models.inputs import model_input, shape_input
from tests import tiny

SIZE = 8
COUNT = 12
LAYER = "act2"
TWINS = ("grey", "uint8", "dict", "channels_first")
WCAM = kap.WCAM(LAYER)
_layers = keras.layers


def _tail(features, channels):
  x = _layers.Conv2D(4, 3, name="conv")(features)
  x = _layers.BatchNormalization(name="bn")(x)
  x = _layers.ReLU(name="act")(x)
  x = _layers.Conv2D(4, 3, activation="relu", name=LAYER)(x)
  return _layers.Dense(3, name="scores")(_layers.GlobalAveragePooling2D()(x))


def _net(kind: str, channels: int) -> keras.Model:
  """A model of one kind of input, with weights that depend on nothing else."""
  rescaling = _layers.Rescaling(1 / 100, -1.0, name="rescaling")
  if kind == "sequence":
    images = keras.Input((SIZE, channels))
    x = _layers.Conv1D(4, 3, activation="relu", name="conv")(rescaling(images))
    x = _layers.Dense(3, name="scores")(_layers.GlobalAveragePooling1D()(x))
    return tiny.shake(keras.Model(images, x))
  if kind == "two":
    images = [keras.Input((SIZE, SIZE, channels), name=name) for name in "ab"]
    x = rescaling(_layers.Average()(images))
    return tiny.shake(keras.Model(images, _tail(x, channels)))
  if kind == "grey":
    images = keras.Input((SIZE, SIZE))
    x = _layers.Reshape((SIZE, SIZE, 1))(rescaling(images))
  elif kind == "channels_first":
    images = keras.Input((channels, SIZE, SIZE))
    x = _layers.Permute((2, 3, 1))(rescaling(images))
  else:
    images = keras.Input((SIZE, SIZE, channels), name="image",
                         dtype="uint8" if kind == "uint8" else "float32")
    x = rescaling(images)
  scores = _tail(x, channels)
  if kind == "dict":
    images = {"image": images}
  return tiny.shake(keras.Model(images, scores, name="net"))


class Case:
  """A model of one kind of input, and images of that kind."""

  def __init__(self, kind: str, channels: int, folder: Path):
    self.kind, self.folder = kind, folder
    self.model = _net(kind, channels)
    shape = (COUNT, SIZE, SIZE, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    self.array = {
        "grey": lambda: pixels[..., 0], "uint8": lambda: pixels.astype("uint8"),
        "channels_first": lambda: pixels.transpose(0, 3, 1, 2),
        "sequence": lambda: pixels[:, 0]}.get(kind, lambda: pixels)()
    self.images = {"dict": {"image": pixels}, "two": [pixels, pixels]}.get(
        kind, self.array)
    self.some = {"image": pixels[:3]} if kind == "dict" else (
        [pixels[:3]] * 2 if kind == "two" else self.array[:3])
    self.labels = tiny.labels(COUNT)
    # Which pixels are asked for differs between maps of other sizes.
    self.maps = np.random.default_rng(1).random((3, SIZE, SIZE))

  @functools.cached_property
  def file(self) -> bytes:
    return kap.export.convert(
        self.model, WCAM, mode="int8", representative_images=self.images)

  @functools.cached_property
  def small_file(self) -> bytes:
    return kap.export.convert(
        self.model, WCAM, mode="int8", representative_images=self.images,
        target="microcontroller")

  def quantized(self) -> keras.Model:
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    model = tfmot.quantization.keras.quantize_apply(keras.models.clone_model(
        kap.clone_model(self.model), clone_function=lambda layer: annotate(
            layer) if layer.count_params() else layer))
    kap.calibrate_quantizers(model, self.images)
    return model

  def scores(self, model: keras.Model) -> np.ndarray:
    """What a model that was made of this one says of the images."""
    return model.predict(self.images, verbose=0)

  def fitted(self, *callbacks, model: keras.Model | None = None) -> list[float]:
    """The figures of one step."""
    model = model or kap.clone_model(self.model)
    # One step of size 0: the figures belong to the unchanged weights.
    model.compile(keras.optimizers.SGD(0.0), tiny.cross_entropy())
    logs = model.fit(self.images, self.labels, batch_size=COUNT, verbose=0,
                     shuffle=False, callbacks=[*callbacks]).history
    return [value[0] for _, value in sorted(logs.items())]


def _maps(name: str, **settings) -> Callable[[Case], Any]:
  """A method of `attribution`, given a model."""
  return lambda case: getattr(kap.attribution, name)(
      case.model, case.some, **settings)


def _curves(name: str) -> Callable[[Case], Any]:
  return lambda case: getattr(kap.evaluation, name)(
      case.model, case.some, case.maps)


def _pathway(case):
  way = kap.attribution.select_pathway(case.model, case.some)
  return [*way.units.values(), *way.alive.values()]


def _linearized(case):
  form = kap.attribution.linearize(case.model, case.some)
  return [form.contributions(case.some), form.offset, form.scores]


def _logger(case):
  logger = kap.AgreementLogger(
      case.model, case.images, LAYER, log_dir=case.folder / "logs")
  logger.set_params({"epochs": 1})
  logger.set_model(kap.clone_model(case.model))
  logger.on_train_begin()
  logs = {}
  logger.on_epoch_end(0, logs)
  logger.on_train_end()
  return [*logs.values()]


def _train_step(case):
  student = kap.clone_model(case.model)
  student.compile("sgd", tiny.cross_entropy())
  step = kap.TrainStep(student, case.model, WCAM)
  batch = tf.nest.map_structure(tf.constant, case.images)
  return [step.loss(batch, case.labels, training=False)[0]]


def _compared(case):
  rows = kap.compare_models(
      {"net": case.model, "again": kap.clone_model(case.model),
       "file": case.file}, case.some, ("saliency", "grad_cam", "occlusion"))
  return [row["mean"] for row in rows]


def _microcontroller(case):
  facts = kap.export.microcontroller(
      case.model, WCAM, case.folder / "c", name="net",
      representative_images=case.images, test_images=case.images)
  return [facts["agreement"]["cosine_median"]]


def _verified(case):
  report = kap.export.verify(
      case.file, case.model, WCAM, case.images, judges=("occlusion", "rise"),
      judge_images=2, progress=False)
  report.save(case.folder / "report")
  return [report.summary()["cosine"]["mean"],
          report.summary()["rise_cosine"]["mean"],
          (case.folder / "report" / "worst.png").exists()]


def _foreign(case):
  plain = tf.lite.TFLiteConverter.from_keras_model(
      case.model if case.kind != "uint8" else _net("float", 3)).convert()
  explainer = kap.export.explainer(
      plain, teacher=case.model, wcam=WCAM, images=case.images)
  boxed = kap.export.explainer(plain, black_box="occlusion")
  return [explainer.explain(case.some).maps, boxed.explain(case.some).maps]


def _sparse(case):
  return kap.prune_layers(
      case.model, {"conv": 0.5},
      lambda share: tfmot.sparsity.keras.ConstantSparsity(share, 0))


def _there_and_back(case):
  path = case.folder / "net.keras"
  kap.save_model(case.model, path)
  return case.scores(kap.load_model(path))


def _pruned_by_hand(case):
  model = kap.clone_model(case.model)
  kernel, *rest = model.get_layer("conv").get_weights()
  kernel[0] = 0
  model.get_layer("conv").set_weights([kernel, *rest])
  return model


NOTHING = "takes neither images nor a model nor a file"
A, E, X = "attribution.", "evaluation.", "export."
# What each public name gives of a case, as arrays; or NOTHING.
FUNCTIONS: dict[str, Callable[[Case], Any] | str] = {
    **dict.fromkeys((
        A + "Completeness", A + "Conservation", A + "Linearization",
        A + "Pathway", E + "VOID", E + "Comparison", E + "Curves",
        E + "Report", E + "ShortfallError", E + "agreement", E + "box_masks",
        E + "centre_prior", E + "confidence_interval", E + "localization",
        E + "mask_pairs", E + "mean_average_precision", E + "random_floor",
        X + "Drift", X + "Explanation", X + "LayerDrift",
        X + "SelectiveResult", X + "tflm_installed", "Distillation",
        "IterativePruning", "LayersLeftWhole", "WCAM", "attribution",
        "evaluation", "export",
        "objectives"), NOTHING),
    # Keras 3's own models; from_keras3_test.py has them.
    "from_keras3": NOTHING,
    **{A + name: _maps(name) for name in (
        "cam", "equal_weighted", "excitation_backprop", "full_grad",
        "grad_cam", "grad_cam_plus_plus", "gradient_x_input",
        "guided_backprop", "hires_cam", "layer_cam", "lrp",
        "lrp_conservation", "occlusion", "relative_attributing_propagation",
        "saliency", "score_cam")},
    **{A + name: _maps(name, steps=4) for name in (
        "integrated_gradients", "integrated_gradients_completeness",
        "tf_explain")},
    **{A + name: _maps(name, samples=4) for name in (
        "smooth_grad", "var_grad")},
    A + "rise": _maps("rise", masks=20),
    A + "pathway_gradient": _maps("pathway_gradient", keep=0.5),
    A + "select_pathway": _pathway,
    A + "linearize": _linearized,
    **{E + name: _curves(name) for name in (
        "deletion", "insertion", "road", "sensitivity_n")},
    E + "cascading_randomization": lambda case: [
        *kap.evaluation.cascading_randomization(
            case.model, case.some,
            lambda model, images: kap.attribution.saliency(
                model, images, 0)).values()],
    "AgreementLogger": _logger,
    "Hints": lambda case: case.fitted(kap.PreserveAttribution(
        case.model, None, hints=kap.Hints(LAYER))),
    "PreserveAttribution": lambda case: case.fitted(
        kap.PreserveAttribution(case.model, WCAM)),
    "TrainStep": _train_step,
    "calibrate_quantizers": lambda case: case.scores(case.quantized()),
    "clone_model": lambda case: case.scores(kap.clone_model(case.model)),
    "compare_models": _compared,
    "equalize_kernels": lambda case: case.scores(
        kap.equalize_kernels(case.model)),
    "filter_sparsities": lambda case: [
        *kap.filter_sparsities(case.model, 0.5, case.images).values()],
    "hold_zeros": lambda case: case.scores(
        kap.hold_zeros(_pruned_by_hand(case))),
    "layer_sparsities": lambda case: [
        *kap.layer_sparsities(case.model, 0.5).values()],
    "load_model": _there_and_back,
    "save_model": _there_and_back,
    "narrow": lambda case: [kap.narrow(case.model, 0.5).count_params()],
    "prune_filters": lambda case: case.scores(kap.prune_filters(
        case.model, 0.5, criterion="map", reconstruct=True,
        images=case.images)),
    "prune_layers": lambda case: case.scores(_sparse(case)),
    "prune_with_reconstruction": lambda case: case.scores(
        kap.prune_with_reconstruction(
            case.model, {"conv": 0.5}, case.images)),
    "recalibrate_batch_norm": lambda case: case.scores(
        kap.recalibrate_batch_norm(case.model, case.images)),
    "strip": lambda case: case.scores(kap.strip(_sparse(case))),
    "unnest": lambda case: case.scores(kap.unnest(case.model)),
    X + "DeviceModel": lambda case: [
        explanation.map for explanation in kap.export.DeviceModel(
            case.small_file).explain(case.some)[0]],
    X + "FileTensors": lambda case: [*kap.export.FileTensors(
        case.file).read(case.some).values()][-1],
    X + "Interpreter": lambda case: kap.export.Interpreter(
        case.file).explain(case.some),
    X + "RangeMonitor": lambda case: case.fitted(
        kap.export.RangeMonitor(case.images, WCAM), model=case.quantized()),
    X + "convert": lambda case: kap.export.Interpreter(
        kap.export.convert(case.model, WCAM, mode="float32")).explain(
            case.array[:3]),
    X + "drift": lambda case: [
        row.map for row in kap.export.drift(
            case.model, case.file, WCAM, case.some).rows if row.layer == LAYER],
    X + "explain_cost": lambda case: [
        kap.export.explain_cost(case.file).explain_ms > 0],
    X + "explainer": _foreign,
    X + "file_sizes": lambda case: [
        kap.export.file_sizes(case.file)["bytes"] > 0],
    X + "find_tensor": lambda case: [kap.export.find_tensor(
        case.file, case.model, LAYER, case.images).cosine],
    X + "inspect_file": lambda case: [
        kap.export.inspect_file(case.file).attribution["median_cosine"]],
    X + "layer_tensors": lambda case: [
        kap.export.layer_tensors(
            case.file, case.model, case.images)[LAYER].cosine],
    X + "measure_arena": lambda case: [
        kap.export.measure_arena(case.small_file).smallest > 0],
    X + "microcontroller": _microcontroller,
    X + "missing_operators": lambda case: [
        len(kap.export.missing_operators(case.small_file))],
    X + "phone_arena": lambda case: [
        kap.export.phone_arena(case.file) > 0],
    X + "plan_arena": lambda case: [
        kap.export.plan_arena(case.small_file).head > 0],
    X + "quantizer_ranges": lambda case: [
        row.most for row in kap.export.quantizer_ranges(
            case.quantized(), case.images, WCAM).of("features")],
    X + "resolver_calls": lambda case: [
        "AddConv2D" in kap.export.resolver_calls(case.small_file)],
    X + "selective": lambda case: [kap.export.selective(
        case.model, WCAM, case.images, require=0.5).agreement],
    X + "verify": _verified,
}

# Functions that run in integers, or measure integers. An extra Reshape or
# Permute in a model changes a file's operators, and so the rounding.
INTEGERS = ("compare_models", X + "DeviceModel", X + "FileTensors",
            X + "Interpreter", X + "drift", X + "find_tensor",
            X + "inspect_file", X + "layer_tensors", X + "microcontroller",
            X + "selective", X + "verify")

_ONE_INPUT = "must take one input, the images; it takes 2"
_NO_LAYER = "no layer of that name|no layer with a spatial map"
# These take a model of two inputs: they need no input values. Others refuse.
TAKE_TWO = ("Hints", "PreserveAttribution", "TrainStep", "clone_model",
            "equalize_kernels", "hold_zeros", "layer_sparsities", "load_model",
            "save_model", "narrow", "prune_layers", "strip", "unnest")
# What a model of [time, channels] can be asked, and its first array's shape.
OF_SEQUENCES = {
    **{A + name: (3, SIZE) for name in (
        "excitation_backprop", "gradient_x_input", "guided_backprop", "lrp",
        "relative_attributing_propagation", "saliency", "integrated_gradients",
        "smooth_grad", "var_grad", "pathway_gradient")},
    A + "integrated_gradients_completeness": (3,),
    A + "lrp_conservation": (3,),
    A + "linearize": (3, 3, SIZE),
    A + "select_pathway": (3, SIZE - 2, 4),
    **dict.fromkeys((
        "clone_model", "equalize_kernels", "hold_zeros", "load_model",
        "save_model", "prune_layers", "prune_with_reconstruction",
        "recalibrate_batch_norm", "strip", "unnest"), (COUNT, 3)),
    "layer_sparsities": (),
}
# Why it refuses the others.
REFUSES_SEQUENCES = {
    **dict.fromkeys((
        A + "full_grad", A + "occlusion", A + "rise", A + "tf_explain",
        E + "deletion", E + "insertion", E + "road", E + "sensitivity_n",
        X + "microcontroller"), "time and channels, of which this method"),
    E + "cascading_randomization": r"must be \[images, height, width\]",
    "narrow": "how to make it narrower is not known",
    **dict.fromkeys(("prune_filters", "filter_sparsities"), "no filter that"),
    # tfmot's own words.
    **dict.fromkeys(("calibrate_quantizers", X + "RangeMonitor",
                     X + "quantizer_ranges"), "Conv1D.* is not supported"),
}


def _flat(values: Any) -> list[np.ndarray]:
  return [np.asarray(value, np.float64) for value in tf.nest.flatten(values)]


def _asked() -> list[str]:
  return [name for name, function in FUNCTIONS.items()
          if function is not NOTHING]


@functools.cache
def _twin(channels: int) -> Case:
  return Case("float", channels, None)


@functools.cache
def _of_twin(name: str, channels: int) -> list[np.ndarray]:
  """What a function gives of float images, computed once."""
  with tempfile.TemporaryDirectory() as folder:
    twin = _twin(channels)
    twin.folder = Path(folder)
    return _flat(FUNCTIONS[name](twin))


def _linear(dtype: str, shape=(1, 2, 1), first=None) -> keras.Model:
  """Scores 2 a - 6 b and a + b of the quarters of two pixels."""
  images = keras.Input(shape, dtype=dtype)
  x = (first or _layers.Rescaling(0.25))(images)
  model = keras.Model(images, _layers.Dense(2)(_layers.Flatten()(x)))
  model.layers[-1].set_weights(
      [np.float32([[2, 1], [-6, 1]]), np.float32([0.5, 0])])
  return model


def _tape(model: keras.Model, images: Any) -> np.ndarray:
  """The gradient of score 0 by the images, of TensorFlow alone."""
  with tf.GradientTape() as tape:
    batch = tf.nest.map_structure(tf.constant, images)
    tape.watch(batch)
    score = model(batch)[:, 0]
  gradient, = tf.nest.flatten(tape.gradient(score, batch))
  return gradient.numpy()


class IntegersTest(parameterized.TestCase):

  @parameterized.parameters("uint8", "int32")
  def test_gradients_are_those_at_the_first_floats(self, dtype):
    model = _linear(dtype)
    images = np.array([[[[8], [4]]]], dtype)
    methods = kap.attribution
    # By hand: d/da (2 a / 4) = .5, d/db (-6 b / 4) = -1.5; all are exact.
    for method, want in (
        (methods.saliency, [0.5, 1.5]), (methods.guided_backprop, [0.5, 1.5]),
        (methods.smooth_grad, [0.5, 1.5]), (methods.var_grad, [0, 0]),
        (methods.gradient_x_input, [4, -6]),
        (methods.integrated_gradients, [4, -6])):
      with self.subTest(method.__name__):
        np.testing.assert_array_equal(method(model, images, 0), [[want]])
    form = methods.linearize(model, images)
    np.testing.assert_array_equal(form.weights[0, 0].ravel(), [0.5, -1.5])
    np.testing.assert_array_equal(form.offset, [[0.5, 0]])
    np.testing.assert_array_equal(form.residual, [[0, 0]])

  @parameterized.parameters(
      (lambda x: x / 4,), (lambda x: tf.cast(x, tf.float32) / 4,),
      (_layers.Lambda(lambda x: tf.cast(x, tf.float32) / 4),),
      (lambda x: _layers.Rescaling(0.25)(_layers.RandomFlip()(x)),),
      (lambda x: _layers.Rescaling(0.25)(_layers.Reshape((1, 2, 1))(x)),),
      # Divides integers by 255 and leaves floats as they are.
      (lambda x: tf.image.convert_image_dtype(x, tf.float32) * (255 / 4),))
  def test_whatever_makes_floats(self, first):
    model = _linear("uint8", first=first)
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    # 255 / 4 / 255 rounds in the last bits.
    np.testing.assert_allclose(
        kap.attribution.saliency(model, np.uint8([[[[8], [4]]]]), 0),
        [[[0.5, 1.5]]], rtol=1e-6)
    # The model itself is left as it came.
    self.assertEqual(
        [len(layer.inbound_nodes) for layer in model.layers], nodes)

  def test_inside_other_models(self):
    inner = _linear("uint8")
    images = keras.Input((1, 2, 1), dtype="uint8")
    around = keras.Model(images, inner(images))

    class Subclass(keras.Model):
      def __init__(self):
        super().__init__()
        self.core = inner

      def call(self, inputs, training=None):
        return self.core(inputs, training=training)

    subclass = Subclass()
    pixels = np.uint8([[[[8], [4]]]])
    subclass(pixels)
    for model in (around, subclass):
      np.testing.assert_array_equal(
          kap.attribution.saliency(model, pixels, 0), [[[0.5, 1.5]]])

  def test_black_boxes_show_numbers_between_integers(self):
    # The mean of 8 and 5 covers: 6.5, which no uint8 is. By hand, with a patch
    # of one pixel: 2/4 (8 - 6.5) = .75 and -6/4 (5 - 6.5) = 2.25.
    got = kap.attribution.occlusion(
        _linear("uint8"), np.uint8([[[[8], [5]]]]), 0)
    np.testing.assert_array_equal(got, [[[0.75, 2.25]]])

  def test_a_frozen_teacher(self):
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    teacher = tiny.shake(keras.Model(images, _tail(
        _layers.Rescaling(0.01)(images), 3)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3))
    want = kap.attribution.grad_cam(teacher, pixels)
    student = kap.clone_model(teacher)
    student.compile("sgd", tiny.cross_entropy())
    teacher.trainable = False
    np.testing.assert_array_equal(
        kap.attribution.grad_cam(teacher, pixels), want)
    step = kap.TrainStep(student, teacher, WCAM)
    step.loss(tf.cast(pixels, tf.uint8), np.int32([0, 1]), training=False)
    agreement, = [float(metric.result()) for metric in step.metrics
                  if metric.name == "attr_agreement"]
    # A copy agrees with its teacher; cosines round.
    self.assertAlmostEqual(agreement, 1, places=5)

  def test_what_has_no_gradient_is_refused(self):
    images = keras.Input((1, 2), dtype="uint8")
    x = _layers.Reshape((1, 2, 3))(_layers.Embedding(256, 3)(images))
    x = _layers.Conv2D(4, 1, name="conv")(x)
    model = keras.Model(
        images, _layers.Dense(2)(_layers.GlobalAveragePooling2D()(x)))
    pixels = np.uint8([[[8, 4]]])
    with self.assertRaisesRegex(
        ValueError, "no gradient reaches them.* Rescaling"):
      kap.attribution.saliency(model, pixels)
    self.assertEqual(
        kap.attribution.grad_cam(model, pixels, layer="conv").shape, (1, 1, 2))

  @parameterized.parameters(0.5, -1.0, 256.0)
  def test_numbers_that_no_integer_holds(self, value):
    with self.assertRaisesRegex(
        ValueError, r"whole numbers of 0\.\.255.* takes uint8; got"):
      kap.attribution.saliency(_linear("uint8"), [[[[value], [1]]]])


class LayoutsTest(parameterized.TestCase):

  def _case(self, kind):
    return Case(kind, 1 if kind == "grey" else 3, tiny.folder(self))

  @parameterized.parameters("float", "grey", "dict", "channels_first")
  def test_saliency_is_that_of_a_plain_tape(self, kind):
    case = self._case(kind)
    want = np.abs(_tape(case.model, case.some))
    axis = {"grey": None, "channels_first": 1}.get(kind, -1)
    want = want if axis is None else want.max(axis)
    np.testing.assert_allclose(  # Sums in another order.
        kap.attribution.saliency(case.model, case.some, 0), want, rtol=1e-5,
        atol=1e-6 * want.max())

  def test_a_dict_or_its_array(self):
    case = self._case("dict")
    got = [kap.attribution.saliency(case.model, images) for images in (
        case.some, case.array[:3], {**case.some, "id": np.arange(3)})]
    np.testing.assert_array_equal(got[1], got[0])
    np.testing.assert_array_equal(got[2], got[0])
    with self.assertRaisesRegex(
        ValueError, r"a dict that has it under 'image'.* keys \['photo'\]"):
      kap.attribution.saliency(case.model, {"photo": case.array})
    with self.assertRaisesRegex(TypeError, "array where predict is no model"):
      kap.attribution.occlusion(lambda images: images, case.images)

  @parameterized.parameters(
      ((28, 28, 1), "channels_last"), ((3, 32, 48), "channels_first"),
      ((1, 28, 28), "channels_first"), ((4, 6, 3), "channels_last"),
      ((32, 32, 8), "channels_last"), ((8, 32, 32), "channels_first"),
      ((12, 9, 2), "channels_last"), ((3, None, None), "channels_first"),
      ((None, None, 3), "channels_last"), ((28, 28), "grey"),
      ((128, 3), "sequence"), ((784,), "other"), ((4, 9, 9, 3), "other"))
  def test_told_by_shape(self, shape, layout):
    self.assertEqual(shape_input(shape).layout, layout)

  def test_asked_for(self):
    with self.assertRaisesRegex(
        ValueError, r"data_format must be given.* \[8, 8, 8\]"):
      kap.attribution.rise(lambda images: images, np.ones([1, 8, 8, 8]))
    with self.assertRaisesRegex(ValueError, "data_format must be None or one"):
      kap.attribution.rise(
          lambda images: images, np.ones([1, 8, 8, 3]), data_format="NCHW")
    # The score is the top left pixel's: covering it alone lowers it.
    image = np.ones([1, 2, 5, 2], np.float32)
    first = kap.attribution.occlusion(
        lambda images: images[:, :, 0, 0], image, 0, baseline=0,
        data_format="channels_first")
    self.assertEqual(first.shape, (1, 5, 2))
    np.testing.assert_array_equal(np.argwhere(first[0]), [[0, 0]])

  @parameterized.named_parameters(
      ("reshaped", (9, 9), lambda x: _layers.Reshape((9, 9, 1))(x), "grey"),
      ("sliced", (9, 9), lambda x: x[..., None], "grey"),
      ("flattened", (9, 9), lambda x: _layers.Flatten()(x), "grey"),
      ("rescaled", (9, 9),
       lambda x: _layers.Flatten()(_layers.Rescaling(2.0)(x)), "grey"),
      ("conv1d", (9, 9), lambda x: _layers.Conv1D(9, 3, padding="same")(x),
       "sequence"),
      ("lstm", (9, 9), lambda x: _layers.LSTM(2)(x), "sequence"),
      ("dense", (9, 5), lambda x: _layers.Dense(2)(x), "sequence"),
      ("conv2d", (2, 9, 9), lambda x: _layers.Conv2D(2, 1)(x),
       "channels_last"),
      ("permuted", (9, 2, 2),
       lambda x: _layers.Permute((2, 3, 1))(_layers.Rescaling(2.0)(x)),
       "channels_first"),
      ("nothing tells", (9, 9, 9), lambda x: _layers.Flatten()(x),
       "channels_last"))
  def test_told_by_the_first_layers(self, shape, first, layout):
    images = keras.Input(shape)
    x = _layers.Flatten()(first(images))
    model = keras.Model(images, _layers.Dense(2)(x))
    self.assertEqual(model_input(model).layout, layout)
    outer = keras.Input(shape)
    self.assertEqual(
        model_input(keras.Model(outer, model(outer))).layout, layout)

  def test_layers_with_channels_first(self):
    images = keras.Input((3, 8, 8))
    x = _layers.Conv2D(4, 3, data_format="channels_first")(images)
    x = _layers.ReLU(name="act")(x)
    x = _layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    model = keras.Model(images, _layers.Dense(2)(x))
    with self.assertRaisesRegex(
        ValueError, "layer 'act'.* channels last.*data_format='channels_last'"):
      kap.attribution.grad_cam(model, np.ones([1, 3, 8, 8]), layer="act")

  def test_an_input_of_no_picture(self):
    images = keras.Input((64,))
    model = tiny.shake(keras.Model(
        images, _tail(_layers.Reshape((8, 8, 1))(images), 1)))
    vectors = np.ones([2, 64], np.float32)
    self.assertEqual(kap.attribution.grad_cam(model, vectors).shape, (2, 4, 4))
    with self.assertRaisesRegex(
        ValueError, r"takes \[64\], no height and width.*keras.Input"):
      kap.attribution.saliency(model, vectors)


class EveryNameTest(parameterized.TestCase):

  def test_all_are_listed(self):
    names = {*kap.__all__, *(
        prefix + name for prefix, module in (
            (A, kap.attribution), (E, kap.evaluation), (X, kap.export))
        for name in module.__all__)}
    self.assertEqual(names, set(FUNCTIONS))

  @parameterized.parameters(*TWINS)
  def test_some_give_what_they_give_of_the_twin(self, kind):
    self._hold(kind, [A + "full_grad", A + "integrated_gradients", A + "rise",
                      E + "insertion"])

  @parameterized.parameters(*TWINS)
  @pytest.mark.slow("explaining")
  def test_methods_and_models_give_what_they_give_of_the_twin(self, kind):
    self._hold(kind, [name for name in _asked() if not name.startswith(X)])

  @parameterized.parameters(*TWINS)
  @pytest.mark.slow("files")
  def test_files_give_what_they_give_of_the_twin(self, kind):
    self._hold(kind, [name for name in _asked() if name.startswith(X)])

  def _hold(self, kind, names):
    channels = 1 if kind == "grey" else 3
    case = Case(kind, channels, tiny.folder(self))
    for name in names:
      with self.subTest(name):
        got, want = _flat(FUNCTIONS[name](case)), _of_twin(name, channels)
        self.assertEqual([item.shape for item in got],
                         [item.shape for item in want])
        share = 0.1 if name in INTEGERS else 1e-4
        for array, expected in zip(got, want):
          # Rounding of float32 sums; in integers some steps of 1/127.
          np.testing.assert_allclose(
              array, expected, rtol=0,
              atol=share * np.abs(expected).max() + 1e-12)

  @pytest.mark.slow("explaining")
  def test_two_inputs(self):
    case = Case("two", 3, tiny.folder(self))
    for name in _asked():
      if name not in TAKE_TWO:
        with self.subTest(name), self.assertRaisesRegex(ValueError, _ONE_INPUT):
          FUNCTIONS[name](case)

  @pytest.mark.slow("explaining")
  def test_sequences_refused(self):
    case = Case("sequence", 3, tiny.folder(self))
    for name in _asked():
      # tfmot raises RuntimeErrors.
      if name not in OF_SEQUENCES:
        with self.subTest(name), self.assertRaisesRegex(
            (ValueError, RuntimeError),
            REFUSES_SEQUENCES.get(name, _NO_LAYER)):
          FUNCTIONS[name](case)

  @pytest.mark.slow("explaining")
  def test_sequences_and_two_inputs_served(self):
    case = Case("sequence", 3, tiny.folder(self))
    for name, shape in OF_SEQUENCES.items():
      with self.subTest(name):
        self.assertEqual(_flat(FUNCTIONS[name](case))[0].shape, shape)
    case = Case("two", 3, tiny.folder(self))
    for name in TAKE_TWO:
      with self.subTest(name):
        self.assertTrue(np.isfinite(_flat(FUNCTIONS[name](case))[0]).all())


if __name__ == "__main__":
  absltest.main()
