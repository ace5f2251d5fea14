"""Faults in a fit: bad values, wrong settings, interruptions.

Most models are compiled to run eagerly: a few eager steps take a fifth of the
time of tracing. A test that says `run_eagerly=False` has Keras trace a graph.
"""

import contextlib
import os
import re
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
  WCAM,
  PreserveAttribution,
  TrainStep,
  clone_model,
)
from tests import tiny

COUNT = 6
MESSAGE = (r"The loss is not finite, and the weights are left as they are\. "
           r"Values that are NaN or infinite in the pictures, the labels and "
           r"the sample weights of the batch:")


def _compiled(model, **settings):
  model.compile(
      keras.optimizers.SGD(0.05, momentum=0.9),
      keras.losses.CategoricalCrossentropy(from_logits=True),
      **{"run_eagerly": True, **settings})
  return model


class _Keep(keras.callbacks.Callback):
  """Keeps the weights as they are after each batch."""

  def on_train_begin(self, logs=None):
    self.weights = [self.model.get_weights()]

  def on_train_batch_end(self, batch, logs=None):
    self.weights.append(self.model.get_weights())


class _FaultsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.pictures = tiny.images(COUNT, size=4)
    self.labels = np.eye(3, dtype=np.float32)[tiny.labels(COUNT)]
    self.teacher = tiny.shared(tiny.conv_net, seed=0, size=4)
    self.net = tiny.conv_net(seed=1, size=4)
    self.wcam = WCAM("act")

  def fit(self, model, callbacks=(), preserve=True, **settings):
    """Fits on batches of two, in order; returns the logs."""
    callbacks = [*callbacks, *[
        PreserveAttribution(self.teacher, self.wcam)] * preserve]
    settings = {"x": self.pictures, "y": self.labels, "batch_size": 2,
                "shuffle": False, "verbose": 0, **settings}
    if not isinstance(settings["x"], np.ndarray):
      del settings["y"], settings["batch_size"]
    return model.fit(callbacks=callbacks, **settings).history

  def assert_usable(self, model):
    """After any fault, the model is clean and works in every way."""
    logs = model.train_on_batch(
        self.pictures[:2], self.labels[:2], return_dict=True)
    self.assertEqual(set(logs), {"loss"})
    self.assert_clean(model)
    self.assertTrue(np.isfinite(model.evaluate(
        self.pictures, self.labels, verbose=0)))
    history = self.fit(
        model, preserve=False, batch_size=COUNT,
        validation_data=(self.pictures, self.labels))
    self.assertEqual(set(history), {"loss", "val_loss"})
    self.assertEmpty([name for name in vars(model) if "attr_preserve" in name])
    path = tiny.folder(self) / "model.h5"
    model.save(path)
    # The same weights in other functions: float32 sums in another order.
    np.testing.assert_allclose(
        keras.models.load_model(path)(self.pictures), model(self.pictures),
        atol=1e-6)
    np.testing.assert_allclose(
        clone_model(model)(self.pictures), model(self.pictures), atol=1e-6)

  def assert_clean(self, model):
    self.assertEmpty([name for name in vars(model) if "attr_preserve" in name
                      or name in ("train_step", "test_step")])
    for function in (model.train_function, model.test_function):
      self.assertFalse(hasattr(function, "owner"))


class NotFiniteTest(_FaultsTest):

  @parameterized.parameters(
      ("graph", np.nan), ("eager", np.inf), ("eager", np.nan),
      ("pruned", np.inf))
  def test_in_a_picture(self, way, value):
    """In the second batch of three: as after the first, to the last bit."""
    self.check_in_a_picture(way, value)

  @pytest.mark.slow("training")
  def test_in_a_picture_of_several_steps_at_once(self):
    self.check_in_a_picture("two_steps", np.nan)

  def check_in_a_picture(self, way, value):
    model = tiny.prune(self.net) if way == "pruned" else self.net
    _compiled(model, run_eagerly=way == "eager",
              steps_per_execution=2 if way == "two_steps" else 1)
    keep = _Keep()
    start = model.get_weights()
    self.pictures[2, 1, 1, 0] = value
    with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, MESSAGE + r"\D*1\D+0\D+0"):
      self.fit(model, [keep])
    if way == "two_steps":  # Both are one call: by itself, the first.
      other = _compiled(tiny.conv_net(seed=1, size=4))
      self.fit(other, x=self.pictures[:2], y=self.labels[:2])
      for weight, expected in zip(model.get_weights(), other.get_weights()):
        # Two steps are one graph: its float32 sums may be ordered otherwise.
        np.testing.assert_allclose(weight, expected, atol=1e-6)
      self.assertTrue(all(
          np.isfinite(weight).all() for weight in model.get_weights()))
    else:
      self.assertFalse(tiny.weights_equal(model.get_weights(), start))
      self.assertLen(keep.weights, 2)
      self.assertTrue(tiny.weights_equal(
          model.get_weights(), keep.weights[-1]))
    self.assert_clean(model)

  @parameterized.parameters("y", "sample_weight")
  def test_elsewhere(self, where):
    model = _compiled(self.net)
    weights = np.ones(COUNT, np.float32)
    (self.labels if where == "y" else weights)[0] = np.nan
    start = model.get_weights()
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, MESSAGE):
      self.fit(model, sample_weight=weights)
    self.assertTrue(tiny.weights_equal(model.get_weights(), start))

  def test_it_says_where(self):
    step = TrainStep(_compiled(self.net), self.teacher, self.wcam)
    self.pictures[0, 0, 0] = np.inf
    with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, r"batch:\D*2\D+0\D+1"):
      step.loss(self.pictures, self.labels, np.float32([np.nan] + [1.0] * 5))

  def test_loss_scaling_skips_it_whole(self):
    """A weight that moves and moving averages too."""
    model = self.net
    model.compile(keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(0.05)), "mse", run_eagerly=True)
    step = TrainStep(model, self.teacher, WCAM("act", agreement=0.9))
    start = model.get_weights()
    self.pictures[0, 0, 0, 0] = np.nan
    step((tf.constant(self.pictures), tf.constant(self.labels)))
    self.assertTrue(tiny.weights_equal(model.get_weights(), start))
    self.assertTrue(np.isfinite(float(step.state.log_weight)))

  # That XLA takes such a step at all, keras_ways_test.py holds as well.
  @pytest.mark.slow("training")
  def test_xla_does_as_keras_does(self):
    """XLA has no assertions; the docstring of the loss holds."""
    model = _compiled(self.net, jit_compile=True, run_eagerly=False)
    self.pictures[0, 0, 0, 0] = np.nan
    history = self.fit(
        model, [keras.callbacks.TerminateOnNaN()], epochs=3)
    self.assertLen(history["loss"], 1)
    self.assertTrue(np.isnan(model.get_layer("conv").kernel).any())
    self.assert_clean(model)


