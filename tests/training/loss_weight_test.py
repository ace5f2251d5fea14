"""Tests of loss_weight.py: weights that move, and their targets."""

import math
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import (
    WCAM,
    Distillation,
    PreserveAttribution,
    TrainStep,
)
from keras_attr_preserve.training import loss_weight
from keras_attr_preserve.training.loss_weight import (
    AgreementConstraint,
    TaskScale,
)
from tests import tiny

# As docs/training.md says of "auto" and of an agreement out of reach, and as
# its results were measured: numbers here, for a change is to be seen.
AUTO, MEMORY, RATE, SPAN = 8, 0.99, 0.02, 100

# Float32 arithmetic of a few small numbers.
PLACES = 5
# Float32 losses, and weights 8 times as large, by other products and sums.
LOSS_PLACES = 4


class ConstraintTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.9, 0.85, 0.5), (0.9, 0.95, -0.5), (0.9, 0.9, 0.0),
      (0.9, 0.2, 1.0), (0.8, 1.0, -1.0))  # The move is at most RATE.
  def test_moves_by_what_the_maps_lack(self, agreement, cosine, want):
    constraint = AgreementConstraint(agreement)
    self.assertEqual(float(constraint.factor()), 1)
    constraint.update(tf.constant([cosine, cosine]), tf.constant([1.0, 1.0]))
    self.assertAlmostEqual(
        float(constraint.factor()), math.exp(RATE * want), places=PLACES)

  def test_counts_what_is_valid(self):
    constraint = AgreementConstraint(0.9)
    constraint.update(tf.constant([0.85, 0.0]), tf.constant([1.0, 0.0]))
    self.assertAlmostEqual(
        float(constraint.log_weight), 0.5 * RATE, places=PLACES)
    constraint.update(tf.constant([0.1, 0.0]), tf.constant([0.0, 0.0]))
    self.assertAlmostEqual(
        float(constraint.log_weight), 0.5 * RATE, places=PLACES)

  @mock.patch.object(loss_weight, "RATE", 1.0)  # Ten steps from end to end.
  def test_stays_within_bounds(self):
    constraint = AgreementConstraint(0.9)
    for cosine, bound, ceiling in ((0.0, SPAN, True),
                                   (1.0, 1 / SPAN, False)):
      for _ in range(math.ceil(2 * math.log(SPAN)) + 1):
        constraint.update(tf.constant([cosine]), tf.constant([1.0]))
      # An exponential of 4.6 in float32, off by less than 1e-6 of itself.
      self.assertAlmostEqual(
          float(constraint.factor()) / bound, 1, places=4)
      self.assertEqual(constraint.at_ceiling, ceiling)

  @parameterized.product(agreement=(0.9, 0.97), lack=(0.3, 0.01))
  @mock.patch.object(loss_weight, "RATE", 0.2)  # Ten times fewer steps.
  def test_settles_where_the_maps_agree_as_asked(self, agreement, lack):
    """Of maps that lack so much by themselves, and ever less by the weight."""
    constraint = AgreementConstraint(agreement)
    for _ in range(80):
      cosine = 1 - lack / constraint.factor()
      constraint.update(cosine[None], tf.constant([1.0]))
    # A step leaves .8 of the way to go, and all have less than e^2.4 to go at
    # e^.2 a step: after 80 steps 1e-6 is left, and as much is float32's.
    self.assertAlmostEqual(
        float(constraint.factor()) * (1 - agreement) / lack, 1, places=4)


class TaskScaleTest(absltest.TestCase):

  def test_mean_by_hand(self):
    scale = TaskScale()
    self.assertEqual(float(scale.mean(tf.constant(3.0))), 3)  # None so far.
    for loss in (2.0, -4.0):
      scale.update(tf.constant(loss))
    self.assertAlmostEqual(
        float(scale.mean(tf.constant(9.0))),
        (2 * MEMORY + 4) / (MEMORY + 1), places=PLACES)

  @mock.patch.object(loss_weight, "MEMORY", 0.9)  # Ten times fewer steps.
  def test_forgets(self):
    scale = TaskScale()
    scale.update(tf.constant(1000.0))
    for _ in range(150):
      scale.update(tf.constant(0.5))
    # The rest of the 1000 is 1e-5; a plain mean would be 7.1.
    self.assertAlmostEqual(float(scale.mean(tf.constant(0.0))), 0.5, places=2)

  def test_what_is_not_finite_is_left_out(self):
    scale = TaskScale()
    for loss in (2.0, float("nan"), float("inf"), 2.0):
      scale.update(tf.constant(loss))
    self.assertAlmostEqual(
        float(scale.mean(tf.constant(0.0))), 2, places=PLACES)


