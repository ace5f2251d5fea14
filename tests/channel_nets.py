"""Small models of many shapes, for the tests of channels and filters."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tests import tiny

SIZE = 8
_layers = keras.layers


def net(build: Callable, *, size: int = SIZE, head: bool = True, seed: int = 0,
        classes: int = 3) -> keras.Model:
  """Makes a model of images [size, size, 2] from a function of a tensor.

  Args:
    build: from the input to features, or to the scores where head is False.
    size: height and width of the images.
    head: whether a global average and Dense follow.
    seed: of all weights, moving statistics too.
    classes: scores of the head.

  Returns:
    The model.
  """
  inputs = keras.Input((size, size, 2), name="pictures")
  x = build(inputs)
  if head:
    x = _layers.GlobalAveragePooling2D(name="pool")(x)
    x = _layers.Dense(classes, name="logits")(x)
  return settle(keras.Model(inputs, x, name="net"), seed)


def settle(model: keras.Model, seed: int = 0) -> keras.Model:
  """Draws all weights, and makes each norm fit its inputs.

  Otherwise a deep random model gives one answer to every image.
  """
  tiny.shake(model, seed)
  for layer in model.layers:
    if isinstance(layer, _layers.Normalization) and layer.weights:
      mean, variance, count = layer.get_weights()
      layer.set_weights([mean, 0.5 + np.abs(variance), count])
  norms = [layer for layer in model.layers
           if isinstance(layer, _layers.BatchNormalization)]
  momenta = [layer.momentum for layer in norms]
  for layer in norms:
    layer.momentum = 0.0
  model(pictures(model, 16, seed + 1), training=True)
  for layer, momentum in zip(norms, momenta):
    layer.momentum = momentum
  return model


def conv(x, filters: int, name: str, size: int = 3, strides: int = 1,
         activation: str | None = "relu", norm: bool = True):
  """Adds Conv (no bias before a norm), BatchNorm and an activation."""
  x = _layers.Conv2D(filters, size, strides, "same", use_bias=not norm,
                     name=name)(x)
  if norm:
    x = _layers.BatchNormalization(name=f"{name}_bn")(x)
  if activation:
    x = _layers.Activation(activation, name=f"{name}_act")(x)
  return x


def vgg(norm: bool) -> keras.Model:
  """VGG's shape: blocks and max pooling, Flatten, two hidden Dense."""
  def build(x):
    for block, filters in enumerate((8, 12, 16)):
      x = conv(x, filters, f"conv{block}_a", norm=norm)
      x = conv(x, filters, f"conv{block}_b", norm=norm)
      x = _layers.MaxPooling2D(name=f"pool{block}")(x)
    x = _layers.Flatten(name="flatten")(x)
    x = _layers.Dense(10, "relu", name="fc1")(x)
    x = _layers.Dropout(0.5, name="dropout")(x)
    x = _layers.Dense(9, "relu", name="fc2")(x)
    return _layers.Dense(3, "softmax", name="predictions")(x)
  return net(build, size=16, head=False)


def resnet_8() -> keras.Model:
  """MLPerf Tiny's ResNet-8, a quarter as wide."""
  def build(x):
    x = conv(x, 8, "stem")
    for stage, filters in enumerate((8, 12, 16)):
      strides = 1 if stage == 0 else 2
      y = conv(x, filters, f"s{stage}_a", strides=strides)
      y = conv(y, filters, f"s{stage}_b", activation=None)
      if strides == 2:
        x = conv(x, filters, f"s{stage}_short", 1, 2, None, norm=False)
      x = _layers.Add(name=f"s{stage}_sum")([x, y])
      x = _layers.ReLU(name=f"s{stage}_act")(x)
    x = _layers.AveragePooling2D(2, name="average")(x)
    x = _layers.Flatten(name="flatten")(x)
    return _layers.Dense(3, "softmax", name="logits")(x)
  return net(build, size=8, head=False)


