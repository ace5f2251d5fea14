"""Tests of integer_maps.py, and of the C sources against it, bit for bit."""

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.firmware.integer_head import (
  IntegerHead,
  IntegerLayer,
  sensitivity_limit,
)
from keras_attr_preserve.export.firmware.integer_maps import (
  ask_weighted,
  explain_features,
  explain_sensitivity,
  explain_squares,
  target_weights,
  top_class,
)
from keras_attr_preserve.export.tflite.pooling import Pool
from tests import c_programs

# Height, width, channels, logits and the cells that weights tell apart.
SIZES = ((1, 1, 1, 1, 1), (3, 2, 5, 2, 1), (2, 2, 256, 3, 4), (2, 1, 700, 1, 2),
         (1, 3, 3, 300, 3))
POOLS = (
    Pool("mean", (1, 1), (1, 1), (0, 0), (4, 5)),
    Pool("mean", (4, 5), (1, 1), (0, 0), (1, 1)),
    Pool("mean", (2, 3), (2, 1), (0, 0), (2, 3)),
    Pool("max", (2, 2), (2, 2), (0, 0), (2, 2)),
    Pool("max", (3, 3), (2, 2), (-1, 0), (2, 3)),
    Pool("max", (3, 3), (2, 2), (0, -1), (2, 3)))


def layer(kernel, scales=None, bits=15) -> IntegerLayer:
  kernel = np.asarray(kernel, np.int8)
  scales = np.full(len(kernel), 2**bits) if scales is None else scales
  return IntegerLayer(kernel, np.asarray(scales, np.int32), bits, 1.0, None)


def drawn(rng, shape, extreme: bool) -> np.ndarray:
  if extreme:
    return rng.choice(np.int8([-128, 127]), shape)
  return rng.integers(-128, 128, shape).astype(np.int8)


class ByHandTest(parameterized.TestCase):

  # Of the sums 3 and 5: units 3 - 5 = -2, 3 + 5 - 6 = 2 and 5 - 5 = 0; only the
  # second is on.
  hidden = IntegerHead(
      layer([[[5, 7, 11]]], [1], 0), 32767,
      layer([[[1, -1]], [[1, 1]], [[0, 1]]], [1, 2, 1], 1),
      Pool("mean", (1, 2), (1, 1), (0, 0), (1, 1)), np.int64([0, -6, -5]))
  features = np.int8([[[1, 5], [2, 0]]])

  def test_a_linear_head(self):
    # Two positions of two channels; class 1 weighs them 3 and -1.
    head = IntegerHead(layer([[[1, 1]], [[3, -1]]]), 32767)
    features = np.int8([[[-118, -128], [-118, -98]]])  # 10, 0 and 10, 30.
    result = explain_features(head, -128, features, np.int8([0, 1]))
    # 3 and -1 in steps of 2**-15 are halved twice to stay below 32767.
    self.assertEqual(result.exponent, 2)
    np.testing.assert_array_equal(result.raw, [[10 * 3 * 2**13, 0]])
    np.testing.assert_array_equal(result.map, [[255, 0]])
    self.assertEqual(result.status, 0)

  def test_two_classes_against_each_other(self):
    # The second class's weights are worth half of the first's.
    head = IntegerHead(layer([[[4, 0]], [[4, 8]]], [2, 1], 1), 32767)
    features = np.int8([[[1, 0], [1, 1], [0, 1]]])
    result = explain_features(head, 0, features, np.int8([1, -1]))
    np.testing.assert_array_equal(result.raw, [[4, 0, 0]])  # 8-4 and 0-8.
    result = explain_features(head, 0, features, np.int8([-2, 2]))
    np.testing.assert_array_equal(result.raw, [[0, 8, 16]])

  def test_a_flattened_map(self):
    head = IntegerHead(layer([[[1, 2], [3, 4]]], [1], 0), 32767)
    result = explain_features(
        head, 0, np.int8([[[1, 0], [0, 1]]]), np.int8([1]))
    np.testing.assert_array_equal(result.raw, [[4, 6]])
    np.testing.assert_array_equal(result.map, [[170, 255]])

  def test_a_hidden_layer(self):
    head, features = self.hidden, self.features
    result = explain_features(head, 0, features, np.int8([1]))
    np.testing.assert_array_equal(result.raw, [[7 * 2 * 6, 7 * 2 * 2]])
    ceiling = IntegerHead(head.last, 32767, head.hidden, head.pool, head.bias,
                          np.int64([9, 2, 9]))
    self.assertEqual(
        explain_features(ceiling, 0, features, np.int8([1])).status, 1)

  def test_squares_and_sensitivities(self):
    features = np.int8([[[-127, -126], [-128, -128]]])
    result = explain_squares(-128, features)
    np.testing.assert_array_equal(result.raw, [[1 + 4, 0]])
    result = explain_sensitivity((-128, 3), features, np.int8([4, 5]))
    np.testing.assert_array_equal(result.raw, [[1 + 4, 0]])
    result = explain_sensitivity((-128, 3), features, np.int8([2, 3]))
    np.testing.assert_array_equal(result.map, [[0, 0]])
    self.assertEqual(result.status, 1)

  def test_top_class(self):
    self.assertEqual(top_class(np.int8([3, 7, 7]), 0), 1)
    self.assertEqual(top_class(np.int8([-5]), -5), 1)
    self.assertEqual(top_class(np.int8([-6]), -5), 0)
    np.testing.assert_array_equal(target_weights(2, 3), [0, 0, 1])
    np.testing.assert_array_equal(target_weights(0, 1), [-1])
    np.testing.assert_array_equal(target_weights(1, 1), [1])

  def test_asking(self):
    np.testing.assert_array_equal(
        ask_weighted(np.int8([2, -1, 0]), -1, 127), [126, -65, -1])
    np.testing.assert_array_equal(
        ask_weighted(np.int8([0, 0]), -1, 127), [-1, -1])
    np.testing.assert_array_equal(
        ask_weighted(np.int8([127, -128]), 1, 127), [127, -126])

  def test_limits(self):
    self.assertEqual(sensitivity_limit(1), 32767)
    self.assertEqual(sensitivity_limit(256), 32767)
    self.assertLess(sensitivity_limit(258), 32767)
    for channels in (256, 258, 1024, 100000):
      self.assertLess(255 * sensitivity_limit(channels) * channels, 2**31)
    with self.assertRaisesRegex(ValueError, "wcam: its layer must have at most"
                                " 133674 channels.*got 200000"):
      sensitivity_limit(200000)


