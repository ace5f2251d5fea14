"""Describes an input: shape, number type, names and place of the channels.

Every method, judge and converter uses this module. `model_input` describes a
model's input. `shape_input` uses the shape of images, for functions and files.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import has_graph, keras, tf
from keras_attr_preserve.models.layer_calls import calls
from keras_attr_preserve.models.layers import core_of
from keras_attr_preserve.utils.checks import check_images

__all__ = ["DATA_FORMATS", "ImageInput", "check_calibration", "model_input",
           "shape_input"]

DATA_FORMATS = ("channels_last", "channels_first")
_GREY = "grey"  # [height, width]
_SEQUENCE = "sequence"  # [time, channels]
_OTHER = "other"
_COLOURS = (1, 3, 4)
_layers = keras.layers


class ImageInput(NamedTuple):
  """The image input of a model, a function or a file.

  Attributes:
    whose: the model, function or file that takes it, for errors.
    shape: of one image, None for any size.
    layout: "channels_last", "channels_first", "grey" for `[height, width]`,
      "sequence" for `[time, channels]`, or "other".
    dtype: of the input, such as "float32" or "uint8".
    names: keys under which a dict may hold the images. Without names, a dict
      of one array is accepted.
  """

  whose: str
  shape: tuple[int | None, ...]
  layout: str
  dtype: str = "float32"
  names: tuple[str, ...] = ()

  @property
  def data_format(self) -> str | None:
    """Keras's data format; None where there is no axis of channels."""
    return self.layout if self.layout in DATA_FORMATS else None

  def check(
      self, images: Any, name: str = "images", whole: bool = True
  ) -> np.ndarray:
    """Checks images and returns them as floats.

    Args:
      images: `[count, *shape]`, or a dict that holds them.
      name: the argument's name, for the error.
      whole: whether an integer input must get whole numbers in its range.
        Images that a method has changed need not be whole.

    Returns:
      float32 `[count, *shape]`.

    Raises:
      TypeError, ValueError: as `check_images`; or a dict without the images, or
        numbers that the input cannot hold.
    """
    images = check_images(self.entry(images, name), self.shape, name)
    if whole and not self.is_float:
      low, high = _limits(self.dtype)
      bad = (images != np.rint(images)) | (images < low) | (images > high)
      if bad.any():
        raise ValueError(
            f"{name} must hold whole numbers of {low}..{high}, as {self.whose} "
            f"takes {self.dtype}; got {images[bad][0]:g}.")
    return images

  @property
  def pixel_shape(self) -> tuple[int | None, ...]:
    """The shape of one image of `pixels`."""
    if self.layout == _GREY:
      return *self.shape, 1
    if self.layout == "channels_first":
      return *self.shape[1:], self.shape[0]
    return self.shape

  @property
  def is_picture(self) -> bool:
    """Whether the input has a height and a width."""
    return self.layout not in (_SEQUENCE, _OTHER)

  @property
  def is_float(self) -> bool:
    """Whether the input takes floats."""
    return tf.as_dtype(self.dtype).is_floating

  def entry(self, images: Any, name: str = "images") -> Any:
    """Takes the images out of a dict; other images stay unchanged."""
    if not isinstance(images, Mapping):
      return images
    names = self.names or (tuple(images) if len(images) == 1 else ())
    known = [key for key in names if key in images]
    if not known:
      raise ValueError(
          f"{name} must be an array, or a dict that has it under "
          f"{' or '.join(map(repr, self.names)) or 'no name'}, as "
          f"{self.whose} takes it; got the keys {sorted(images)}.")
    return images[known[0]]

  def maps_places(self, flat: bool = True) -> None:
    """Raises ValueError where a map over the input has no places.

    Args:
      flat: whether the method needs a height and a width.
    """
    size = ", ".join("any" if length is None else str(length)
                     for length in self.shape)
    if self.layout == _OTHER:
      raise ValueError(
          f"images: {self.whose} takes [{size}], no height and width, of which "
          "this method makes no map; let the model begin with "
          "keras.Input((height, width)) or (height, width, channels), or "
          "explain a layer by grad_cam.")
    if flat and self.layout == _SEQUENCE:
      raise ValueError(
          f"images: {self.whose} takes [{size}], time and channels, of which "
          "this method makes no map; ask saliency or integrated_gradients.")

  def pixels(self, values: Any) -> Any:
    """Moves channels last: `[count, *shape]` to `[count, ..., channels]`.

    Args:
      values: an array or tensor of the images' shape.

    Returns:
      `[count, height, width, channels]`; for a sequence `[count, time,
      channels]`; for other inputs the values unchanged.
    """
    if self.layout == _GREY:
      return values[..., None]
    if self.layout == "channels_first":
      return _library(values).transpose(values, [0, 2, 3, 1])
    return values

  def own(self, pixels: Any) -> Any:
    """Moves the result of `pixels` back to the input's own layout."""
    if self.layout == _GREY:
      return pixels[..., 0]
    if self.layout == "channels_first":
      return _library(pixels).transpose(pixels, [0, 3, 1, 2])
    return pixels

  def probes(self, count: int, images: np.ndarray | None = None) -> np.ndarray:
    """Draws random images, to test a model or function.

    Args:
      count: the number of images.
      images: images of the size to draw, where the input takes any size.

    Returns:
      float32 `[count, *shape]`: -1..1, or whole numbers that the input holds.
    """
    shape = [size or 32 for size in (
        self.shape if images is None else images.shape[1:])]
    rng = np.random.default_rng(0)
    if self.is_float:
      return rng.uniform(-1, 1, [count, *shape]).astype(np.float32)
    low, high = _limits(self.dtype)
    return rng.integers(max(low, 0), min(high, 255), [count, *shape],
                        endpoint=True).astype(np.float32)


