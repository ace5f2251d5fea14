"""Tests of preserve_attribution.py: `fit` with every kind of model.

Most models are compiled to run eagerly, which takes a few steps in a fifth of
the time that tracing them does; a test that says `run_eagerly=False` has Keras
trace a graph.
"""

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
    WCAM,
    Distillation,
    PreserveAttribution,
    TrainStep,
)
from tests import tiny

COUNT = 6
LOGS = {"attr_loss", "attr_agreement", "attr_dead"}
# Means of cosines and losses of two graphs, or of a graph and NumPy: float32
# sums in another order.
PLACES = 5
# The loss of the maps is three times a mean of distances, with three times its
# rounding.
LOSS_PLACES = 4


def _compiled(model, rate=0.05, **settings):
  model.compile(
      keras.optimizers.SGD(rate, momentum=0.9),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      **{"metrics": ["accuracy"], "run_eagerly": True, **settings})
  return model


class _Raise(keras.callbacks.Callback):
  """Raises an error at one of the moments of `fit`."""

  def __init__(self, moment, error):
    super().__init__()
    def raise_it(*_, **__):
      raise error
    setattr(self, moment, raise_it)


class _CallbackTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.teacher = tiny.shared(tiny.smooth_net, 0)
    self.pictures = tiny.images(COUNT, size=4)
    self.labels = tiny.labels(COUNT)
    self.wcam = WCAM("act", weight=3.0)

  @functools.cached_property
  def student(self):
    return _compiled(tiny.smooth_net(1))

  def fit(self, model=None, callbacks=(), **settings):
    """One epoch of two batches, in order; returns the logs."""
    model = self.student if model is None else model
    if settings.pop("preserve", True):
      callbacks = [*callbacks, PreserveAttribution(self.teacher, self.wcam)]
    settings = {"x": self.pictures, "y": self.labels, "batch_size": 3,
                "shuffle": False, "verbose": 0, **settings}
    return model.fit(callbacks=list(callbacks), **settings).history

  def assert_clean(self, model=None, by_fit=False):
    """The model trains and judges by custom steps."""
    model = self.student if model is None else model
    self.assertEmpty({"train_step", "test_step"} & set(vars(model)))
    if by_fit:
      history = self.fit(
          model, preserve=False, batch_size=COUNT,
          validation_data=(self.pictures, self.labels))
      self.assertEqual(set(history), {
          "loss", "accuracy", "val_loss", "val_accuracy"})
      return
    for run in (model.train_on_batch, model.test_on_batch):
      logs = run(self.pictures[:2], self.labels[:2], return_dict=True)
      self.assertEqual(set(logs), {"loss", "accuracy"})

  def agreement(self, student, classes=None):
    """An epoch's mean, by NumPy, where the learning rate is 0."""
    return np.mean([tiny.swa_cosines(
        student, self.teacher, self.pictures[i:i + 3],
        None if classes is None else classes[i:i + 3], training=True)
                    for i in (0, 3)])


