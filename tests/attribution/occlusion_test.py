"""Tests of occlusion.py and black_box.py: scores of covered images."""

import contextlib
import io

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import occlusion
from tests import export_helpers as helpers
from tests import tiny


def weighted(*weights):
  """A linear model of one-channel images: class k weighs pixels by k."""
  kernel = np.stack([np.float32(weight).ravel() for weight in weights], 1)
  return lambda images: images.reshape(len(images), -1) @ kernel


def by_definition(predict, images, targets, patch, stride, cover):
  """The formula in plain loops, an image a call."""
  maps = np.zeros(images.shape[:3])
  for i, image in enumerate(images):
    counts = np.zeros(image.shape[:2])
    height, width = image.shape[:2]
    tops = [*range(0, height - patch[0], stride[0]), height - patch[0]]
    lefts = [*range(0, width - patch[1], stride[1]), width - patch[1]]
    plain = predict(image[None])[0, targets[i]]
    for top in tops:
      for left in lefts:
        covered = image.copy()
        box = slice(top, top + patch[0]), slice(left, left + patch[1])
        covered[box] = cover[i][box]
        maps[i][box] += plain - predict(covered[None])[0, targets[i]]
        counts[box] += 1
    maps[i] /= counts
  return maps


class OcclusionTest(parameterized.TestCase):

  def test_by_hand(self):
    image = np.float32([[1, 2], [3, 4]])[None, :, :, None]
    predict = weighted([[1, 1], [0, 0]], [[0, 0], [2, -1]])
    # Class 0 scores 3, class 1 scores 2; the mean colour is 2.5.
    np.testing.assert_allclose(
        occlusion(predict, image, patch=1), [[[1 - 2.5, 2 - 2.5], [0, 0]]])
    np.testing.assert_allclose(
        occlusion(predict, image, 1, patch=1, baseline=0),
        [[[0, 0], [6, -4]]])

  def test_overlapping_patches_by_hand(self):
    image = np.float32([1, 2, 4]).reshape(1, 1, 3, 1)
    # Pairs (1 2) and (2 4): falls of 3 and 6; the middle pixel has both.
    np.testing.assert_allclose(
        occlusion(weighted([1, 1, 1]), image, patch=(1, 2), stride=1,
                  baseline=0), [[[3, 4.5, 6]]])

  def test_what_is_left_over_is_covered_too(self):
    image = np.ones((1, 1, 5, 1), np.float32)
    # Patches at 0 and 2, and one at 3 for the rest: falls of 2 each, of the
    # weights 1 10 | 100 1000 | 1000 10000.
    got = occlusion(weighted([1, 10, 100, 1000, 10000]), image,
                    patch=(1, 2), stride=(1, 2), baseline=0)
    np.testing.assert_allclose(
        got, [[[11, 11, 1100, (1100 + 11000) / 2, 11000]]])

  @parameterized.parameters(
      (6, 6, 3, 3), (7, 5, 3, 2), (5, 9, (2, 4), (1, 3)), (4, 4, 4, 1),
      (1, 1, 1, 1), (9, 2, (4, 1), (4, 1)))
  def test_any_size_and_batch(self, height, width, patch, stride):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, height, width, 2)).astype(np.float32)
    mix = rng.normal(size=(height * width * 2, 4))
    def predict(batch):
      return np.tanh(batch.reshape(len(batch), -1) @ mix)
    pair = tuple(np.broadcast_to(patch, 2)), tuple(np.broadcast_to(stride, 2))
    cover = np.broadcast_to(images.mean((0, 1, 2)), images.shape)
    want = by_definition(predict, images, [3, 0, 2], *pair, cover)
    for size in (1, 7, 1000):
      got = occlusion(predict, images, [3, 0, 2], patch=patch, stride=stride,
                      data_format="channels_last", batch_size=size)
      # Falls of scores within 1; maps become float32.
      np.testing.assert_allclose(got, want, atol=1e-5)
      self.assertEqual((got.dtype, got.shape), (np.float32, images.shape[:3]))

  def test_defaults_cover_an_eighth_by_half_steps(self):
    calls = []
    occlusion(weighted(np.ones((16, 24))), np.ones((2, 16, 24, 1)),
              progress=lambda *counts: calls.append(counts))
    # Patches of 2x3 at steps of 1x2: 15 down; 0 2 .. 20 and 21 across.
    self.assertEqual(calls[-1], (2 * 15 * 12, 2 * 15 * 12))

  def test_baselines(self):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    predict = weighted(*rng.normal(size=(2, 4, 4, 3)))
    blurred = np.repeat(images.mean((1, 2), keepdims=True), 4, 1).repeat(4, 2)
    for baseline in (0.5, np.float32([1, 2, 3]), images[::-1], blurred,
                     rng.normal(size=(4, 4, 3)), [[[1, 2, 3]]], 3):
      cover = np.broadcast_to(np.float32(baseline), images.shape)
      # Float32 sums of 48 products in batches of another size.
      np.testing.assert_allclose(
          occlusion(predict, images, 0, patch=2, baseline=baseline),
          by_definition(predict, images, [0, 0], (2, 2), (1, 1), cover),
          atol=1e-4)

  def test_targets(self):
    predict, images = weighted(*np.eye(3)[:, None]), np.float32(
        [[[[1], [0], [0]]], [[[0], [0], [2]]]])
    np.testing.assert_allclose(
        occlusion(predict, images, patch=1, baseline=0),
        [[[1, 0, 0]], [[0, 0, 2]]])
    for targets in ([0, 2], np.eye(3)[[0, 2]]):
      np.testing.assert_array_equal(
          occlusion(predict, images, targets, patch=1),
          occlusion(predict, images, patch=1))
    predict, images = tiny.conv_net(), tiny.images(4)
    pair = np.float32([[1, -1, 0]] * 4)  # Why the one and not the other.
    # Maps become float32 before their difference is taken, or after.
    np.testing.assert_allclose(
        occlusion(predict, images, pair, patch=3),
        occlusion(predict, images, 0, patch=3)
        - occlusion(predict, images, 1, patch=3), atol=1e-6)

  def test_one_score(self):
    images = np.float32([[[[1]]], [[[-1]]]])
    # Of a logit below 0 the negative side is explained.
    np.testing.assert_allclose(
        occlusion(weighted([0.5]), images, baseline=0), [[[0.5]], [[0.5]]])
    np.testing.assert_allclose(
        occlusion(weighted([0.5]), images, 1, baseline=0),
        [[[0.5]], [[-0.5]]])
    np.testing.assert_allclose(  # 0 counts as class 1.
        occlusion(weighted([0.5]), 0 * images[:1], baseline=1, logits=True),
        [[[-0.5]]])

  def test_a_model_and_its_file(self):
    model, images = helpers.net("block"), helpers.images(3)
    runner = kap.export.Interpreter(helpers.converted("block"))
    want = occlusion(model, images)  # A model is a callable.
    self.assertTrue(want.any((1, 2)).all())
    # Float32 sums of XNNPACK and of TensorFlow, batch norms folded or not.
    np.testing.assert_allclose(
        occlusion(runner.predict, images), want, atol=1e-4)

  def test_softmax_is_not_the_logit(self):
    images = helpers.images(3)
    logits = occlusion(helpers.net(), images, 0)
    # Float32 sums of XNNPACK and of TensorFlow, batch norms folded or not.
    np.testing.assert_allclose(
        occlusion(lambda batch: kap.export.Interpreter(helpers.converted(
            head="softmax")).predict(batch, logits=True), images, 0,
                  batch_size=1000), logits, atol=1e-4)
    # Probabilities fall by other amounts than logits, far beyond rounding.
    self.assertFalse(np.allclose(
        occlusion(helpers.net(head="softmax"), images, 0), logits, atol=1e-2))

  def test_images_are_left_as_they_came(self):
    images = np.ones((2, 4, 4, 1), np.float32)
    occlusion(weighted(np.ones((4, 4))), images, baseline=0)
    self.assertTrue((images == 1).all())

  def test_no_batch_is_larger_than_asked(self):
    sizes = []
    def predict(batch):
      sizes.append(len(batch))
      return batch.reshape(len(batch), -1)[:, :2]
    occlusion(predict, np.ones((5, 4, 4, 1)), patch=2, batch_size=3)
    self.assertEqual(max(sizes), 3)
    self.assertEqual(sum(sizes), 5 + 5 * 9)

  def test_progress(self):
    predict = weighted(np.ones((4, 4)))
    images = np.ones((2, 4, 4, 1))
    calls = []
    occlusion(predict, images, patch=2, batch_size=8,
              progress=lambda *counts: calls.append(counts))
    self.assertEqual(calls, [(8, 18), (16, 18), (18, 18)])
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      occlusion(predict, images, patch=2, batch_size=9, progress=True)
    self.assertEqual(
        err.getvalue(), "\rocclusion: 9 of 18 pictures run"
        "\rocclusion: 18 of 18 pictures run\n")
    with contextlib.redirect_stderr(io.StringIO()) as err:
      occlusion(predict, images, patch=2)
    self.assertEqual(err.getvalue(), "")


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"patch": 0}, r"patch must be .* 1\.\.6 down and 1\.\.6 across; got 0"),
      ({"patch": 7}, "patch must be"),
      ({"patch": (2, 2, 2)}, "patch must be"),
      ({"patch": 1.5}, "patch must be"),
      ({"patch": True}, "patch must be"),
      ({"patch": 2, "stride": 3},
       r"stride must be .* 1\.\.2 down .*; got 3"),  # It would leave gaps.
      ({"baseline": float("nan")}, "baseline must be None, a finite number"),
      ({"baseline": [1, 2, 3]}, "baseline must be .*; got int.* of shape .3."),
      ({"baseline": "blur"}, "baseline must be"),
      ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
      ({"targets": 3}, r"targets must be class numbers in 0\.\.2; got 3"),
      ({"targets": [0]}, "targets must be"),
      ({"images": np.zeros((2, 6, 6))}, "images must have shape"),
      ({"images": np.zeros((0, 6, 6, 2))}, "images must have shape"),
      ({"images": np.full((1, 6, 6, 2), np.nan)}, "images must be finite"),
      ({"predict": lambda batch: batch[:, 0, 0, 0]},
       r"predict must return scores \[2, classes\] .*; got \[2\]"),
      ({"predict": lambda batch: batch[:1, 0, 0]}, r"got \[1, 2\]"),
      ({"predict": lambda batch: np.full((len(batch), 2), np.inf)},
       "predict must return finite scores"))
  def test_values(self, changed, message):
    settings = {"predict": tiny.conv_net(), "images": tiny.images(2), **changed}
    with self.assertRaisesRegex(ValueError, message):
      occlusion(**settings)

  @parameterized.parameters(
      ({"predict": "net.h5"}, "predict must be a function .*; got str"),
      ({"predict": lambda batch: [["a"]] * len(batch)},
       "predict must return numbers"),
      ({"progress": "yes"}, "progress must be None, True, False or a function"),
      ({"images": "net.png"}, "images must be numbers"))
  def test_types(self, changed, message):
    settings = {"predict": tiny.conv_net(), "images": tiny.images(2), **changed}
    with self.assertRaisesRegex(TypeError, message):
      occlusion(**settings)

  def test_scores_that_change_their_number(self):
    counts = iter([2, 3])
    with self.assertRaisesRegex(
        ValueError, "predict must always return 2 scores; got 3"):
      occlusion(lambda batch: np.ones((len(batch), next(counts))),
                tiny.images(1), batch_size=100)


if __name__ == "__main__":
  absltest.main()
