"""The ways in which Keras trains: each kind of model, data and setting.

train_step_test.py tests the sums of a step, preserve_attribution_test.py what a
fit does before and after. Here every way of giving the model, the data and the
fit must have the same result.

Most models are compiled to run eagerly: a few eager steps take a fifth of the
time of tracing. Exceptions are tests where a graph may differ: the most complex
of each kind, and features that only graphs have.
"""

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
BATCHES = (slice(0, 3), slice(3, 6))
layers = keras.layers
# Float32 maps, their cosines and means, and NumPy's sums in another order.
PLACES = 4


def _cross_entropy():
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _compiled(model, rate=0.05, loss=None, **settings):
  model.compile(keras.optimizers.SGD(rate, momentum=0.9),
                loss or _cross_entropy(), **{"run_eagerly": True, **settings})
  return model


def _fit(model, teacher, wcam=None, callbacks=(), **settings):
  """Fits on two batches of three, in order; returns the logs."""
  preserve = {name: settings.pop(name) for name in ("output", "distillation")
              if name in settings}
  settings = {"x": tiny.images(COUNT, size=4), "y": tiny.labels(COUNT),
              "batch_size": 3, "shuffle": False, "verbose": 0, **settings}
  preserve = PreserveAttribution(teacher, wcam or WCAM("act"), **preserve)
  return model.fit(callbacks=[*callbacks, preserve], **settings).history


class _Subclass(keras.Model):
  """A custom model around a graph of layers."""

  def __init__(self, core):
    super().__init__()
    self.core = core

  def call(self, inputs, training=None):
    return self.core(inputs, training=training)


def _sequential(model):
  copy = tiny.copy_of(model)
  return keras.Sequential([keras.Input((4, 4, 2)), *copy.layers[1:]])


def _transfer(original, wrap=lambda base: base):
  """A trunk, a pool and a head, as one transfers a pretrained model."""
  copy = tiny.copy_of(original)
  base = wrap(keras.Model(copy.input, copy.get_layer("act").output))
  head = layers.Dense(3, name="head")
  model = keras.Sequential([base, layers.GlobalAveragePooling2D(), head])
  model.build((None, 4, 4, 2))
  head.set_weights(copy.get_layer("logits").get_weights())
  return model


def _two_inputs(model, kind):
  """The two channels of an image as two inputs."""
  inputs = {name: keras.Input((4, 4, 1), name=name) for name in "ab"}
  x = layers.Concatenate()([inputs["a"], inputs["b"]])
  for layer in tiny.copy_of(model).layers[1:]:
    x = layer(x)
  return keras.Model(
      inputs if kind == "dict" else [*inputs.values()], x)


def _two_outputs(model, kind="list"):
  copy = tiny.copy_of(model)
  size = layers.Dense(1, name="size")(copy.get_layer("pool").output)
  outputs = {"size": size, "logits": copy.output}
  return keras.Model(
      copy.input, outputs if kind == "dict" else [*outputs.values()])


class _WaysTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.pictures, self.labels = tiny.images(COUNT, size=4), tiny.labels(COUNT)
    self.net = tiny.smooth_net(1)
    self.teacher = tiny.shared(tiny.smooth_net, 0)

  def cosines(self):
    """Each image's agreement in training mode, by NumPy."""
    return np.concatenate([
        tiny.swa_cosines(self.net, self.teacher, self.pictures[batch],
                         training=True) for batch in BATCHES])

  def assert_agreement(self, history):
    """A fit with a learning rate of 0 has the results of NumPy."""
    self.assertAlmostEqual(
        history["attr_agreement"][0], self.cosines().mean(), places=PLACES)


