"""Tests of train_step.py: the sums, training and logs of a step."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM, Distillation, TrainStep
from tests import tiny

COUNT = 6
# Float32 means over images, of figures of size 1, summed in another order.
PLACES = 5
_cosines, _net, _unit = tiny.swa_cosines, tiny.smooth_net, tiny.unit
_compiled, _cross_entropy, _no_task = (
    tiny.compiled, tiny.cross_entropy, tiny.no_task)


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
    # No map is dead or at a right angle to its teacher's.
    self.assertGreater(cosines.min(), 0.1)
    want = (_entropies(self.student, self.pictures, self.labels, training)
            + 3 * (1 - cosines)).mean()
    loss, output = step.loss(*self.data, training=training)
    self.assertAlmostEqual(float(loss), want, places=PLACES)
    # The same layers on the same images: float32 logits.
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
    self.assertAlmostEqual(float(loss), want, places=PLACES)
    self.assertAlmostEqual(
        float(self._logs(step)["distill_loss"]), (weights * divergence).mean(),
        places=PLACES)

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
        float(loss), 0.1 * task + 0.9 * self._divergence(4.0).mean(),
        places=PLACES)

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
    # NumPy has the logits from float32 sigmoids, which lose digits near 1; and
    # temperature 3 makes nine times as much of them.
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
    # Keras divides the losses of layers by the batch.
    penalty = (0.1 * (kernel**2).sum()
               + 0.2 * (logits.numpy()**2).sum() / COUNT)
    task = _entropies(student, self.pictures, self.labels).mean()
    # Thousands of times the error of five places: a scaled penalty shows.
    self.assertGreater(penalty, 0.05)
    self.assertAlmostEqual(
        float(loss), (1 - alpha) * task + penalty
        + alpha * self._divergence(4.0).mean(), places=PLACES)

  def test_what_a_model_adds_to_its_loss_is_counted_once(self):
    """Through `add_loss` on the model's tensors, which adds a layer."""
    want = (_entropies(self.student, self.pictures, self.labels).mean()
            + 0.5 * np.mean(self.student(self.pictures).numpy()**2))
    student = _net(1)
    student.add_loss(0.5 * tf.reduce_mean(student.output**2))
    _compiled(student, _cross_entropy())
    step = TrainStep(student, self.teacher, WCAM("act", weight=0.0))
    loss, _ = step.loss(*self.data, training=False)
    self.assertAlmostEqual(float(loss), want, places=PLACES)

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
        float(logs["attr_agreement"]), cosines[:3].mean(), places=PLACES)
    self.assertAlmostEqual(
        float(logs["attr_loss"]), 3 * (1 - cosines[:3]).sum() / COUNT,
        places=PLACES)

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
        float(self._logs(step)["attr_agreement"]), cosines.mean(),
        places=PLACES)

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
    self.assertAlmostEqual(float(logs["attr_agreement"]), want, places=PLACES)
    self.assertAlmostEqual(
        float(logs["attr_dead"]), 1 - both.sum() / alive.sum(), places=PLACES)


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
    before = [weight.numpy() for weight in self.student.trainable_variables]
    with tf.GradientTape() as tape:
      loss, _ = step.loss(*self.data)
    gradients = tape.gradient(loss, self.student.trainable_variables)
    self._rewind(before)
    step(self.data)
    self.assertEqual(int(self.student.optimizer.iterations), 1)
    for variable, start, gradient in zip(
        self.student.trainable_variables, before, gradients):
      # A rate of 0.1 times the rounding of a float32 gradient, computed twice.
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
    # A student that does not learn stays where it starts, below .95.
    self.assertLess(start, 0.95)
    # Sixty steps of Adam bring it near the teacher, not all the way.
    self.assertGreater(end, 0.99)

  def test_a_normalization_behind_the_map_does_not_undo_it(self):
    self.check_a_normalization_behind_the_map(tiny.copy_of)

  @pytest.mark.slow("training")
  def test_a_quantized_normalization_behind_the_map_does_not_undo_it(self):
    self.check_a_normalization_behind_the_map(tiny.quantize)

  def check_a_normalization_behind_the_map(self, wrap):
    """In training mode it mixes the images; the model is judged without it."""
    teacher = tiny.conv_net(seed=0, tail="block", size=4)
    student = wrap(tiny.conv_net(seed=1, tail="block", size=4))
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
    # The two differ a lot at the start.
    self.assertLess(start, 0.7)
    # Matching through a batch's statistics would not reach inference.
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
        float(logs["attr_agreement"]), np.concatenate(cosines).mean(),
        places=PLACES)
    self.assertAlmostEqual(
        float(logs["attr_loss"]),
        np.mean([3 * (1 - values.mean()) for values in cosines]), places=PLACES)
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
      self.assertContainsSubset(names, {metric.name for metric in step.metrics})
      self.assertEqual(set(step(self.data)), {"loss", "accuracy"} | names)

  def test_dead_maps_are_counted(self):
    self.student.get_layer("logits").kernel.assign(
        -self.student.get_layer("logits").kernel)
    step = TrainStep(self.student, self.teacher, WCAM("act", weight=2.0))
    logs = step.test(self.data)
    self.assertEqual(float(logs["attr_dead"]), 1)
    self.assertEqual(float(logs["attr_agreement"]), 0)
    self.assertAlmostEqual(float(logs["attr_loss"]), 2 * 0.5, places=PLACES)
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
      values = []
      for _ in range(12):
        for metric in step.metrics:
          metric.reset_state()
        values.append(round(float(step(self.data)["attr_loss"]), 5))
      return values
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
    step = TrainStep(
        student, teacher, WCAM("act", weight=4.0), distillation=Distillation())
    counts = [model.get_layer("count").count for model in (student, teacher)]
    before = [float(count) for count in counts]
    for _ in range(3):
      step(self.data)
    self.assertEqual(
        [float(count) - start for count, start in zip(counts, before)], [3, 3])

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
      run = tf.function(step) if trainable else step
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
    self.assertAlmostEqual(*agreements, places=PLACES)

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

  @parameterized.parameters(("float16", True), ("float32", False))
  def test_half_precision(self, head, graph):
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
    logs = (tf.function(step) if graph else step)(self.data)
    self.assertEqual(logs["attr_loss"].dtype, tf.float32)
    self.assertTrue(np.isfinite(float(logs["attr_loss"])))
    self.assertEqual(int(student.optimizer.iterations), 1)


