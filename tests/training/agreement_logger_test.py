"""Tests of agreement_logger.py: the figures, the files, and nothing else.

Where no training matters, the callback is told of its epochs by hand.
"""

import csv
import functools
import importlib.util
import os
import sys
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized
from scipy import stats

from keras_attr_preserve import WCAM, PreserveAttribution
from keras_attr_preserve.training.agreement_logger import AgreementLogger
from keras_attr_preserve.utils.drawing import side_by_side
from tests import tiny

COUNT = 7
FIGURES = {"agreement", "agreement_p5", "agreement_spearman", "agreement_dead"}
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
GAP = 4
# Float32 maps and cosines: sums in another order than NumPy's.
PLACES = 5


def _compiled(model, rate=0.05, **settings):
  model.compile(
      keras.optimizers.SGD(rate, momentum=0.9),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      **{"metrics": ["accuracy"], **settings})
  return model


def _small_net(channels=3, classes=3, head=None, seed=0, stride=1, size=8):
  """Conv "act", mean, Dense; a map of size / stride."""
  layers = keras.layers
  return tiny.shake(keras.Sequential([
      keras.Input((size, size, channels)),
      layers.Conv2D(4, 3, stride, "same", activation="sigmoid", name="act"),
      layers.GlobalAveragePooling2D(),
      layers.Dense(classes, head, name="logits")]), seed)


def _maps(model, pictures, classes, layer="act"):
  """SWA maps of a layer with a mean and Dense behind it, by NumPy."""
  features = keras.Model(model.inputs, model.get_layer(layer).output)(pictures)
  kernel = model.get_layer("logits").kernel.numpy()[:, classes]
  return np.maximum(np.einsum("bhwc,cb->bhw", features, kernel), 0)


def _halved(maps):
  """Maps of half the size, bilinear and antialiased, by hand.

  A triangle two pixels wide to each side: 1, 3, 3 and 1 eighths of four pixels,
  of three as many sevenths at the borders.
  """
  size = maps.shape[1] // 2
  rows = np.zeros((size, 2 * size + 2))
  for i in range(size):
    rows[i, 2 * i:2 * i + 4] = [1, 3, 3, 1]
  rows = rows[:, 1:-1] / rows[:, 1:-1].sum(1, keepdims=True)
  return np.einsum("ih,bhw,jw->bij", rows, maps, rows)


class _LoggerTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.teacher = tiny.shared(tiny.smooth_net, 0)
    self.pictures = tiny.images(6, size=4)
    self.labels = tiny.labels(6)
    self.held_out = tiny.images(COUNT, seed=5, size=4)

  @functools.cached_property
  def student(self):
    return _compiled(tiny.smooth_net(1))

  def look(self, logger, model=None, epochs=1):
    """Epochs in which nothing is trained; returns the logs, as `fit` does."""
    with tiny.eagerly():
      return self._look(logger, model, epochs)

  def _look(self, logger, model, epochs):
    logger.set_params({"epochs": epochs})
    logger.set_model(self.student if model is None else model)
    logger.on_train_begin()
    history = []
    for epoch in range(epochs):
      logs = {}
      logger.on_epoch_end(epoch, logs)
      history.append(logs)
    logger.on_train_end()
    return {name: [logs[name] for logs in history] for name in history[0]}

  def fit(self, callbacks, model=None, **settings):
    """Epochs of batches of two, in order; returns the logs."""
    settings = {"x": self.pictures, "y": self.labels, "batch_size": 2,
                "shuffle": False, "verbose": 0, **settings}
    model = self.student if model is None else model
    return model.fit(callbacks=list(callbacks), **settings).history

  def logger(self, **settings):
    return AgreementLogger(self.teacher, self.held_out, "act", **settings)