class AutomaticWeightTest(absltest.TestCase):
  """In proportion to the task's loss."""

  def setUp(self):
    super().setUp()
    self.teacher = tiny.smooth_net(0)
    self.pictures = tiny.images(4, size=4)
    self.labels = np.int32([0, 1, 2, 0])

  def _step(self, factor=1.0, penalty=0.0, **settings):
    student = tiny.smooth_net(1)
    if penalty:
      student.add_loss(penalty * tf.reduce_mean(student.output**2))
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(
        from_logits=True), loss_weights=factor)
    student.optimizer.learning_rate = 0.0
    return TrainStep(student, self.teacher, WCAM("act"), **settings)

  def _run(self, step):
    step.model.reset_metrics()
    for metric in step.metrics:
      metric.reset_state()
    return {name: float(value) for name, value in step(
        (self.pictures, self.labels)).items()}

  def test_is_so_much_of_the_loss(self):
    logs = self._run(self._step())
    self.assertAlmostEqual(
        logs["attr_weight"], AUTO * logs["loss"], places=LOSS_PLACES)
    self.assertAlmostEqual(
        logs["attr_loss"],
        logs["attr_weight"] * (1 - logs["attr_agreement"]), places=LOSS_PLACES)

  def test_another_unit_of_the_loss_changes_nothing(self):
    single, tenfold = (self._run(self._step(factor)) for factor in (1.0, 10.0))
    self.assertAlmostEqual(
        tenfold["attr_loss"] / tenfold["loss"],
        single["attr_loss"] / single["loss"],
        places=LOSS_PLACES)

  def test_penalties_do_not_count(self):
    plain = self._run(self._step())
    penalized = self._run(self._step(penalty=5.0))
    self.assertGreater(penalized["loss"], plain["loss"] + 0.1)
    self.assertAlmostEqual(
        penalized["attr_weight"], plain["attr_weight"], places=LOSS_PLACES)

  def test_scores_count(self):
    step = self._step(distillation=Distillation(alpha=0.5))
    logs = self._run(step)
    self.assertAlmostEqual(
        logs["attr_weight"],
        AUTO * 0.5 * (logs["loss"] + logs["distill_loss"]), places=LOSS_PLACES)

  def test_a_mean_over_steps(self):
    step = self._step()
    first = self._run(step)["attr_weight"]
    self.labels = np.int32([2, 2, 1, 1])
    second = self._run(step)
    self.assertAlmostEqual(
        second["attr_weight"],
        (MEMORY * first + AUTO * second["loss"]) / (MEMORY + 1),
        places=LOSS_PLACES)

  def test_a_task_without_a_loss_is_warned_of(self):
    student = tiny.smooth_net(1)
    student.compile("sgd", lambda labels, outputs: 0.0 * outputs[:, 0],
                    run_eagerly=True)
    with self.assertWarnsRegex(
        UserWarning, "weight='auto' goes by the rest of the loss, which is 0"):
      student.fit(self.pictures, self.labels, verbose=0, callbacks=[
          PreserveAttribution(self.teacher, WCAM("act"))])

  def test_judging_does_not_move_it(self):
    step = self._step()
    first = self._run(step)["attr_weight"]
    self.labels = np.int32([2, 2, 1, 1])
    step.test((self.pictures, self.labels))
    self.labels = np.int32([0, 1, 2, 0])
    self.assertAlmostEqual(self._run(step)["attr_weight"], first, places=PLACES)


