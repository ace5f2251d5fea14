"""The models of the experiments, from images to logits."""

import os
from collections.abc import Callable, Sequence

import h5py

from keras_attr_preserve.compat import keras

__all__ = ["LEAST_MAP", "NETS", "PIXEL_RANGES", "build", "layer_of"]

_layers = keras.layers

PIXEL_RANGES = {
    "vgg16": (0, 1), "mobilenet": (-1, 1), "resnet8": (0, 255),
    "small": (0, 1), "vww": (0, 1)}
"""The range of each model's images; "vww" is MLPerf Tiny's person detector."""

LEAST_MAP = 7
"""The least height and width of a useful map, as in the paper."""

# Layers for a map, deepest first, and the factor by which each has shrunk the
# image.
_MAP_LAYERS = {
    "vgg16": (("pool5", 32), ("relu5_3", 16), ("relu4_3", 8), ("relu3_3", 4)),
    "mobilenet": (("conv_pw_13_relu", 32), ("conv_pw_11_relu", 16),
                  ("conv_pw_5_relu", 8), ("conv_pw_3_relu", 4)),
    "resnet8": (("activation_6", 4), ("activation_4", 2), ("activation_2", 1)),
    "small": (("relu4", 8), ("relu3", 4), ("relu2", 2), ("relu1", 1)),
}
_LEAST_SIZE = {"vgg16": 32, "mobilenet": 32, "resnet8": 8, "small": 8}


def build(
    name: str,
    *,
    size: int,
    classes: int,
    weights: str | os.PathLike | None = None,
    width: float = 1.0,
) -> keras.Model:
  """Builds a model that ends in a global average and a Dense layer "logits".

  Args:
    name: "vgg16", Simonyan and Zisserman's configuration D with batch
      normalization, fully convolutional; "mobilenet", MobileNetV1 of alpha
      0.25; "resnet8", that of MLPerf Tiny; "small", the quickstart's.
    size: height and width of the images; 32 or more for the first two, 8 or
      more for the others.
    classes: the number of logits.
    weights: None for fresh weights; or the path of an `.h5` file of the same
      width, loaded by layer names into all layers except "logits". "mobilenet"
      also takes "imagenet", which tf_keras.applications downloads.
    width: factor on the number of filters of every convolution, as in the
      paper's students: 1/2, 1/4, 1/8. For "mobilenet" it is 1/8 or more, and
      alpha is 0.25 times the width: weights of alpha 0.25 have width 1.

  Returns:
    An uncompiled model of float32 `[batch, size, size, 3]` in the range of
    `PIXEL_RANGES`, with logits `[batch, classes]`.

  Raises:
    ValueError: an argument is not as above, or the file's weights do not fit.
    FileNotFoundError: there is no such file of weights.

  References:
    https://arxiv.org/abs/1409.1556 (VGG), https://arxiv.org/abs/1704.04861
    (MobileNet), https://github.com/mlcommons/tiny (ResNet-8); the students of
    Park et al. 2020, https://arxiv.org/abs/2010.15054.
  """
  _check(name, size)
  if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
    raise ValueError(f"classes must be an integer of 1 or more; got "
                     f"{classes!r}.")
  if not 0 < width <= 1:
    raise ValueError(f"width must be above 0 and at most 1; got {width!r}.")
  if name == "mobilenet" and width < 1 / 8:
    raise ValueError(
        "width must be 1/8 or more for 'mobilenet', whose first layer has 8 "
        f"filters; got {width!r}.")
  imagenet = weights == "imagenet"
  if imagenet and (name != "mobilenet" or width != 1):
    raise ValueError(
        'weights="imagenet" is there for "mobilenet" of width 1 only; give '
        f"{name!r} of width {width} a path or None.")
  settings = {"weights": "imagenet"} if imagenet else {}
  inputs, features = NETS[name](size, width, **settings)
  pooled = _layers.GlobalAveragePooling2D(name="gap")(features)
  logits = _layers.Dense(
      classes, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
      name="logits")(pooled)
  model = keras.Model(inputs, logits, name=name)
  if weights is not None and not imagenet:
    _load_weights(model, weights, width)
  return model