class ModelsTest(_WaysTest):

  @parameterized.named_parameters(
      ("functional", tiny.copy_of), ("sequential", _sequential),
      ("subclass", lambda model: _Subclass(tiny.copy_of(model))),
      ("transfer", _transfer),
      ("subclass_of_transfer",
       lambda model: _Subclass(_transfer(model)), False))
  def test_kinds(self, make, run_eagerly=True):
    model = _compiled(make(self.net), rate=0.0, run_eagerly=run_eagerly)
    self.assert_agreement(_fit(model, self.teacher))

  def test_a_pruned_trunk(self):
    model = _compiled(_transfer(self.net, tiny.prune))
    _fit(model, self.teacher)
    self.assertEqual(set(tiny.pruning_steps(model.layers[0])), {2})

  def test_a_quantized_core_in_a_subclass(self):
    model = _compiled(_Subclass(tiny.quantize(self.net)), run_eagerly=False)
    before = [weight.numpy() for weight in model.trainable_variables]
    history = _fit(model, self.teacher, WCAM("act", weight=20.0), epochs=6)
    self.assertGreater(history["attr_agreement"][-1],
                       history["attr_agreement"][0] + 0.02)
    for variable, value in zip(model.trainable_variables, before):
      self.assertGreater(np.abs(variable.numpy() - value).max(), 0)

  @parameterized.parameters("list", "dict")
  def test_several_inputs(self, kind):
    model = _compiled(
        _two_inputs(self.net, kind), rate=0.0, run_eagerly=kind != "dict")
    teacher = _two_inputs(self.teacher, kind)
    x = {"a": self.pictures[..., :1], "b": self.pictures[..., 1:]}
    self.assert_agreement(_fit(
        model, teacher, x=x if kind == "dict" else [*x.values()]))

  @parameterized.parameters(
      ("list", "list", "one"), ("list", "dict", "both"),
      ("dict", "dict", "one"))
  def test_several_outputs(self, kind, labels, teacher):
    """By hand: labels, weights and scores belong to the output's name."""
    model = _two_outputs(self.net, kind)
    model.compile(keras.optimizers.SGD(0.0), {
        "size": "mse", "logits": _cross_entropy()},
        loss_weights={"size": 0.5, "logits": 2.0},
        run_eagerly=labels != "dict" or kind != "dict")
    weights = {"size": np.ones(COUNT), "logits": np.float32(range(COUNT))}
    y = {"size": np.zeros((COUNT, 1)), "logits": self.labels}
    if labels == "list":
      y, weights = [*y.values()], [*weights.values()]
    distances = 1 - tiny.swa_cosines(  # The labels are the classes explained.
        self.net, self.teacher, self.pictures, self.labels, training=True)
    history = _fit(
        model, self.teacher if teacher == "one" else _two_outputs(
            self.teacher, kind), WCAM("act", weight=3.0, target="label"),
        y=y, sample_weight=weights, output="logits", batch_size=COUNT,
        distillation=Distillation(alpha=0.5, temperature=1.0))
    self.assertAlmostEqual(history["attr_loss"][0], 3 * np.mean(
        np.arange(COUNT) * distances), places=PLACES)
    p, q = (tf.nn.log_softmax(logits).numpy() for logits in (
        self.teacher(self.pictures), self.net(self.pictures, training=True)))
    self.assertAlmostEqual(history["distill_loss"][0], np.mean(
        np.arange(COUNT) * (np.exp(p) * (p - q)).sum(1)), places=PLACES)
    self.assertContainsSubset({"size_loss", "logits_loss"}, history)

  @parameterized.named_parameters(
      ("multi_label", "sigmoid", 3, "present", "binary_crossentropy"),
      ("one_logit", "linear", 1, "teacher", keras.losses.BinaryCrossentropy(
          from_logits=True)),
      ("one_sigmoid", "sigmoid", 1, "label", "binary_crossentropy"),
      ("regression", "linear", 1, "score", "mse"))
  def test_tasks(self, head, classes, target, loss):
    student, teacher = (
        tiny.smooth_net(seed, head=head, classes=classes) for seed in (1, 0))
    y = np.random.default_rng(0).integers(0, 2, (COUNT, classes))
    y[:, 0] = 1
    history = _fit(_compiled(student, rate=0.1, loss=loss), teacher,
                   WCAM("act", weight=20.0, target=target),
                   y=y.astype(np.float32), epochs=6, batch_size=COUNT)
    distances = 1 - np.array(history["attr_agreement"])
    self.assertLess(distances[-1], 0.7 * distances[0])
    self.assertTrue(np.isfinite(history["loss"]).all())


