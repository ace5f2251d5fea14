"""Tiny models, images and finite differences that the tests share."""

import contextlib
import functools
import tempfile
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

SIZE = 6
CLASSES = 3
_HEADS = ("linear", "softmax", "sigmoid", "softmax_layer", "activation_layer")


def folder(test: unittest.TestCase) -> Path:
  """Makes a folder that goes when the test ends."""
  place = tempfile.TemporaryDirectory()
  test.addCleanup(place.cleanup)
  return Path(place.name)


def images(count: int = 4, seed: int = 0, size: int = SIZE) -> np.ndarray:
  """Draws images, float32 [count, size, size, 2]."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, size, size, 2)).astype(np.float32)


def labels(count: int = 4, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
  """Draws class numbers, int32 [count]."""
  rng = np.random.default_rng(seed + 1000)
  return rng.integers(0, classes, count).astype(np.int32)


def conv_net(
    *,
    head: str = "linear",
    tail: str = "gap",
    activation: str = "relu",
    classes: int = CLASSES,
    width: int = 4,
    size: int = SIZE,
    seed: int = 0,
    name: str = "net",
) -> keras.Model:
  """Builds Conv-BN-activation, a tail, and Dense.

  Args:
    head: "linear"; "softmax" or "sigmoid" inside the Dense layer "logits";
      "softmax_layer" or "activation_layer" after it.
    tail: the layers between the layer "act" and the head. "gap": a global
      average. "flatten": Flatten and a hidden Dense. "block": another
      Conv-BN-activation "act2" and a global average. "depthwise": a strided
      depthwise convolution, a residual sum and a global average.
    activation: of every hidden layer.
    classes: outputs.
    width: channels of the layer "act".
    size: height and width of the images.
    seed: of all weights.
    name: the model's name.

  Returns:
    A model whose weights, moving statistics too, are not those of a new one.
  """
  layers = keras.layers
  inputs = keras.Input((size, size, 2), name="pictures")
  x = _block(inputs, "", width, activation)
  if tail == "block":
    x = _block(x, "2", width, activation)
  elif tail == "depthwise":
    x = layers.DepthwiseConv2D(3, 2, "same", name="depthwise")(x)
    y = layers.Conv2D(width, 1, name="conv2")(x)
    y = layers.BatchNormalization(name="bn2")(y)
    x = layers.Add(name="sum")([x, y])
    x = layers.Activation(activation, name="act2")(x)
  if tail == "flatten":
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(5, activation, name="hidden")(x)
  else:
    x = layers.GlobalAveragePooling2D(name="pool")(x)
  inside = head if head in ("softmax", "sigmoid") else None
  x = layers.Dense(classes, inside, name="logits")(x)
  if head == "softmax_layer":
    x = layers.Softmax(name="head")(x)
  elif head == "activation_layer":
    x = layers.Activation("softmax", name="head")(x)
  assert head in _HEADS, head
  return shake(keras.Model(inputs, x, name=name), seed)


def smooth_net(
    seed: int, tail: str = "gap", activation: str = "sigmoid",
    head: str = "linear", **settings) -> keras.Model:
  """Builds a smooth model of images of 4x4 whose maps have no kink.

  Its features and the kernels of its tail are positive. So its maps are
  positive, and the ReLU of a map does nothing. Arguments as for `conv_net`.
  """
  model = conv_net(tail=tail, activation=activation, head=head, seed=seed,
                   **{"width": 3, "size": 4, **settings})
  for layer in model.layers:
    if layer.name in ("logits", "hidden", "conv2", "depthwise"):
      layer.weights[0].assign(tf.abs(layer.weights[0]))
  return model


def shared(build: Callable[..., keras.Model], *args, **settings) -> keras.Model:
  """Builds a model once for all tests of a process.

  A test may change its weights, which are put back here, and nothing else.
  """
  model, weights = _built(build, args, tuple(sorted(settings.items())))
  model.set_weights(weights)
  return model


@functools.cache
def _built(build, args, settings):
  model = build(*args, **dict(settings))
  return model, model.get_weights()


def _block(x, number: str, width: int, activation: str):
  layers = keras.layers
  x = layers.Conv2D(
      width, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
  x = layers.BatchNormalization(name=f"bn{number}")(x)
  if activation == "relu":
    return layers.ReLU(name=f"act{number}")(x)
  return layers.Activation(activation, name=f"act{number}")(x)


def shake(model: keras.Model, seed: int = 0) -> keras.Model:
  """Gives every weight a random value, variances a positive one."""
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    if not weight.dtype.is_floating:
      continue
    shape = tuple(weight.shape)
    fan_in = max(1, int(np.prod(shape[:-1])))
    draw = rng.normal(size=shape) * (1.5 / np.sqrt(fan_in))
    if len(shape) == 1:
      draw = 0.3 * rng.normal(size=shape)
    if "gamma" in weight.name:
      draw = 1 + draw
    elif "moving_variance" in weight.name:
      draw = rng.uniform(0.5, 1.5, shape)
    weight.assign(draw)
  return model


def no_task(labels, outputs):
  """A task without loss, so that nothing hides the matching's gradient."""
  del labels
  return tf.zeros_like(outputs[:, 0])


