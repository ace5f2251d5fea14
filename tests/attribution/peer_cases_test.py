"""Test cases of other libraries, run against this library.

PAIR's saliency 0.2.1 (line detector, two dots, separate variables), Xplique
2.0.2 (weights of Grad-CAM++, a guided parabola, perfect curves, kinds of
images), Quantus 0.6.0 (masks around, beside and half over a map).
Expected values follow this library's definitions.
"""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution, evaluation
from tests import tiny

layers = keras.layers
AT_LAYER = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam",
            "score_cam", "equal_weighted")
# Float32 rounding of a few small numbers.
FLOAT32 = 1e-6


class PairCasesTest(absltest.TestCase):

  def test_grad_cam_of_a_line_detector(self):
    """A square of ones; a layer that answers to its upper and lower edge."""
    inputs = keras.Input((5, 5, 1))
    x = layers.Conv2D(1, 3, padding="same", use_bias=False, name="lines")(
        inputs)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(x))
    kernel = np.float32([[-1] * 3, [2] * 3, [-1] * 3])
    pull = np.zeros([5, 5], np.float32)
    pull[0] = 1
    model.set_weights([kernel.reshape(3, 3, 1, 1), pull.reshape(25, 1)])
    image = np.zeros([1, 5, 5, 1], np.float32)
    image[0, 1:4, 1:4] = 1
    # Row 1: 2 of the row itself less 1 of the row below, for 1, 2, 3, 2, 1
    # ones; row 2: 2 - 1 - 1; row 0: -1. The mean pull is 1 / 5.
    want = np.zeros([5, 5])
    want[1] = want[3] = [1, 2, 3, 2, 1]
    np.testing.assert_allclose(
        attribution.grad_cam(model, image, 1, "lines")[0], want / 5,
        rtol=FLOAT32)

  def test_occlusion_of_two_dots(self):
    """A score of three times the sum, windows of three: 3 for each dot."""
    image = np.zeros([1, 5, 5, 1], np.float32)
    image[0, 1, 1] = image[0, 3, 3] = 1
    got = attribution.occlusion(
        lambda batch: 3 * batch.sum((1, 2, 3))[:, None], image, 1, patch=3,
        stride=1, baseline=0.0)[0]
    sums = np.array([[3, 6, 6, 3, 0], [6, 15, 18, 12, 3], [6, 18, 24, 18, 6],
                     [3, 12, 18, 15, 6], [0, 3, 6, 6, 3]])
    windows = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])
    np.testing.assert_allclose(got, sums / windows, rtol=FLOAT32)

  def test_integrated_gradients_of_separate_variables(self):
    """5 x + y^2 + sin z: each variable gets the rise of its term."""
    inputs = keras.Input((1, 3, 1))
    x = layers.Lambda(lambda x: tf.stack(
        [5 * x[:, 0, 0], x[:, 0, 1]**2, tf.sin(x[:, 0, 2])], 1))(inputs)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(x))
    model.set_weights([np.ones([3, 1], np.float32)])
    start, end = np.float32([0.5, 1, 1]), np.float32([1, 2, 3])
    want = [5 * 0.5, 4 - 1, np.sin(3) - np.sin(1)]
    got = attribution.integrated_gradients(
        model, end.reshape(1, 1, 3, 1), 1, baseline=start.reshape(1, 1, 3, 1),
        steps=100)
    # The trapezoid rule is off by 8 max|f'''| / (12 * 100^2), of the sine.
    np.testing.assert_allclose(got[0, 0], want, atol=7e-5)