class DeadTest(_FaultsTest):

  @parameterized.parameters("student", "teacher")
  def test_warned_of_once(self, who):
    """Every fit says it once, with the share and what to do."""
    model = _compiled(self.net)
    item = model if who == "student" else self.teacher
    item.get_layer("bn").beta.assign([-100.0] * 4)
    message = {
        "student": "100% of the student's maps at layer 'act' are all zero.*"
                   "lower the learning rate",
        "teacher": "the teacher's maps at layer 'act' are all zero on every.*"
                   "choose another layer"}[who]
    callback = PreserveAttribution(self.teacher, self.wcam)
    for _ in range(2):
      with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        self.fit(model, [callback], preserve=False, epochs=2, batch_size=COUNT)
      self.assertLen([item for item in caught
                      if re.search(message, str(item.message))], 1)


class SettingsTest(_FaultsTest):

  @parameterized.parameters(
      ("relu9", "layer 'relu9': model 'net' has no layer of that name; its "
       "layers with a spatial map are conv, bn, act"),
      (["act", "relu9"], "layer 'relu9'"))
  def test_a_layer_that_is_not_there(self, layer, message):
    self.wcam = WCAM(layer)
    model = _compiled(self.net)
    with self.assertRaisesRegex(ValueError, message):
      self.fit(model)
    self.assert_clean(model)

  def test_a_teacher_of_other_classes(self):
    self.teacher = tiny.conv_net(classes=5, size=4)
    model = _compiled(self.net)
    with self.assertRaisesRegex(
        ValueError, "teacher must have the model's 3 classes; got 5"):
      self.fit(model)
    self.assert_clean(model)

  def test_a_second_of_its_kind(self):
    model = _compiled(self.net)
    with self.assertRaisesRegex(ValueError, "PreserveAttribution already"):
      self.fit(model, [PreserveAttribution(self.teacher, self.wcam)])
    self.assert_usable(model)


class PruningStepTest(_FaultsTest):

  def test_forgotten_or_given_before_or_after(self):
    """The same weights, to the last bit."""
    update = tfmot.sparsity.keras.UpdatePruningStep
    runs = []
    for before, after in ((0, 0), (1, 0), (0, 1)):
      keras.utils.set_random_seed(0)
      model = _compiled(tiny.prune(tiny.conv_net(seed=1, size=4)))
      callback = PreserveAttribution(self.teacher, WCAM("act", drop_rate=0.5))
      history = self.fit(
          model, [*[update()] * before, callback, *[update()] * after],
          preserve=False, batch_size=3)
      self.assertEqual(set(tiny.pruning_steps(model)), {2})
      runs.append((model.get_weights(), history))
    for weights, history in runs[1:]:
      self.assertTrue(tiny.weights_equal(weights, runs[0][0]))
      self.assertEqual(history, runs[0][1])

  def test_a_loop_of_ones_own_says_it_while_tracing(self):
    model = _compiled(tiny.prune(self.net))
    step = TrainStep(model, self.teacher, self.wcam)
    with self.assertRaisesRegex(
        ValueError, "is pruned, but its pruning step was never set; give fit "
        ".*UpdatePruningStep"):
      tf.function(step).get_concrete_function((
          tf.constant(self.pictures), tf.constant(self.labels)))


