"""Tests of seal.py: no damage to a file of ours goes unseen."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tflite import schema, seal
from tests import export_helpers as helpers

DAMAGED = "tflite_model is damaged: its .* bytes are not those that were"


class SealTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", "float32"), ("gap", "int8"), ("block", "int8"))
  def test_what_convert_writes_is_sealed(self, tail, mode):
    content = helpers.converted(tail, mode)
    self.assertTrue(seal.check_seal(content))
    text = helpers.parsed(content).description.decode()
    self.assertRegex(text, r"^keras_attr_preserve sha256 [0-9a-f]{64}$")
    # By hand, as a user would: the digits as zeros.
    digits = text[-64:]
    self.assertEqual(hashlib.sha256(content.replace(
        digits.encode(), b"0" * 64)).hexdigest(), digits)

  def test_files_of_others_have_none(self):
    plain = tf.lite.TFLiteConverter.from_concrete_functions([
        tf.function(tf.nn.relu).get_concrete_function(tf.TensorSpec([1, 2]))])
    for content in (
        plain.convert(), helpers.foreign(helpers.converted()), b"", b"none"):
      self.assertFalse(seal.check_seal(content))
      self.assertEqual(seal.stamped(content), content)

  def test_written_again_it_is_sealed_again(self):
    content = helpers.converted()
    model = schema.read_model(content)
    self.assertEqual(schema.write_model(model), content)
    model.subgraphs[0].tensors[0].name = b"other"
    other = schema.write_model(model)
    self.assertNotEqual(other, content)
    self.assertTrue(seal.check_seal(other))
    twice = schema.annotate(
        content, {}, {"more": ("predict", ("logits",))})
    self.assertTrue(seal.check_seal(twice))


class DamageTest(parameterized.TestCase):

  def test_every_bit_of_a_file(self):
    content = helpers.converted("gap", "int8", target="microcontroller")
    damaged = bytearray(content)
    for i in range(len(content)):
      for bit in range(8):
        damaged[i] ^= 1 << bit
        with self.assertRaisesRegex(ValueError, DAMAGED):
          seal.check_seal(bytes(damaged))
        damaged[i] ^= 1 << bit
    self.assertEqual(damaged, content)

  def test_every_cut(self):
    content = helpers.converted("gap", "int8")
    self.check_cuts(content, range(len(content)))

  def test_some_cuts_of_two_subgraphs(self):
    content = helpers.converted("block", "float32")
    self.check_cuts(content, np.random.default_rng(0).choice(
        len(content), 1000, replace=False))

  @pytest.mark.slow("files")
  def test_every_cut_of_two_subgraphs(self):
    content = helpers.converted("block", "float32")
    self.check_cuts(content, range(len(content)))

  def check_cuts(self, content, lengths):
    """Where not even the first mark is left, nothing is left to parse."""
    parsed = 0
    for length in lengths:
      try:
        parsed += not seal.check_seal(content[:length])
      except ValueError:
        continue
      with self.assertRaisesRegex(ValueError, "tflite_model"):
        checked_model(content[:length])
    self.assertBetween(parsed, 1, len(lengths) // 2)

  def test_bytes_that_are_gone_doubled_or_too_many(self):
    content = helpers.converted("block", "int8")
    rng = np.random.default_rng(0)
    for _ in range(500):
      start, length = rng.integers(len(content) - 1), rng.integers(1, 3000)
      for damaged in (
          content[:start] + content[start + length:],
          content[:start] + content[start:start + length] + content[start:],
          content[:start] + bytes(length) + content[start + length:],
          content + bytes(length)):
        if damaged == content:
          continue
        with self.assertRaisesRegex(ValueError, "tflite_model"):
          checked_model(damaged)

  def test_two_files_in_one(self):
    first, second = (
        helpers.converted(tail, "int8") for tail in ("gap", "block"))
    for damaged in (first + second, second + first):
      with self.assertRaisesRegex(ValueError, DAMAGED):
        checked_model(damaged)

  def test_the_seal_of_another(self):
    first, second = (helpers.converted("gap", "int8", **settings)
                     for settings in ({}, {"seed": 5}))
    digits = [helpers.parsed(content).description[-64:]
              for content in (first, second)]
    self.assertNotEqual(*digits)
    with self.assertRaisesRegex(ValueError, DAMAGED):
      checked_model(first.replace(*digits))

  def test_without_its_description(self):
    model = helpers.parsed(helpers.converted())
    model.description = b""
    with self.assertRaisesRegex(ValueError, DAMAGED):
      checked_model(helpers.packed(model))

  @parameterized.parameters("xnnpack", "reference", "tflm")
  def test_before_any_runtime(self, runtime):
    content = helpers.converted("gap", "int8", target="microcontroller")
    for i in (5, 40, len(content) // 2, len(content) - 1):
      damaged = bytearray(content)
      damaged[i] ^= 4
      with self.assertRaisesRegex(ValueError, "tflite_model"):
        kap.export.Interpreter(bytes(damaged), runtime=runtime)
      with self.assertRaisesRegex(ValueError, "tflite_model"):
        kap.export.verify(
            bytes(damaged), helpers.net(), helpers.wcam(), helpers.images(2),
            runtime=runtime)


if __name__ == "__main__":
  absltest.main()