class LogsTest(_CallbackTest):

  def test_equal_to_values_by_hand(self):
    """With a learning rate of 0 nothing moves but the moving averages."""
    _compiled(self.student, rate=0.0, run_eagerly=False)
    cosines_by_batch = [
        tiny.swa_cosines(self.student, self.teacher, batch, training=True)
        for batch in (self.pictures[:4], self.pictures[4:])]
    cosines = np.concatenate(cosines_by_batch)
    history = self.fit(epochs=2, batch_size=4, validation_data=(
        tiny.images(5, seed=9, size=4), tiny.labels(5)))
    self.assertEqual(set(history), {
        name for log in {"loss", "accuracy"} | LOGS
        for name in (log, f"val_{log}")})
    for epoch in range(2):  # They restart each epoch.
      self.assertAlmostEqual(
          history["attr_agreement"][epoch], np.mean(cosines), places=PLACES)
      # Agreement is a mean over images, a loss over batches, as Keras has it.
      self.assertAlmostEqual(
          history["attr_loss"][epoch],
          3 * (1 - np.mean([batch.mean() for batch in cosines_by_batch])),
          places=LOSS_PLACES)
      self.assertEqual(history["attr_dead"][epoch], 0)
    judged = tiny.swa_cosines(
        self.student, self.teacher, tiny.images(5, seed=9, size=4))
    self.assertAlmostEqual(
        history["val_attr_agreement"][1], judged.mean(), places=PLACES)
    batches = [judged[:4].mean(), judged[4]]
    self.assertAlmostEqual(
        history["val_attr_loss"][1], 3 * (1 - np.mean(batches)),
        places=LOSS_PLACES)
    # Far above rounding: it is not the figure of training under another name.
    self.assertGreater(
        abs(history["val_attr_agreement"][1] - np.mean(cosines)), 1e-3)

  def test_loss_stays_the_compiled_one(self):
    self.student.optimizer.learning_rate = 0.0
    want = self.fit(preserve=False)
    got = self.fit()
    self.assertAlmostEqual(got["loss"][0], want["loss"][0], places=PLACES)
    self.assertEqual(got["accuracy"], want["accuracy"])

  def test_a_ragged_last_batch(self):
    self.student.optimizer.learning_rate = 0.0
    cosines = np.concatenate([
        tiny.swa_cosines(self.student, self.teacher, batch, training=True)
        for batch in (self.pictures[:4], self.pictures[4:])])
    history = self.fit(batch_size=4)
    self.assertAlmostEqual(
        history["attr_agreement"][0], cosines.mean(), places=PLACES)

  def test_who_evaluates_in_between_does_not_disturb_them(self):
    self.student.optimizer.learning_rate = 0.0
    want = np.mean([tiny.swa_cosines(
        self.student, self.teacher, self.pictures[i:i + 3], training=True)
                    for i in (0, 3)])
    other = tiny.images(20, seed=9, size=4), tiny.labels(20)

    class Evaluate(keras.callbacks.Callback):
      def on_train_batch_end(self, batch, logs=None):
        if batch < 1:
          self.model.evaluate(*other, verbose=0)

    history = self.fit(callbacks=[Evaluate()])
    self.assertAlmostEqual(history["attr_agreement"][0], want, places=PLACES)

  def test_sample_and_class_weights(self):
    self.student.optimizer.learning_rate = 0.0
    distances = 1 - np.concatenate([
        tiny.swa_cosines(
            self.student, self.teacher, self.pictures[i:i + 3], training=True)
        for i in (0, 3)])
    weights = np.float32([0, 1, 2, 0.5, 1, 3])
    history = self.fit(sample_weight=weights)
    self.assertAlmostEqual(
        history["attr_loss"][0], 3 * (weights * distances).mean(),
        places=LOSS_PLACES)
    by_class = {0: 0.5, 1: 2.0, 2: 0.0}
    history = self.fit(class_weight=by_class)
    weights = np.array([by_class[label] for label in self.labels])
    self.assertAlmostEqual(
        history["attr_loss"][0], 3 * (weights * distances).mean(),
        places=LOSS_PLACES)

  def test_distillation(self):
    callback = PreserveAttribution(
        self.teacher, None, distillation=Distillation())
    history = self.fit(preserve=False, callbacks=[callback],
                       validation_data=(self.pictures, self.labels))
    self.assertContainsSubset(
        {"distill_loss", "val_distill_loss"}, set(history))
    self.assertNoCommonElements(LOGS, set(history))
    # Student and teacher differ; a distillation that does nothing gives 0.
    self.assertGreater(history["distill_loss"][0], 1e-4)

  def assertNoCommonElements(self, one, other):  # noqa: N802
    self.assertEmpty(set(one) & set(other))

  def test_stopping_and_saving_by_agreement(self):
    path = str(tiny.folder(self) / "best.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, monitor="val_attr_agreement", mode="max", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(
        "val_attr_agreement", mode="max", min_delta=10, patience=2)
    # Before or after the callback that makes the figure.
    history = self.fit(
        callbacks=[
            checkpoint, PreserveAttribution(self.teacher, self.wcam), stop],
        preserve=False, epochs=9, batch_size=COUNT,
        validation_data=(self.pictures, self.labels))
    agreements = history["val_attr_agreement"]
    self.assertLen(agreements, 3)  # The first, and two without so great a leap.
    best = keras.models.load_model(path)
    self.assertAlmostEqual(
        max(agreements),
        tiny.swa_cosines(best, self.teacher, self.pictures).mean(),
        places=PLACES)