class StateTest(absltest.TestCase):

  def _step(self, wcam, **settings):
    student = _compiled(_net(1))
    return TrainStep(student, _net(0), wcam, **settings)

  def test_there_is_none_where_nothing_moves(self):
    self.assertIsNone(self._step(WCAM("act", weight=1.0)).state)
    self.assertIsNone(self._step(None, distillation=Distillation()).state)

  def test_there_is_where_a_weight_moves(self):
    self.assertIsNotNone(self._step(WCAM("act")).state)
    self.assertIsNotNone(
        self._step(WCAM("act", weight=1.0, agreement=0.9)).state)


class KeptTest(absltest.TestCase):
  """Which weights are put back where a loss is not finite."""

  def test_all_in_training_without_a_strategy(self):
    step = TrainStep(_compiled(_net(1)), _net(0), WCAM("act"))
    self.assertLen(step._kept(training=True), len(step.model.variables))
    self.assertEmpty(step._kept(training=False))

  def test_none_in_a_strategy(self):
    """Also of one replica: no variable of it is assigned in a condition."""
    step = TrainStep(_compiled(_net(1)), _net(0), WCAM("act"))
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
      self.assertEmpty(step._kept(training=True))
      self.assertEmpty(step._kept(training=False))


class CacheTest(absltest.TestCase):

  def test_xla_takes_none(self):
    student, teacher = _net(1), _net(0)
    student.compile("sgd", "mse", jit_compile=True)
    with self.assertRaisesRegex(ValueError, "cache: XLA takes no table"):
      TrainStep(student, teacher, WCAM("act"), cache=True)
    self.assertIsNone(TrainStep(student, teacher, WCAM("act")).cache)


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
