"""The rules of relevance, each against its formula in NumPy loops."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from keras_attr_preserve.attribution.relevance import rules as rules
from keras_attr_preserve.attribution.relevance.linear_blocks import Linear
from keras_attr_preserve.compat import tf

# Float32, and a stabilizer of at most 1e-6 beside totals of 1 and more.
RTOL = 1e-5


def _dense(inputs, kernel, bias):
  return Linear(
      tf.constant(inputs, tf.float32), tf.constant(kernel, tf.float32),
      tf.constant(bias, tf.float32), True, False, False, tf.matmul,
      lambda share, weights: tf.matmul(share, weights, transpose_b=True))


def _drawn(seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=[2, 5]), rng.normal(size=[5, 3]),
          rng.normal(size=3), rng.normal(size=[2, 3]))


class RulesTest(parameterized.TestCase):

  def test_epsilon_by_hand(self):
    # z = (2, -1), their sum with the bias 1 + 3 = 4; relevance 8.
    block = _dense([[1, 1]], [[2.0], [-1.0]], [3.0])
    given = rules.epsilon(block, tf.constant([[8.0]]))
    np.testing.assert_allclose(given, [[4, -2]], rtol=RTOL)
    without = rules.epsilon(block, tf.constant([[8.0]]), bias=False)
    np.testing.assert_allclose(without, [[16, -8]], rtol=RTOL)

  def test_z_plus_by_hand(self):
    # Contributions 2, -1 and (-1)(-3) = 3: the two positive ones share 10.
    block = _dense([[1, 1, -1]], [[2.0], [-1.0], [-3.0]], [7.0])
    np.testing.assert_allclose(
        rules.z_plus(block, tf.constant([[10.0]])), [[4, 0, 6]], rtol=RTOL)

  def test_alpha_beta_by_hand(self):
    # 2 x (2, 3) / 5 of the positive, less the whole of the negative one.
    block = _dense([[1, 1, -1]], [[2.0], [-1.0], [-3.0]], [0.0])
    np.testing.assert_allclose(
        rules.alpha_beta(block, tf.constant([[10.0]])), [[8, -10, 12]],
        rtol=RTOL)

  def test_flat_shares_evenly(self):
    block = _dense([[1, 5, -1]], [[2.0], [-1.0], [-3.0]], [0.0])
    np.testing.assert_allclose(
        rules.flat(block, tf.constant([[9.0]])), [[3, 3, 3]], rtol=RTOL)

  def test_box_by_hand(self):
    # Range -1..5; z = 2 (1 + 1) = 4 and -3 (-1 - 5) = 18, shares of 22.
    block = _dense([[1, -1, 5]], [[2.0], [-3.0], [0.0]], [0.0])
    np.testing.assert_allclose(
        rules.box(block, tf.constant([[11.0]])), [[2, 9, 0]], rtol=RTOL)

  @parameterized.parameters(0, 1, 2)
  def test_formulas(self, seed):
    x, w, b, arrived = _drawn(seed)
    block = _dense(x, w, b)
    z = x[:, :, None] * w
    plus, minus = np.maximum(z, 0), np.minimum(z, 0)
    def shared(parts, total):
      # Where nothing contributes, nothing is given.
      share = np.divide(arrived, total, out=np.zeros_like(total),
                        where=total != 0)
      return (parts * share[:, None]).sum(2)
    total = z.sum(1) + b
    relevance = tf.constant(arrived, tf.float32)
    # Float32 against float64: sums of five terms, and those of both signs
    # lose digits where they nearly cancel.
    np.testing.assert_allclose(
        rules.epsilon(block, relevance, stabilizer=1e-3),
        shared(z, total + 1e-3 * np.sign(total)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        rules.alpha_beta(block, relevance, alpha=3.0, beta=2.0),
        3 * shared(plus, plus.sum(1) + np.maximum(b, 0))
        - 2 * shared(minus, minus.sum(1) + np.minimum(b, 0)),
        rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        rules.z_plus(block, relevance), shared(plus, plus.sum(1)), rtol=1e-4,
        atol=1e-5)

  def test_no_contribution_gives_zero_not_nan(self):
    block = _dense([[0.0, 0.0]], [[1.0], [-1.0]], [2.0])
    for rule in (rules.epsilon, rules.z_plus, rules.alpha_beta):
      np.testing.assert_array_equal(
          rule(block, tf.constant([[5.0]])), [[0, 0]])

  def test_no_contribution_is_shared_evenly(self):
    block = _dense([[0.0, 0.0]], [[1.0], [-1.0]], [2.0])
    for rule in (rules.z_plus_even, rules.box, rules.flat):
      np.testing.assert_allclose(
          rule(block, tf.constant([[5.0]])), [[2.5, 2.5]], rtol=RTOL)

  def test_z_plus_even_by_hand(self):
    # The first output reads 2 and 3, as under z+; the second none above 0.
    block = _dense([[1, 1, -1]], [[2.0, -1.0], [-1.0, -3.0], [-3.0, 0.0]],
                   [0.0, 9.0])
    np.testing.assert_allclose(
        rules.z_plus_even(block, tf.constant([[10.0, 6.0]])), [[6, 2, 8]],
        rtol=RTOL)

  def test_padding_gets_nothing(self):
    block = dataclasses.replace(
        _dense([[1, 5, 0]], [[2.0], [-1.0], [-3.0]], [0.0]),
        inside=tf.constant([[1.0, 1.0, 0.0]]))
    for rule in (rules.flat, rules.box):
      given = rule(block, tf.constant([[9.0]])).numpy()
      # Float32 sums of three shares: nothing of the 9 is lost.
      self.assertAlmostEqual(given.sum(), 9, places=4)
      self.assertEqual(given[0, 2], 0)

  def test_sums_share_by_magnitude(self):
    got = rules.share_by_magnitude(
        [tf.constant([3.0, 0.0]), tf.constant([-1.0, 0.0])],
        tf.constant([8.0, 4.0]))
    np.testing.assert_allclose(got, [[6, 2], [2, 2]], rtol=RTOL)

  def test_sums_share(self):
    summands = [tf.constant([3.0, -1.0, 0.0]), tf.constant([1.0, 2.0, 0.0])]
    relevance = tf.constant([8.0, 3.0, 4.0])
    np.testing.assert_allclose(
        rules.share_by_size(summands, relevance),
        [[6, -3, 0], [2, 6, 0]], rtol=RTOL)
    np.testing.assert_allclose(
        rules.share_positive(summands, relevance),
        [[6, 0, 2], [2, 3, 2]], rtol=RTOL)


if __name__ == "__main__":
  absltest.main()