class TrainingTest(_CallbackTest):

  @pytest.mark.slow("training")
  def test_maps_come_to_agree(self):
    plain, held = (_compiled(tiny.smooth_net(1), run_eagerly=False)
                   for _ in range(2))
    self.wcam = WCAM("act", weight=20.0)
    self.fit(plain, preserve=False, epochs=25)
    self.fit(held, epochs=25)
    without, held_cosine = (
        tiny.swa_cosines(model, self.teacher, self.pictures).mean()
        for model in (plain, held))
    # Between two behaviours: maps that are held come to agree, ...
    self.assertGreater(held_cosine, 0.98)
    # ... and maps of a student that learns the task alone stay different.
    self.assertLess(without, 0.95)

  def test_weight_0_only_observes(self):
    plain, observed = (_compiled(tiny.smooth_net(1)) for _ in range(2))
    self.wcam = WCAM("act", weight=0.0, drop_rate=0.3)
    self.fit(plain, preserve=False, epochs=2)
    history = self.fit(observed, epochs=2)
    self.assertEqual(history["attr_loss"], [0, 0])
    for weight, observed_weight in zip(
        plain.get_weights(), observed.get_weights()):
      # Four steps; only the order of float32 sums may differ.
      np.testing.assert_allclose(weight, observed_weight, atol=1e-6)
    self.wcam = WCAM("act", weight=0.0)
    self.student.optimizer.learning_rate = 0.0
    self.assertAlmostEqual(
        self.fit()["attr_agreement"][0], self.agreement(self.student),
        places=PLACES)

  def test_equal_to_the_steps_of_a_loop(self):
    """Keras traces the step; the loop calls it."""
    _compiled(self.student, run_eagerly=False)
    other = _compiled(tiny.smooth_net(1))
    step = TrainStep(other, self.teacher, self.wcam)
    for i in (0, 3):
      step((tf.constant(self.pictures[i:i + 3]),
            tf.constant(self.labels[i:i + 3])))
    self.fit()
    for got, want in zip(self.student.get_weights(), other.get_weights()):
      # Two steps, called in two ways: float32 sums in another order.
      np.testing.assert_allclose(got, want, atol=1e-5)

  @pytest.mark.slow("training")
  def test_ways_of_running(self):
    """Graphs of several steps give the same as eager steps."""
    other = _compiled(
        tiny.smooth_net(1), run_eagerly=False, steps_per_execution=2)
    validation = {"validation_data": (self.pictures, self.labels)}
    got, want = self.fit(other, **validation), self.fit(**validation)
    for name in set(want) - {"attr_loss"}:
      # Eager ops sum float32 in another order, and two training steps amplify
      # that.
      self.assertAlmostEqual(got[name][0], want[name][0], places=3, msg=name)
    for value, expected in zip(other.get_weights(), self.student.get_weights()):
      # The same in weights, where momentum carries rounding from step to step.
      np.testing.assert_allclose(value, expected, atol=1e-4)
    # Keras then makes them again, by the model's steps.
    self.assertIsNone(other.train_function)
    self.assertIsNone(other.test_function)
    self.assertEmpty({"train_step", "test_step"} & set(vars(other)))

  def test_a_smaller_student(self):
    student = _compiled(tiny.smooth_net(1, width=2), 0.0)
    history = self.fit(student, epochs=2)
    self.assertAlmostEqual(
        history["attr_agreement"][1], self.agreement(student), places=PLACES)
    self.assert_clean(student)

  def test_pruning(self):
    student = _compiled(tiny.prune(tiny.smooth_net(1, width=8)))
    self.teacher = tiny.smooth_net(0, width=8)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    history = self.fit(
        student, callbacks=[update], epochs=2,
        validation_data=(self.pictures, self.labels))
    # Trap 4: two epochs of two batches, not of four forward passes.
    self.assertEqual(set(tiny.pruning_steps(student)), {4})
    self.assertContainsSubset(LOGS, set(history))
    stripped = tfmot.sparsity.keras.strip_pruning(student)
    kernel = stripped.get_layer("conv").kernel.numpy()
    # tfmot keeps a whole number of the 144 weights, of which one is .007.
    self.assertAlmostEqual((kernel == 0).mean(), 0.5, delta=0.02)
    self.assertNotIn("train_step", list(vars(student)))

  def test_quantization(self):
    student = _compiled(tiny.quantize(tiny.smooth_net(1)))
    before = {
        weight.name: weight.numpy() for weight in student.trainable_variables}
    history = self.fit(student, epochs=2, batch_size=COUNT, validation_data=(
        self.pictures, self.labels))
    self.assertContainsSubset(LOGS, set(history))
    self.assertEqual(history["attr_dead"], [0, 0])
    for variable in student.trainable_variables:
      self.assertGreater(
          np.abs(variable.numpy() - before[variable.name]).max(), 0)
    self.assert_clean(student)

  def test_quantization_that_keeps_zeros(self):
    """Trap 12."""
    model = tiny.smooth_net(1)
    kernel = model.get_layer("conv").kernel
    zeros = np.random.default_rng(0).uniform(size=kernel.shape) < 0.5
    kernel.assign(np.where(zeros, 0, kernel))
    for wrap, stays in ((tiny.quantize_sparse, True), (tiny.quantize, False)):
      student = _compiled(wrap(model))
      self.fit(student)
      now, = (weight.numpy() for weight in student.trainable_variables
              if weight.name == "conv/kernel:0")
      self.assertEqual((now[zeros] == 0).all(), stays)
      self.assertGreater(np.abs(now[~zeros]).min(), 0)

  def test_the_teacher_stays_as_it_came(self):
    self.teacher = _compiled(tiny.smooth_net(0))
    self.fit(self.teacher, preserve=False)  # Gives its optimizer a momentum.
    self.teacher.get_layer("bn").trainable = False
    weights = self.teacher.get_weights()
    slots = [slot.numpy() for slot in self.teacher.optimizer.variables]
    flags = [layer.trainable for layer in self.teacher.layers]
    state = set(vars(self.teacher))
    self.fit(self.student, validation_data=(self.pictures, self.labels))
    self.assertTrue(tiny.weights_equal(self.teacher.get_weights(), weights))
    self.assertTrue(tiny.weights_equal(
        [slot.numpy() for slot in self.teacher.optimizer.variables], slots))
    self.assertEqual(
        [layer.trainable for layer in self.teacher.layers], flags)
    self.assertEqual(set(vars(self.teacher)), state)
    self.assert_clean(self.teacher)

  def test_the_optimizer_keeps_its_momentum(self):
    """The official code's fault: each round began with a new optimizer."""
    self.fit()
    optimizer = self.student.optimizer
    slots = [slot.numpy() for slot in optimizer.variables]
    self.assertEqual(int(optimizer.iterations), 2)
    self.fit()
    self.assertIs(self.student.optimizer, optimizer)
    self.assertEqual(int(optimizer.iterations), 4)
    self.assertLen(optimizer.variables, len(slots))

  def test_labels_as_target(self):
    self.student.compile("sgd", keras.losses.CategoricalCrossentropy(
        from_logits=True), run_eagerly=True)
    self.student.optimizer.learning_rate = 0.0
    self.wcam = WCAM("act", target="label")
    want = np.concatenate([
        tiny.swa_cosines(
            self.student, self.teacher, self.pictures[i:i + 3],
            self.labels[i:i + 3], training=True) for i in (0, 3)])
    history = self.fit(y=np.eye(3, dtype=np.float32)[self.labels])
    self.assertAlmostEqual(
        history["attr_agreement"][0], want.mean(), places=PLACES)

  @pytest.mark.slow("training")
  def test_a_dataset_of_labels_without_a_known_shape(self):
    """Nor of a known length: its end is no failure, and validation follows."""
    def pairs():
      for i in (0, 3):
        yield self.pictures[i:i + 3], self.labels[i:i + 3]
    data = tf.data.Dataset.from_generator(
        pairs, output_types=(tf.float32, tf.int32))
    data = data.map(lambda x, y: (tf.ensure_shape(x, [None, 4, 4, 2]), y))
    self.wcam = WCAM("act", target="label")
    _compiled(self.student, 0.0, metrics=None, run_eagerly=False)
    history = self.student.fit(
        data, verbose=0, validation_data=data,
        callbacks=[PreserveAttribution(self.teacher, self.wcam)]).history
    self.assertAlmostEqual(
        history["val_attr_agreement"][0], tiny.swa_cosines(
            self.student, self.teacher, self.pictures, self.labels).mean(),
        places=PLACES)
    # Last, since it runs the student in training mode.
    self.assertAlmostEqual(
        history["attr_agreement"][0],
        self.agreement(self.student, self.labels), places=PLACES)


