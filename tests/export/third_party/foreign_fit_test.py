"""Files of somebody else's that do not fit their teacher as they are."""

import functools

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import grad_cam
from keras_attr_preserve.export.third_party.explainer import explainer
from tests import export_helpers as helpers
from tests import foreign_files, tiny
from tests.foreign_files import opened


@functools.cache
def of_another_range(mode: str) -> bytes:
  """A file of model "block" that takes 0..255."""
  return foreign_files.convert(
      foreign_files.rescaled(helpers.net("block")), mode,
      samples=(helpers.images(32, seed=2).clip(-2, 2) + 2) * 63.75)


class RangesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.net = helpers.net("block")
    self.images = np.clip(helpers.images(16) / 2, -1, 1)

  def opened(self, mode, **settings):
    return explainer(
        of_another_range(mode), teacher=self.net, images=self.images,
        wcam=kap.WCAM("act"), **settings)

  @parameterized.parameters("float32", "uint8")
  def test_another_range_is_refused_and_named(self, mode):
    with self.assertRaisesRegex(
        ValueError, r"preprocess=lambda images: \(images \+ 1\) \* 127.5"):
      self.opened(mode)

  @parameterized.parameters("float32", "uint8")
  def test_preprocess_mends_it(self, mode):
    file = self.opened(mode, preprocess=lambda images: (images + 1) * 127.5)
    maps, _ = file.explain(self.images, 1)
    want = grad_cam(self.net, self.images, 1, "act")
    # Float32 rounding; steps of 8 bits in uint8, in images too, of which .9974
    # was measured.
    self.assertGreater(helpers.cosines(maps, want).min(),
                       {"float32": 1 - 1e-7, "uint8": 0.995}[mode])

  def test_a_range_that_makes_it_worse(self):
    with self.assertRaisesRegex(
        ValueError, r"\* 127.5, before the one you gave"):
      self.opened("float32", preprocess=lambda images: images + 0.01)


@functools.cache
def another_training(mode: str) -> bytes:
  return foreign_files.convert(
      foreign_files.permuted(helpers.net("gap")), mode)


class OtherTrainingTest(parameterized.TestCase):

  @parameterized.parameters("float32", "int8")
  def test_the_same_place_stands_in(self, mode):
    model, images = helpers.net("gap"), helpers.images()
    content = another_training(mode)
    file = opened(content=content)
    self.assertIn("their numbers are not the teacher's", file.source)
    maps, _ = file.explain(images, 1)
    # Float32 rounding; steps of 8 bits in int8, of which .9997 was measured.
    self.assertGreater(
        helpers.cosines(maps, grad_cam(model, images, 1, "act")).min(),
        {"float32": 1 - 1e-7, "int8": 0.999}[mode])

  def test_not_of_an_earlier_layer(self):
    content = another_training("float32")
    with self.assertRaisesRegex(
        ValueError, "'bn' has no tensor.*Give `tensor`"):
      opened(content=content, layer="bn")

  def test_not_if_the_scores_differ(self):
    other = tiny.conv_net(size=helpers.SIZE, width=helpers.WIDTH, seed=7)
    with self.assertRaisesRegex(ValueError, "is not this teacher's"):
      opened(content=another_training("float32"), net=other)

  def test_not_on_too_few_images(self):
    content = another_training("float32")
    with self.assertRaisesRegex(ValueError, "images enough to tell"):
      explainer(content, teacher=helpers.net("gap"), wcam=kap.WCAM("act"),
                images=helpers.images(2))

  def test_not_if_another_range_suits_better(self):
    # Faint images still give scores that follow, if not so well: .6.
    inputs = keras.Input((8, 8, 2))
    model = foreign_files.permuted(helpers.net("gap"))
    content = foreign_files.convert(keras.Model(inputs, model(inputs / 255)))
    with self.assertRaisesRegex(
        ValueError, r"takes another range.*lambda images: images \* 255"):
      opened(content=content)

  def test_a_tensor_given_by_name(self):
    content = another_training("float32")
    file = opened(content=content, tensor="net/act/Relu")
    self.assertIn("given by number", file.source)
    self.assertEqual(file.road, "head")
    with self.assertRaisesRegex(ValueError, "no road leads from tensor"):
      opened("block", layer="act2", tensor=opened("block").features.index)


if __name__ == "__main__":
  absltest.main()
