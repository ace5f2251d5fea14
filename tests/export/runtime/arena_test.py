"""Tests of arena.py: plans held against the real interpreter's."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime import arena
from keras_attr_preserve.export.tflite.tflm_operators import missing_operators
from tests import export_helpers as helpers
from tests.places import SHARED

MODELS = Path(os.environ.get("KAP_MODEL_DIR", SHARED / "models"))
TAILS = ("gap", "flatten", "block", "depthwise")
# Of kernels that ask for scratch.
SCRATCH = (
    lambda x: tf.reduce_mean(x, [1, 2]), lambda x: tf.reduce_sum(x, [1, 2]),
    lambda x: tf.reduce_max(x, [1, 2]), lambda x: tf.reduce_min(x, [1, 2]),
    lambda x: tf.add_n([x, x + 1, x * x]),
    lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]], "REFLECT"),
    lambda x: tf.nn.conv2d_transpose(
        x, tf.ones([2, 1, 2, 3]), [1, 2, 1, 2], 1))


def odd_net(seed: int) -> keras.Model:
  """Draws a model with branches, pools and a transposed convolution."""
  rng = np.random.default_rng(seed)
  layers = keras.layers
  inputs = keras.Input((8, 8, 2))
  x = layers.Conv2D(int(rng.integers(1, 9)), 3, padding="same",
                    activation="relu")(inputs)
  for _ in range(rng.integers(1, 4)):
    width = int(rng.integers(1, 9))
    kinds = [layers.Conv2D(width, 1), layers.DepthwiseConv2D(3, padding="same"),
             layers.MaxPooling2D(3, 1, "same"),
             layers.Conv2DTranspose(width, 3, padding="same")]
    first, second = (kinds[i](x) for i in rng.choice(len(kinds), 2, False))
    x = layers.Concatenate()([first, second, x])
  x = layers.AveragePooling2D(2, name="act")(x)
  logits = layers.Dense(3)(layers.Flatten()(x))
  return keras.Model(inputs, logits)


class ByHandTest(absltest.TestCase):

  def plan(self, *buffers):
    return arena._placed([arena._Buffer(*fields) for fields in buffers])

  def test_the_largest_first_and_each_in_the_first_gap(self):
    # Sizes; first and last use.
    self.assertEqual(
        self.plan((32, 0, 1), (64, 1, 2), (16, 2, 3), (48, 3, 4)),
        [64, 0, 64, 0])
    # 16 bytes fit between the two that are alive, 32 do not.
    self.assertEqual(
        self.plan((96, 0, 0), (80, 1, 1), (64, 0, 1), (16, 1, 2), (32, 1, 2)),
        [0, 0, 96, 80, 160])

  def test_of_equal_sizes_the_later_first(self):
    self.assertEqual(self.plan((16, 0, 1), (16, 0, 1), (16, 1, 1)),
                     [32, 16, 0])

  def test_nothing(self):
    self.assertEqual(self.plan(), [])

  def test_a_file(self):
    # 8x8x2 in, 8x8x16 features that live to the end, 16 means, 3 logits.
    content = helpers.converted("gap", "int8", target="microcontroller")
    plan = arena.plan_arena(content)
    names = helpers.operators(content)[0]
    self.assertEqual(names[0], "CONV_2D")
    self.assertEqual(plan.offsets[int(
        helpers.parsed(content).subgraphs[0].inputs[0])], 1024)
    self.assertGreaterEqual(plan.live, 128 + 1024)
    self.assertGreaterEqual(plan.head, plan.live)
    self.assertRegex(plan.operator, r"^\d+ [A-Z0-9_]+$")


class RealTest(parameterized.TestCase):

  def assert_planned(self, content):
    plan = arena.plan_arena(content)
    measured = arena.measure_arena(content)
    self.assertEqual(plan.head, measured.head)
    self.assertGreater(measured.tail, 0)
    self.assertGreaterEqual(
        measured.smallest, measured.head + measured.tail)
    return measured

  @helpers.needs_tflm
  @parameterized.parameters(
      ("gap", "float32"), *((tail, "int8") for tail in TAILS[1:]))
  @pytest.mark.slow("firmware")
  def test_every_tail(self, tail, mode):
    self.assert_planned(
        helpers.converted(tail, mode, target="microcontroller"))

  @parameterized.parameters(
      ("gap", "int8"), *((tail, "float32") for tail in TAILS[1:]),
      ("block", "int8", "ewa"))
  @pytest.mark.slow("firmware")
  @helpers.needs_tflm
  def test_every_tail_in_the_other_mode(self, *settings):
    self.assert_planned(
        helpers.converted(*settings, target="microcontroller"))

  @helpers.needs_tflm
  @parameterized.parameters((0, "int8"), (1, "float32"))
  def test_odd_nets(self, seed, mode):
    self.check_odd_net(seed, mode)

  def check_odd_net(self, seed, mode):
    self.assert_planned(kap.export.convert(
        odd_net(seed), helpers.wcam("ewa"), mode=mode,
        representative_images=helpers.calibration()
        if mode == "int8" else None, target="microcontroller"))

  @parameterized.parameters(*SCRATCH)
  @helpers.needs_tflm
  def test_scratch(self, function):
    """Of tensors so small that it counts."""
    self.check_scratch(function, "int8")

  @helpers.needs_tflm
  def test_scratch_of_sums_of_floats(self):
    self.check_scratch(SCRATCH[0], "float32")

  @parameterized.parameters(*SCRATCH[1:])
  @pytest.mark.slow("firmware")
  @helpers.needs_tflm
  def test_scratch_of_floats(self, function):
    self.check_scratch(function, "float32")

  def check_scratch(self, function, mode):
    shape = [1, 2, 1, 3]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([tf.function(
        function, input_signature=[tf.TensorSpec(shape)]
    ).get_concrete_function()])
    if mode == "int8":
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
      converter.representative_dataset = lambda: ([
          np.random.default_rng(i).normal(size=shape).astype(np.float32)]
          for i in range(4))
    self.assert_planned(converter.convert())

  @helpers.needs_tflm
  def test_the_smallest_arena_is_the_smallest(self):
    from tflite_micro import runtime
    content = helpers.converted("block", "int8", target="microcontroller")
    size = self.assert_planned(content).smallest
    runtime.Interpreter.from_bytes(content, arena_size=size)
    with self.assertRaises(RuntimeError):
      runtime.Interpreter.from_bytes(content, arena_size=size - 16)

  @pytest.mark.slow("firmware")
  @helpers.needs_tflm
  def test_other_people_s_files(self):
    """Measured: 11 of 11 planned to the byte."""
    paths = sorted(MODELS.rglob("*.tflite"))
    if not paths:
      self.skipTest(f"no models in {MODELS}; see KAP_MODEL_DIR")
    planned = 0
    for path in paths:
      content = path.read_bytes()
      if not missing_operators(content):
        self.assert_planned(content)
        planned += 1
    self.assertGreaterEqual(planned, 11)

  @pytest.mark.slow("firmware")
  @helpers.needs_tflm
  def test_many_odd_nets(self):
    for seed, mode in itertools.product(range(20), ("float32", "int8")):
      self.check_odd_net(seed, mode)


class PhoneTest(absltest.TestCase):

  def test_the_sum_of_the_subgraphs(self):
    both = helpers.converted("block", "int8")
    model = helpers.parsed(both)
    alone = []
    for number in range(2):
      model = helpers.parsed(both)
      model.subgraphs = [model.subgraphs[number]]
      model.signatureDefs, model.metadata = [], []
      alone.append(arena.phone_arena(helpers.packed(model)))
      self.assertGreater(alone[-1], 0)
    self.assertEqual(arena.phone_arena(both), sum(alone))

  def test_aligned_to_64_bytes(self):
    self.assertEqual(arena.phone_arena(helpers.converted("gap", "int8")) % 64,
                     0)


class ErrorsTest(parameterized.TestCase):

  def test_no_file(self):
    for call in (arena.plan_arena, arena.phone_arena, arena.measure_arena):
      with self.assertRaisesRegex(ValueError, "tflite_model must be a .tflite"):
        call(b"none")
      with self.assertRaisesRegex(TypeError, "tflite_model must be the bytes"):
        call(None)

  @parameterized.parameters(1, -1)
  def test_no_such_subgraph(self, number):
    with self.assertRaisesRegex(
        ValueError, f"subgraph must be one of the file's 1.*; got {number}"):
      arena.plan_arena(
          helpers.converted(target="microcontroller"), number)

  def test_two_subgraphs_are_not_measured(self):
    with self.assertRaisesRegex(ValueError, "one subgraph.*; got 2"):
      arena.measure_arena(helpers.converted("block", "int8"))

  @helpers.needs_tflm
  def test_what_the_interpreter_refuses_is_not_measured(self):
    with self.assertRaisesRegex(
        ValueError, "refused by the runtime 'tflm' .exit 1.*DEQUANTIZE"):
      arena.measure_arena(
          helpers.converted("gap", "float16", target="microcontroller"))

  def test_control_flow(self):
    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32)])
    def serve(x):
      return tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: tf.exp(x))
    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()]).convert()
    with self.assertRaisesRegex(ValueError, "run other subgraphs.*; got IF"):
      arena.plan_arena(content)

  @parameterized.parameters(
      ("type", "STRING"), ("shape", [1, -1, 3]))
  def test_no_fixed_size(self, what, value):
    model = helpers.parsed(helpers.converted())
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]]
    setattr(tensor, what, 5 if what == "type" else np.int32(value))
    with self.assertRaisesRegex(
        ValueError, "has no fixed size|tensor of shape"):
      arena.plan_arena(helpers.packed(model))


if __name__ == "__main__":
  absltest.main()