class AfterwardsTest(_CallbackTest):

  def test_the_model_is_its_own_again(self):
    validation = {"validation_data": (self.pictures, self.labels),
                  "batch_size": COUNT}
    self.fit(**validation)
    self.assertIsNone(self.student.train_function)
    self.assertIsNone(self.student.test_function)
    self.assert_clean()
    self.assertLen(self.student.evaluate(
        self.pictures, self.labels, verbose=0), 2)
    self.assertEqual(self.student.metrics_names, ["loss", "accuracy"])
    self.assertContainsSubset(LOGS, set(self.fit(**validation)))
    self.assert_clean()

  def test_one_callback_serves_two_fits(self):
    callback = PreserveAttribution(self.teacher, self.wcam)
    other = _compiled(tiny.smooth_net(2))
    for model in (self.student, self.student, other):
      history = self.fit(
          model, callbacks=[callback], preserve=False, batch_size=COUNT)
      self.assertContainsSubset(LOGS, set(history))
      self.assertNotIn("train_step", list(vars(model)))

  def test_saved_and_loaded(self):
    self.check_saved_and_loaded("h5")

  # That it is saved at all, keras_ways_test.py holds as well.
  @pytest.mark.slow("training")
  def test_saved_and_loaded_as_tensorflow_does(self):
    self.check_saved_and_loaded("tf")

  def check_saved_and_loaded(self, kind):
    self.fit()
    path = str(tiny.folder(self) / ("model.h5" if kind == "h5" else "model"))
    self.student.save(path, save_format=kind)
    loaded = keras.models.load_model(path)
    loaded.run_eagerly = True  # No file says how to run.
    # The very weights; a reloaded graph may sum in another order.
    np.testing.assert_allclose(
        loaded(self.pictures), self.student(self.pictures), atol=1e-6)
    self.assertAlmostEqual(
        loaded.evaluate(self.pictures, self.labels, verbose=0)[0],
        self.student.evaluate(self.pictures, self.labels, verbose=0)[0],
        places=PLACES)
    self.assertEqual(set(self.fit(loaded, preserve=False)),
                     {"loss", "accuracy"})
    if kind == "h5":
      self.assertContainsSubset(LOGS, set(self.fit(loaded)))

  def test_pruned_saved_and_loaded(self):
    """Trap 10: .h5 is exact, within tfmot's scope."""
    self.check_wrapped_saved_and_loaded("prune")

  @pytest.mark.slow("training")
  def test_quantized_saved_and_loaded(self):
    self.check_wrapped_saved_and_loaded("quantize")

  def check_wrapped_saved_and_loaded(self, wrap):
    student = _compiled(getattr(tiny, wrap)(tiny.smooth_net(1)))
    update = [tfmot.sparsity.keras.UpdatePruningStep()] * (wrap == "prune")
    self.fit(student, callbacks=update)
    path = str(tiny.folder(self) / "model.h5")
    student.save(path)
    scope = {"quantize": tfmot.quantization.keras.quantize_scope,
             "prune": tfmot.sparsity.keras.prune_scope}[wrap]
    with scope():
      loaded = keras.models.load_model(path)
    loaded.run_eagerly = True  # No file says how to run.
    np.testing.assert_array_equal(
        loaded(self.pictures), student(self.pictures))
    update = [tfmot.sparsity.keras.UpdatePruningStep()] * (wrap == "prune")
    self.assertContainsSubset(LOGS, set(self.fit(loaded, callbacks=update)))

  def test_resumed_pruning_goes_on_counting(self):
    """Trap 17."""
    folder = str(tiny.folder(self))
    student = _compiled(tiny.prune(tiny.smooth_net(1)))
    counts = []
    def callbacks():
      return [tfmot.sparsity.keras.UpdatePruningStep(),
              keras.callbacks.BackupAndRestore(
                  folder, delete_checkpoint=False)]
    with contextlib.suppress(ZeroDivisionError):
      self.fit(student, callbacks=[*callbacks(), _Raise(
          "on_epoch_end", ZeroDivisionError())], epochs=2)
    counts.append(set(tiny.pruning_steps(student)))
    fresh = _compiled(tiny.prune(tiny.smooth_net(1)))
    self.fit(fresh, callbacks=callbacks(), epochs=2)
    counts.append(set(tiny.pruning_steps(fresh)))
    self.assertIn(counts, ([{2}, {4}], [{2}, {6}]))