class DataTest(_WaysTest):

  def _sequence(self):
    pictures, labels = self.pictures, self.labels

    class Pairs(keras.utils.Sequence):
      def __len__(self):
        return 2

      def __getitem__(self, i):
        return pictures[BATCHES[i]], labels[BATCHES[i]]
    return {"x": Pairs()}

  def _generator(self):
    def pairs():
      while True:
        for batch in BATCHES:
          yield self.pictures[batch], self.labels[batch]
    return {"x": pairs(), "steps_per_epoch": 2}

  def _dataset(self):
    return {"x": tf.data.Dataset.from_tensor_slices(
        (self.pictures, self.labels)).batch(3)}

  def _dataset_of_known_batches(self):
    return {"x": tf.data.Dataset.from_tensor_slices(
        (self.pictures, self.labels)).batch(3, drop_remainder=True)}

  def _split(self):
    return {"x": np.concatenate([self.pictures, tiny.images(2, 9, size=4)]),
            "y": np.concatenate([self.labels, tiny.labels(2)]),
            "validation_split": 0.25, "batch_size": 3}

  @parameterized.parameters(
      "sequence", "generator", "dataset", "dataset_of_known_batches", "split")
  def test_given_as(self, kind):
    data = getattr(self, f"_{kind}")()
    # A graph knows the size of such batches beforehand.
    model = _compiled(tiny.copy_of(self.net), rate=0.0,
                      run_eagerly=kind != "dataset_of_known_batches")
    history = model.fit(**data, shuffle=False, verbose=0, callbacks=[
        PreserveAttribution(self.teacher, WCAM("act"))]).history
    self.assert_agreement(history)
    self.assertEqual("val_attr_agreement" in history, kind == "split")


