"""A tap that is made only when it runs."""

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

  To make a `Tap` takes longer than a small net takes for a batch of pictures,
  and a graph that is kept needs none. What is asked of it before it runs is
  kept too.

  Attributes:
    input: as of a `Tap`.
    classes: as of a `Tap`.
    shapes: as of a `Tap`.
  """

  def __init__(self, model: keras.Model, layers: Sequence[str] = ()):
    """Looks up, or finds out, what a `Tap` says of the model.

    Args:
      model: a built `tf_keras` model.
      layers: as of a `Tap`.

    Raises:
      TypeError, ValueError: as of a `Tap`.
    """
    self._model = check_keras(model)
    self._layers = tuple(layers)
    self._tap: Tap | None = None
    self.input, self._no_gradient, self.classes, self.shapes = kept(
        model, ("tap", self._layers), self._facts)

  def images(self, images: Any) -> np.ndarray:
    """Checks images, and moves their channels last.

    Args:
      images: what the model takes, an array or a dict.

    Returns:
      float32 `[images, height, width, channels]`, whatever the model's own
      layout; see `ImageInput.pixels`.

    Raises:
      TypeError, ValueError: other images.
    """
    return self.input.pixels(self.input.check(images))

  def pixels(
      self, images: Any, *, places: bool = True, flat: bool = False
  ) -> np.ndarray:
    """Checks images that a score is traced back to.

    Args:
      images: as for `images`.
      places: whether a map of the input is to be made.
      flat: whether that needs a height and a width.

    Returns:
      As `images`.

    Raises:
      TypeError, ValueError: other images; or no map can be made of such an
        input, or no gradient reaches it.
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
      pixels: channels last, as `images` gives them.
    """
    return self._made()(self.input.own(pixels))

  def _facts(self) -> tuple[ImageInput, str, int, list[tuple]]:
    tap = self._made()
    return tap.input, tap.no_gradient, tap.classes, tap.shapes

  def _made(self) -> Tap:
    if self._tap is None:
      with tf.init_scope():  # Not as part of a graph that is being traced.
        self._tap = Tap(self._model, self._layers)
    return self._tap
