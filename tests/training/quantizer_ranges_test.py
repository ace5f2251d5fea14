"""Tests of the range monitor: a hand-worked model whose quantizers clip."""

import functools
import json
import math

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.training.quantizer_ranges import (
    RangeMonitor,
    quantizer_ranges,
)
from keras_attr_preserve.training.quantizer_watch import QuantizerWatch
from tests import tiny


def set_range(model, layer, what, low, high):
  """Sets the range of a quantizer by its variables' names."""
  count = 0
  for weight in model.get_layer(layer).weights:
    name = weight.name.split("/")[-1]
    if name.startswith(what) and "_min" in name:
      weight.assign(np.full(weight.shape, low))
      count += 1
    if name.startswith(what) and "_max" in name:
      weight.assign(np.full(weight.shape, high))
      count += 1
  assert count == 2, [weight.name for weight in model.get_layer(layer).weights]


def one_to_one() -> keras.Model:
  """A quantize-aware model of one pixel's two channels: scores = channels.

  The range of everything is -12.75..12.75 or 0..25.5, in steps of 0.1.
  """
  inputs = keras.Input((2, 2, 2), name="pictures")
  x = keras.layers.Conv2D(
      2, 1, use_bias=False, activation="relu", name="act")(inputs)
  x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
  x = keras.layers.Dense(2, use_bias=False, name="logits")(x)
  plain = keras.Model(inputs, x)
  plain.get_layer("act").kernel.assign(np.eye(2)[None, None])
  plain.get_layer("logits").kernel.assign(np.eye(2))
  model = tfmot.quantization.keras.quantize_model(plain)
  first = model.layers[1].name
  set_range(model, first, first, 0.0, 25.5)
  set_range(model, "quant_act", "kernel", -1.27, 1.27)
  set_range(model, "quant_logits", "kernel", -1.27, 1.27)
  set_range(model, "quant_act", "post_activation", 0.0, 25.5)
  set_range(model, "quant_pool", "output", 0.0, 25.5)
  set_range(model, "quant_logits", "post_activation", 0.0, 25.5)
  return model


@functools.cache
def _shared():
  model = one_to_one()
  return model, model.get_weights()


def shared() -> keras.Model:
  """Gives one model to all who only set its weights, as `one_to_one` has it."""
  model, weights = _shared()
  model.set_weights(weights)
  return model


@functools.cache
def _watch(wcam):
  return QuantizerWatch(_shared()[0], wcam)


def look(model, images, wcam=None, batch_size=32):
  """The result of `quantizer_ranges`, traced once for the shared model."""
  assert model is _shared()[0]
  return _watch(wcam).look(images, batch_size)


def row(table, layer, kind="activation"):
  rows = [entry for entry in table.rows
          if (entry.layer, entry.kind) == (layer, kind)]
  assert len(rows) == 1, (layer, kind, table)
  return rows[0]


def plain(values) -> np.ndarray:
  """Images of one colour pair each: `[images, 2]` to `[images, 2, 2, 2]`."""
  return np.tile(np.asarray(values, np.float32)[:, None, None], (1, 2, 2, 1))


# Ten images; the second colour goes 0, 1, ... 9, the first is 2.
TEN = plain([[2, k] for k in range(10)])
WCAM = kap.WCAM("act")