class SettingsTest(_WaysTest):

  @parameterized.named_parameters(
      ("by_norm", {"clipnorm": 0.01}, lambda gradients: [
          tf.clip_by_norm(value, 0.01) for value in gradients]),
      ("by_value", {"clipvalue": 0.001}, lambda gradients: [
          tf.clip_by_value(value, -0.001, 0.001) for value in gradients]),
      ("by_global_norm", {"global_clipnorm": 0.01}, lambda gradients: (
          tf.clip_by_global_norm(gradients, 0.01)[0])))
  def test_clipping(self, setting, clip):
    model, other = tiny.copy_of(self.net), _compiled(tiny.copy_of(self.net))
    model.compile(keras.optimizers.SGD(1.0, **setting), _cross_entropy(),
                  run_eagerly=True)
    with tf.GradientTape() as tape:
      loss, _ = TrainStep(other, self.teacher, WCAM("act")).loss(
          self.pictures, self.labels)
    gradients = clip(tape.gradient(loss, other.trainable_variables))
    want = [weight - change for weight, change in zip(
        other.trainable_variables, gradients)]
    _fit(model, self.teacher, batch_size=COUNT)
    for got, value in zip(model.trainable_variables, want):
      # Float32 sums in another order, in one step of 1e-3 to 1e-2 in size.
      np.testing.assert_allclose(got, value, atol=1e-6)

  def test_an_optimizer_with_everything(self):
    """Decay, averages, clipping: with a weight of 0 as if by Keras alone."""
    weights = []
    for preserve in (False, True):
      model = tiny.copy_of(self.net)
      model.compile(keras.optimizers.AdamW(
          0.01, weight_decay=0.1, use_ema=True, ema_momentum=0.8,
          global_clipnorm=0.5), _cross_entropy(), run_eagerly=True)
      model.fit(
          self.pictures, self.labels, batch_size=3, shuffle=False, verbose=0,
          epochs=2, callbacks=[PreserveAttribution(self.teacher, WCAM(
              "act", weight=0.0))] * preserve)
      weights.append(model.get_weights())
    for plain, observed in zip(*weights):
      # Four steps of 1e-2: AdamW divides by a gradient's size, which enlarges
      # float32 rounding.
      np.testing.assert_allclose(plain, observed, atol=1e-5)

  def test_partly_frozen(self):
    model = tiny.copy_of(self.net)
    model.get_layer("conv").trainable = False
    self.teacher = tiny.smooth_net(0)
    self.teacher.trainable = False
    _compiled(model)
    before = model.get_layer("conv").get_weights()
    history = _fit(model, self.teacher, epochs=5, initial_epoch=2)
    self.assertLen(history["attr_agreement"], 3)
    self.assertTrue(tiny.weights_equal(
        model.get_layer("conv").get_weights(), before))
    self.assertFalse(np.array_equal(
        model.get_layer("logits").kernel, self.net.get_layer("logits").kernel))

  @pytest.mark.slow("training")
  def test_compiled_by_xla(self):
    """Maps of two sizes, matched in part."""
    self.check_compiled_by_xla("plain")

  @parameterized.parameters("normalized", "quantized")
  @pytest.mark.slow("training")
  def test_others_compiled_by_xla(self, kind):
    """Through normalizations of several kinds and hidden layers."""
    self.check_compiled_by_xla(kind)

  def check_compiled_by_xla(self, kind):
    def net(seed):
      inputs = keras.Input((4, 4, 2))
      x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
      x = layers.Activation("relu", name="act")(x)
      if kind != "quantized" and not seed:  # The teacher's maps are smaller.
        x = layers.AveragePooling2D((1, 2), name="small")(x)
      if kind == "normalized":
        x = layers.ReLU()(layers.GroupNormalization(1)(x))
      x = layers.Flatten()(x)
      if kind != "plain":
        x = layers.Dense(4, use_bias=False)(x)
        if kind == "normalized":
          x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
      return tiny.shake(keras.Model(inputs, layers.Dense(3)(x)), seed)

    student, teacher = net(1), net(0)
    if kind == "quantized":
      student = tiny.quantize(student)
    weights, histories = student.get_weights(), []
    for jit in (False, True):
      student.set_weights(weights)
      _compiled(student, rate=0.01, jit_compile=jit, run_eagerly=not jit)
      wcam = WCAM("act" if kind == "quantized" else "small", drop_rate=0.5,
                  student_layer="act")
      histories.append(_fit(
          student, teacher, wcam, epochs=2, batch_size=COUNT))
    for name in histories[0]:
      # XLA sums float32 in another order; a fake quantizer may then round to
      # the next step.
      np.testing.assert_allclose(
          histories[1][name], histories[0][name], rtol=1e-3, err_msg=name)

  def test_a_cache_cannot_be_compiled_by_xla(self):
    model = _compiled(self.net, jit_compile=True, run_eagerly=False)
    with self.assertRaisesRegex(ValueError, "cache: XLA takes no table"):
      model.fit(self.pictures, self.labels, callbacks=[PreserveAttribution(
          self.teacher, WCAM("act"), cache=True)])

  def test_half_precision(self):
    """Maps of 24x24: their gradients are small, and must not vanish."""
    self.check_half_precision("mixed_float16")

  @pytest.mark.slow("training")
  def test_half_precision_of_the_student_alone(self):
    self.check_half_precision("float32")

  def check_half_precision(self, policy):
    before = keras.mixed_precision.global_policy()
    self.addCleanup(keras.mixed_precision.set_global_policy, before)
    keras.mixed_precision.set_global_policy(policy)
    teacher = tiny.smooth_net(0, size=24)
    keras.mixed_precision.set_global_policy("mixed_float16")
    student = tiny.smooth_net(1, size=24)
    _compiled(student, rate=0.1)
    history = _fit(student, teacher, WCAM("act", weight=20.0), epochs=8,
                   batch_size=COUNT, x=tiny.images(COUNT, size=24))
    self.assertTrue(np.isfinite(history["loss"]).all())
    self.assertGreater(history["attr_agreement"][-1],
                       history["attr_agreement"][0] + 0.05)
    # Each step was taken: no gradient overflowed, and the scale stayed.
    self.assertEqual(student.optimizer.iterations.numpy(), 8)
    self.assertEqual(student.optimizer.loss_scale.numpy(), 2.0**15)

  def test_half_precision_cannot_be_quantized(self):
    """Trap 9: tfmot itself fails, before this library sees a model."""
    before = keras.mixed_precision.global_policy()
    self.addCleanup(keras.mixed_precision.set_global_policy, before)
    keras.mixed_precision.set_global_policy("mixed_float16")
    with self.assertRaisesRegex(
        (TypeError, ValueError), "float16.* does not match expected type of "
        "float32|quantize_layer"):
      tfmot.quantization.keras.quantize_model(tiny.conv_net())