def layer_of(name: str, size: int) -> str:
  """Names the layer for the map: the last with 7x7 positions or more.

  Args:
    name: one of `NETS`.
    size: height and width of the images.

  Returns:
    The layer's name; for a VGG at 224 pixels "pool5", as in the paper.

  Raises:
    ValueError: the name is unknown, or the model cannot have this size.
  """
  _check(name, size)
  return next((layer for layer, shrink in _MAP_LAYERS[name]
               if size // shrink >= LEAST_MAP), _MAP_LAYERS[name][-1][0])


def _check(name: str, size: int) -> None:
  if name not in NETS:
    raise ValueError(f"net must be one of {[*NETS]}; got {name!r}.")
  least = _LEAST_SIZE[name]
  if isinstance(size, bool) or not isinstance(size, int) or size < least:
    raise ValueError(
        f"size must be an integer of {least} or more for {name!r}; got "
        f"{size!r}.")


def _filters(count: int, width: float) -> int:
  return max(1, round(count * width))


def _conv_norm(x, filters, number, kernel=3):
  x = _layers.Conv2D(
      filters, kernel, padding="same", use_bias=False,
      kernel_initializer="he_normal", name=f"conv{number}")(x)
  # Below Keras's .99, so that short runs update the moving statistics.
  x = _layers.BatchNormalization(momentum=0.9, name=f"bn{number}")(x)
  return _layers.ReLU(name=f"relu{number}")(x)


def _vgg16(size: int, width: float) -> Sequence:
  inputs = x = keras.Input((size, size, 3), name="images")
  for block, (filters, depth) in enumerate(
      ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1):
    for number in range(1, depth + 1):
      x = _conv_norm(x, _filters(filters, width), f"{block}_{number}")
    x = _layers.MaxPooling2D(name=f"pool{block}")(x)
  return inputs, x


def _small(size: int, width: float) -> Sequence:
  inputs = x = keras.Input((size, size, 3), name="images")
  for block, filters in enumerate((32, 64, 128, 128), start=1):
    x = _conv_norm(x, _filters(filters, width), block)
    if block < 4:
      x = _layers.MaxPooling2D(name=f"pool{block}")(x)
  return inputs, x


def _mobilenet(size: int, width: float, weights: str | None = None) -> Sequence:
  model = keras.applications.MobileNet(
      (size, size, 3), alpha=0.25 * width, include_top=False, weights=weights)
  return model.input, model.output


def _resnet8(size: int, width: float) -> Sequence:
  # Layer names match MLPerf Tiny's file, so its weights load.
  inputs = keras.Input((size, size, 3), name="images")
  counts = {}

  def add(kind, name, *settings, **named):
    count = counts[name] = counts.get(name, -1) + 1
    return kind(*settings, name=f"{name}_{count}" if count else name, **named)

  def conv(x, filters, kernel, strides=1):
    return add(_layers.Conv2D, "conv2d", filters, kernel, strides, "same",
               kernel_initializer="he_normal")(x)

  def norm(x):
    return add(_layers.BatchNormalization, "batch_normalization",
               momentum=0.9)(x)

  def relu(x):
    return add(_layers.Activation, "activation", "relu")(x)

  x = relu(norm(conv(inputs, _filters(16, width), 3)))
  for filters, strides in ((16, 1), (32, 2), (64, 2)):
    filters = _filters(filters, width)
    y = relu(norm(conv(x, filters, 3, strides)))
    y = conv(y, filters, 3)
    if strides > 1:
      x = conv(x, filters, 1, strides)
    x = relu(add(_layers.Add, "add")([x, norm(y)]))
  return inputs, x


def _load_weights(
    model: keras.Model, path: str | os.PathLike, width: float) -> None:
  """Loads a file's weights by layer name into all layers but the head."""
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"weights: there is no file {path!r}.")
  if not h5py.is_hdf5(path):
    raise ValueError(f"weights: {path!r} is no .h5 file.")
  body = keras.Model(model.inputs, model.get_layer("gap").output)
  with h5py.File(path, "r") as file:
    there = set(file.get("model_weights", file))
  missing = [layer.name for layer in body.layers
             if layer.weights and layer.name not in there]
  if missing:
    raise ValueError(
        f"weights {path!r}: the file has no layer {missing[0]!r} "
        f"({len(missing)} of the net {model.name!r} are missing); it must be "
        "an .h5 file of the same net.")
  try:
    body.load_weights(path, by_name=True)
  except ValueError as error:
    raise ValueError(
        f"weights {path!r} do not fit the net {model.name!r} of width "
        f"{width:g}: {_other_width(body, path, width) or error}") from error


def _other_width(
    body: keras.Model, path: str, width: float) -> str | None:
  """Explains a mismatch by the file's width; None for other causes."""
  layer = next(layer for layer in body.layers if layer.weights)
  with h5py.File(path, "r") as file:
    group = file.get("model_weights", file)[layer.name]
    names = group.attrs.get("weight_names", ())
    shape = group[names[0]].shape if len(names) else ()
  filters = layer.weights[0].shape[-1]
  if shape[:-1] != tuple(layer.weights[0].shape[:-1]) or shape[-1] == filters:
    return None
  file_width = width * shape[-1] / filters
  return (f"its layer {layer.name!r} has {shape[-1]} filters and the net's has "
          f"{filters}; " + (
              f"these weights are of width {file_width:g}."
              if file_width <= 1 else
              "these weights are of a wider net than width 1 builds."))


NETS: dict[str, Callable[..., Sequence]] = {
    "vgg16": _vgg16, "mobilenet": _mobilenet, "resnet8": _resnet8,
    "small": _small}
"""Builders of each model's input and last features."""