class ByHandTest(parameterized.TestCase):

  def test_every_quantizer_has_a_row(self):
    table = quantizer_ranges(shared(), TEN, WCAM)
    self.assertCountEqual(
        [("" if entry.kind == "input" else entry.layer, entry.kind, entry.role)
         for entry in table.rows],
        [("", "input", ""),
         ("act", "weights", ""), ("act", "activation", "features"),
         ("pool", "activation", ""),
         ("logits", "weights", ""), ("logits", "activation", "scores")])
    self.assertEqual(table.images, 10)
    self.assertEqual(table.top_clipped, 0)
    self.assertEmpty(table.warnings)

  def test_nothing_is_clipped_inside(self):
    table = look(shared(), TEN, WCAM)
    self.assertLen(table.rows, 6)
    for entry in table.rows:
      self.assertEqual(entry.clipped, 0)
      self.assertEqual(entry.fault, "")
    act = row(table, "act")
    self.assertAlmostEqual(act.low, 0)
    self.assertAlmostEqual(act.high, 25.5, 5)
    self.assertAlmostEqual(act.least, 0, 5)
    self.assertAlmostEqual(act.most, 9, 5)
    self.assertAlmostEqual(act.waste, 1 - 9 / 25.5, 5)
    self.assertEqual(act.steps, 10)  # 0 to 9, and 2 is among them.
    self.assertEqual(act.levels, 256)

  def test_weights_by_hand(self):
    table = look(shared(), TEN)
    kernel = row(table, "act", "weights")  # Each channel: 0 and 1.
    self.assertEqual(kernel.levels, 255)  # -127..127
    self.assertEqual(kernel.steps, 2)
    self.assertAlmostEqual(kernel.waste, 1 - 1 / 2.54, 5)
    self.assertEqual((kernel.least, kernel.most), (0, 1))

  def test_clipped_weights(self):
    model = shared()
    set_range(model, "quant_act", "kernel", -0.5, 0.5)
    kernel = row(look(model, TEN), "act", "weights")
    self.assertEqual((kernel.below, kernel.above), (0, 0.5))

  @parameterized.parameters((4.5, 5), (6.0, 3), (8.5, 1))
  def test_scores_clipped_above(self, bound, images):
    model = shared()
    set_range(model, "quant_logits", "post_activation", 0.0, bound)
    table = look(model, TEN, WCAM)
    scores = row(table, "logits")
    self.assertAlmostEqual(scores.above, images / 20, 6)  # Of two scores each.
    self.assertEqual(scores.below, 0)
    self.assertAlmostEqual(table.top_clipped, images / 10, 6)
    self.assertIs(table.rows[0], scores)
    self.assertIn(f"clips {images / 20:.2%} of the SCORES", str(table))
    self.assertEqual(scores.waste, 0)

  def test_scores_clipped_below_do_not_touch_the_top(self):
    model = shared()
    set_range(model, "quant_logits", "post_activation", -1.0, 24.5)
    for weight in model.get_layer("quant_logits").weights:
      if "kernel" in weight.name and len(weight.shape) == 2:
        weight.assign([[1, 0], [0, -1]])
    table = look(model, TEN, WCAM)
    scores = row(table, "logits")
    self.assertAlmostEqual(scores.below, 8 / 20, 6)  # -2 to -9 of ten.
    self.assertEqual(scores.above, 0)
    self.assertEqual(table.top_clipped, 0)

  def test_features_clipped(self):
    model = shared()
    set_range(model, "quant_act", "post_activation", 0.0, 6.5)
    table = look(model, TEN, WCAM)
    features = row(table, "act")
    self.assertAlmostEqual(features.clipped, 3 / 20, 6)
    self.assertIs(table.rows[0], features)
    self.assertIn("of the FEATURES", str(table))
    unmarked = look(model, TEN)
    self.assertEmpty(unmarked.of("features"))
    self.assertEmpty(unmarked.warnings)

  def test_half_a_step_outside_is_rounding(self):
    model = shared()
    set_range(model, "quant_logits", "post_activation", 0.0, 8.985)
    self.assertEqual(
        row(look(model, TEN), "logits").clipped, 0)

  def test_scores_come_before_features_and_features_before_others(self):
    model = shared()
    set_range(model, "quant_pool", "output", 0.0, 3.5)
    set_range(model, "quant_act", "post_activation", 0.0, 7.5)
    set_range(model, "quant_logits", "post_activation", 0.0, 3.0)
    table = look(model, TEN, WCAM)
    self.assertEqual([(entry.layer, entry.role) for entry in table.rows[:3]],
                     [("logits", "scores"), ("act", "features"), ("pool", "")])

  def test_batches_add_up(self):
    model = shared()
    set_range(model, "quant_logits", "post_activation", 0.0, 4.5)
    whole = look(model, TEN, WCAM)
    for size in (1, 3, 10):
      self.assertEqual(look(model, TEN, WCAM, batch_size=size), whole)
    self.assertEqual(quantizer_ranges(model, TEN, WCAM, batch_size=4), whole)

  def test_range_without_zero_moves(self):
    model = shared()
    # TensorFlow moves 2..12.2 down to 0..10.2, for 0 must be a step.
    set_range(model, "quant_act", "post_activation", 2.0, 12.2)
    features = row(look(model, TEN, WCAM), "act")
    self.assertAlmostEqual(features.low, 0, 5)
    self.assertAlmostEqual(features.high, 10.2, 5)


