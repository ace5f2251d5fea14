"""A tap that is made only when it runs."""

from collections.abc import Sequence
from typing import Any

from keras_attr_preserve.attribution.batches import kept
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.tap import Tap, Tapped

__all__ = ["KnownTap"]


class KnownTap:
  """A `Tap` for methods whose graphs are kept.

  To make a `Tap` takes longer than a small net takes for a batch of pictures,
  and a graph that is kept needs none. What is asked of it before it runs is
  kept too.

  Attributes:
    picture_shape: as of a `Tap`.
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
    self.picture_shape, self.classes, self.shapes = kept(
        model, ("tap", self._layers), self._facts)

  def __call__(self, images: Any) -> Tapped:
    """Runs the model once, as a `Tap` does."""
    return self._made()(images)

  def _facts(self) -> tuple[tuple[int | None, ...], int, list[tuple]]:
    tap = self._made()
    return tap.picture_shape, tap.classes, tap.shapes

  def _made(self) -> Tap:
    if self._tap is None:
      with tf.init_scope():  # Not as part of a graph that is being traced.
        self._tap = Tap(self._model, self._layers)
    return self._tap
