"""The layers at a model's start that change images at random in training."""

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
  """Runs a model's own random image layers apart from the rest of the model.

  The teacher runs in inference mode, where such layers do nothing. To compare
  maps, the teacher must see the images that the student's layers made.

      seen = augmentation(images, training=True)
      with augmentation.done():
        model(seen, training=True)
  """

  def __init__(self, model: keras.Model, core: keras.Model):
    """Finds the layers.

    Args:
      model: any `tf_keras` model.
      core: the Functional or Sequential model that makes its output, usually
        the model itself.

    Raises:
      ValueError: random layers stand behind or beside other layers, or change
        the size. Another model cannot be given their outputs.
    """
    layers, tensor, others = _leading(core)
    if model is not core:
      others += [layer for layer in model.layers if layer is not core]
    late = [layer.name for layer in others if _augments(layer)]
    if late:
      raise ValueError(
          f"model {model.name!r} changes pictures at random in its layers "
          f"{late}, where the teacher cannot be shown what comes out. Have "
          "those that keep the size come first, one after another; or augment "
          "the dataset instead.")
    self._net = keras.Model(core.inputs, tensor) if layers else None
    self._swaps = [CallSwap(layer, _as_it_is) for layer in layers]

  def __bool__(self) -> bool:
    """Says whether the model has such layers."""
    return self._net is not None

  def __call__(self, images: Any, training: bool) -> Any:
    """Runs the layers on images; without layers the images stay unchanged."""
    if self._net is None:
      return images
    return self._net(images, training=training)

  @contextlib.contextmanager
  def done(self) -> Iterator[None]:
    """Makes the model's layers return images unchanged inside the block."""
    with contextlib.ExitStack() as stack:
      for swap in self._swaps:
        stack.enter_context(swap.on())
      yield


def _as_it_is(
    own_call: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
  """Replaces a layer's `call` and returns the inputs."""
  del own_call, args, settings
  return inputs


def _leading(
    core: keras.Model
) -> tuple[list[keras.layers.Layer], Any, list[keras.layers.Layer]]:
  """Finds the random layers that come first, their output, and the rest."""
  leading, tensor, remaining = [], core.inputs[0], [*calls(core)]
  while len(core.inputs) == 1:
    readers = [call for call in remaining
               if any(read is tensor for read in call[1].keras_inputs)]
    if len(readers) != 1 or not only_augments(readers[0][0]):
      break
    remaining.remove(readers[0])
    leading.append(readers[0][0])
    tensor = readers[0][1].outputs
  return leading, tensor, [layer for layer, _ in remaining]


def only_augments(layer: keras.layers.Layer) -> bool:
  """Says whether a layer only changes images at random and keeps their size."""
  if not has_graph(layer):
    return isinstance(layer, _OF_ONE_SIZE)
  return _augments(layer) and all(
      isinstance(inner, _layers.InputLayer) or only_augments(inner)
      for inner in layer.layers)


def _augments(layer: keras.layers.Layer) -> bool:
  """Says whether a layer, or a layer inside it, changes images at random."""
  if not isinstance(layer, keras.Model):
    return isinstance(layer, _RANDOM)
  return any(_augments(inner) for inner in layer.layers)
