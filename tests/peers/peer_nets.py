"""Models that are explained on both sides, and how their maps are compared."""

import numpy as np
import tf_keras as keras

from tests import channel_nets, tiny

layers = keras.layers


def residual(x):
  """A sum of a branch and a shortcut, each with a norm, as in ResNets."""
  x = channel_nets.conv(x, 3, "stem")
  y = channel_nets.conv(x, 4, "a", strides=2)
  y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(y))
  x = layers.BatchNormalization()(
      layers.Conv2D(4, 1, 2, "same", use_bias=False)(x))
  return layers.ReLU()(layers.Add()([x, y]))


def separable(x):
  """Depthwise and pointwise layers, ReLU6, and MobileNet's padding."""
  x = layers.Conv2D(4, 3, 2, use_bias=False)(
      layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
  x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
  x = layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)(x)
  x = layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x))
  return channel_nets.conv(x, 5, "b", 1, activation="relu6")


def joined(x):
  """Branches pooled in different ways and joined."""
  x = channel_nets.conv(x, 4, "a")
  return channel_nets.conv(layers.Concatenate()([
      layers.MaxPooling2D(2)(x),
      layers.AveragePooling2D(2)(x),
      layers.MaxPooling2D(3, 2, "same")(x),
      layers.AveragePooling2D(3, 2, "same")(x),
      channel_nets.conv(x, 3, "b", strides=2),
  ]), 5, "c")


def flattened(x):
  """Dense layers, an activation inside a layer, and a norm behind one."""
  x = layers.Conv2D(3, 3, 2, "same", activation="relu")(x)
  x = layers.Flatten()(x)
  x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(x)))
  return layers.Dense(3, "softmax")(layers.Dropout(0.5)(x))


BUILDERS = {"residual": residual, "separable": separable, "joined": joined,
            "flattened": flattened}
CHANCE = (1, 2, 3)


def small(name: str, seed: int = 0) -> keras.Model:
  """Builds one of `BUILDERS`, of images 8x8x2 and three classes."""
  return channel_nets.net(
      BUILDERS[name], head=name != "flattened", seed=seed)


def deep(seed: int, steps: int = 8) -> keras.Model:
  """Builds a model of blocks drawn at random, of images 13x13x2."""
  rng = np.random.default_rng(seed)

  def block(x, number):
    width, strides = int(rng.integers(3, 7)), int(rng.choice([1, 1, 2]))
    kind = rng.choice(["conv", "depthwise", "residual", "join", "max", "mean"])
    activation = str(rng.choice(["relu", "relu6"]))
    if kind == "conv":
      return channel_nets.conv(x, width, f"c{number}", 3, strides, activation)
    if kind == "depthwise":
      x = layers.DepthwiseConv2D(3, strides, "same")(x)
      return layers.Activation(activation)(layers.BatchNormalization()(x))
    if kind == "residual":
      y = channel_nets.conv(x, x.shape[-1], f"r{number}", activation=None)
      return layers.Activation(activation)(layers.Add()([x, y]))
    if kind == "join":
      return layers.Concatenate()([
          x, channel_nets.conv(x, 2, f"j{number}", activation=activation)])
    if min(x.shape[1:3]) < 4:
      return x
    pool = {"max": layers.MaxPooling2D, "mean": layers.AveragePooling2D}[kind]
    return pool(int(rng.integers(2, 4)), strides,
                str(rng.choice(["same", "valid"])))(x)

  def build(x):
    x = channel_nets.conv(x, 5, "stem")
    for number in range(steps):
      x = block(x, number)
    # One more, so that the last features have no other use.
    return channel_nets.conv(x, 6, "last")
  return channel_nets.net(build, size=13, seed=seed)


def pictures(model: keras.Model, count: int = 5, seed: int = 3) -> np.ndarray:
  """Draws images as the model takes them, with negative values, too."""
  return channel_nets.pictures(model, count, seed)


def targets(model: keras.Model, count: int = 5) -> np.ndarray:
  """Names a class for each image, every one in turn."""
  return np.arange(count) % model.output.shape[-1]


def bare(seed: int = 0) -> keras.Model:
  """Builds a chain without norms, for images 6x6x2, as some peers need."""
  inputs = keras.Input([6, 6, 2])
  x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
  x = layers.MaxPooling2D(2)(x)
  x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
  x = layers.AveragePooling2D(3)(x)
  x = layers.Dense(5, "relu")(layers.Flatten()(x))
  return tiny.shake(keras.Model(inputs, layers.Dense(3)(x)), seed)


def check_close(name: str, got: np.ndarray, want: np.ndarray,
                tolerance: float, kinks: float | None = None) -> None:
  """Raises AssertionError where maps differ; prints the difference.

  Args:
    name: the start of the printed line.
    got: maps `[images, height, width]`.
    want: the peer's.
    tolerance: the largest difference allowed, as a share of each image's
      largest magnitude.
    kinks: the same for less than half of the images: rounding may take a unit
      of one to the other side of its ReLU's kink, where its gradient jumps.
  """
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape, (got.shape, want.shape)
  axes = tuple(range(1, want.ndim))
  size = np.abs(want).max(axes)
  assert size.max() > 0, "the peer's maps are all dead"
  # A dead map must be dead on both sides.
  error = np.abs(got - want).max(axes) / np.where(size > 0, size, 1e-6)
  print(f"{name}: largest difference {error.max():.1e} of a map's largest, "
        f"{np.median(error):.1e} at the median")
  if kinks is not None:
    assert np.median(error) <= tolerance, f"{name}: {np.median(error)}"
    tolerance = kinks
  assert error.max() <= tolerance, f"{name}: {error.max()} > {tolerance}"