class InterruptedTest(_FaultsTest):

  @parameterized.parameters(
      ("on_train_batch_begin", None), ("on_test_batch_begin", 0.9),
      ("on_train_end", 0.9))
  def test_by_another_callback(self, moment, agreement):
    """Ours has announced the batch already that never comes."""
    self.check_by_another_callback(moment, agreement)

  # At these moments preserve_attribution_test.py interrupts as well.
  @parameterized.parameters(
      ("on_train_begin", None), ("on_epoch_begin", 0.9),
      ("on_train_batch_end", 0.9))
  @pytest.mark.slow("training")
  def test_by_another_callback_between_steps(self, moment, agreement):
    self.check_by_another_callback(moment, agreement)

  def check_by_another_callback(self, moment, agreement):
    other = keras.callbacks.Callback()
    def interrupt(*_, **__):
      raise KeyboardInterrupt()
    setattr(other, moment, interrupt)
    self.wcam = WCAM("act", agreement=agreement)
    model = _compiled(self.net)
    callback = PreserveAttribution(self.teacher, self.wcam)
    with self.assertRaises(KeyboardInterrupt):
      self.fit(model, [callback, other], preserve=False,
               validation_data=(self.pictures, self.labels))
    self.assert_usable(model)

  def test_by_the_data(self):
    model = _compiled(self.net)
    def pairs():
      yield self.pictures[:2], self.labels[:2]
      raise KeyboardInterrupt()
    with self.assertRaises(BaseException):  # noqa: B017  TensorFlow's own.
      self.fit(model, x=pairs(), steps_per_epoch=3)
    self.assert_usable(model)

  def test_by_a_real_signal(self):
    """Sent from outside, at whatever the fit is doing then."""
    self.wcam = WCAM("act", agreement=0.9)
    model = _compiled(self.net)
    begun = threading.Event()

    class Tell(keras.callbacks.Callback):
      def on_train_batch_end(self, batch, logs=None):
        begun.set()

    def send():
      begun.wait()
      time.sleep(0.1)
      os.kill(os.getpid(), signal.SIGINT)

    # A test runner may have set the signal to be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, before)
    thread = threading.Thread(target=send)
    thread.start()
    with self.assertRaises(KeyboardInterrupt):
      self.fit(model, [Tell()], epochs=5000)
    thread.join()
    self.assert_usable(model)
    self.assertIn("attr_agreement", self.fit(model))
    self.assert_clean(model)

  def test_who_trains_in_a_callback_uses_the_models_own_step(self):
    seen = []
    pictures, labels = self.pictures, self.labels
    class Train(keras.callbacks.Callback):
      def on_train_batch_end(self, batch, logs=None):
        seen.append(set(self.model.train_on_batch(
            pictures[:2], labels[:2], return_dict=True)))
    history = self.fit(_compiled(self.net), [Train()])
    self.assertEqual(seen, [{"loss"}] * 3)
    self.assertIn("attr_agreement", history)


class OddDataTest(_FaultsTest):

  def test_nothing(self):
    model = _compiled(self.net)
    data = tf.data.Dataset.from_tensor_slices(
        (self.pictures, self.labels)).take(0).batch(2)
    with self.assertRaises(ValueError), contextlib.suppress(UserWarning):
      self.fit(model, x=data)
    self.assert_usable(model)

  def test_one_picture_at_a_time(self):
    history = self.fit(_compiled(self.net), x=self.pictures[:3],
                       y=self.labels[:3], batch_size=1, epochs=2)
    self.assertTrue(np.isfinite(history["loss"]).all())
    # Maps that are dead would count 0.
    self.assertBetween(history["attr_agreement"][1], 1e-3, 1)

  @parameterized.parameters("softmax", "linear")
  def test_one_class(self, head):
    """A softmax of one score says nothing; its logit has a map all the same."""
    self.teacher, model = (tiny.smooth_net(
        seed, classes=1, head=head) for seed in (0, 1))
    model.compile("sgd", "mse", run_eagerly=True)
    history = self.fit(model, y=self.labels[:, :1])
    # Maps of the softmax output, a constant, would be dead and count 0.
    self.assertBetween(history["attr_agreement"][0], 1e-3, 1)

  def test_whole_numbers(self):
    pictures = np.random.default_rng(0).integers(0, 9, (COUNT, 4, 4, 2))
    histories = []
    for kind in (np.float32, np.uint8):
      model = _compiled(tiny.conv_net(seed=1, size=4))
      histories.append(self.fit(
          model, x=pictures.astype(kind), batch_size=COUNT))
    for name in histories[0]:
      # Whole numbers are exact in float32; sums may come in another order.
      np.testing.assert_allclose(
          histories[0][name], histories[1][name], rtol=1e-5, err_msg=name)

  def test_other_colours(self):
    model = _compiled(self.net)
    start = model.get_weights()
    with self.assertRaisesRegex(
        ValueError, r"to have value 2, .* shape \(2, 4, 4, 1\)"):
      self.fit(model, x=self.pictures[..., :1])
    self.assertTrue(tiny.weights_equal(model.get_weights(), start))
    self.assert_usable(model)


if __name__ == "__main__":
  absltest.main()