class FaultsTest(parameterized.TestCase):

  def test_untrained_model_is_shown_loudly(self):
    model = tfmot.quantization.keras.quantize_model(tiny.conv_net())
    table = quantizer_ranges(model, tiny.images(), WCAM)
    first = table.rows[0]
    self.assertEqual((first.kind, first.fault), ("input", "empty"))
    self.assertEqual(first.clipped, 1)
    self.assertTrue(str(table).startswith("!! quantize_layer"))
    self.assertIn("EMPTY RANGE 0..0, the model sees black", str(table))
    # All others are unchanged from tfmot.
    self.assertEqual({entry.fault for entry in table.rows[1:]}, {"untrained"})
    self.assertLen(table.warnings, len(table.rows))

  def test_training_takes_the_faults_away(self):
    model = tfmot.quantization.keras.quantize_model(tiny.conv_net())
    model(tiny.images(), training=True)
    table = quantizer_ranges(model, tiny.images(), WCAM)
    self.assertEqual({entry.fault for entry in table.rows}, {""})

  def test_nan(self):
    model = one_to_one()
    for weight in model.get_layer("quant_act").weights:
      if len(weight.shape) == 4:
        weight.assign(np.full(weight.shape, np.nan))
    table = quantizer_ranges(model, TEN, WCAM)
    first = table.rows[0]
    self.assertEqual(first.fault, "not finite")
    self.assertTrue(math.isnan(first.clipped))
    self.assertIn("NaN or infinity", str(table))
    json.dumps(table.to_dict(), allow_nan=False)

  def test_where_functions_are_told_to_run_eagerly(self):
    model = one_to_one()
    want = str(quantizer_ranges(model, TEN))
    with tiny.eagerly():
      self.assertEqual(str(quantizer_ranges(model, TEN)), want)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, "has no quantizer"):
      quantizer_ranges(tiny.conv_net(), tiny.images())
    model = one_to_one()
    with self.assertRaisesRegex(TypeError, "tf_keras"):
      quantizer_ranges("model", TEN)
    with self.assertRaisesRegex(ValueError, "images must have shape"):
      quantizer_ranges(model, TEN[0])
    with self.assertRaisesRegex(TypeError, "wcam must be"):
      quantizer_ranges(model, TEN, "act")
    with self.assertRaisesRegex(ValueError, "no layer of that name"):
      quantizer_ranges(model, TEN, kap.WCAM("nothing"))
    with self.assertRaisesRegex(ValueError, "batch_size"):
      quantizer_ranges(model, TEN, batch_size=0)
    with self.assertRaisesRegex(ValueError, "batch_size"):
      RangeMonitor(TEN, batch_size=0)
    with self.assertRaisesRegex(TypeError, "name"):
      RangeMonitor(TEN, name="")


