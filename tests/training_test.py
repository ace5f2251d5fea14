"""Tests of training.py: the proof of the gradient, and the step's sums."""

import contextlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, Distillation, TrainStep
from keras_attr_preserve.tap import Tap, sensitivities, top_class_seed
from tests import tiny

COUNT = 6
# Weights without a slope: a bias of the logits, and a bias before a
# normalization in training mode, whose mean takes it off.
UNUSED = {"gap": ["logits/bias"], "flatten": ["logits/bias"],
          "block": ["logits/bias"], "depthwise": ["logits/bias", "conv2/bias"]}
_cosines, _net, _unit = tiny.swa_cosines, tiny.smooth_net, tiny.unit


def _no_task(labels, outputs):
  """A task without loss, so that nothing hides the matching's gradient."""
  del labels
  return tf.zeros_like(outputs[:, 0])


def _compiled(model, loss=_no_task):
  model.compile("sgd", loss)
  return model


def _cross_entropy(from_logits=True):
  return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


class _Objective:
  """The loss of one fixed batch, always from the same state."""

  def __init__(self, step, labels=None, training=True):
    model = step.model
    self.variables = model.trainable_variables
    trainable = {one.ref() for one in self.variables}
    state = [one for one in model.variables if one.ref() not in trainable]
    home = [one.numpy() for one in state]
    pictures = tf.constant(tiny.images(COUNT, size=4))
    labels = tf.constant(tiny.labels(COUNT) if labels is None else labels)

    def loss():
      for one, value in zip(state, home):
        one.assign(value)
      return step.loss(pictures, labels, training=training)[0]

    def gradients():
      with tf.GradientTape() as tape:
        value = loss()
      return tape.gradient(value, self.variables)

    self.loss = tf.function(loss)
    self.gradients = tf.function(gradients)
    self._eagerly = loss, gradients

  def draw_alike(self):
    """Has each call drop the same units: eagerly, from the same seed."""
    def seeded(function):
      def run():
        tf.random.set_seed(3)
        return function()
      return run
    self.loss, self.gradients = map(seeded, self._eagerly)