class TrainingTest(parameterized.TestCase):
  """With a penalty that pulls the maps away from the teacher's."""

  def setUp(self):
    super().setUp()
    keras.utils.set_random_seed(0)
    self.teacher = tiny.smooth_net(0)
    self.pictures = tiny.images(8, size=4)
    self.labels = np.argmax(self.teacher(self.pictures), axis=1)

  def _student(self, rate=0.03, **settings):
    student = tiny.smooth_net(1)
    features = student.get_layer("act").output
    student.add_loss(2 * tf.reduce_mean(features[:, :2] - features[:, 2:]))
    student.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **settings)
    return student

  def _fit(self, wcam, epochs=300, **settings):
    return self._student(**settings).fit(
        self.pictures, self.labels, epochs=epochs, shuffle=False, verbose=0,
        callbacks=[PreserveAttribution(self.teacher, wcam)]).history

  def _run(self, wcam, steps):
    """Trains step by step, without a graph; gives the logs as `fit` does."""
    step = TrainStep(self._student(), self.teacher, wcam)
    logs = []
    for _ in range(steps):
      for metric in step.metrics:
        metric.reset_state()
      logs.append(step((self.pictures, self.labels)))
    return {name: [float(step_logs[name]) for step_logs in logs]
            for name in logs[0]}

  @parameterized.parameters(0.9, 0.97)
  @pytest.mark.slow("training")
  def test_holds_what_is_asked_and_no_more(self, agreement):
    free = self._fit(WCAM("act", weight=0.0))
    self.assertLess(np.mean(free["attr_agreement"][-30:]), agreement - 0.03)
    held = self._fit(WCAM("act", weight=4.0, agreement=agreement))
    # Within a fifth of the allowed distance, averaged over the last tenth.
    self.assertAlmostEqual(
        np.mean(held["attr_agreement"][-30:]), agreement,
        delta=0.2 * (1 - agreement))

  def test_the_weight_falls_where_the_maps_agree_anyway(self):
    history = self._run(WCAM("act", weight=4.0, agreement=0.2), 5)
    self.assertEqual(history["attr_weight"][0], 4.0)
    self.assertTrue(np.all(np.diff(history["attr_weight"]) < 0))
    self._check_moves(history, 0.2)

  def test_the_weight_in_the_logs_is_the_one_used(self):
    history = self._fit(WCAM("act", weight=4.0, agreement=0.95), epochs=5)
    weights = np.array(history["attr_weight"])
    self.assertLen(set(weights.round(5)), 5)
    self.assertEqual(weights[0], 4.0)
    self._check_moves(history, 0.95)
    # Float32 products; the difference from 1 magnifies the rounding.
    np.testing.assert_allclose(
        history["attr_loss"],
        weights * (1 - np.array(history["attr_agreement"])), rtol=1e-4)

  def _check_moves(self, history, agreement):
    """Each step moves the weight by its maps' missing agreement."""
    lack = (agreement - np.array(history["attr_agreement"])) / (1 - agreement)
    # Some are not cut off, or all that could be told were their sign.
    self.assertLess(abs(lack[:-1]).min(), 1)
    # Float32 weights: their logarithms are off by 1e-7 each, a lack at 1e-6.
    np.testing.assert_allclose(
        np.diff(np.log(history["attr_weight"])),
        RATE * lack[:-1].clip(-1, 1), atol=1e-6)

  @mock.patch.object(loss_weight, "SPAN", 1.05)  # Three steps to the ceiling.
  def test_an_agreement_out_of_reach_is_warned_of_once(self):
    # Labels that only another map explains, and a model that cannot have both:
    # the step is too small to move the maps at all.
    wcam = WCAM("act", weight=4.0, agreement=0.999)
    with self.assertWarnsRegex(
        UserWarning, "agreement=0.999 is not held although the weight is at i"
    ) as caught:
      history = self._fit(wcam, epochs=5, rate=0.0, run_eagerly=True)
    self.assertLen([warning for warning in caught.warnings
                    if "is not held" in str(warning.message)], 1)
    # It was at the ceiling long enough to be warned of a second time.
    self.assertLen(set(history["attr_weight"]), 4)

  def test_a_schedule(self):
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 3.0)
    history = self._run(WCAM("act", weight=warm_up), 6)
    # Float32 arithmetic of a schedule up to 3.
    np.testing.assert_allclose(
        history["attr_weight"], [0, 0.75, 1.5, 2.25, 3, 3], atol=1e-6)
    # Float32 products; logs are means in float32.
    np.testing.assert_allclose(
        history["attr_loss"], np.array(history["attr_weight"])
        * (1 - np.array(history["attr_agreement"])), atol=1e-5)

  def test_a_schedule_in_a_loop_of_ones_own(self):
    student = tiny.smooth_net(1)
    student.compile("sgd", lambda labels, outputs: 0.0 * outputs[:, 0])
    step = TrainStep(student, self.teacher, WCAM(
        "act", weight=lambda count: 2.0 * tf.cast(count, tf.float32)))
    losses = [float(step.loss(self.pictures, self.labels, step=count)[0])
              for count in (0, 1, 3)]
    self.assertEqual(losses[0], 0)
    # A ratio of two float32 losses by the same maps.
    self.assertAlmostEqual(losses[2] / losses[1], 3, places=4)

  def test_a_fixed_weight_is_not_logged(self):
    self.assertNotIn(
        "attr_weight", self._run(WCAM("act", weight=4.0), 1))

  def test_the_state_is_the_models_only_during_fit(self):
    student = tiny.smooth_net(1)
    student.compile("sgd", "mse", run_eagerly=True)
    seen = []
    class Look(keras.callbacks.Callback):
      def on_epoch_end(self, epoch, logs=None):
        seen.append(tf.train.list_variables(
            tf.train.Checkpoint(model=self.model).save(path)))
    path = str(tiny.folder(self) / "checkpoint")
    before = set(vars(student))
    student.fit(self.pictures, np.zeros((8, 3)), verbose=0, callbacks=[
        Look(), PreserveAttribution(
            self.teacher, WCAM("act", weight=4.0, agreement=0.9))])
    self.assertTrue(any("log_weight" in name for name, _ in seen[0]))
    self.assertNotIn("attr_preserve_state", vars(student))
    self.assertContainsSubset(before, set(vars(student)))
    after = tf.train.list_variables(
        tf.train.Checkpoint(model=student).save(path))
    self.assertFalse(any("log_weight" in name for name, _ in after))


if __name__ == "__main__":
  absltest.main()
