"""Models with a layer made bad for int8, and files with a layer made wrong."""

import functools

import numpy as np
import tf_keras as keras

import keras_attr_preserve as kap
from keras_attr_preserve.export.tflite.schema import (
    operator_name,
    read_model,
    write_model,
)
from tests import tiny
from tests.shared_files import shared

SIZE = 12
WCAM = kap.WCAM("act4")
BAD = "act2"


def images(count: int = 8, seed: int = 1) -> np.ndarray:
  """Draws images that the models below take: patches, so that maps differ."""
  rng = np.random.default_rng(seed)
  pictures = 0.2 * rng.normal(size=(count, SIZE, SIZE, 2))
  for image in pictures:
    row, column = rng.integers(0, SIZE - 5, 2)
    image[row:row + 5, column:column + 5] += rng.normal(size=2)
  return pictures.astype(np.float32)


def chain(bad: float = 0, width: int = 6, seed: int = 0) -> keras.Model:
  """Builds four convolutions, each with a ReLU, a mean and Dense.

  Args:
    bad: how much larger than the others the first channel of layer "act2" is,
      which nothing behind it reads: it changes no score and no map, but the
      range of the tensor, and so the steps of its int8. 0 leaves it out.
    width: channels.
    seed: of the weights.
  """
  inputs = keras.Input((SIZE, SIZE, 2), name="pictures")
  x = inputs
  for number in range(1, 5):
    x = keras.layers.Conv2D(
        width, 3, padding="same", name=f"conv{number}")(x)
    x = keras.layers.ReLU(name=f"act{number}")(x)
  x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
  x = keras.layers.Dense(3, name="logits")(x)
  model = tiny.shake(keras.Model(inputs, x, name="chain"), seed)
  if bad:
    kernel, bias = model.get_layer("conv2").get_weights()
    kernel[..., 0], bias[0] = bad * np.abs(kernel[..., 0]), bad
    model.get_layer("conv2").set_weights([kernel, bias])
    kernel, bias = model.get_layer("conv3").get_weights()
    kernel[:, :, 0] = 0
    model.get_layer("conv3").set_weights([kernel, bias])
  return model


@functools.cache
def bad_chain() -> keras.Model:
  return chain(bad=1000)


@functools.cache
def good_chain() -> keras.Model:
  return chain()


@shared
def converted(bad: bool = False, mode: str = "float32") -> bytes:
  """Converts one of the two chains once for all tests."""
  return kap.export.convert(
      bad_chain() if bad else good_chain(), WCAM, mode=mode,
      representative_images=None if mode == "float32" else images(32, 2))


def with_wrong_layer(content: bytes, number: int) -> bytes:
  """Doubles the first channel of a convolution's kernel in a float file."""
  model = read_model(content)
  graph = model.subgraphs[0]
  convs = [operator for operator in graph.operators
           if operator_name(model, operator) == "CONV_2D"]
  kernel = graph.tensors[convs[number - 1].inputs[1]]
  buffer = model.buffers[kernel.buffer]
  values = np.frombuffer(bytes(buffer.data), np.float32).reshape(kernel.shape)
  values = values.copy()
  values[0] *= 2
  buffer.data = np.frombuffer(values.tobytes(), np.uint8)
  return write_model(model)