def compiled(model: keras.Model, loss=no_task) -> keras.Model:
  """Compiles a model with plain gradient descent; returns it."""
  model.compile("sgd", loss)
  return model


def cross_entropy(from_logits: bool = True) -> keras.losses.Loss:
  """The loss of class numbers."""
  return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def copy_of(model: keras.Model) -> keras.Model:
  """Copies a plain model with its weights, by Keras alone."""
  copy = keras.models.clone_model(model)
  copy.set_weights(model.get_weights())
  return copy


def prune(model: keras.Model, sparsity: float = 0.5) -> keras.Model:
  """Wraps a copy for pruning at once and in every step."""
  schedule = tfmot.sparsity.keras.ConstantSparsity(
      sparsity, begin_step=0, frequency=1)
  return tfmot.sparsity.keras.prune_low_magnitude(copy_of(model), schedule)


def quantize(model: keras.Model) -> keras.Model:
  """Wraps a copy for quantization-aware training."""
  return _wide(tfmot.quantization.keras.quantize_model(copy_of(model)))


def quantize_sparse(model: keras.Model) -> keras.Model:
  """Wraps a copy for quantization-aware training that keeps zeros."""
  combine = tfmot.experimental.combine
  annotated = tfmot.quantization.keras.quantize_annotate_model(copy_of(model))
  return _wide(tfmot.quantization.keras.quantize_apply(
      annotated, combine.Default8BitPrunePreserveQuantizeScheme()))


def _wide(model: keras.Model) -> keras.Model:
  """Lets images in: tfmot's range of the input is 0..0 before training."""
  for weight in model.weights:
    if weight.name.startswith("quantize_layer") and "_min" in weight.name:
      weight.assign(-6.0)
    if weight.name.startswith("quantize_layer") and "_max" in weight.name:
      weight.assign(6.0)
  return model


def pruning_steps(model: keras.Model) -> list[int]:
  """Reads the step counter of every pruned layer."""
  return [int(layer.pruning_step) for layer in model.layers
          if hasattr(layer, "pruning_step")]


@contextlib.contextmanager
def eagerly():
  """Runs what tf.function makes as Python: tracing takes longer than to run."""
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def float64():
  """Builds Keras models of double precision inside."""
  # The policy too: once any was set, floatx alone has no say.
  policy = keras.mixed_precision.global_policy()
  keras.backend.set_floatx("float64")
  keras.mixed_precision.set_global_policy("float64")
  try:
    yield
  finally:
    keras.backend.set_floatx("float32")
    keras.mixed_precision.set_global_policy(policy)


@contextlib.contextmanager
def eager():
  """Runs functions of TensorFlow step by step: to trace one takes longer.

  Where it runs a few times. Another test traces the same function.
  """
  before = tf.config.functions_run_eagerly()
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(before)