class FiguresTest(_LoggerTest):

  def test_equal_to_values_by_hand(self):
    # The two models disagree somewhere, and both explain the teacher's class.
    top = [model(self.held_out).numpy().argmax(1)
           for model in (self.teacher, self.student)]
    self.assertTrue((top[0] != top[1]).any())
    history = self.fit([self.logger(batch_size=3)])
    self.assertEqual(set(history), FIGURES | {"loss", "accuracy"})
    cosines = tiny.swa_cosines(self.student, self.teacher, self.held_out)
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)
    self.assertAlmostEqual(
        history["agreement_p5"][0], np.percentile(cosines, 5), places=PLACES)
    self.assertEqual(history["agreement_dead"], [0])

  def test_rank_correlation(self):
    history = self.look(self.logger(method="ewa"))
    maps = [np.square(keras.Model(model.inputs, model.get_layer("act").output)(
        self.held_out)).mean(-1).reshape(COUNT, -1)
            for model in (self.teacher, self.student)]
    want = [stats.spearmanr(*pair)[0] for pair in zip(*maps)]
    self.assertAlmostEqual(
        history["agreement_spearman"][0], np.mean(want), places=PLACES)
    cosines = (tiny.unit(maps[0]) * tiny.unit(maps[1])).sum(1)
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)

  @parameterized.parameters(0, ([0, 1, 2, 2, 1, 0, 0],))
  def test_classes_of_ones_choice(self, targets):
    history = self.look(self.logger(targets=targets))
    cosines = tiny.swa_cosines(self.student, self.teacher, self.held_out,
                               np.broadcast_to(targets, COUNT))
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)
    top = tiny.swa_cosines(self.student, self.teacher, self.held_out)
    # Above PLACES: the figure is not that of the top class.
    self.assertGreater(abs(top.mean() - history["agreement"][0]), 1e-4)

  def test_the_student_as_it_stands_after_each_epoch(self):
    want = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: want.append(
        tiny.swa_cosines(self.student, self.teacher, self.held_out).mean()))
    history = self.fit([self.logger(), look], epochs=3)
    # The same float32 sums as for PLACES.
    np.testing.assert_allclose(history["agreement"], want, atol=1e-5)
    # An epoch moves the student by far more than that.
    self.assertGreater(np.ptp(want), 1e-3)

  def test_a_copy_agrees(self):
    history = self.look(self.logger(), tiny.copy_of(self.teacher))
    for name, want in {"agreement": 1, "agreement_p5": 1,
                       "agreement_spearman": 1, "agreement_dead": 0}.items():
      # Float32 rounding of cosines of equal maps: nothing was trained.
      self.assertAlmostEqual(history[name][0], want, places=6)

  def test_dead_maps(self):
    kernel = self.student.get_layer("logits").kernel
    kernel.assign(-tf.abs(kernel))
    history = self.look(self.logger())
    self.assertEqual(history["agreement_dead"], [1])
    self.assertEqual(history["agreement"], [0])

  def test_dead_counts_only_where_the_teacher_looks_at_something(self):
    kernel = self.teacher.get_layer("logits").kernel
    kernel.assign(kernel * [[1, 1, -1]])  # Class 2: a dead map.
    targets = [0, 1, 2, 2, 1, 0, 0]
    kernel = self.student.get_layer("logits").kernel
    kernel.assign(kernel * [[1, -1, -1]])
    history = self.look(self.logger(targets=targets))
    self.assertAlmostEqual(history["agreement_dead"][0], 2 / 5)
    cosines = tiny.swa_cosines(self.student, self.teacher, self.held_out,
                               np.zeros(COUNT, int))[[0, 5, 6]]
    self.assertAlmostEqual(
        history["agreement"][0], cosines.sum() / 5, places=PLACES)

  def test_weights_that_are_no_numbers(self):
    kernel = self.student.get_layer("logits").kernel
    for value in (np.nan, np.inf):
      kernel.assign(np.full_like(kernel, value))
      history = self.look(self.logger(), epochs=2)
      for name in FIGURES:
        self.assertTrue(np.isnan(history[name]).all())

  @parameterized.parameters(
      (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4]))
  def test_every(self, every, want):
    history = self.look(self.logger(every=every), epochs=5)
    for name in FIGURES:
      self.assertLen(history[name], 5)
      self.assertEqual(np.flatnonzero(~np.isnan(history[name])).tolist(), want)

  def test_callbacks_that_come_after_it(self):
    folder = tiny.folder(self)
    best = str(folder / "best.h5")
    student = _compiled(self.student, run_eagerly=True)
    history = self.fit([
        self.logger(every=2),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.ModelCheckpoint(
            best, monitor="agreement", mode="max", save_best_only=True),
        keras.callbacks.EarlyStopping(
            "agreement", mode="max", min_delta=10, patience=4)],
        student, epochs=9, batch_size=6)
    agreements = history["agreement"]
    self.assertLen(agreements, 5)
    with open(folder / "log.csv") as file:
      rows = [float(row["agreement"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(rows, agreements)
    best_model = keras.models.load_model(best)
    self.assertAlmostEqual(
        np.nanmax(agreements),
        tiny.swa_cosines(best_model, self.teacher, self.held_out).mean(),
        places=PLACES)

  def test_two_of_them(self):
    _compiled(self.student, run_eagerly=True)
    history = self.fit([self.logger(), self.logger(method="ewa", name="ewa")])
    self.assertContainsSubset({"agreement", "ewa", "ewa_dead"}, set(history))
    self.assertNotEqual(history["agreement"], history["ewa"])
    with self.assertRaisesRegex(ValueError, "name must give.*'agreement'"):
      self.fit([self.logger(), self.logger(method="ewa")])


class NetsTest(_LoggerTest):

  # All other tests have two channels.
  @parameterized.product(channels=(1, 3, 4), head=(None, "sigmoid"))
  def test_multi_label_and_channels(self, channels, head):
    self.teacher = _small_net(channels, head=head)
    student = _small_net(channels, head=head, seed=1)
    for model in (self.teacher, student):  # So that all maps are alive.
      kernel = model.get_layer("logits").kernel
      kernel.assign(tf.abs(kernel))
    self.held_out = np.random.default_rng(0).uniform(
        0, 255, (COUNT, 8, 8, channels))
    history = self.look(self.logger(targets=1), student)
    cosines = tiny.swa_cosines(
        student, self.teacher, self.held_out, np.ones(COUNT, int))
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)

  @parameterized.parameters(None, "sigmoid")
  def test_one_logit(self, head):
    self.teacher = _small_net(2, 1, head)
    student = _small_net(2, 1, head, seed=1)
    self.held_out = tiny.images(40, size=8)
    head = self.teacher.get_layer("logits")
    logits = keras.Model(self.teacher.inputs, head.input)(
        self.held_out) @ head.kernel
    head.bias.assign([-np.median(logits)])  # Both classes occur.
    sign = np.sign(logits + head.bias)
    history = self.look(self.logger(), student)
    maps = []
    for model in (self.teacher, student):
      features = keras.Model(model.inputs, model.get_layer("act").output)(
          self.held_out)
      kernel = model.get_layer("logits").kernel[:, 0]
      maps.append(np.maximum(np.einsum(
          "bhwc,c->bhw", features, kernel) * sign[..., None], 0))
    alive = maps[0].any((1, 2))
    self.assertGreater(alive.sum(), 5)
    norms = [np.linalg.norm(model_maps[alive], axis=(1, 2))
             for model_maps in maps]
    want = (maps[0] * maps[1])[alive].sum((1, 2)) / np.maximum(
        norms[0] * norms[1], 1e-12)
    # Float32 sums in another order, cut at 0, where few positions are left.
    self.assertAlmostEqual(history["agreement"][0], want.mean(), places=4)

  @parameterized.parameters((1, 2), (2, 1))
  def test_maps_of_other_sizes(self, teacher_stride, student_stride):
    self.teacher = _small_net(2, stride=teacher_stride)
    student = _small_net(2, seed=1, stride=student_stride)
    self.held_out = tiny.images(COUNT, size=8)
    history = self.look(self.logger(), student)
    top = self.teacher(self.held_out).numpy().argmax(1)
    maps = [_maps(model, self.held_out, top)
            for model in (self.teacher, student)]
    maps = [_halved(array) if array.shape[1] == 8 else array for array in maps]
    cosines = (tiny.unit(maps[0]) * tiny.unit(maps[1])).sum(1)
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)

  def test_a_smaller_student_with_another_name(self):
    student = tiny.smooth_net(1, width=2, tail="block")
    history = self.look(self.logger(student_layer="act2"), student)
    top = self.teacher(self.held_out).numpy().argmax(1)
    cosines = (tiny.unit(_maps(self.teacher, self.held_out, top)) * tiny.unit(
        _maps(student, self.held_out, top, "act2"))).sum(1)
    self.assertAlmostEqual(
        history["agreement"][0], cosines.mean(), places=PLACES)

  @parameterized.parameters("plain", "prune")
  @pytest.mark.slow("training")
  def test_training_goes_as_without_it(self, kind):
    """To the last bit; with tfmot's wrappers too, that count their calls.

    The plain one as a graph of Keras.
    """
    self.check_training_goes_as_without_it(kind)

  @parameterized.parameters("quantize", "quantize_sparse")
  @pytest.mark.slow("compressions")
  def test_quantized_training_goes_as_without_it(self, kind):
    self.check_training_goes_as_without_it(kind)

  def check_training_goes_as_without_it(self, kind):
    make = getattr(tiny, kind, tiny.copy_of)
    weights, histories, metrics = [], [], []
    for watched in (False, True):
      keras.utils.set_random_seed(3)
      model = tiny.smooth_net(1, width=8)
      out = keras.layers.Dropout(0.5)(model.get_layer("pool").output)
      model = keras.Model(model.inputs, model.get_layer("logits")(out))
      student = _compiled(make(model), run_eagerly=kind != "plain")
      callbacks = [self.logger(targets=0)] if watched else []
      update = [tfmot.sparsity.keras.UpdatePruningStep()] * (kind == "prune")
      histories.append(self.fit(
          [*callbacks, *update], student, epochs=2, batch_size=3, shuffle=True,
          validation_data=(self.pictures, self.labels)))
      weights.append([*student.get_weights(), *student.optimizer.variables])
      metrics.append(student.metrics_names)
      if kind == "prune":
        self.assertEqual(set(tiny.pruning_steps(student)), {4})
    self.assertTrue(tiny.weights_equal(*weights))
    self.assertEqual(*metrics)
    for name, values in histories[0].items():
      self.assertEqual(values, histories[1][name])
    self.assertEqual(set(histories[1]) - set(histories[0]), FIGURES)

  def test_a_pruned_student_is_judged_with_its_zeros(self):
    student = _compiled(
        tiny.prune(tiny.smooth_net(1, width=8), 0.7), run_eagerly=True)
    self.teacher = tiny.smooth_net(0, width=8)
    history = self.fit([
        self.logger(), tfmot.sparsity.keras.UpdatePruningStep()], student)
    stripped = tiny.copy_of(tfmot.sparsity.keras.strip_pruning(student))
    # The target is 70 %; a kernel whose mask is not applied has no zeros.
    self.assertGreater(
        (stripped.get_layer("conv").kernel.numpy() == 0).mean(), 0.6)
    self.assertAlmostEqual(history["agreement"][0], tiny.swa_cosines(
        stripped, self.teacher, self.held_out).mean(), places=PLACES)

  @pytest.mark.slow("training")
  def test_ways_of_running(self):
    """Graphs of several steps give the same as eager steps."""
    want = self.fit([self.logger()],
                    _compiled(self.student, run_eagerly=True))
    got = self.fit([self.logger()], _compiled(
        tiny.smooth_net(1), steps_per_execution=2))
    for name in FIGURES:
      # Three steps, run in another way, amplify float32 rounding.
      self.assertAlmostEqual(got[name][0], want[name][0], places=4)

  @pytest.mark.slow("training")
  def test_beside_the_callback_that_preserves(self):
    """Before it or after it."""
    _compiled(self.student, run_eagerly=True)
    want = self.fit([PreserveAttribution(self.teacher, WCAM("act"))],
                    epochs=2, batch_size=3)
    for order in (1, -1):
      student = _compiled(tiny.smooth_net(1), run_eagerly=True)
      callbacks = [self.logger(),
                   PreserveAttribution(self.teacher, WCAM("act"))]
      got = self.fit(callbacks[::order], student, epochs=2, batch_size=3)
      self.assertEqual(set(got), set(want) | FIGURES)
      self.assertTrue(tiny.weights_equal(
          student.get_weights(), self.student.get_weights()))
      self.assertEmpty({"train_step", "test_step"} & set(vars(student)))

  def test_models_are_left_alone(self):
    def state(model):
      return ({name: id(value) for name, value in vars(model).items()
               if name in ("train_function", "test_function",
                           "predict_function", "optimizer", "_layers",
                           "compiled_metrics", "_self_tracked_trackables")},
              set(vars(model)), [layer.trainable for layer in model.layers],
              [len(layer.inbound_nodes) for layer in model.layers],
              [len(layer.outbound_nodes) for layer in model.layers],
              len(model.metrics), len(model.variables), len(model.losses))
    states = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: states.append(state(self.student)))
    weights, before = self.teacher.get_weights(), state(self.teacher)
    self.fit([look, self.logger(), look], epochs=3)
    self.assertLen(states, 6)
    for snapshot in states[1:]:
      self.assertEqual(snapshot, states[0])
    self.assertTrue(tiny.weights_equal(self.teacher.get_weights(), weights))
    self.assertEqual(state(self.teacher), before)

  @pytest.mark.slow("devices")
  def test_under_a_strategy(self):
    want = self.fit([self.logger()],
                    _compiled(self.student, run_eagerly=True))
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
      student = _compiled(tiny.smooth_net(1))
    got = self.fit([self.logger()], student)
    for name in FIGURES:
      # Three steps, run in another way, amplify float32 rounding.
      self.assertAlmostEqual(got[name][0], want[name][0], places=4)

  def test_the_teacher_explains_once(self):
    logger = self.logger()
    calls = []
    method = logger._method
    logger._method = lambda model, *rest, **named: (
        calls.append(model), method(model, *rest, **named))[1]
    for _ in range(2):
      self.look(logger, epochs=2)
    self.assertEqual(calls, [self.teacher] + [self.student] * 4)

  def test_evaluate_and_predict_with_it(self):
    folder = tiny.folder(self)
    settings = {"log_dir": folder} if HAS_TENSORBOARD else {}
    logger = self.logger(**settings)
    _compiled(self.student, run_eagerly=True)
    want = self.student.evaluate(self.pictures, self.labels, verbose=0)
    self.assertEqual(want, self.student.evaluate(
        self.pictures, self.labels, verbose=0, callbacks=[logger]))
    self.student.predict(self.pictures, verbose=0, callbacks=[logger])
    self.assertEmpty(list(folder.iterdir()))
    self.assertContainsSubset(FIGURES, set(self.fit([logger])))