@c_programs.needs_compiler
class SameBitsTest(parameterized.TestCase):
  """Made-up heads, at the edge of what integers hold, under sanitizers."""

  @parameterized.parameters(
      (False, SIZES[1]), *((True, sizes) for sizes in SIZES))
  def test_linear(self, extreme, sizes):
    self.check_linear(extreme, sizes)

  @parameterized.parameters(SIZES[0], *SIZES[2:])
  @pytest.mark.slow("firmware")
  def test_linear_of_numbers_in_between(self, *sizes):
    self.check_linear(False, sizes)

  def check_linear(self, extreme, sizes):
    height, width, channels, logits, cells = sizes
    rng = np.random.default_rng(sum(sizes))
    bits = min(30, (2**63 // (128 * 128 * cells * logits)).bit_length() - 2)
    scales = rng.integers(1, 2**bits, logits, endpoint=True)
    scales[0] = 2**bits
    head = IntegerHead(
        layer(drawn(rng, (logits, cells, channels), extreme), scales, bits),
        sensitivity_limit(channels))
    self.check(rng, head, (height, width, channels), logits, extreme)

  # Every pool, and with each kind of pool each of the rest.
  @parameterized.parameters(
      (False, True, 0), (True, True, 1), (True, False, 2), (True, True, 3),
      (False, False, 4), (True, True, 5))
  def test_hidden(self, extreme, ceiling, number):
    self.check_hidden(extreme, ceiling, POOLS[number])

  @parameterized.product(
      extreme=(False, True), ceiling=(False, True),
      number=(*range(len(POOLS)),))
  @pytest.mark.slow("firmware")
  def test_hidden_in_every_way(self, extreme, ceiling, number):
    self.check_hidden(extreme, ceiling, POOLS[number])

  def check_hidden(self, extreme, ceiling, pool):
    rng = np.random.default_rng(3)
    channels, logits, units = 6, 3, 7
    cells = pool.output[0] * pool.output[1]
    head = IntegerHead(
        layer(drawn(rng, (logits, 1, units), extreme), [2**30, 5, 2**29], 30),
        sensitivity_limit(channels),
        layer(drawn(rng, (units, cells, channels), extreme),
              rng.integers(1, 2**15, units)), pool,
        rng.integers(-2000, 2000, units),
        np.full(units, 500000 if extreme else 40000) if ceiling else None)
    self.check(rng, head, (4, 5, channels), logits, extreme)

  def check(self, rng, head, shape, logits, extreme):
    zero_point = rng.choice([-128, 127]) if extreme else 9
    device = c_programs.synthetic(head, shape, logits, zero_point)
    features = drawn(rng, (8, *shape), extreme)
    features[0] = 127 if zero_point < 0 else -128
    features[1] = zero_point
    weights = drawn(rng, (8, logits), extreme)
    weights[2] = 0
    done, vectors = c_programs.synthetic_test(device, features, weights)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertStartsWith(done.stdout, "passed: 8 maps of 8 images, 0 ")
    np.testing.assert_array_equal(vectors["status"][1:3], 1)
    self.assertLess(vectors["raw"].max(), 2**31)

  def test_a_hidden_unit_that_is_zero_is_off(self):
    device = c_programs.synthetic(ByHandTest.hidden, (1, 2, 2), 1, 0)
    done, vectors = c_programs.synthetic_test(
        device, ByHandTest.features[None], np.int8([[1]]))
    self.assertEqual(done.returncode, 0, done.stdout)
    np.testing.assert_array_equal(vectors["raw"], [[[84, 28]]])

  def test_a_wrong_number_is_found(self):
    head = IntegerHead(layer([[[1, 1]]]), 32767)
    device = c_programs.synthetic(head, (1, 2, 2), 1)
    features, weights = np.zeros([2, 1, 2, 2], np.int8), np.int8([[1], [1]])
    other = IntegerHead(layer([[[1, 2]]]), 32767)
    done, _ = c_programs.synthetic_test(device, features, weights)
    self.assertEqual(done.returncode, 0)
    done, _ = c_programs.synthetic_test(device, features, weights, other)
    self.assertEqual(done.returncode, 1)
    self.assertStartsWith(done.stdout, "FAILED: 2 maps of 2 images, ")


if __name__ == "__main__":
  absltest.main()
