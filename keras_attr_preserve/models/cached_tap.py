"""A tap that is built only when it runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.models.inputs import ImageInput
from keras_attr_preserve.models.running import kept
from keras_attr_preserve.models.tap import Tap, Tapped

__all__ = ["KnownTap"]


class KnownTap:
  """A `Tap` for methods whose graphs are kept.

  Building a `Tap` takes longer than a small model takes for a batch of images,
  and a kept graph needs no tap. The attributes are kept with the graph.

  Attributes:
    input: see `Tap`.
    classes: see `Tap`.
    shapes: see `Tap`.
  """

  def __init__(self, model: keras.Model, layers: Sequence[str] = ()):
    """Looks up the attributes, or builds a `Tap` to read them.

    Args:
      model: a built `tf_keras` model.
      layers: see `Tap`.

    Raises:
      TypeError, ValueError: as for `Tap`.
    """
    self._model = check_keras(model)
    self._layers = tuple(layers)
    self._tap: Tap | None = None
    self.input, self._no_gradient, self.classes, self.shapes = kept(
        model, ("tap", self._layers), self._facts)

  def images(self, images: Any) -> np.ndarray:
    """Checks images, and moves their channels last.

    Args:
      images: the model's images, an array or a dict.

    Returns:
      float32 `[images, height, width, channels]`, for any layout of the model;
      see `ImageInput.pixels`.

    Raises:
      TypeError, ValueError: other images.
    """
    return self.input.pixels(self.input.check(images))

  def pixels(
      self, images: Any, *, places: bool = True, flat: bool = False
  ) -> np.ndarray:
    """Checks images for a method that explains the input by gradients.

    Args:
      images: as for `images`.
      places: whether the method makes a map of the input.
      flat: whether the map needs a height and a width.

    Returns:
      The same as `images`.

    Raises:
      TypeError, ValueError: other images; or the input has no map, or no
        gradient reaches it.
    """
    if places:
      self.input.maps_places(flat)
    if self._no_gradient:
      raise ValueError(
          f"images: {self._no_gradient}, so that no gradient reaches them; let "
          "the model begin with a Rescaling layer, or explain a layer by "
          "grad_cam.")
    return self.images(images)

  def __call__(self, pixels: Any) -> Tapped:
    """Runs the model once, as a `Tap` does.

    Args:
      pixels: channels last, the result of `images`.
    """
    return self._made()(self.input.own(pixels))

  def _facts(self) -> tuple[ImageInput, str, int, list[tuple]]:
    tap = self._made()
    return tap.input, tap.no_gradient, tap.classes, tap.shapes

  def _made(self) -> Tap:
    if self._tap is None:
      with tf.init_scope():  # Stays outside any graph that is being traced.
        self._tap = Tap(self._model, self._layers)
    return self._tap
