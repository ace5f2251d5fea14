"""Every attribution method against mistaken arguments."""

import functools

import numpy as np
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import attribution
from tests import tiny

# Small settings, so that all of it is cheap.
_SETTINGS = {
    "integrated_gradients": {"steps": 2}, "smooth_grad": {"samples": 2},
    "var_grad": {"samples": 2}, "occlusion": {"patch": 3},
    "rise": {"masks": 4, "cells": 2}}
_METHODS = tuple(
    name for name in attribution.__all__ if name[0].islower() and name not in (
        "linearize", "select_pathway", "lrp_conservation", "tf_explain",
        "integrated_gradients_completeness"))
_OF_MODELS = tuple(
    name for name in _METHODS if name not in ("occlusion", "rise"))
_OF_CLASSES = tuple(name for name in _METHODS if name != "equal_weighted")


@functools.cache
def _net() -> keras.Model:
  return tiny.conv_net(tail="block")


def _explain(name, model, images, targets=None, layer=None):
  settings = _SETTINGS.get(name, {})
  if layer:
    settings = {**settings, "layer": layer}
  return getattr(attribution, name)(model, images, targets, **settings)


class FaultsTest(parameterized.TestCase):

  @parameterized.parameters(*_METHODS)
  def test_pictures_of_any_type_and_number(self, name):
    pictures = np.round(50 * np.abs(tiny.images(3)))
    maps = _explain(name, _net(), pictures.astype(np.float32))
    for kind in (np.uint8, np.float64, np.int64):
      np.testing.assert_array_equal(
          _explain(name, _net(), pictures.astype(kind)), maps)
    np.testing.assert_array_equal(
        _explain(name, _net(), pictures.tolist()), maps)
    # Not methods that draw, nor occlusion: its cover is all images' mean.
    if name not in ("occlusion", "rise", "smooth_grad", "var_grad"):
      alone = _explain(name, _net(), pictures[2:])
      # Float32 sums in batches of another size; relevance divides by sums that
      # may be near 0.
      np.testing.assert_allclose(
          alone, maps[2:], rtol=1e-3, atol=1e-5 * np.abs(maps).max())
    black = _explain(name, _net(), 0 * pictures)
    self.assertTrue(np.isfinite(black).all())

  @parameterized.parameters(*_METHODS)
  def test_pictures_that_are_none(self, name):
    pictures = tiny.images(3)
    for bad, message in (
        (pictures[0], "images must have shape"),
        (pictures[:0], "images must have shape"),
        (pictures * np.nan, "images must be finite")):
      with self.assertRaisesRegex(ValueError, message):
        _explain(name, _net(), bad)
    with self.assertRaisesRegex(TypeError, "images must be numbers"):
      _explain(name, _net(), np.full((3, 6, 6, 2), "cat"))

  @parameterized.parameters(*_OF_CLASSES)
  def test_targets_that_are_none(self, name):
    for bad in (3, -1, [0, 1], "cat", 1.5, np.zeros((3, 3), int)):
      with self.assertRaisesRegex(ValueError, "targets must be"):
        _explain(name, _net(), tiny.images(3), bad)

  @parameterized.parameters(*_OF_MODELS)
  def test_models_and_layers_that_are_none(self, name):
    model, pictures = _net(), tiny.images(2)
    with self.assertRaisesRegex(
        ValueError, "has no layer of that name|layer must be None"):
      _explain(name, model, pictures, layer="of another net")
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      _explain(name, model.predict, pictures)
    with self.assertRaisesRegex(ValueError, "must have one output"):
      _explain(name, keras.Model(
          model.input, [model.output, model.get_layer("act").output]), pictures)

  def test_one_class(self):
    model, pictures = tiny.conv_net(classes=1), tiny.images(3)
    for name in ("lrp", "relative_attributing_propagation", "full_grad"):
      maps = _explain(name, model, pictures)
      top = (model(pictures).numpy()[:, 0] >= 0).astype(int)
      # The same float32 sums for a class found and given.
      np.testing.assert_allclose(
          maps, _explain(name, model, pictures, top), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