class InterruptedTest(_CallbackTest):

  @parameterized.parameters(KeyboardInterrupt, ZeroDivisionError)
  def test_inside_a_step(self, error):
    def loss(labels, outputs):
      raise error()
    self.student.compile("sgd", loss, run_eagerly=True)
    with self.assertRaises(BaseException):  # noqa: B017  TensorFlow's own.
      self.fit()
    _compiled(self.student)
    self.assert_clean()

  @parameterized.parameters(KeyboardInterrupt, ZeroDivisionError)
  def test_by_the_data(self, error):
    self.check_by_the_data(error)

  @pytest.mark.slow("training")
  def test_by_the_data_of_a_graph(self):
    _compiled(self.student, run_eagerly=False)
    self.check_by_the_data(KeyboardInterrupt)

  def check_by_the_data(self, error):
    def pairs():
      yield self.pictures[:2], self.labels[:2]
      raise error()
    with self.assertRaises(BaseException):  # noqa: B017  TensorFlow's own.
      self.student.fit(pairs(), verbose=0, callbacks=[
          PreserveAttribution(self.teacher, self.wcam)])
    self.assert_clean()

  def test_by_the_data_of_validation(self):
    def pairs():
      yield self.pictures[:2], self.labels[:2]
      raise ZeroDivisionError()
    with self.assertRaises(Exception):  # noqa: B017  TensorFlow's own.
      self.fit(validation_data=pairs())
    self.assert_clean()

  @parameterized.parameters(
      ("on_train_begin", True), ("on_train_batch_end", True),
      ("on_test_batch_end", False), ("on_epoch_end", False),
      ("on_train_end", True))
  def test_by_another_callback(self, moment, first):
    other = _Raise(moment, KeyboardInterrupt())
    callback = PreserveAttribution(self.teacher, self.wcam)
    with self.assertRaises(KeyboardInterrupt):
      self.fit(callbacks=[other, callback] if first else [callback, other],
               preserve=False, validation_data=(self.pictures, self.labels))
    self.assert_clean(by_fit=True)

  def test_the_next_fit_preserves_again(self):
    with self.assertRaises(KeyboardInterrupt):
      self.fit(callbacks=[_Raise("on_train_batch_end", KeyboardInterrupt())])
    self.assertContainsSubset(LOGS, set(self.fit()))
    self.assert_clean()

  def test_data_that_runs_out_is_no_failure(self):
    self.check_data_that_runs_out()

  # A dataset without a known length shows as well that a graph ends a loop in
  # its own error.
  @pytest.mark.slow("training")
  def test_data_of_a_graph_that_runs_out_is_no_failure(self):
    _compiled(self.student, run_eagerly=False)
    self.check_data_that_runs_out()

  def check_data_that_runs_out(self):
    def pairs():
      yield self.pictures[:2], self.labels[:2]
    history = self.student.fit(
        pairs(), steps_per_epoch=3, verbose=0,
        callbacks=[PreserveAttribution(self.teacher, self.wcam)],
        validation_data=(self.pictures, self.labels)).history
    self.assertContainsSubset(LOGS, set(history))
    self.assertIn("val_attr_agreement", history)
    self.assert_clean()