class XpliqueCasesTest(parameterized.TestCase):

  def test_grad_cam_plus_plus_of_its_own_gradient(self):
    """Features that are their own gradients: all ones, half of them, few."""
    features = np.float32([
        [[1, 1], [1, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]],
        [[0.5, 0], [0, 0]]])
    inputs = keras.Input((2, 2, 4))
    x = layers.Activation("linear", name="features")(inputs)
    # The gradient of half the sum of squares is the features.
    x = layers.Lambda(lambda x: tf.reduce_sum(x**2, [1, 2, 3])[:, None] / 2)(x)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(x))
    model.set_weights([np.ones([1, 1], np.float32)])
    # g^2 / (2 g^2 + g^3 sum A), times g, added up over the positions.
    weights = [4 * (1 / (2 + 4)), 2 * (1 / (2 + 2)), 0,
               0.25 / (0.5 + 0.125 * 0.5) * 0.5]
    image = np.moveaxis(features, 0, -1)[None]
    got = attribution.grad_cam_plus_plus(model, image, 1, "features")
    np.testing.assert_allclose(got[0], image[0] @ weights, rtol=FLOAT32)

  def test_guided_backprop_of_a_falling_parabola(self):
    """-relu(x)^2: no gradient is positive, and the model stays unchanged."""
    inputs = keras.Input((1, 4, 1))
    x = layers.Activation(tf.nn.relu)(inputs)
    x = layers.Flatten()(layers.Lambda(lambda x: -x**2)(x))
    model = keras.Model(inputs, layers.Dense(1, use_bias=False)(x))
    model.set_weights([np.ones([4, 1], np.float32)])
    image = np.float32([5, 0, -5, 10]).reshape(1, 1, 4, 1)
    for _ in range(2):
      self.assertFalse(attribution.guided_backprop(model, image, 1).any())
      np.testing.assert_array_equal(
          attribution.saliency(model, image, 1)[0, 0], [10, 0, 0, 20])

  def test_perfect_curves(self):
    """A model that falls with the first pixel gone, or rises with the first."""
    pictures = np.random.default_rng(0).uniform(0.1, 1, (5, 8, 8, 1))
    maps = pictures[..., 0]
    curves = evaluation.deletion(
        lambda batch: (batch != 0).all((1, 2)).astype(float), pictures, maps,
        1, steps=64)
    np.testing.assert_allclose(curves.area, 0.5 / 64)
    curves = evaluation.insertion(
        lambda batch: (batch != 0).any((1, 2)).astype(float), pictures, maps,
        1, steps=64, baseline=0.0)
    np.testing.assert_allclose(curves.area, 1 - 0.5 / 64)

  @parameterized.parameters(1, -1)
  def test_perfect_and_worst_correlation(self, sign):
    """A score that is the sum, and a map that is the image."""
    pictures = np.random.default_rng(0).uniform(size=(5, 8, 8, 1))
    correlations = evaluation.sensitivity_n(
        lambda batch: np.repeat(batch.sum((1, 2)), 2, axis=1), pictures,
        sign * pictures[..., 0], 1)
    # Float32 sums over 64 pixels; the correlation itself is 1.
    np.testing.assert_allclose(correlations, sign, atol=1e-6)

  @pytest.mark.slow("explaining")
  def test_every_method_on_oblong_pictures(self):
    """Its usual model: pooling, dropout, two dense layers and a softmax."""
    shape = (20, 16, 3)
    model = tiny.shake(keras.Sequential([
        keras.Input(shape), layers.Conv2D(4, 2, activation="relu"),
        layers.Conv2D(4, 2, activation="relu"), layers.MaxPool2D(),
        layers.Dropout(0.25), layers.Flatten(), layers.Dense(6),
        layers.Activation("relu"), layers.Dropout(0.25), layers.Dense(5),
        layers.Activation("softmax")]))
    pictures = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    pooled = [(side - 2) // 2 for side in shape[:2]]
    few = {"samples": 2, "masks": 4, "steps": 2, "patch": 5}
    for name in attribution.__all__:
      if name[0].isupper() or name in (
          "cam", "linearize", "lrp_conservation", "select_pathway",
          "integrated_gradients_completeness"):
        continue
      method = getattr(attribution, name)
      known = inspect.signature(method).parameters
      settings = {key: value for key, value in few.items() if key in known}
      maps = method(model, pictures, [0, 4, 2], **settings)
      side = pooled if name in AT_LAYER else shape[:2]
      self.assertEqual((maps.shape, maps.dtype), ((3, *side), np.float32))
      self.assertTrue(np.isfinite(maps).all(), name)
      # Float32 sums of batches of other sizes; some methods divide by small
      # ones.
      np.testing.assert_allclose(
          method(model, pictures, [0, 4, 2], batch_size=2, **settings), maps,
          rtol=1e-4, atol=1e-5, err_msg=name)


class QuantusCasesTest(parameterized.TestCase):
  """A square of a map's ones, on nothing or on weak noise, and a mask."""

  def _found(self, rows, columns, mask_rows, mask_columns, noise):
    maps = np.zeros([3, 56, 56])
    if noise:
      maps = np.random.default_rng(0).uniform(0, 0.1, maps.shape)
    maps[:, slice(*rows), slice(*columns)] = 1
    masks = np.zeros([3, 56, 56], bool)
    masks[:, slice(*mask_rows), slice(*mask_columns)] = True
    return evaluation.localization(maps, masks)

  @parameterized.parameters(
      # All of the map inside; the mask larger; the map beside it.
      ((12, 37), (12, 37), (12, 37), (12, 37), 1, 1, 1),
      ((12, 37), (12, 37), (0, 37), (0, 37), 1, 1, None),
      ((25, 50), (25, 50), (0, 25), (0, 25), 0, 0, None),
      # A quarter of it each, corner to corner: 28^2 in, 28^2 out of 3 * 28^2.
      ((28, 56), (28, 56), (0, 28), (0, 28), 0, 0, 1 / 3),
      # 25 rows of 6 columns, 12 of them over a mask of 12 x 12.
      ((0, 25), (19, 25), (13, 25), (13, 25), 12 / 25, 12 / 25, None))
  def test_on_nothing(
      self, rows, columns, mask_rows, mask_columns, pointing, energy, auc):
    scores = self._found(rows, columns, mask_rows, mask_columns, False)
    np.testing.assert_allclose(scores["pointing"], pointing)
    np.testing.assert_allclose(scores["energy_inside"], energy)
    if auc is not None:
      np.testing.assert_allclose(scores["roc_auc"], auc)

  def test_on_noise(self):
    square = (12, 37)
    scores = self._found(square, square, square, square, True)
    np.testing.assert_array_equal(scores["roc_auc"], 1)
    np.testing.assert_array_equal(scores["best_iou"], 1)
    # 625 inside, the mean of 0..0.1 on the 2511 other pixels.
    np.testing.assert_allclose(
        scores["energy_inside"], 625 / (625 + 0.05 * 2511), rtol=0.01)


if __name__ == "__main__":
  absltest.main()