class KindsOfModelTest(parameterized.TestCase):

  @parameterized.parameters(("sigmoid", 1), ("softmax_layer", 3))
  def test_scores_are_found_behind_a_head(self, head, classes):
    self.check_scores(head, classes)

  @parameterized.parameters(("linear", 3), ("softmax", 3))
  @pytest.mark.slow("compressions")
  def test_scores_are_found_behind_others(self, head, classes):
    self.check_scores(head, classes)

  def check_scores(self, head, classes):
    model = tiny.quantize(tiny.conv_net(head=head, classes=classes))
    scores = quantizer_ranges(model, tiny.images(), WCAM).of("scores")
    self.assertLen(scores, 1)
    self.assertEqual(scores[0].layer, "logits")
    self.assertEqual(scores[0].kind, "activation")

  @parameterized.parameters("flatten", "depthwise")
  def test_features_are_found_in_any_net(self, tail):
    model = tiny.quantize(tiny.conv_net(tail=tail))
    table = quantizer_ranges(model, tiny.images(), WCAM)
    self.assertEqual([entry.layer for entry in table.of("features")], ["act"])
    self.assertEmpty(table.unquantized)

  def test_a_layer_without_a_quantizer_is_marked_by_the_next(self):
    # `conv` is quantized behind its normalization and activation alone.
    model = tiny.quantize(tiny.conv_net())
    features = quantizer_ranges(
        model, tiny.images(), kap.WCAM("conv")).of("features")
    self.assertEqual([entry.layer for entry in features], ["act"])

  def test_weights_that_tfmot_leaves_out(self):
    # A trap of tfmot 0.8.1: a convolution followed by a ReLU layer.
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, name="bare")(inputs)
    x = keras.layers.ReLU(name="act")(x)
    x = keras.layers.Conv2D(3, 3, activation="relu", name="fused")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(3, name="logits")(x)
    model = tiny.quantize(keras.Model(inputs, x))
    model(tiny.images(), training=True)
    table = quantizer_ranges(model, tiny.images())
    self.assertEqual(table.unquantized, ("bare",))
    self.assertIn("!! bare: weights without a quantizer", str(table))
    self.assertEqual(table.to_dict()["unquantized"], ["bare"])

  def test_pruning_preserving_quantizers(self):
    model = tiny.quantize_sparse(tiny.conv_net())
    model(tiny.images(), training=True)
    table = quantizer_ranges(model, tiny.images(), WCAM)
    self.assertLen(table.of("scores"), 1)
    self.assertEqual(sum(entry.kind == "weights" for entry in table.rows), 2)

  def test_nested_model(self):
    inner = tiny.quantize(tiny.conv_net())
    inputs = keras.Input((6, 6, 2))
    table = quantizer_ranges(
        keras.Model(inputs, inner(inputs)), tiny.images(), WCAM)
    self.assertLen(table.of("scores"), 1)
    self.assertLen(table.of("features"), 1)
    self.assertEqual(sum(entry.kind == "input" for entry in table.rows), 1)

  def test_the_model_is_left_as_it_came(self):
    model = tiny.quantize(tiny.conv_net())
    before = model.get_weights()
    quantizer_ranges(model, tiny.images(), WCAM)
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))

  def test_what_arrives_is_what_the_model_computes(self):
    model = tiny.quantize(tiny.conv_net())
    model(tiny.images(8), training=True)
    images = tiny.images(5, seed=3)
    pool = keras.Model(
        model.input, model.get_layer("quant_pool").output)(images).numpy()
    table = quantizer_ranges(model, images)
    scores = row(table, "logits")
    self.assertAlmostEqual(
        row(table, "pool").most, pool.max(),
        delta=1.01 * (row(table, "pool").high - row(table, "pool").low) / 255)
    output = model(images).numpy()
    # One step of 8 bits over -6..6, where tfmot begins: 12 / 255 = .047.
    self.assertAlmostEqual(scores.most, output.max(), delta=0.05)
    self.assertAlmostEqual(scores.least, output.min(), delta=0.05)


class MonitorTest(parameterized.TestCase):

  def test_logs_of_a_fit(self):
    model = one_to_one()
    set_range(model, "quant_logits", "post_activation", 0.0, 4.5)
    model.compile("sgd", "mse", run_eagerly=True)
    model.optimizer.learning_rate = 0.0
    for layer in model.layers:
      layer.trainable = False
    monitor = RangeMonitor(TEN, WCAM)
    history = model.fit(
        TEN, np.zeros((10, 2)), epochs=2, verbose=0,
        callbacks=[monitor, RangeMonitor(TEN, name="other")]).history
    self.assertLen(history["range_scores"], 2)
    # A step moves the range by a thousandth of the way: from 4.5 to 4.5045.
    self.assertAlmostEqual(history["range_scores"][-1], 5 / 20, 6)
    self.assertAlmostEqual(history["range_top"][-1], 5 / 10, 6)
    self.assertEqual(history["range_features"][-1], 0)
    self.assertAlmostEqual(history["range_worst"][-1], 5 / 20, 6)
    self.assertTrue(np.isnan(history["other_features"][-1]))
    self.assertIn("of the SCORES", str(monitor.table))

  def test_what_does_not_fit_is_said_before_training(self):
    model = one_to_one()
    model.compile("sgd", "mse")
    before = model.get_weights()
    for callback in (RangeMonitor(TEN[0]), RangeMonitor(TEN, kap.WCAM("no"))):
      with self.assertRaises(ValueError):
        model.fit(TEN, np.zeros((10, 2)), verbose=0, callbacks=[callback])
    plain_net = tiny.compiled(tiny.conv_net())
    with self.assertRaisesRegex(ValueError, "has no quantizer"):
      plain_net.fit(tiny.images(), tiny.labels(), verbose=0,
                    callbacks=[RangeMonitor(tiny.images())])
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))

  def test_beside_preserve_attribution(self):
    teacher = tiny.conv_net()
    model = tiny.quantize(teacher)
    model.compile("sgd", tiny.no_task, run_eagerly=True)
    history = model.fit(
        tiny.images(), tiny.labels(), verbose=0, callbacks=[
            kap.PreserveAttribution(teacher, WCAM),
            RangeMonitor(tiny.images(), WCAM)]).history
    self.assertIn("range_scores", history)
    self.assertIn("attr_loss", history)


if __name__ == "__main__":
  absltest.main()