class RefusedTest(_CallbackTest):

  def test_two_in_one_fit(self):
    callbacks = [PreserveAttribution(self.teacher, self.wcam)
                 for _ in range(2)]
    with self.assertRaisesRegex(
        ValueError, "callbacks: the model has a PreserveAttribution already"):
      self.fit(callbacks=callbacks, preserve=False)
    self.assert_clean()
    self.assertContainsSubset(LOGS, set(self.fit()))

  def test_a_teacher_that_shares_layers(self):
    """Pruning wraps the layers it is given."""
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0)
    self.teacher = tiny.smooth_net(0)
    student = _compiled(tfmot.sparsity.keras.prune_low_magnitude(
        self.teacher, schedule))
    with self.assertRaisesRegex(
        ValueError, r"teacher must share no weights.*kap.clone_model\(teacher"):
      self.fit(student)
    self.assertNotIn("train_step", list(vars(student)))

  def test_a_keras_3_teacher(self):
    import keras as keras_3
    model = keras_3.Sequential([keras_3.Input((4, 4, 2)),
                                keras_3.layers.Flatten()])
    with self.assertRaisesRegex(
        TypeError, "teacher must be a tf_keras model.*Keras 3 model.*"
        "import tf_keras as keras"):
      PreserveAttribution(model, self.wcam)

  def test_a_keras_3_student(self):
    import keras as keras_3
    model = keras_3.Sequential([
        keras_3.Input((4, 4, 2)), keras_3.layers.Conv2D(3, 3, name="act"),
        keras_3.layers.GlobalAveragePooling2D()])
    model.compile("sgd", "mse")
    with self.assertRaisesRegex(
        TypeError, "model must be a tf_keras model.*Keras 3 model.*"
        "import tf_keras as keras"):
      PreserveAttribution(self.teacher, self.wcam).set_model(model)

  @parameterized.parameters("train_step", "test_step")
  def test_a_step_of_its_own(self, name):
    """Replacing it would silently drop its effect."""
    def step(self, data):
      del data
      return {"loss": tf.constant(0.0)}
    kind = type("Mine", (keras.Model,), {name: step})
    student = _compiled(kind(self.student.inputs, self.student.outputs))
    with self.assertRaisesRegex(
        ValueError, rf"model '.*' has a {name} of its own.*kap.TrainStep"):
      self.fit(student)
    self.assertNotIn("train_step", list(vars(student)))

  def test_settings_that_do_not_fit_are_said_before_training(self):
    for wcam, message in (
        (WCAM("relu9"), "layer 'relu9'"),
        (WCAM("act", student_layer="relu9"), "layer 'relu9'"),
        (WCAM("act", target="present"), "'present' needs multi-hot labels")):
      self.wcam = wcam
      before = self.student.get_weights()
      with self.assertRaisesRegex(ValueError, message):
        self.fit()
      self.assertTrue(tiny.weights_equal(self.student.get_weights(), before))
      self.assertNotIn("train_step", list(vars(self.student)))
    self.assert_clean()

  def test_what_is_no_setting(self):
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM; got"):
      self.fit(callbacks=[PreserveAttribution(self.teacher, "act")],
               preserve=False)
    self.assert_clean()

  def test_evaluate_and_predict_with_the_callback_leave_no_trace(self):
    callback = PreserveAttribution(self.teacher, self.wcam)
    self.student.evaluate(
        self.pictures, self.labels, callbacks=[callback], verbose=0)
    self.assert_clean()
    self.student.predict(self.pictures, callbacks=[callback], verbose=0)
    self.assert_clean()


if __name__ == "__main__":
  absltest.main()
