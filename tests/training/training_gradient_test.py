"""Tests of train_step.py: the step's gradient against finite differences."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, Distillation, TrainStep
from keras_attr_preserve.models.scores import top_class_seed
from keras_attr_preserve.models.tap import Tap, sensitivities
from tests import tiny

COUNT = 6
# Weights without a slope: a bias of the logits, and a bias before a
# normalization in training mode, whose mean takes it off.
UNUSED = {"gap": ["logits/bias"], "flatten": ["logits/bias"],
          "block": ["logits/bias"], "depthwise": ["logits/bias", "conv2/bias"]}
_net = tiny.smooth_net
_compiled, _cross_entropy = tiny.compiled, tiny.cross_entropy


class _Objective:
  """The loss of one fixed batch, always from the same state."""

  def __init__(self, step, labels=None, training=True, traced=False):
    self._model = model = step.model
    self.variables = model.trainable_variables
    trainable = {variable.ref() for variable in self.variables}
    state = [variable for variable in model.variables
             if variable.ref() not in trainable]
    home = [variable.numpy() for variable in state]
    pictures = tf.constant(tiny.images(COUNT, size=4))
    labels = tf.constant(tiny.labels(COUNT) if labels is None else labels)

    def loss():
      for variable, value in zip(state, home):
        variable.assign(value)
      return step.loss(pictures, labels, training=training)[0]

    def gradients():
      with tf.GradientTape() as tape:
        value = loss()
      return tape.gradient(value, self.variables)

    self.loss = tf.function(loss)
    # Traced once: tracing takes ten times as long as running.
    self.gradients = tf.function(gradients) if traced else gradients

  def draw_alike(self):
    """Has each call drop the same units: by a generator without a state."""
    drops = [layer for layer in self._model.submodules
             if isinstance(layer, keras.layers.Dropout)]
    assert drops
    for layer in drops:
      layer._random_generator = type(layer._random_generator)(
          3, rng_type="stateless")


def _pooled(kind, seed, activation="softplus"):
  """A model with a pooling or a dropout between the map and the score."""
  layers = keras.layers
  inputs = keras.Input((4, 4, 2))
  x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
  x = layers.Activation(activation, name="act")(x)
  if kind == "overlapping":
    x = layers.MaxPool2D(3, 1)(x)
  else:
    x = getattr(layers, kind)(*([0.4] if "Dropout" in kind else []))(x)
  x = layers.Conv2D(4, 2, name="conv2")(x)
  x = layers.Activation(activation)(x)
  x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
  return tiny.shake(keras.Model(inputs, x), seed)


class GradientTest(parameterized.TestCase):
  """The matching loss differentiated by every weight, against differences."""

  def _check(self, objective, step, tolerance, unused=("logits/bias",)):
    """Compares weight by weight, up to 12 entries of each."""
    rng = np.random.default_rng(7)
    largest = 0.0
    for variable, got in zip(objective.variables, objective.gradients()):
      name = variable.name.split(":")[0]
      size = int(np.prod(variable.shape))
      entries = rng.permutation(size)[:12]
      want = tiny.slopes(objective.loss, variable, step, entries)
      if name in unused:
        # Round-off: 1e-7 of a float32 loss of size 1 over a step of 5e-3.
        self.assertLess(np.abs(want).max(), 1e-4, name)
        # Terms that cancel leave float32 rounding.
        self.assertTrue(got is None or np.abs(got).max() < 1e-4, name)
        continue
      self.assertIsNotNone(got, name)
      self.assertGreater(np.abs(want).max(), 1e-5, name)  # There is a slope.
      self.assertLess(tiny.relative_error(
          np.ravel(got)[entries], want), tolerance, name)
      largest = max(largest, np.abs(want).max())
    # Some slope is far above round-off, or nothing was compared.
    self.assertGreater(largest, 0.02)

  @parameterized.parameters(("flatten", "relu"), ("depthwise", "softplus"))
  def test_float64(self, tail, activation):
    """Double backprop, also through hidden Dense layers with ReLU.

    And through BatchNormalization in training mode between the map and the
    score, which is not fused in this precision: trap 3.
    """
    self._check_float64(tail, activation)

  @parameterized.parameters(("gap", "relu"), ("block", "softplus"))
  @pytest.mark.slow("training")
  def test_float64_of_other_tails(self, tail, activation):
    self._check_float64(tail, activation)

  def _check_float64(self, tail, activation):
    with tiny.float64():
      student = _compiled(_net(1, tail, activation))
      step = TrainStep(student, _net(0, tail, activation),
                       WCAM("act", weight=3.0))
      # Smooth but for kinks that no step crosses; differences of order 1e-16
      # over 1e-5, relative to slopes of 1e-4 and more.
      unused = UNUSED[tail]
      if (tail, activation) == ("flatten", "relu"):
        unused = [*unused, "hidden/bias"]  # Moves no slope of a ReLU.
      self._check(_Objective(step), 1e-5, 1e-5, unused)

  @parameterized.parameters("LayerNormalization", "Dense BatchNormalization")
  def test_float64_behind_other_normalizations(self, kind):
    """Trap 3: tf.nn.moments bends second gradients, silently."""
    self._check_normalization(kind)

  @parameterized.parameters(
      "BatchNormalization", "GroupNormalization", "UnitNormalization",
      "Dense LayerNormalization")
  @pytest.mark.slow("training")
  def test_float64_behind_more_normalizations(self, kind):
    self._check_normalization(kind)

  def _check_normalization(self, kind):
    layers = keras.layers
    def net(seed):
      inputs = keras.Input((4, 4, 2))
      x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
      x = layers.Activation("softplus", name="act")(x)
      if "Dense" in kind:
        x = layers.Dense(4, name="hidden", use_bias=False)(
            layers.Flatten()(x))
      else:
        x = layers.Conv2D(4, 2, name="conv2", use_bias=False)(x)
      settings = {"groups": 2} if "Group" in kind else {}
      x = getattr(layers, kind.split()[-1])(name="norm", **settings)(x)
      x = layers.Activation("softplus")(x)
      if "Dense" not in kind:
        x = layers.GlobalAveragePooling2D()(x)
      return tiny.shake(
          keras.Model(inputs, layers.Dense(3, name="logits")(x)), seed)
    with tiny.float64():
      step = TrainStep(_compiled(net(2)), net(0), WCAM("act", weight=3.0))
      # As in test_float64.
      self._check(_Objective(step), 1e-5, 1e-5)

  @parameterized.parameters(
      "MaxPool2D", "AveragePooling2D", "overlapping", "Dropout",
      "SpatialDropout2D")
  @pytest.mark.slow("training")
  def test_float64_behind_pooling_and_dropout(self, kind):
    with tiny.float64():
      step = TrainStep(_compiled(_pooled(kind, 2)), _pooled(kind, 0),
                       WCAM("act", weight=3.0))
      objective = _Objective(step)
      if "Dropout" in kind:
        objective.draw_alike()
      # As in test_float64.
      self._check(objective, 1e-5, 1e-5)

  @parameterized.named_parameters(
      ("together", {"layer": ["act", "act2"], "target": "present",
                    "drop_rate": 0.4}),
      ("ewa", {"layer": "act2", "method": "ewa"}))
  def test_settings(self, settings):
    self._check_settings(settings)

  @parameterized.named_parameters(
      ("several_layers", {"layer": ["act", "act2"]}),
      ("label", {"layer": "act", "target": "label"}),
      ("present", {"layer": "act2", "target": "present"}),
      ("dropped_channels", {"layer": "act", "drop_rate": 0.4}))
  @pytest.mark.slow("training")
  def test_each_setting_alone(self, settings):
    self._check_settings(settings)

  def _check_settings(self, settings):
    labels = None
    if settings.get("target") == "present":
      labels = np.eye(3)[[0, 1, 2, 0, 1, 2]]
      labels[0] = 1
    unused = ["logits/bias", "conv2/bias"]
    if settings.get("method") == "ewa":
      unused += ["logits/kernel"]
    with tiny.float64():
      student = _compiled(_net(1, "depthwise"))
      step = TrainStep(
          student, _net(0, "depthwise"), WCAM(weight=3.0, **settings))
      # As in test_float64.
      self._check(_Objective(step, labels), 1e-5, 1e-5, unused)

  def test_maps_of_different_sizes(self):
    """The student's map is the larger and resized; through it too."""
    student = _compiled(_net(1, "flatten"))
    step = TrainStep(student, _net(0, "depthwise"), WCAM(
        "act2", student_layer="act", weight=10.0))
    # Float32: TensorFlow resizes in no other precision.
    self._check(_Objective(step), 5e-3, 5e-2)

  def test_float32_behind_fused_normalization(self):
    """Trap 3: fused BatchNormalization has a second gradient."""
    student = _compiled(_net(1, "block", "softplus"))
    self.assertTrue(student.get_layer("bn2").fused)
    step = TrainStep(student, _net(0, "block", "softplus"),
                     WCAM("act", weight=3.0))
    # Losses of size 1 with an error of 1e-7 over steps of 2e-2: 5e-6 of slopes
    # of 1e-3 and more. Measured: .0016 at most.
    self._check(_Objective(step), 2e-2, 5e-3)

  def test_the_whole_objective(self):
    """Task, its regularization, distillation and matching, in one sum."""
    with tiny.float64():
      student = _net(1, "flatten", head="softmax")
      student.get_layer("hidden").kernel_regularizer = keras.regularizers.L2(
          0.1)
      student = keras.models.clone_model(student)  # Takes the regularizer in.
      student.set_weights(_net(1, "flatten").get_weights())
      _compiled(student, _cross_entropy(from_logits=False))
      self.assertLen(student.losses, 1)
      step = TrainStep(student, _net(0, "flatten"), WCAM("act", weight=4.0),
                       distillation=Distillation(alpha=0.6))
      # As in test_float64.
      self._check(_Objective(step, traced=True), 1e-5, 1e-5, unused=())

  @pytest.mark.slow("training")
  def test_under_quantization(self):
    """tfmot's wrappers, with 16 bits in place of 8 (trap 1).

    The quantizers round in both passes; only their steps are fine enough for
    differences to see through. Their second gradients are as with 8 bits.
    """
    self._check_quantized("depthwise", True, traced=True)

  @parameterized.parameters(
      ("flatten", True), ("block", True), ("block", False))
  @pytest.mark.slow("training")
  def test_other_tails_under_quantization(self, tail, training):
    self._check_quantized(tail, training)

  def _check_quantized(self, tail, training, traced=False):
    with tiny.fine_quantizers():
      student = _compiled(tiny.quantize(_net(1, tail)))
      step = TrainStep(student, _net(0, tail), WCAM("act", weight=3.0))
      unused = UNUSED[tail] if training else ["logits/bias"]
      # Steps of 2e-4 (12 / 2^16) moved by 12 times 1e-2, averaged over the
      # positions: below a percent; slopes of 1e-3 are lost in it to some part.
      self._check(_Objective(
          step, training=training, traced=traced), 2e-2, 5e-2, unused)

  @parameterized.parameters(
      ("flatten", "quantize"), ("block", "quantize_sparse"))
  def test_reaches_every_weight_it_reaches_in_the_float_net(self, tail, wrap):
    """Trap 1: under 8 bits the plain second gradient is None."""
    self._check_reached(tail, wrap)

  @parameterized.parameters("block", "depthwise")
  @pytest.mark.slow("training")
  def test_reaches_the_weights_of_other_tails(self, tail):
    self._check_reached(tail, "quantize")

  def _check_reached(self, tail, wrap):
    model = _net(1, tail, "relu")
    reached = {}
    for name, student in (("float", model), (wrap, getattr(tiny, wrap)(model))):
      step = TrainStep(
          _compiled(student), _net(0, tail, "relu"), WCAM("act", weight=4.0))
      objective = _Objective(step)
      reached[name] = {
          variable.name for variable, gradient in zip(
              objective.variables, objective.gradients())
          if gradient is not None and np.abs(gradient).max() > 1e-6}
    self.assertIn("logits/kernel:0", reached["float"])
    self.assertContainsSubset(reached["float"], reached[wrap])

  @parameterized.parameters("MaxPool2D", "Dropout")
  def test_pooling_and_dropout_under_quantization(self, kind):
    self._check_pooled(kind)

  @pytest.mark.slow("training")
  def test_average_pooling_under_quantization(self):
    self._check_pooled("AveragePooling2D")

  def _check_pooled(self, kind):
    with tiny.fine_quantizers():
      student = _compiled(tiny.quantize(_pooled(kind, 2, "sigmoid")))
      objective = _Objective(TrainStep(
          student, _pooled(kind, 0, "sigmoid"), WCAM("act", weight=3.0)))
      if kind == "Dropout":
        objective.draw_alike()
      # As in _check_quantized.
      self._check(objective, 2e-2, 5e-2)

  def test_pruning_wrappers_change_no_gradient(self):
    gradients = []
    for wrap in (tiny.copy_of, lambda model: tiny.prune(model, sparsity=0.0)):
      student = _compiled(wrap(_net(1, "block")))
      for layer in student.layers:
        if hasattr(layer, "pruning_step"):
          layer.pruning_step.assign(0)
      objective = _Objective(
          TrainStep(student, _net(0, "block"), WCAM("act", weight=4.0)))
      gradients.append({
          variable.name.split("/")[-1] + str(variable.shape): gradient
          for variable, gradient in zip(
              objective.variables, objective.gradients())
          if gradient is not None})
    self.assertEqual(gradients[0].keys(), gradients[1].keys())
    for name, gradient in gradients[0].items():
      # The same float32 sums in another graph: masks of ones change none.
      np.testing.assert_allclose(gradient, gradients[1][name], atol=1e-5)

  def test_without_the_rules_quantization_kills_the_second_gradient(self):
    """The error that the tests above would see if the library had trap 1."""
    student = tiny.quantize(_net(1, "flatten", "relu"))
    pictures = tf.constant(tiny.images(COUNT, size=4))
    tap = Tap(student, ["act"])
    with tf.GradientTape() as outer:
      with tf.GradientTape() as tape:
        tapped = tap(pictures, training=True)
        score = tf.reduce_sum(
            tapped.logits * top_class_seed(tapped.logits))
      gradient = tape.gradient(score, tapped.features[0])
      total = tf.reduce_sum(tf.square(tf.reduce_sum(gradient, [1, 2])))
    kernel, = (weight for weight in student.trainable_variables
               if weight.name == "logits/kernel:0")
    self.assertIsNone(outer.gradient(total, kernel),
                      "TensorFlow mended it: see trap 1.")

  def test_alive_where_the_head_clips(self):
    """Trap 2: a confident image's score stands on the quantizer's bound.

    A plain gradient through the quantized score is zero there.
    """
    float_model = _net(1, "gap", "relu")
    float_model.get_layer("logits").bias.assign([50.0, 0.0, 0.0])
    teacher = _net(0, "gap", "relu")
    student = _compiled(tiny.quantize(float_model))
    pictures = tf.constant(tiny.images(COUNT, size=4))
    with tf.GradientTape(persistent=True) as tape:
      tapped = Tap(student, ["act"])(pictures)
      score = tf.reduce_max(tapped.logits, axis=1)
    # The quantizer's bound is 6, less a step of 12/255 at most.
    self.assertGreater(score.numpy().min(), 5.9)
    plain = tape.gradient(score, tapped.features[0])
    self.assertEqual(np.abs(plain).max(), 0)  # The trap is real.
    seed = top_class_seed(tapped.logits)
    sensitivity, = sensitivities(tape, tapped, seed)
    # A plain gradient is 0; a live one is a kernel's entry over 16 positions.
    self.assertGreater(np.abs(sensitivity).max(axis=(1, 2, 3)).min(), 1e-2)

    step = TrainStep(student, teacher, WCAM("act", target="label", weight=4.0))
    labels = np.zeros(COUNT, np.int32)
    gradients = _Objective(step, labels).gradients()
    reached = {variable.name: gradient for variable, gradient in zip(
        student.trainable_variables, gradients)}
    for name in ("conv/kernel:0", "bn/gamma:0", "logits/kernel:0"):
      # A gradient that dies on the bound is 0.
      self.assertGreater(np.abs(reached[name]).max(), 1e-4, name)
    for metric in step.metrics:
      metric.reset_state()
    logs = step.test((pictures, tf.constant(labels)))
    self.assertEqual(logs["attr_dead"], 0)
    # A dead map counts as 0; live ones are positive, and agree more.
    self.assertGreater(logs["attr_agreement"], 0.3)

  def test_clipping_does_not_bend_the_gradient(self):
    """The gradient of the clipped model is the unclipped model's gradient.

    Under SWA the bias of the logits does not matter, clipped or not.
    """
    gradients = []
    for bias in (0.0, 50.0):
      model = _net(1, "gap", "relu")
      model.get_layer("logits").bias.assign([bias, 0.0, 0.0])
      with tiny.fine_quantizers():
        step = TrainStep(
            _compiled(tiny.quantize(model)), _net(0, "gap", "relu"),
            WCAM("act", target="label", weight=4.0))
        gradients.append(_Objective(
            step, np.zeros(COUNT, np.int32)).gradients())
    for plain, clipped in zip(*gradients):
      if plain is not None:
        # Features are quantized alike, so that only float32 rounding is left;
        # at the bound a plain gradient is 0.
        np.testing.assert_allclose(plain, clipped, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