def fine_quantizers():
  """Makes fake quantization 16 bits fine: differentiable to the naked eye."""
  plain = tf.quantization.fake_quant_with_min_max_vars
  per_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel

  def fine(function):
    def quantize(inputs, low, high, num_bits=8, narrow_range=False, name=None):
      del num_bits
      return function(inputs, low, high, 16, narrow_range, name)
    return quantize

  return mock.patch.multiple(
      tf.quantization,
      fake_quant_with_min_max_vars=fine(plain),
      fake_quant_with_min_max_vars_per_channel=fine(per_channel))


def slope(
    function: Callable[[], float],
    variable: tf.Variable,
    direction: np.ndarray,
    step: float,
) -> float:
  """Differentiates along a direction by a stencil of four points.

  Args:
    function: of the variable; called with it displaced, which is undone.
    variable: where to move.
    direction: which way, the variable's shape.
    step: how far; the error is of order step^4.

  Returns:
    The directional derivative.
  """
  home = variable.numpy()
  values = {}
  for k in (-2, -1, 1, 2):
    variable.assign(home + k * step * direction)
    values[k] = float(function())
  variable.assign(home)
  return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


def slopes(
    function: Callable[[], float],
    variable: tf.Variable,
    step: float,
    entries: np.ndarray | None = None,
) -> np.ndarray:
  """Differentiates by entries of a variable.

  Args:
    function: of the variable.
    variable: what to differentiate by.
    step: as for `slope`.
    entries: which, counted along the flattened variable; None for every one.

  Returns:
    A slope for each of the entries, in one dimension.
  """
  shape = tuple(variable.shape)
  ones = np.eye(int(np.prod(shape)), dtype=variable.dtype.as_numpy_dtype)
  return np.array([
      slope(function, variable, direction.reshape(shape), step)
      for direction in (ones if entries is None else ones[entries])])


def unit(maps: np.ndarray) -> np.ndarray:
  """Flattens maps and scales each to norm 1."""
  flat = maps.reshape(len(maps), -1)
  return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def swa_cosines(
    student: keras.Model, teacher: keras.Model, pictures: np.ndarray,
    classes: np.ndarray | None = None, training: bool = False) -> np.ndarray:
  """Compares SWA maps of models that end in a mean and Dense, by NumPy.

  Args:
    student: with layers "act" and "logits".
    teacher: likewise; run as in inference.
    pictures: [batch, height, width, colours].
    classes: those explained; None for the teacher's top classes.
    training: of the student.

  Returns:
    The cosine of each image's two maps.
  """
  maps = []
  for model, mode in ((teacher, False), (student, training)):
    features, logits = keras.Model(model.inputs, [
        model.get_layer("act").output, model.output])(pictures, training=mode)
    if classes is None:
      classes = logits.numpy().argmax(1)
    kernel = model.get_layer("logits").kernel.numpy()
    maps.append(np.maximum(np.einsum(
        "bhwc,cb->bhw", features, kernel[:, classes]), 0))
  return (unit(maps[0]) * unit(maps[1])).sum(1)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
  """Gives |got - want| / |want| as vectors."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def weights_equal(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
  """Says whether two lists of arrays are equal to the last bit."""
  return len(one) == len(other) and all(
      np.array_equal(a, b) for a, b in zip(one, other))


def plain_grad_cam(
    model: keras.Model, images: np.ndarray, classes: Sequence[int],
    layer: str = "act") -> np.ndarray:
  """Makes Grad-CAM by a tape, without this library.

  Args:
    model: gives logits; its layers are not nested.
    images: the model's input.
    classes: each image's class.
    layer: whose features are explained.

  Returns:
    Maps, `[images, height, width]`.
  """
  wide = keras.Model(
      model.inputs, [model.get_layer(layer).output, model.output])
  with tf.GradientTape() as tape:
    features, logits = wide(images)
    scores = tf.gather(logits, classes, axis=1, batch_dims=1)
  weights = tf.reduce_mean(tape.gradient(scores, features), [1, 2])
  return tf.nn.relu(tf.einsum("bhwc,bc->bhw", features, weights)).numpy()