class ErrorsTest(_LoggerTest):

  @parameterized.parameters(
      ({"method": "cam"}, ValueError, "method must be one of.*'cam'"),
      ({"pictures": -1}, ValueError, "pictures must be 0 or more; got -1"),
      ({"pictures": 1.5}, TypeError, "pictures must be a whole number"),
      ({"every": 0}, ValueError, "every must be 1 or more; got 0"),
      ({"every": True}, TypeError, "every must be a whole number; got True"),
      ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
      ({"name": ""}, TypeError, "name must be a name; got ''"),
      ({"student_layer": 3}, TypeError, "student_layer must be a name; got 3"),
      ({"targets": 3}, ValueError, "targets must be class numbers in 0..2"),
      ({"targets": [0, 1]}, ValueError, "targets must be"))
  def test_settings(self, settings, error, message):
    with self.assertRaisesRegex(error, message):
      self.logger(**settings)

  def test_teacher_images_and_layer(self):
    for arguments, error, message in (
        ((None, self.held_out, "act"), TypeError, "teacher must be"),
        ((self.teacher, self.held_out, "akt"), ValueError, "layer 'akt'"),
        ((self.teacher, self.held_out, None), TypeError, "layer must be"),
        ((self.teacher, self.held_out[..., :1], "act"), ValueError,
         r"images must have shape \[at least 1, 4, 4, 2\]"),
        ((self.teacher, self.held_out[:0], "act"), ValueError, "images must"),
        ((self.teacher, self.held_out * np.nan, "act"), ValueError,
         "images must be finite")):
      with self.assertRaisesRegex(error, message):
        AgreementLogger(*arguments)

  @parameterized.parameters(
      ({"classes": 4}, {}, "'net' must have the classes.*'net', .*3; it has 4"),
      ({}, {"student_layer": "act2"}, "layer 'act2': model 'net' has no layer"),
      ({"size": 5}, {}, "images must have shape .*5, 5, 2"))
  def test_a_student_that_does_not_fit(self, net, settings, message):
    student = _compiled(tiny.conv_net(**{"size": 4, **net}))
    weights = student.get_weights()
    with self.assertRaisesRegex(ValueError, message):
      self.fit([self.logger(**settings)], student)
    self.assertTrue(tiny.weights_equal(student.get_weights(), weights))

  @parameterized.parameters(0.0, float("nan"))
  def test_a_teacher_that_looks_at_nothing(self, factor):
    kernel = self.teacher.get_layer("logits").kernel
    kernel.assign(kernel * factor)
    with self.assertRaisesRegex(ValueError, "teacher: its maps of layer 'act'"):
      self.fit([self.logger()])
    self.assertEqual(int(self.student.optimizer.iterations), 0)

  def test_without_tensorboard(self):
    folder = tiny.folder(self) / "logs"
    missing = {name: None for name in
               ("tensorboard", "tensorboard.summary.v2")}
    with mock.patch.dict(sys.modules, missing), self.assertRaisesRegex(
        ImportError, r"log_dir .*pip install keras_attr_preserve\[tensorboard"):
      self.logger(log_dir=folder)
    self.assertFalse(folder.exists())
    with mock.patch.dict(sys.modules, missing):
      self.assertContainsSubset(FIGURES, set(self.look(self.logger())))

  def test_a_folder_that_is_a_file(self):
    if not HAS_TENSORBOARD:
      with self.assertRaisesRegex(ImportError, "log_dir needs TensorBoard"):
        self.logger(log_dir=tiny.folder(self))
      return
    path = tiny.folder(self) / "file"
    path.write_text("")
    with self.assertRaisesRegex(OSError, "log_dir must be a folder"):
      self.logger(log_dir=path / "logs")