def model_input(model: keras.Model) -> ImageInput:
  """Describes a model's input.

  The first layers that read the input tell where the channels stand. Otherwise
  an axis of 1, 3 or 4 tells it, and last `keras.backend.image_data_format()`.

  Args:
    model: a graph of layers, or a subclass around one.

  Raises:
    ValueError: the model is neither, or takes several inputs.
  """
  core = core_of(model)
  if len(core.inputs) != 1:
    raise ValueError(
        f"model {model.name!r} must take one input, the images; it takes "
        f"{len(core.inputs)}: {list(core.input_names)}. Give a model of the "
        "images alone, with the other inputs fixed inside it.")
  shape = tuple(core.inputs[0].shape[1:])
  names = tuple(core.input) if isinstance(core.input, Mapping) else ()
  return ImageInput(
      f"model {model.name!r}", shape,
      _layout(shape, _told(core, core.inputs[0]),
              keras.backend.image_data_format()),
      core.inputs[0].dtype.name, (*names, *core.input_names))


def shape_input(
    shape: Sequence[int | None],
    whose: str = "predict",
    data_format: str | None = None,
    default: str | None = None,
) -> ImageInput:
  """Describes an input of which only the shape is known.

  Args:
    shape: of one image. A last axis of 1, 3 or 4 holds the channels. So does a
      first axis of 1, 3 or 4 beside two axes longer than 4. Otherwise, without
      a default, the axis beside two equal axes does, or else the shortest. With
      two axes, a last axis of 1, 3 or 4 makes a sequence.
    whose: the function or file that takes it, for errors.
    data_format: "channels_last" or "channels_first", if the caller knows it.
    default: the same, for shapes without an axis of 1, 3 or 4.

  Raises:
    ValueError: no such data format; or neither the shape nor an argument tells
      it.
  """
  if data_format is not None and data_format not in DATA_FORMATS:
    raise ValueError(
        f"data_format must be None or one of {DATA_FORMATS}; got "
        f"{data_format!r}.")
  layout = _layout(tuple(shape), data_format, default)
  if layout is None:
    raise ValueError(
        f"data_format must be given, one of {DATA_FORMATS}: images of "
        f"{list(shape)} do not tell where their channels stand.")
  return ImageInput(whose, tuple(shape), layout)