def densenet() -> keras.Model:
  """Features that grow by concatenation, normalized before each reading."""
  def build(x):
    x = conv(x, 6, "stem")
    for block in range(3):
      y = _layers.BatchNormalization(name=f"bn{block}")(x)
      y = _layers.ReLU(name=f"relu{block}")(y)
      y = _layers.Conv2D(5, 3, padding="same", name=f"grow{block}")(y)
      x = _layers.Concatenate(name=f"join{block}")([x, y])
    x = _layers.BatchNormalization(name="last_bn")(x)
    return _layers.ReLU(name="last")(x)
  return net(build)


def squeeze_excite(reshape: bool) -> keras.Model:
  """A gate for each channel: by Dense and Reshape, or by 1x1 convolutions."""
  def build(x):
    x = conv(x, 8, "stem")
    gate = _layers.GlobalAveragePooling2D(
        keepdims=not reshape, name="squeeze")(x)
    if reshape:
      gate = _layers.Reshape((1, 1, 8), name="reshape")(gate)
      gate = _layers.Dense(4, "relu", name="reduce")(gate)
      gate = _layers.Dense(8, "sigmoid", name="expand")(gate)
    else:
      gate = _layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
      gate = _layers.Conv2D(8, 1, activation="sigmoid", name="expand")(gate)
    x = _layers.Multiply(name="excite")([x, gate])
    return conv(x, 6, "conv")
  return net(build)


def prelu(shared: bool) -> keras.Model:
  """PReLU with a slope for every position, or one for each channel."""
  def build(x):
    for i in range(2):
      x = conv(x, 6, f"conv{i}", activation=None, norm=False)
      x = _layers.PReLU(shared_axes=[1, 2] if shared else None,
                        name=f"prelu{i}")(x)
    return x
  return net(build)


def separable(multiplier: int) -> keras.Model:
  """Separable and depthwise convolutions, with a depth multiplier."""
  def build(x):
    x = conv(x, 6, "stem")
    x = _layers.SeparableConv2D(
        8, 3, padding="same", depth_multiplier=multiplier, activation="relu",
        name="separable")(x)
    x = _layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=multiplier, name="depthwise")(x)
    x = _layers.BatchNormalization(name="depthwise_bn")(x)
    x = _layers.ReLU(name="depthwise_act")(x)
    return conv(x, 5, "conv", 1)
  return net(build)


def shapes() -> keras.Model:
  """Whatever changes height and width and not the channels."""
  def build(x):
    x = _layers.Rescaling(1 / 2, 0.1, name="rescale")(x)
    x = _layers.Conv2D(8, 3, 2, name="strided")(x)
    x = _layers.LeakyReLU(name="leaky")(x)
    x = _layers.ZeroPadding2D(2, name="pad")(x)
    x = _layers.SpatialDropout2D(0.2, name="spatial")(x)
    x = _layers.Conv2D(6, 3, dilation_rate=2, name="dilated")(x)
    x = _layers.ELU(name="elu")(x)
    x = _layers.UpSampling2D(name="up")(x)
    x = _layers.Cropping2D(1, name="crop")(x)
    x = _layers.Conv2DTranspose(7, 3, 2, name="transposed")(x)
    x = _layers.ReLU(6, name="relu6")(x)
    x = _layers.AveragePooling2D(name="average")(x)
    x = conv(x, 6, "conv", norm=False)
    x = _layers.GlobalMaxPooling2D(keepdims=True, name="most")(x)
    x = _layers.Reshape((-1,), name="reshape")(x)
    x = _layers.Dense(5, "tanh", name="hidden")(x)
    return _layers.Dense(3, name="logits")(x)
  return net(build, size=12, head=False)


def merges() -> keras.Model:
  """Channels that meet: part by part, in products, means and extremes."""
  def build(x):
    first, second = conv(x, 4, "a"), conv(x, 6, "b")
    joined = _layers.Concatenate(name="join")([first, second])
    both = _layers.Add(name="sum")([joined, conv(x, 10, "c")])
    third = conv(both, 10, "d")
    x = _layers.Maximum(name="most")([both, third])
    spot = conv(x, 1, "spot", 1, activation="sigmoid", norm=False)
    x = _layers.Multiply(name="attend")([x, spot])
    fourth = conv(x, 5, "e")
    tall = _layers.Concatenate(1, name="stack")([fourth, conv(x, 5, "f")])
    fifth = conv(x, 5, "g")
    tall = _layers.Subtract(name="less")(
        [tall, _layers.Concatenate(1, name="twice")([fifth, fifth])])
    return _layers.Average(name="mean")([tall, conv(tall, 5, "h")])
  return net(build)


