"""Tests of the batches, the ranges and the fit that all arms share."""

import numpy as np
from absl.testing import absltest

from examples.experiment.data.data_sets import Split
from examples.experiment.runs.fitting import (
    Recipe,
    batches,
    fit,
    in_range,
    task_loss,
)
from keras_attr_preserve.compat import keras, tf
from tests.examples.runs.compressing_test import net
from tests.experiment_helpers import eager

RECIPE = Recipe(steps=4, learning_rate=1e-3, batch_size=4, seed=3,
                pixel_range=(-1.0, 1.0), flip=False, multi_label=True)


def split(count: int = 8) -> Split:
  rng = np.random.default_rng(0)
  return Split(rng.integers(0, 256, [count, 8, 8, 3], np.uint8),
               rng.integers(0, 2, [count, 3]).astype(np.float32), None)


def drawn(recipe: Recipe, count: int) -> list:
  return [batch for batch, _ in zip(
      batches(split(), recipe).as_numpy_iterator(), range(count))]


class RangeTest(absltest.TestCase):

  def test_black_and_white(self):
    pictures = np.array([0, 255], np.uint8)
    for images in (pictures, tf.constant(pictures)):
      np.testing.assert_allclose(in_range(images, (-1, 1)), [-1, 1])
      np.testing.assert_allclose(in_range(images, (0, 255)), [0, 255])
      np.testing.assert_allclose(in_range(images, (0, 1)), [0, 1])


class BatchesTest(absltest.TestCase):

  def test_a_seed_draws_the_same_batches(self):
    for flip in (False, True):
      recipe = RECIPE._replace(flip=flip)
      for first, second in zip(drawn(recipe, 5), drawn(recipe, 5)):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
    second = drawn(RECIPE._replace(seed=4), 2)
    self.assertFalse(all(np.array_equal(a[0], b[0]) for a, b in zip(
        drawn(RECIPE, 2), second)))

  def test_every_picture_comes_once_an_epoch(self):
    labels = np.concatenate([images for images, _ in drawn(RECIPE, 2)])
    want = in_range(split().images, (-1, 1))
    np.testing.assert_allclose(
        np.sort(labels.reshape(8, -1), 0), np.sort(want.reshape(8, -1), 0))

  def test_about_half_are_mirrored_and_labels_stay_theirs(self):
    drawn_batches = drawn(RECIPE._replace(flip=True), 50)
    images, labels = (np.concatenate(arrays) for arrays in zip(*drawn_batches))
    plain = in_range(split().images, (-1, 1))
    mirrored = 0
    for image, label in zip(images, labels):
      same = (plain == image).all((1, 2, 3))
      turned = (plain[:, :, ::-1] == image).all((1, 2, 3))
      which = int((same | turned).argmax())
      self.assertTrue(same[which] or turned[which])
      np.testing.assert_array_equal(label, split().labels[which])
      mirrored += bool(turned[which])
    # 200 fair draws of a fixed seed have a standard error of .035; without any
    # mirroring, or with nothing else, it is 0 or 1.
    self.assertBetween(mirrored / len(images), 0.4, 0.6)


class FitTest(absltest.TestCase):

  def test_the_loss_knows_a_softmax(self):
    logits = net()
    softmax = keras.Sequential([logits, keras.layers.Softmax()])
    labels = tf.constant([[0.0, 1.0, 0.0]])
    pictures = in_range(split(1).images, (-1, 1))
    # Float32: the softmax and its logarithm are rounded one after the other.
    self.assertAlmostEqual(*(
        float(task_loss(model, False)(labels, model(pictures)))
        for model in (logits, softmax)), places=5)

  def test_a_seed_fits_the_same_net(self):
    fitted = []
    for _ in range(2):
      model = net()
      with eager():
        fit(model, split(), RECIPE, epochs=2)
      fitted.append(model.get_weights())
    for first, second in zip(*fitted):
      # Threads may sum float32 in another order. Another seed's batches would
      # part weights by some of Adam's steps, 1e-3 each.
      np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)

  def test_steps_are_counted_over_all_epochs(self):
    counted = []
    with eager():
      fit(net(), split(), RECIPE._replace(steps=6), [
          keras.callbacks.LambdaCallback(
              on_train_batch_end=lambda *_: counted.append(1))], epochs=3)
    self.assertLen(counted, 6)


if __name__ == "__main__":
  absltest.main()