class OwnLoopTest(_WaysTest):

  def test_train_on_batch(self):
    class Student(keras.Model):
      def train_step(self, data):
        return self.step(data)

      def test_step(self, data):
        return self.step.test(data)

    copy = tiny.copy_of(self.net)
    model = _compiled(Student(copy.input, copy.output), rate=0.0)
    model.step = TrainStep(model, self.teacher, WCAM("act"))
    for run in (model.train_on_batch, model.test_on_batch):
      for metric in model.step.metrics:
        metric.reset_state()
      logs = run(self.pictures[:3], self.labels[:3], return_dict=True)
      self.assertAlmostEqual(logs["attr_agreement"], tiny.swa_cosines(
          self.net, self.teacher, self.pictures[:3],
          training=run == model.train_on_batch).mean(), places=PLACES)

  def test_accumulated_gradients(self):
    """With a separate optimizer, whose count is not the model's."""
    model, optimizer = _compiled(self.net), keras.optimizers.SGD(0.5)
    schedule = keras.optimizers.schedules.PolynomialDecay(30.0, 20, 10.0)
    step = TrainStep(model, self.teacher, WCAM("act", weight=schedule))

    def update(number):
      sums = [tf.zeros_like(weight) for weight in model.trainable_variables]
      for batch in BATCHES:
        with tf.GradientTape() as tape:
          loss, _ = step.loss(
              self.pictures[batch], self.labels[batch], step=number)
        sums = [total + 0.5 * more for total, more in zip(
            sums, tape.gradient(loss, model.trainable_variables))]
      optimizer.apply_gradients(zip(sums, model.trainable_variables))

    agreements = []
    for number in range(10):
      for metric in step.metrics:
        metric.reset_state()
      distance = 1 - self.cosines().mean()
      update(tf.constant(number))
      logs = {metric.name: float(metric.result()) for metric in step.metrics}
      agreements.append(logs["attr_agreement"])
      # The weight, 30 to 10, times the float32 error of a distance. The next
      # step's weight is 1 less.
      self.assertAlmostEqual(
          logs["attr_loss"], float(schedule(number)) * distance, places=2)
    self.assertGreater(agreements[-1], agreements[0] + 0.05)
    self.assertEqual(int(model.optimizer.iterations), 0)


class CallbacksTest(_WaysTest):

  @pytest.mark.slow("training")
  def test_all_of_keras(self):
    """Saved as the fit goes, with a weight that moves, and stopped early."""
    folder = tiny.folder(self)
    saved = {"h5": "best.h5", "model": "best", "weights": "weights/best"}
    model = _compiled(tiny.copy_of(self.net), metrics=["accuracy"])
    watch = {"monitor": "val_attr_agreement", "mode": "max"}
    rates = []
    history = _fit(
        model, self.teacher, WCAM("act", agreement=0.9), epochs=9,
        batch_size=COUNT, validation_data=(self.pictures, self.labels),
        callbacks=[
            *[keras.callbacks.ModelCheckpoint(
                str(folder / path), save_best_only=True,
                save_weights_only=kind == "weights", **watch)
              for kind, path in saved.items()],
            keras.callbacks.EarlyStopping(
                **watch, min_delta=10, patience=2),
            keras.callbacks.ReduceLROnPlateau(
                **watch, factor=0.5, patience=1, min_delta=10),
            keras.callbacks.LearningRateScheduler(
                lambda epoch, rate: rates.append(rate) or rate),
            keras.callbacks.CSVLogger(str(folder / "log.csv"))])
    agreements = history["val_attr_agreement"]
    self.assertLen(agreements, 3)
    # The optimizer keeps its rate in float32.
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.025], rtol=1e-5)
    rows = (folder / "log.csv").read_text().splitlines()
    self.assertLen(rows, 4)
    self.assertContainsSubset(
        {"attr_agreement", "val_attr_dead", "attr_weight"},
        rows[0].split(","))
    plain = tiny.copy_of(self.net)
    plain.load_weights(str(folder / saved["weights"]))
    for best in (keras.models.load_model(folder / saved["h5"]),
                 keras.models.load_model(folder / saved["model"]), plain):
      self.assertAlmostEqual(max(agreements), tiny.swa_cosines(
          best, self.teacher, self.pictures).mean(), places=PLACES)
    for path in folder.rglob("*"):  # It loads where this library is not.
      if path.is_file():
        self.assertNotIn(b"keras_attr_preserve", path.read_bytes(), path)
    # After the fit there is nothing of it at all.
    model.save(folder / "after.h5")
    model.save(folder / "after")
    for path in [folder / "after.h5", *(folder / "after").rglob("*")]:
      if path.is_file():
        for trace in (b"attr_agreement", b"attr_preserve", b"log_weight"):
          self.assertNotIn(trace, path.read_bytes(), path)


if __name__ == "__main__":
  absltest.main()