def functions(masks: dict[str, np.ndarray] | None = None) -> keras.Model:
  """Functions of tensors that Keras turns into layers; none keeps zero.

  Args:
    masks: by convolution, what to multiply its channels by where they are read.
  """
  def build(x):
    x = conv(x, 8, "a", activation=None)
    x = tf.nn.relu6(x + 1.0) * 0.5
    y = conv(mask(x, masks, "a_bn"), 8, "b", activation=None)
    x = tf.math.sigmoid(x * y - y / 2.0)
    x = conv(mask(x, masks, "b_bn"), 6, "c", activation="softplus")
    return mask(x, masks, "c_bn")
  return net(build)


def smooth(masks: dict[str, np.ndarray] | None = None) -> keras.Model:
  """Activations and norms that do not keep zero, and Flatten.

  Args:
    masks: as for `functions`.
  """
  def build(x):
    x = conv(x, 6, "a", activation="sigmoid", norm=False)
    x = _layers.BatchNormalization(name="bn")(x)
    x = conv(mask(x, masks, "a"), 5, "b", activation="softplus", norm=False)
    x = _layers.Flatten(name="flatten")(_layers.MaxPooling2D(name="pool")(
        mask(x, masks, "b")))
    return _layers.Dense(3, name="logits")(x)
  return net(build, head=False)


NETS = {
    "vgg": lambda: vgg(True),
    "resnet_8": resnet_8,
    "densenet": densenet,
    "squeeze_excite": lambda: squeeze_excite(True),
    "merges": merges,
}
"""Makers of nets whose channels are tied in different ways."""


def mask(x, masks: dict[str, np.ndarray] | None, name: str):
  """Multiplies by the mask of that name, if there is one."""
  return x if masks is None else x * tf.constant(masks[name], tf.float32)


def pictures(model: keras.Model, count: int = 4, seed: int = 0) -> np.ndarray:
  """Draws images of the shape that a model takes."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *model.input_shape[1:])).astype(np.float32)


def kept(
    model: keras.Model, pruned: keras.Model, name: str) -> np.ndarray:
  """Reads off the weights alone which channels of a layer a pruned model has.

  A channel stays where its bias, or scale and offset, drawn at random, stand in
  the pruned model too.

  Args:
    model: the model that was pruned.
    pruned: what came out.
    name: a layer with a bias, or a norm.

  Returns:
    [channels], bool.
  """
  def marks(net):  # A norm's vector may hold a number twice.
    return sum((i + 1) * variable.numpy().astype(np.float64)
               for i, variable in enumerate(net.get_layer(name).weights)
               if len(variable.shape) == 1)

  stays = np.isin(marks(model), marks(pruned))
  assert stays.sum() == len(marks(pruned)), name
  return stays


def zeroed_outputs(
    model: keras.Model, pruned: keras.Model, images: np.ndarray) -> np.ndarray:
  """Runs a model with zeros in the filters that a pruned copy lacks.

  Each convolution must have a bias or a norm. Every activation must keep zero.
  Then such a channel is zero wherever it is read.

  Args:
    model: the model that was pruned; it is left as it came.
    pruned: the result of pruning.
    images: the model's input.

  Returns:
    Outputs with those kernels and biases at zero, or, where a norm follows, its
    scale and offset.
  """
  before = model.get_weights()
  for layer in model.layers:
    if (not any(len(variable.shape) == 1 for variable in layer.weights)
        or isinstance(layer, _layers.Normalization)):
      continue
    stays = kept(model, pruned, layer.name)
    for weight in layer.weights:
      if "moving" in weight.name or "depthwise_kernel" in weight.name:
        continue  # Its output is zero without a change.
      column = isinstance(layer, _layers.Conv2DTranspose) and (
          len(weight.shape) == 4)
      weight.assign(weight * (stays[:, None] if column else stays))
  outputs = model(images).numpy()
  model.set_weights(before)
  return outputs