def check_calibration(
    model: keras.Model, images: Any, batch_size: int) -> np.ndarray:
  """Returns the calibration images of a model, as float32.

  Args:
    model: a built `tf_keras` model.
    images: the model's images; see `ImageInput.check`.
    batch_size: images per batch.

  Returns:
    A float32 array of the same shape.

  Raises:
    TypeError, ValueError: as for `ImageInput.check`; or the model takes several
      inputs, or the batch size is no integer of 1 or more.
  """
  if isinstance(batch_size, bool) or not isinstance(batch_size, int) or (
      batch_size < 1):
    raise ValueError(
        f"batch_size must be an integer of 1 or more; got {batch_size!r}.")
  return model_input(model).check(images)


def _layout(
    shape: tuple[int | None, ...], told: str | None, default: str | None
) -> str | None:
  """Returns the layout of one image; None where it stays unknown."""
  if len(shape) == 2:
    return told or (_SEQUENCE if shape[1] in _COLOURS else _GREY)
  if len(shape) != 3:
    return _OTHER
  if told in DATA_FORMATS:
    return told
  first, middle, last = (
      math.inf if length is None else length for length in shape)
  if last in _COLOURS:
    return "channels_last"
  if first in _COLOURS and max(_COLOURS) < min(middle, last):
    return "channels_first"
  if default is not None:
    return default
  if (first == middle) != (middle == last):  # Most images are squares.
    return "channels_last" if first == middle else "channels_first"
  if last < min(first, middle):
    return "channels_last"
  return "channels_first" if first < min(middle, last) else None


def _told(graph: keras.Model, tensor: Any) -> str | None:
  """Finds a tensor's layout by the first layers that read it."""
  shape, tensors, seen = tuple(tensor.shape), [tensor], {id(tensor)}
  graph_calls = [*calls(graph)]
  for tensor in tensors:
    for layer, node in graph_calls:
      if not any(read is tensor for read in node.keras_inputs):
        continue
      output = tf.nest.flatten(node.outputs)[0]
      told = _told_by(layer, tensor, output)
      if told is not None:
        return told
      # After a layer that keeps the shape (a rescaling), ask the next layers.
      if tuple(output.shape) == shape and id(output) not in seen:
        tensors.append(output)
        seen.add(id(output))
  return None


def _told_by(
    layer: keras.layers.Layer, tensor: Any, output: Any) -> str | None:
  if has_graph(layer):
    return _told(layer, layer.inputs[0]) if len(layer.inputs) == 1 else None
  while isinstance(layer, _layers.Wrapper) and not isinstance(
      layer, _layers.TimeDistributed | _layers.Bidirectional):
    layer = layer.layer
  if len(tensor.shape) == 3:
    return _of_two_axes(layer, tensor, output)
  return _of_three_axes(layer) if len(tensor.shape) == 4 else None


def _of_three_axes(layer: keras.layers.Layer) -> str | None:
  if isinstance(layer, _layers.Permute):
    return {(2, 3, 1): "channels_first"}.get(tuple(layer.dims))
  if isinstance(layer, _layers.Flatten):
    return None
  return getattr(layer, "data_format", None)


def _of_two_axes(
    layer: keras.layers.Layer, tensor: Any, output: Any) -> str | None:
  """A grey image is reshaped or gets channels; other layers read sequences."""
  if isinstance(layer, _layers.RNN | _layers.Bidirectional) or (
      hasattr(layer, "data_format") and not isinstance(layer, _layers.Flatten)):
    return _SEQUENCE
  if tuple(output.shape) == tuple(tensor.shape):
    return None
  sizes = [[size or math.inf for size in value.shape[1:]]
           for value in (tensor, output)]
  reshaped = math.prod(sizes[0]) == math.prod(sizes[1])
  return _GREY if len(output.shape) == 4 or (
      reshaped and not layer.count_params()) else _SEQUENCE


def _limits(dtype: str) -> tuple[int, int]:
  if dtype == "bool":
    return 0, 1
  limits = np.iinfo(dtype)
  return int(limits.min), int(limits.max)


def _library(values: Any) -> Any:
  return np if isinstance(values, np.ndarray) else tf