@absltest.unittest.skipUnless(HAS_TENSORBOARD, "TensorBoard is not installed.")
class FilesTest(_LoggerTest):

  def setUp(self):
    super().setUp()
    self.log_dir = tiny.folder(self) / "logs"
    _compiled(self.student, run_eagerly=True)

  def events(self):
    """The events on the disk: {tag: {step: value}}."""
    by_tag = {}
    for path in sorted(self.log_dir.glob("events.out.tfevents.*"),
                       key=os.path.getmtime):
      for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
          steps = by_tag.setdefault(value.tag, {})
          steps.setdefault(event.step, []).append(tf.make_ndarray(value.tensor))
    return by_tag

  def test_figures_and_pictures(self):
    history = self.fit([self.logger(log_dir=str(self.log_dir), pictures=3,
                                    every=2)], epochs=4, batch_size=6)
    events = self.events()
    self.assertEqual(set(events), FIGURES | {"agreement_pictures"})
    for name in FIGURES:
      self.assertEqual(sorted(events[name]), [0, 2, 3])
      for epoch, (value,) in events[name].items():
        # Summaries are float32, the history is not.
        self.assertAlmostEqual(float(value), history[name][epoch], places=6)
    self.assertEqual(sorted(events["agreement_pictures"]), [0, 2, 3])
    value, = events["agreement_pictures"][3]
    side = 4 * 32
    self.assertEqual(value[:2].tolist(),
                     [b"%d" % (3 * side + 2 * GAP), b"%d" % side])
    drawn = np.stack([tf.io.decode_png(png) for png in value[2:]])
    maps = []
    for model in (self.teacher, self.student):
      features = keras.Model(model.inputs, model.get_layer("act").output)(
          self.held_out[:3])
      top = self.teacher(self.held_out[:3]).numpy().argmax(1)
      kernel = model.get_layer("logits").kernel.numpy()[:, top]
      maps.append(np.maximum(np.einsum("bhwc,cb->bhw", features, kernel), 0))
    want = side_by_side(self.held_out[:3], *maps, value_range=(
        self.held_out.min(), self.held_out.max()))
    self.assertEqual(drawn.shape, want.shape)
    self.assertLessEqual(np.abs(drawn.astype(int) - want).max(), 1)

  @parameterized.parameters((0, None), (1, 1), (99, COUNT))
  def test_how_many_pictures(self, pictures, want):
    self.look(self.logger(log_dir=self.log_dir, pictures=pictures))
    events = self.events()
    if want is None:
      self.assertEqual(set(events), FIGURES)
    else:
      self.assertLen(events["agreement_pictures"][0][0], 2 + want)

  def test_all_is_on_the_disk_at_the_end_of_an_epoch(self):
    records = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: records.append(self.events()))
    self.fit([self.logger(log_dir=self.log_dir), look], epochs=2, batch_size=6)
    for number, events in enumerate(records):
      for name in FIGURES | {"agreement_pictures"}:
        self.assertEqual(sorted(events[name]), list(range(number + 1)))

  def test_a_fit_that_is_interrupted(self):
    def stop(epoch, logs):
      if epoch == 1:
        raise KeyboardInterrupt
    logger = self.logger(log_dir=self.log_dir)
    with self.assertRaises(KeyboardInterrupt):
      self.fit([logger, keras.callbacks.LambdaCallback(on_epoch_end=stop)],
               epochs=5, batch_size=6)
    self.assertEqual(sorted(self.events()["agreement"]), [0, 1])
    self.fit([logger], initial_epoch=2, epochs=4, batch_size=6)
    self.assertEqual(sorted(self.events()["agreement"]), [0, 1, 2, 3])
    self.assertIsNone(logger._writer)

  def test_weights_that_are_no_numbers(self):
    kernel = self.student.get_layer("logits").kernel
    kernel.assign(np.full_like(kernel, np.nan))
    self.look(self.logger(log_dir=self.log_dir))
    events = self.events()
    self.assertEqual(set(events), FIGURES)
    self.assertTrue(np.isnan(events["agreement"][0][0]))

  def test_beside_the_tensorboard_of_keras(self):
    board = keras.callbacks.TensorBoard(
        str(self.log_dir), update_freq=5, histogram_freq=1)
    self.fit([board, self.logger(log_dir=self.log_dir)], epochs=3)
    events = self.events()
    self.assertEqual(set(events), FIGURES | {"agreement_pictures"})
    self.assertEqual(sorted(events["agreement"]), [0, 1, 2])

  def test_the_chief_alone_writes(self):
    extended = type(self.student.distribute_strategy.extended)
    logger = self.logger(log_dir=self.log_dir)
    with mock.patch.object(
        extended, "should_save_summary", mock.PropertyMock(return_value=False)):
      history = self.look(logger)
    self.assertContainsSubset(FIGURES, set(history))
    self.assertEmpty(list(self.log_dir.iterdir()))
    self.look(logger)
    self.assertContainsSubset(FIGURES, set(self.events()))


if __name__ == "__main__":
  absltest.main()