def _pooled(kind, seed, activation="softplus"):
  """A net with a pooling or a dropout between the map and the score."""
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
        self.assertLess(np.abs(want).max(), 1e-4, name)
        self.assertTrue(got is None or np.abs(got).max() < 1e-4, name)
        continue
      self.assertIsNotNone(got, name)
      self.assertGreater(np.abs(want).max(), 1e-5, name)  # There is a slope.
      self.assertLess(tiny.relative_error(
          np.ravel(got)[entries], want), tolerance, name)
      largest = max(largest, np.abs(want).max())
    self.assertGreater(largest, 0.02)

  @parameterized.parameters(
      ("gap", "relu"), ("flatten", "relu"), ("block", "softplus"),
      ("depthwise", "softplus"))
  def test_float64(self, tail, activation):
    """Double backprop, also through hidden Dense layers with ReLU.

    And through BatchNormalization in training mode between the map and the
    score, which is not fused in this precision: trap 3.
    """
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

  @parameterized.parameters(
      "BatchNormalization", "LayerNormalization", "GroupNormalization",
      "UnitNormalization", "Dense BatchNormalization",
      "Dense LayerNormalization")
  def test_float64_behind_other_normalizations(self, kind):
    """Trap 3: tf.nn.moments bends second gradients, silently."""
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
      self._check(_Objective(step), 1e-5, 1e-5)

  @parameterized.parameters(
      "MaxPool2D", "AveragePooling2D", "overlapping", "Dropout",
      "SpatialDropout2D")
  def test_float64_behind_pooling_and_dropout(self, kind):
    with tiny.float64():
      step = TrainStep(_compiled(_pooled(kind, 2)), _pooled(kind, 0),
                       WCAM("act", weight=3.0))
      objective = _Objective(step)
      if "Dropout" in kind:
        objective.draw_alike()
      self._check(objective, 1e-5, 1e-5)

  @parameterized.named_parameters(
      ("several_layers", {"layer": ["act", "act2"]}),
      ("label", {"layer": "act", "target": "label"}),
      ("present", {"layer": "act2", "target": "present"}),
      ("dropped_channels", {"layer": "act", "drop_rate": 0.4}),
      ("ewa", {"layer": "act2", "method": "ewa"}))
  def test_settings(self, settings):
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
      self._check(_Objective(step), 1e-5, 1e-5, unused=())

  @parameterized.parameters(
      ("flatten", True), ("block", True), ("depthwise", True),
      ("block", False))
  def test_under_quantization(self, tail, training):
    """tfmot's own wrappers, with 16 bits in place of 8 (trap 1).

    The quantizers round in both passes; only their steps are fine enough for
    differences to see through. Their second gradients are those of 8 bits.
    """
    with tiny.fine_quantizers():
      student = _compiled(tiny.quantize(_net(1, tail)))
      step = TrainStep(student, _net(0, tail), WCAM("act", weight=3.0))
      unused = UNUSED[tail] if training else ["logits/bias"]
      # Steps of 2e-4 (12 / 2^16) moved by 12 times 1e-2, averaged over the
      # positions: below a percent; slopes of 1e-3 are lost in it to some part.
      self._check(
          _Objective(step, training=training), 2e-2, 5e-2, unused)

  @parameterized.parameters(
      ("flatten", "quantize"), ("block", "quantize"),
      ("depthwise", "quantize"), ("block", "quantize_sparse"))
  def test_reaches_every_weight_it_reaches_in_the_float_net(self, tail, wrap):
    """Trap 1: under 8 bits the plain second gradient is None."""
    net = _net(1, tail, "relu")
    reached = {}
    for name, student in (("float", net), (wrap, getattr(tiny, wrap)(net))):
      step = TrainStep(
          _compiled(student), _net(0, tail, "relu"), WCAM("act", weight=4.0))
      objective = _Objective(step)
      reached[name] = {
          variable.name for variable, one in zip(
              objective.variables, objective.gradients())
          if one is not None and np.abs(one).max() > 1e-6}
    self.assertIn("logits/kernel:0", reached["float"])
    self.assertContainsSubset(reached["float"], reached[wrap])

  @parameterized.parameters("MaxPool2D", "AveragePooling2D", "Dropout")
  def test_pooling_and_dropout_under_quantization(self, kind):
    with tiny.fine_quantizers():
      student = _compiled(tiny.quantize(_pooled(kind, 2, "sigmoid")))
      objective = _Objective(TrainStep(
          student, _pooled(kind, 0, "sigmoid"), WCAM("act", weight=3.0)))
      if kind == "Dropout":
        objective.draw_alike()
      # As in the test above.
      self._check(objective, 2e-2, 5e-2)

  def test_pruning_wrappers_change_no_gradient(self):
    gradients = []
    for wrap in (tiny.copy_of, lambda net: tiny.prune(net, sparsity=0.0)):
      student = _compiled(wrap(_net(1, "block")))
      for layer in student.layers:
        if hasattr(layer, "pruning_step"):
          layer.pruning_step.assign(0)
      objective = _Objective(
          TrainStep(student, _net(0, "block"), WCAM("act", weight=4.0)))
      gradients.append({
          variable.name.split("/")[-1] + str(variable.shape): one
          for variable, one in zip(
              objective.variables, objective.gradients()) if one is not None})
    self.assertEqual(gradients[0].keys(), gradients[1].keys())
    for name, one in gradients[0].items():
      np.testing.assert_allclose(one, gradients[1][name], atol=1e-5)

  def test_without_the_rules_quantization_kills_the_second_gradient(self):
    """What the tests above would see if the library fell into trap 1."""
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
    kernel, = (one for one in student.trainable_variables
               if one.name == "logits/kernel:0")
    self.assertIsNone(outer.gradient(total, kernel),
                      "TensorFlow mended it: see trap 1.")

  def test_alive_where_the_head_clips(self):
    """Trap 2: a confident image's score stands on the quantizer's bound.

    A plain gradient through the quantized score is zero there.
    """
    net = _net(1, "gap", "relu")
    net.get_layer("logits").bias.assign([50.0, 0.0, 0.0])
    teacher = _net(0, "gap", "relu")
    student = _compiled(tiny.quantize(net))
    pictures = tf.constant(tiny.images(COUNT, size=4))
    with tf.GradientTape(persistent=True) as tape:
      tapped = Tap(student, ["act"])(pictures)
      score = tf.reduce_max(tapped.logits, axis=1)
    self.assertGreater(score.numpy().min(), 5.9)
    plain = tape.gradient(score, tapped.features[0])
    self.assertEqual(np.abs(plain).max(), 0)  # The trap is real.
    seed = top_class_seed(tapped.logits)
    ours, = sensitivities(tape, tapped, seed)
    self.assertGreater(np.abs(ours).max(axis=(1, 2, 3)).min(), 1e-2)

    step = TrainStep(student, teacher, WCAM("act", target="label", weight=4.0))
    labels = np.zeros(COUNT, np.int32)
    gradients = _Objective(step, labels).gradients()
    reached = {variable.name: one for variable, one in zip(
        student.trainable_variables, gradients)}
    for name in ("conv/kernel:0", "bn/gamma:0", "logits/kernel:0"):
      self.assertGreater(np.abs(reached[name]).max(), 1e-4, name)
    for metric in step.metrics:
      metric.reset_state()
    logs = step.test((pictures, tf.constant(labels)))
    self.assertEqual(logs["attr_dead"], 0)
    self.assertGreater(logs["attr_agreement"], 0.3)

  def test_clipping_does_not_bend_the_gradient(self):
    """The gradient of the clipped net is that of the net it stands for.

    Under SWA the bias of the logits does not matter, clipped or not.
    """
    gradients = []
    for bias in (0.0, 50.0):
      net = _net(1, "gap", "relu")
      net.get_layer("logits").bias.assign([bias, 0.0, 0.0])
      with tiny.fine_quantizers():
        step = TrainStep(_compiled(tiny.quantize(net)), _net(0, "gap", "relu"),
                         WCAM("act", target="label", weight=4.0))
        gradients.append(_Objective(
            step, np.zeros(COUNT, np.int32)).gradients())
    for one, other in zip(*gradients):
      if one is not None:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def _log_softmax(logits):
  logits = np.float64(logits)
  logits = logits - logits.max(1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _entropies(model, pictures, labels, training=False):
  logits = model(pictures, training=training)
  return -_log_softmax(logits)[np.arange(len(labels)), labels]


class SumsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.student = _compiled(_net(1), _cross_entropy())
    self.teacher = _net(0)
    self.pictures = tiny.images(COUNT, size=4)
    self.labels = tiny.labels(COUNT)
    self.data = tf.constant(self.pictures), tf.constant(self.labels)

  @parameterized.parameters(True, False)
  def test_task_and_match(self, training):
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=3.0))
    cosines = _cosines(
        self.student, self.teacher, self.pictures, training=training)
    self.assertGreater(cosines.min(), 0.1)
    want = (_entropies(self.student, self.pictures, self.labels, training)
            + 3 * (1 - cosines)).mean()
    loss, output = step.loss(*self.data, training=training)
    self.assertAlmostEqual(float(loss), want, places=5)
    np.testing.assert_allclose(
        output, self.student(self.pictures, training=training), atol=1e-5)

  @parameterized.parameters(((COUNT,),), ((COUNT, 1),))
  def test_sample_weights_weigh_every_part(self, shape):
    weights = np.float32([0, 1, 2, 0.5, 1, 3])
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=3.0),
                     distillation=Distillation(alpha=0.25, temperature=2.0))
    task = _entropies(self.student, self.pictures, self.labels)
    match = 1 - _cosines(self.student, self.teacher, self.pictures)
    divergence = self._divergence(2.0)
    # Keras divides by the number of images, not by the sum of the weights.
    want = (weights * (0.75 * task + 0.25 * divergence + 3 * match)).mean()
    loss, _ = step.loss(
        *self.data, tf.constant(weights.reshape(shape)), training=False)
    self.assertAlmostEqual(float(loss), want, places=5)
    self.assertAlmostEqual(
        float(self._logs(step)["distill_loss"]), (weights * divergence).mean(),
        places=5)

  def _divergence(self, temperature):
    log_p, log_q = (_log_softmax(model(self.pictures) / temperature)
                    for model in (self.teacher, self.student))
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1)

  def _logs(self, step):
    return {metric.name: metric.result() for metric in step.metrics}

  def test_distillation_of_classes_that_exclude_each_other(self):
    step = TrainStep(self.student, self.teacher,
                     distillation=Distillation(alpha=0.9, temperature=4.0))
    loss, _ = step.loss(*self.data, training=False)
    task = _entropies(self.student, self.pictures, self.labels).mean()
    self.assertAlmostEqual(
        float(loss), 0.1 * task + 0.9 * self._divergence(4.0).mean(), places=5)

  @parameterized.parameters(1, 3)
  def test_distillation_of_classes_that_do_not(self, classes):
    """Heads behind a sigmoid, one logit too; per class, mean over classes."""
    student, teacher = (
        _net(seed, head="sigmoid", classes=classes) for seed in (1, 0))
    _compiled(student, keras.losses.BinaryCrossentropy())
    step = TrainStep(student, teacher, distillation=Distillation(
        alpha=0.5, temperature=3.0, kind="sigmoid"))
    labels = np.random.default_rng(0).integers(0, 2, (COUNT, classes))
    loss, _ = step.loss(
        self.data[0], tf.constant(labels, tf.float32), training=False)
    def sigmoid(logits):
      return 1 / (1 + np.exp(-logits))
    logit_p, logit_q = (
        np.log(out / (1 - out)) for out in (
            np.float64(model(self.pictures)) for model in (teacher, student)))
    p, q = sigmoid(logit_p / 3), sigmoid(logit_q / 3)
    divergence = 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    q = sigmoid(logit_q)
    task = -(labels * np.log(q) + (1 - labels) * np.log(1 - q))
    self.assertAlmostEqual(
        float(loss), 0.5 * task.mean() + 0.5 * divergence.mean(), places=4)

  @parameterized.parameters(0.0, 0.9, 1.0)
  def test_regularization_is_not_scaled_by_distillation(self, alpha):
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(
        3, 3, name="act", kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(
        3, name="logits", activity_regularizer=keras.regularizers.L2(0.2))(x)
    student = _compiled(
        tiny.shake(keras.Model(inputs, x), 5), _cross_entropy())
    step = TrainStep(student, self.teacher,
                     distillation=Distillation(alpha=alpha))
    loss, _ = step.loss(*self.data, training=False)
    self.student = student
    kernel, logits = student.layers[1].kernel.numpy(), student(self.pictures)
    # Keras divides what layers add to the loss by the batch.
    penalty = (0.1 * (kernel**2).sum()
               + 0.2 * (logits.numpy()**2).sum() / COUNT)
    task = _entropies(student, self.pictures, self.labels).mean()
    self.assertGreater(penalty, 0.05)
    self.assertAlmostEqual(
        float(loss), (1 - alpha) * task + penalty
        + alpha * self._divergence(4.0).mean(), places=5)

  def test_what_a_model_adds_to_its_loss_is_counted_once(self):
    """Through `add_loss` on its own tensors, which makes a layer of it."""
    want = (_entropies(self.student, self.pictures, self.labels).mean()
            + 0.5 * np.mean(self.student(self.pictures).numpy()**2))
    student = _net(1)
    student.add_loss(0.5 * tf.reduce_mean(student.output**2))
    _compiled(student, _cross_entropy())
    step = TrainStep(student, self.teacher, WCAM("act", weight=0.0))
    loss, _ = step.loss(*self.data, training=False)
    self.assertAlmostEqual(float(loss), want, places=5)

  def test_images_without_a_class_add_nothing(self):
    student = _compiled(_net(1), keras.losses.BinaryCrossentropy(
        from_logits=True))
    step = TrainStep(student, self.teacher, WCAM(
        "act", weight=3.0, target="present"))
    labels = np.float32(np.eye(3)[[0, 1, 2, 0, 1, 2]])
    labels[3:] = 0
    step.loss(self.data[0], tf.constant(labels), training=False)
    cosines = _cosines(student, self.teacher, self.pictures, [0, 1, 2, 0, 1, 2])
    logs = self._logs(step)
    self.assertAlmostEqual(
        float(logs["attr_agreement"]), cosines[:3].mean(), places=5)
    self.assertAlmostEqual(
        float(logs["attr_loss"]), 3 * (1 - cosines[:3]).sum() / COUNT, places=5)

  @parameterized.parameters(
      ("teacher", "sparse"), ("label", "sparse"), ("label", "column"),
      ("label", "one-hot"), ("present", "one-hot"))
  def test_targets(self, target, kind):
    labels = {"sparse": self.labels, "column": self.labels[:, None],
              "one-hot": np.eye(3, dtype=np.float32)[self.labels]}[kind]
    step = TrainStep(_compiled(self.student), self.teacher, WCAM(
        "act", target=target))
    step.loss(self.data[0], tf.constant(labels), training=False)
    cosines = _cosines(self.student, self.teacher, self.pictures,
                       None if target == "teacher" else self.labels)
    self.assertAlmostEqual(
        float(self._logs(step)["attr_agreement"]), cosines.mean(), places=5)

  @parameterized.parameters("teacher", "label", "present")
  def test_one_logit(self, target):
    """Class 0's score is the negative of the logit."""
    def net(seed):
      return tiny.conv_net(
          classes=1, head="sigmoid", size=4, width=3, seed=seed)
    student, teacher = _compiled(net(2)), net(11)
    labels = np.float32([0, 1, 0, 1, 1, 0])[:, None]
    step = TrainStep(student, teacher, WCAM("act", target=target))
    step.loss(self.data[0], tf.constant(labels), training=False)
    tops = np.float32(teacher(self.pictures) >= 0.5)
    self.assertBetween(tops.sum(), 1, 5)
    yes = {"teacher": tops, "label": labels, "present": labels}[target][:, 0]
    sign = np.where(yes > 0.5, 1, 0 if target == "present" else -1)
    maps = []
    for model in (teacher, student):
      features = keras.Model(
          model.inputs, model.get_layer("act").output)(self.pictures).numpy()
      maps.append(np.maximum(sign[:, None, None] * (
          features @ model.get_layer("logits").kernel.numpy()[:, 0]), 0))
    alive = maps[0].any(axis=(1, 2))
    both = alive & maps[1].any(axis=(1, 2))
    self.assertGreater(both.sum(), 0)
    want = (_unit(maps[0][both]) * _unit(maps[1][both])).sum() / alive.sum()
    logs = self._logs(step)
    self.assertAlmostEqual(float(logs["attr_agreement"]), want, places=5)
    self.assertAlmostEqual(
        float(logs["attr_dead"]), 1 - both.sum() / alive.sum(), places=5)


class StepTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.student = _net(1)
    self.student.compile(
        keras.optimizers.SGD(0.1), _cross_entropy(), metrics=["accuracy"])
    self.teacher = _net(0)
    self.pictures = tiny.images(COUNT, size=4)
    self.labels = tiny.labels(COUNT)
    self.data = tf.constant(self.pictures), tf.constant(self.labels)

  def test_one_step_is_one_step_of_the_optimizer(self):
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=3.0))
    before = [one.numpy() for one in self.student.trainable_variables]
    with tf.GradientTape() as tape:
      loss, _ = step.loss(*self.data)
    gradients = tape.gradient(loss, self.student.trainable_variables)
    self._rewind(before)
    step(self.data)
    self.assertEqual(int(self.student.optimizer.iterations), 1)
    for variable, start, gradient in zip(
        self.student.trainable_variables, before, gradients):
      np.testing.assert_allclose(
          variable, start - 0.1 * gradient, atol=1e-6, err_msg=variable.name)

  def _rewind(self, values):
    for variable, value in zip(self.student.trainable_variables, values):
      variable.assign(value)

  def test_it_learns_to_agree(self):
    self.student.compile(keras.optimizers.Adam(0.02), _no_task)
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0))
    run = tf.function(step)
    start = float(step.test(self.data)["attr_agreement"])
    for _ in range(60):
      run(self.data)
    for metric in step.metrics:
      metric.reset_state()
    end = float(step.test(self.data)["attr_agreement"])
    self.assertLess(start, 0.95)
    self.assertGreater(end, 0.99)

  @parameterized.parameters("copy_of", "quantize")
  def test_a_normalization_behind_the_map_does_not_undo_it(self, wrap):
    """In training mode it mixes the images; the net is judged without it."""
    teacher = tiny.conv_net(seed=0, tail="block", size=4)
    student = getattr(tiny, wrap)(tiny.conv_net(seed=1, tail="block", size=4))
    for layer in student.layers:
      # So that a hundred steps move the averages.
      layer = getattr(layer, "layer", layer)
      if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.5
    student.compile(keras.optimizers.Adam(0.02), _no_task)
    step = TrainStep(student, teacher, WCAM("act", weight=4.0))
    run = tf.function(step)
    start = float(step.test(self.data)["attr_agreement"])
    for _ in range(120):
      run(self.data)
    for metric in step.metrics:
      metric.reset_state()
    self.assertLess(start, 0.7)
    self.assertGreater(float(step.test(self.data)["attr_agreement"]), 0.85)

  def test_logs_are_means_over_the_epoch(self):
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=3.0))
    self.student.optimizer.learning_rate = 0.0
    other = tiny.images(2, seed=5, size=4), tiny.labels(2, seed=5)
    cosines = [
        _cosines(self.student, self.teacher, pictures, training=True)
        for pictures in (self.pictures, other[0])]
    step(self.data)
    logs = step(tuple(map(tf.constant, other)))
    # Agreement is the mean over images, the loss over steps, as Keras has it.
    self.assertAlmostEqual(
        float(logs["attr_agreement"]), np.concatenate(cosines).mean(), places=4)
    self.assertAlmostEqual(
        float(logs["attr_loss"]),
        np.mean([3 * (1 - one.mean()) for one in cosines]), places=4)
    self.assertEqual(float(logs["attr_dead"]), 0)
    self.assertIn("accuracy", logs)
    self.assertEqual(set(logs), {
        "loss", "accuracy", "attr_loss", "attr_agreement", "attr_dead"})

  def test_names_of_the_logs(self):
    for wcam, distillation, names in (
        (None, Distillation(), {"distill_loss"}),
        (WCAM("act", weight=4.0), Distillation(), {
            "attr_loss", "attr_agreement", "attr_dead", "distill_loss"}),
        (None, None, set())):
      step = TrainStep(
          self.student, self.teacher, wcam, distillation=distillation)
      self.assertContainsSubset(names, {one.name for one in step.metrics})
      self.assertEqual(set(step(self.data)), {"loss", "accuracy"} | names)

  def test_dead_maps_are_counted(self):
    self.student.get_layer("logits").kernel.assign(
        -self.student.get_layer("logits").kernel)
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=2.0))
    logs = step.test(self.data)
    self.assertEqual(float(logs["attr_dead"]), 1)
    self.assertEqual(float(logs["attr_agreement"]), 0)
    self.assertAlmostEqual(float(logs["attr_loss"]), 2 * 0.5, places=5)
    self.assertTrue(np.isfinite(float(step(self.data)["loss"])))

  def test_dead_teacher_maps_are_left_out(self):
    kernel = self.teacher.get_layer("logits").kernel
    kernel.assign(-kernel)
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0))
    logs = step.test(self.data)
    self.assertEqual(float(logs["attr_dead"]), 0)
    self.assertEqual(float(logs["attr_agreement"]), 0)  # The mean of none.

  def test_dropping_changes_from_step_to_step_and_can_be_repeated(self):
    self.student.optimizer.learning_rate = 0.0
    def losses():
      self.student.optimizer.iterations.assign(0)
      step = TrainStep(
          self.student, self.teacher, WCAM("act", drop_rate=0.7, weight=4.0))
      found = []
      for _ in range(12):
        for metric in step.metrics:
          metric.reset_state()
        found.append(round(float(step(self.data)["attr_loss"]), 5))
      return found
    first = losses()
    self.assertLen(set(first), 3)  # Two of three channels: three pairs.
    self.assertEqual(losses(), first)

  def test_judging_drops_nothing(self):
    whole, dropped = (
        TrainStep(self.student, self.teacher, WCAM("act", drop_rate=rate))
        .test(self.data)["attr_agreement"] for rate in (0.0, 0.7))
    self.assertEqual(float(whole), float(dropped))

  def test_each_net_runs_once(self):
    """Trap 4."""
    class Count(keras.layers.Layer):
      def build(self, _):
        self.count = self.add_weight(
            "count", initializer="zeros", trainable=False)

      def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs

    def net(seed):
      inner = _net(seed)
      inputs = keras.Input((4, 4, 2))
      x = Count(name="count")(inputs)
      for layer in inner.layers[1:]:
        x = layer(x)
      return keras.Model(inputs, x)

    student, teacher = net(1), net(0)
    _compiled(student)
    step = tf.function(TrainStep(
        student, teacher, WCAM("act", weight=4.0), distillation=Distillation()))
    counts = [model.get_layer("count").count for model in (student, teacher)]
    before = [float(one) for one in counts]
    for _ in range(3):
      step(self.data)
    self.assertEqual(
        [float(one) - start for one, start in zip(counts, before)], [3, 3])

  def test_pruning_counts_steps(self):
    student = tiny.prune(_net(1))
    _compiled(student)
    for layer in student.layers:
      if hasattr(layer, "pruning_step"):
        layer.pruning_step.assign(0)
    step = tf.function(TrainStep(student, self.teacher, WCAM("act")))
    for count in (1, 2):
      step(self.data)
      self.assertEqual(set(tiny.pruning_steps(student)), {count})

  def test_the_teacher_stays_as_it_is(self):
    for trainable in (True, False):
      self.teacher.trainable = trainable
      weights = self.teacher.get_weights()
      state = vars(self.teacher).copy()
      step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0),
                       distillation=Distillation())
      run = tf.function(step)
      for _ in range(3):
        run(self.data)
      self.assertTrue(tiny.weights_equal(
          self.teacher.get_weights(), weights))
      self.assertEqual(self.teacher.trainable, trainable)
      self.assertEqual(vars(self.teacher).keys(), state.keys())

  def test_a_frozen_teacher_teaches_the_same(self):
    agreements = []
    for trainable in (True, False):
      self.teacher.trainable = trainable
      step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0))
      agreements.append(float(step.test(self.data)["attr_agreement"]))
    self.assertEqual(*agreements)

  @parameterized.product(dtype=[np.uint8, np.int32, np.float64],
                         frozen=[False, True])
  def test_pictures_of_other_numbers(self, dtype, frozen):
    pictures = np.random.default_rng(0).integers(0, 9, (COUNT, 4, 4, 2))
    self.teacher.trainable = self.student.trainable = not frozen
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0))
    agreements = []
    for kind in (np.float32, dtype):
      for metric in step.metrics:
        metric.reset_state()
      agreements.append(float(step.test((
          tf.constant(pictures.astype(kind)),
          self.data[1]))["attr_agreement"]))
    self.assertAlmostEqual(*agreements, places=5)

  @parameterized.parameters("tensors", "arrays")
  def test_a_loop_of_ones_own(self, kind):
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=4.0))
    optimizer = keras.optimizers.SGD(0.1)
    before = self.student.get_weights()
    data = self.data if kind == "tensors" else (self.pictures, self.labels)
    with tf.GradientTape() as tape:
      loss, output = step.loss(*data)
    variables = self.student.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
    self.assertEqual(output.shape, (COUNT, 3))
    self.assertFalse(tiny.weights_equal(self.student.get_weights(), before))

  def test_a_train_step_of_ones_own(self):
    class Student(keras.Model):
      def train_step(self, data):
        return {**self.step(data), "mine": tf.constant(7.0)}

    student = Student(self.student.inputs, self.student.outputs)
    student.compile("sgd", _cross_entropy())
    student.step = TrainStep(student, self.teacher, WCAM("act", weight=4.0))
    history = student.fit(
        self.pictures, self.labels, epochs=2, verbose=0).history
    self.assertEqual(history["mine"], [7.0, 7.0])
    self.assertLen(history["attr_agreement"], 2)

  @parameterized.parameters("float16", "float32")
  def test_half_precision(self, head):
    """The match is computed in float32, whatever the head gives."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_float16")
    self.addCleanup(keras.mixed_precision.set_global_policy, policy)
    student, teacher = _net(1, activation="relu"), _net(0, activation="relu")
    if head == "float32":
      student = keras.Model(student.inputs, keras.layers.Activation(
          "linear", dtype="float32")(student.output))
    student.compile(keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(0.01)), _cross_entropy())
    step = TrainStep(student, teacher, WCAM("act", weight=4.0))
    logs = tf.function(step)(self.data)
    self.assertEqual(logs["attr_loss"].dtype, tf.float32)
    self.assertTrue(np.isfinite(float(logs["attr_loss"])))
    self.assertEqual(int(student.optimizer.iterations), 1)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"wcam": WCAM("relu9")}, "layer 'relu9': model 'net' has no layer of"),
      ({"wcam": WCAM("act", student_layer="relu9")}, "layer 'relu9': model 's"),
      ({"wcam": WCAM("logits")}, "layer 'logits' of model 'net' has no spat"))
  def test_layers(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      TrainStep(_compiled(_net(1, name="student")), _net(0), **settings)

  @parameterized.parameters(
      ({"wcam": "act"}, "wcam must be a WCAM; got 'act'"),
      ({"distillation": 0.9},
       "distillation must be a Distillation or None; got .*float"))
  def test_settings(self, settings, message):
    with self.assertRaisesRegex(TypeError, message):
      TrainStep(_compiled(_net(1)), _net(0), **settings)

  def test_models(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      TrainStep("student", _net(0))
    with self.assertRaisesRegex(TypeError, "teacher must be a tf_keras.Model"):
      TrainStep(_net(1), "teacher")

  def test_other_classes(self):
    with self.assertRaisesRegex(
        ValueError, "teacher must have the model's 3 classes; got 5"):
      TrainStep(_net(1), _net(0, classes=5))

  def test_shared_weights(self):
    teacher = _net(0)
    trunk = keras.Model(teacher.inputs, teacher.get_layer("act").output)
    student = keras.Model(trunk.inputs, keras.layers.Dense(3)(
        keras.layers.GlobalAveragePooling2D()(trunk.output)))
    for model in (student, teacher):
      with self.assertRaisesRegex(
          ValueError, "teacher must share no weights with the model.*they "
          r"share \d+, such as 'conv/kernel:0'.*kap.clone_model\(teacher\)"):
        TrainStep(model, teacher, WCAM("act", weight=4.0))

  def test_labels_that_do_not_fit(self):
    step = TrainStep(_compiled(_net(1)), _net(0), WCAM(
        "act", target="present"))
    with self.assertRaisesRegex(ValueError, "'present' needs multi-hot label"):
      step.loss(tf.constant(tiny.images(2, size=4)), tf.constant([0, 1]))
    with contextlib.suppress(ValueError):
      step.loss(tf.constant(tiny.images(2, size=4)))


if __name__ == "__main__":
  absltest.main()
