"""The layers at a model's start that change pictures at random in training."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_attr_preserve.compat import has_graph, keras
from keras_attr_preserve.models.layer_calls import calls
from keras_attr_preserve.models.layer_override import CallSwap

__all__ = ["Augmentation", "only_augments"]

_layers = keras.layers
_OF_ONE_SIZE = (
    _layers.RandomBrightness, _layers.RandomContrast, _layers.RandomFlip,
    _layers.RandomRotation, _layers.RandomTranslation, _layers.RandomZoom)
_RANDOM = (*_OF_ONE_SIZE, _layers.RandomCrop, _layers.RandomHeight,
           _layers.RandomWidth)


class Augmentation:
  """What a model does to pictures by itself in training, apart from the rest.

  A teacher runs as in use, where such layers do nothing; to compare maps, it is
  to be shown what they make for the student.

      seen = augmentation(images, training=True)
      with augmentation.done():
        model(seen, training=True)
  """

  def __init__(self, model: keras.Model, core: keras.Model):
    """Finds the layers.

    Args:
      model: any `tf_keras` model.
      core: the Functional or Sequential one that makes its output: itself, for
        the most part.

    Raises:
      ValueError: there are some behind or beside other layers, or of those
        that change the size, so that what they make are no pictures that
        another model can be shown.
    """
    layers, tensor, others = _leading(core)
    if model is not core:
      others += [one for one in model.layers if one is not core]
    late = [one.name for one in others if _augments(one)]
    if late:
      raise ValueError(
          f"model {model.name!r} changes pictures at random in its layers "
          f"{late}, where the teacher cannot be shown what comes out. Have "
          "those that keep the size come first, one after another; or augment "
          "the dataset instead.")
    self._net = keras.Model(core.inputs, tensor) if layers else None
    self._swaps = [CallSwap(layer, _as_it_is) for layer in layers]

  def __bool__(self) -> bool:
    """Says whether there are any."""
    return self._net is not None

  def __call__(self, images: Any, training: bool) -> Any:
    """Gives what they make of images; as they come where there are none."""
    if self._net is None:
      return images
    return self._net(images, training=training)

  @contextlib.contextmanager
  def done(self) -> Iterator[None]:
    """Has the model's layers leave pictures as they are inside the block."""
    with contextlib.ExitStack() as stack:
      for swap in self._swaps:
        stack.enter_context(swap.on())
      yield


def _as_it_is(
    own_call: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
  """A layer's `call`, in place of its own."""
  del own_call, args, settings
  return inputs


def _leading(
    core: keras.Model
) -> tuple[list[keras.layers.Layer], Any, list[keras.layers.Layer]]:
  """Finds the random layers that come first, the tensor behind, and others."""
  found, tensor, made = [], core.inputs[0], [*calls(core)]
  while len(core.inputs) == 1:
    readers = [one for one in made
               if any(read is tensor for read in one[1].keras_inputs)]
    if len(readers) != 1 or not only_augments(readers[0][0]):
      break
    made.remove(readers[0])
    found.append(readers[0][0])
    tensor = readers[0][1].outputs
  return found, tensor, [layer for layer, _ in made]


def only_augments(layer: keras.layers.Layer) -> bool:
  """Says whether it changes pictures at random, not their size, and no more."""
  if not has_graph(layer):
    return isinstance(layer, _OF_ONE_SIZE)
  return _augments(layer) and all(
      isinstance(one, _layers.InputLayer) or only_augments(one)
      for one in layer.layers)


def _augments(layer: keras.layers.Layer) -> bool:
  """Says whether it, or a layer that it holds, changes pictures at random."""
  if not isinstance(layer, keras.Model):
    return isinstance(layer, _RANDOM)
  return any(_augments(one) for one in layer.layers)
