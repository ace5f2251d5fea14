"""Tests of pooling.py: windows as TensorFlow slides them."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.tflite.pooling import Pool


class PoolTest(parameterized.TestCase):

  def test_by_hand(self):
    features = np.arange(12).reshape(1, 3, 4, 1)
    pool = Pool("max", (2, 2), (2, 2), (0, -1), (1, 3))
    np.testing.assert_array_equal(
        pool.apply(features)[0, ..., 0], [[4, 6, 7]])
    pool = Pool("mean", (3, 2), (1, 2), (0, 0), (1, 2))
    np.testing.assert_array_equal(
        pool.sums(features)[0, ..., 0], [[27, 39]])
    self.assertEqual(pool.count, 6)

  @parameterized.product(
      kind=("mean", "max"), size=((1, 1), (2, 3), (3, 3)),
      strides=((1, 1), (2, 2), (1, 3)), padding=("VALID", "SAME"))
  def test_is_tensorflow_s(self, kind, size, strides, padding):
    if kind == "mean" and padding == "SAME":
      return  # Refused where a head is read: see head_test.
    features = np.random.default_rng(0).normal(
        size=(2, 7, 8, 3)).astype(np.float32)
    pooling = {"mean": tf.nn.avg_pool2d, "max": tf.nn.max_pool2d}[kind]
    want = pooling(features, size, strides, padding).numpy()
    output = want.shape[1:3]
    missing = [max((out - 1) * step + length - have, 0) for out, step, length,
               have in zip(output, strides, size, (7, 8))]
    pool = Pool(kind, size, strides,
                (-(missing[0] // 2), -(missing[1] // 2)), output)
    got = pool.apply(features)
    self.assertEqual(got.dtype, np.float32)
    # Float32 means of at most nine values, summed in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # Their sums, up to nine times as large, and so is the rounding.
    np.testing.assert_allclose(
        pool.sums(features), want * pool.count, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
