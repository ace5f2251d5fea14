"""Tests of maps by what stands behind their layer, against finite differences.

The reference is a float64 model's scores before and after a small step of its
features. It uses nothing of this library. Only these tests notice a gradient
rule that catches the wrong layer.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve import WCAM, TrainStep, attribution
from tests import tiny

COUNT = 4
CLASSES = 3
SEEDS = 20  # Some models have only dead maps.
STEP = 1e-5
# TensorFlow resizes in float32, whose rounding a small step would blow up; of
# a Resizing the scores are smooth, and a stencil of four points forgives much.
WIDE_STEP = 1e-2
IN_FLOAT32 = ("resizing", "bilinear upsampling", "resize")
# Maps of norm 1 and cosines by float32 models and files: sums of some hundred
# products, and gradients of their kind.
FLOAT32 = 1e-4

_layers = keras.layers


def _attention(kind: str, *args) -> Callable:
  """Attention of all positions to all."""
  def tail(x):
    rows = _layers.Reshape((36, 4))(x)
    layer = getattr(_layers, kind)(*args)
    given = (rows, rows) if kind == "MultiHeadAttention" else ([rows, rows],)
    return _layers.Reshape((6, 6, 4))(layer(*given))
  return tail


def _merge(kind: str) -> Callable:
  """Two paths that meet again."""
  return lambda x: getattr(_layers, kind)()(
      [x, _layers.Conv2D(4, 1, name="beside")(x)])


def _recurrent(kind: str) -> Callable:
  return lambda x: getattr(_layers, kind)(5)(_layers.Reshape((6, 24))(x))


def _gate(x):
  """Squeeze and excitation."""
  squeezed = _layers.GlobalAveragePooling2D(keepdims=True)(x)
  return _layers.Multiply()([x, _layers.Dense(4, "sigmoid")(squeezed)])


def _nested(x):
  inputs = keras.Input((6, 6, 4))
  y = _layers.Conv2D(4, 3, activation="relu")(inputs)
  return keras.Model(inputs, _layers.LayerNormalization()(y))(x)


def _spread(x):
  """The mean and the standard deviation of each channel."""
  return tf.concat(
      [tf.reduce_mean(x, [1, 2]), tf.math.reduce_std(x, [1, 2])], -1)


def _activation(name: str) -> Callable:
  return lambda x: _layers.Activation(name)(x)


def _noise(kind: str) -> Callable:
  return lambda x: getattr(_layers, kind)(0.4)(x)


def _after_dense(activation: str) -> Callable:
  return lambda x: _layers.Dense(5, activation)(_layers.Flatten()(x))


NORMALIZATIONS = {
    "layer normalization": lambda x: _layers.LayerNormalization()(x),
    "layer normalization of all": lambda x: _layers.LayerNormalization(
        axis=[1, 2, 3])(x),
    "layer normalization, plain": lambda x: _layers.LayerNormalization(
        center=False, scale=False, epsilon=1e-6)(x),
    "layer normalization, flat": lambda x: _layers.LayerNormalization()(
        _layers.Flatten()(x)),
    "layer normalization, pooled": lambda x: _layers.LayerNormalization()(
        _layers.GlobalAveragePooling2D()(x)),
    "layer normalization, dense": lambda x: _layers.LayerNormalization()(
        _after_dense("relu")(x)),
    "group normalization": lambda x: _layers.GroupNormalization(2)(x),
    "unit normalization": lambda x: _layers.UnitNormalization()(x),
    "unit normalization, pooled": lambda x: _layers.UnitNormalization()(
        _layers.GlobalAveragePooling2D()(x)),
    "l2 normalization": lambda x: tf.math.l2_normalize(x, -1),
    "batch normalization": lambda x: _layers.BatchNormalization()(x),
    "batch normalization, plain": lambda x: _layers.BatchNormalization(
        center=False, scale=False)(x),
    "batch normalization, rows": lambda x: _layers.BatchNormalization(
        axis=1)(x),
    "batch normalization, synchronized": lambda x: _layers.BatchNormalization(
        synchronized=True)(x),
    "batch normalization, flat": lambda x: _layers.BatchNormalization()(
        _layers.Flatten()(x)),
    "batch normalization, dense": lambda x: _layers.BatchNormalization()(
        _layers.Dense(5)(_layers.GlobalAveragePooling2D()(x))),
    "normalization": lambda x: _layers.Normalization(
        mean=0.3, variance=2.0)(x),
    "spectral normalization": lambda x: _layers.SpectralNormalization(
        _layers.Conv2D(4, 3))(x),
}
ACTIVATIONS = {
    **{f"activation {name}": _activation(name)
       for name in ("elu", "exponential", "gelu", "hard_sigmoid", "mish",
                    "relu6", "selu", "sigmoid", "softmax", "softplus",
                    "softsign", "swish", "tanh")},
    **{f"dense {name}": _after_dense(name) for name in (
        "elu", "exponential", "gelu", "hard_sigmoid", "linear", "mish", "relu",
        "selu", "sigmoid", "softmax", "softsign", "softplus", "swish",
        "tanh")},
    "ELU": lambda x: _layers.ELU()(x),
    "PReLU": lambda x: _layers.PReLU()(x),
    "PReLU, shared": lambda x: _layers.PReLU(shared_axes=[1, 2])(x),
    "LeakyReLU": lambda x: _layers.LeakyReLU()(x),
    "ThresholdedReLU": lambda x: _layers.ThresholdedReLU(0.3)(x),
    "ReLU, bent": lambda x: _layers.ReLU(1.0, 0.2, 0.1)(x),
    "Softmax": lambda x: _layers.Softmax()(x),
    "dense, spatial": lambda x: _layers.Dense(5, "relu")(x),
}
POOLINGS = {
    "max pooling": lambda x: _layers.MaxPool2D()(x),
    "overlapping max pooling": lambda x: _layers.MaxPool2D(3, 1, "same")(x),
    "average pooling": lambda x: _layers.AveragePooling2D()(x),
    "average pooling, padded": lambda x: _layers.AveragePooling2D(
        3, 2, "same")(x),
    "global max pooling": lambda x: _layers.GlobalMaxPooling2D()(x),
    "global average pooling": lambda x: _layers.GlobalAveragePooling2D()(x),
    "flatten": lambda x: _layers.Flatten()(x),
    "zero padding": lambda x: _layers.Conv2D(3, 3)(
        _layers.ZeroPadding2D()(x)),
    "cropping": lambda x: _layers.Cropping2D()(x),
    "upsampling": lambda x: _layers.UpSampling2D()(x),
    "bilinear upsampling": lambda x: _layers.Conv2D(3, 3)(
        _layers.UpSampling2D(interpolation="bilinear")(x)),
    "resizing": lambda x: _layers.Resizing(9, 9)(x),
    "resize": lambda x: tf.image.resize(x, (4, 4)),
    "nearest": lambda x: _layers.Resizing(4, 4, "nearest")(x),
    "permute": lambda x: _layers.Permute((2, 1, 3))(x),
    "depth to space": lambda x: tf.nn.depth_to_space(x, 2),
    "generalized mean": lambda x: tf.reduce_mean(x**3, [1, 2])**(1 / 3),
    "log of sums": lambda x: tf.reduce_logsumexp(x, [1, 2]),
    "spread": _spread,
}
CONVOLUTIONS = {
    "separable": lambda x: _layers.SeparableConv2D(5, 3, activation="relu")(x),
    "depthwise": lambda x: _layers.DepthwiseConv2D(
        3, 2, "same", 2, activation="tanh")(x),
    "depthwise, dilated": lambda x: _layers.DepthwiseConv2D(
        2, dilation_rate=2)(x),
    "transposed": lambda x: _layers.Conv2DTranspose(
        5, 3, 2, "same", activation="relu")(x),
    "strided": lambda x: _layers.Conv2D(5, 3, 2, activation="relu")(x),
    "dilated": lambda x: _layers.Conv2D(
        5, 2, dilation_rate=2, activation="relu")(x),
    "grouped": lambda x: _layers.Conv2D(
        4, 3, groups=2, activation="relu")(x),
    "local": lambda x: _layers.LocallyConnected2D(3, 3)(x),
    "of rows": lambda x: _layers.Conv1D(4, 3, activation="relu")(
        _layers.Reshape((6, 24))(x)),
}
MIXTURES = {
    "multi-head attention": _attention("MultiHeadAttention", 2, 3),
    "attention": _attention("Attention"),
    "additive attention": _attention("AdditiveAttention"),
    "gate": _gate,
    **{name: _merge(name) for name in (
        "Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply",
        "Subtract")},
    "Gram matrix": lambda x: tf.einsum("bhwc,bhwd->bcd", x, x),
    **{name: _recurrent(name) for name in ("SimpleRNN", "GRU", "LSTM")},
    "nested": _nested,
    "operations": lambda x: tf.nn.relu(x * 2 - 0.3) + tf.reduce_mean(
        x, [1, 2], keepdims=True),
    "lambda": lambda x: _layers.Lambda(
        lambda y: y * tf.reduce_mean(y, [1, 2], keepdims=True))(x),
    "time distributed": lambda x: _layers.TimeDistributed(
        _layers.Dense(3, "relu"))(x),
    "penalty": lambda x: _layers.ActivityRegularization(0.1)(x),
}
RANDOM = {
    name: _noise(name) for name in (
        "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
        "SpatialDropout2D")}
TAILS = {**NORMALIZATIONS, **ACTIVATIONS, **POOLINGS, **CONVOLUTIONS,
         **MIXTURES, **RANDOM}
QUICK = ("layer normalization", "layer normalization, dense",
         "group normalization", "multi-head attention")
# Of each kind some; a file takes seconds.
FILES = (
    "layer normalization of all", "layer normalization, flat",
    "layer normalization, pooled", "layer normalization, dense",
    "group normalization", "unit normalization", "batch normalization",
    "batch normalization, dense", "activation softmax", "activation swish",
    "PReLU", "ReLU, bent", "dense tanh", "overlapping max pooling",
    "average pooling, padded", "resizing", "global max pooling", "permute",
    "spread", "separable", "depthwise", "transposed", "grouped",
    "multi-head attention", "gate", "Maximum", "Gram matrix", "Dropout")
# TFLite has no operator for their backward pass.
REFUSED = ("activation gelu", "batch normalization, rows", "cropping", "local",
           "LSTM")


def _model(tail: str, seed: int) -> keras.Model:
  inputs = keras.Input((8, 8, 2))
  features = _layers.Conv2D(4, 3, activation="softplus", name="act")(inputs)
  x = TAILS[tail](features)
  if len(x.shape) == 4:
    x = _layers.Conv2D(3, 1, activation="tanh", name="last")(x)
    x = _layers.GlobalAveragePooling2D()(x)
  elif len(x.shape) == 3:
    x = _layers.Flatten()(x)
  model = tiny.shake(keras.Model(
      inputs, _layers.Dense(CLASSES, name="scores")(x)), seed)
  for layer in model.submodules:  # Each call draws alike.
    if isinstance(layer, _layers.Layer) and hasattr(layer, "_random_generator"):
      layer._random_generator = type(layer._random_generator)(
          5, rng_type="stateless")
  return model


def _measured(
    model: keras.Model, images: np.ndarray, step: float, training: bool
) -> np.ndarray:
  """Grad-CAM by finite differences: ReLU(sum_c a_c A_c) of every class.

  A channel is raised and lowered at all positions; the score's change is a_c.
  In training mode, as in this library, the statistics of a batch are constants:
  the unchanged batch's statistics replace the moving ones.

  Args:
    model: float64.
    images: its inputs.
    step: the size of a change of the features.
    training: of the model's call.

  Returns:
    `[images, classes, height, width]`.
  """
  weights = model.get_weights()
  normalizations = [layer for layer in model.layers if isinstance(
      layer, _layers.BatchNormalization)]
  if training and normalizations:
    for layer in normalizations:
      inputs = keras.Model(model.inputs, layer.input)(images).numpy()
      axes = tuple(axis for axis in range(inputs.ndim)
                   if axis not in [index % inputs.ndim for index in layer.axis])
      layer.moving_mean.assign(inputs.mean(axes))
      layer.moving_variance.assign(inputs.var(axes))
    training = False
  still = model.get_weights()
  act = model.get_layer("act").output
  features = keras.Model(model.inputs, act)(images).numpy()
  tail = keras.Model(act, model.output)
  sensitivities = []
  for channel in np.eye(features.shape[-1]):
    scores = {}
    for k in (-2, -1, 1, 2):
      scores[k] = tail(tf.constant(features + k * step * channel),
                       training=training).numpy()
      model.set_weights(still)  # Some layers change theirs as they train.
    sensitivities.append((
        8 * (scores[1] - scores[-1]) - (scores[2] - scores[-2])) / (12 * step))
  model.set_weights(weights)
  return np.maximum(np.einsum(
      "bhwc,cbk->bkhw", features, np.stack(sensitivities)), 0)


def _unit(maps: np.ndarray) -> np.ndarray:
  """Scales maps to norm 1; maps of zeros stay."""
  norms = np.sqrt(np.square(maps).sum((-2, -1), keepdims=True))
  return np.divide(maps, norms, where=norms > 0, out=np.zeros_like(maps))


class BehindTheMapTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.images = tiny.images(COUNT, size=8).astype(np.float64)

  @parameterized.parameters(*QUICK)
  def test_maps_and_train_step(self, tail):
    self._check(tail)

  @parameterized.parameters(*[name for name in TAILS if name not in QUICK])
  @pytest.mark.slow("explaining")
  def test_maps_and_train_step_of_all(self, tail):
    self._check(tail)

  def _check(self, tail):
    step = WIDE_STEP if tail in IN_FLOAT32 else STEP
    rows = np.arange(COUNT)
    for seed in range(SEEDS):
      with tiny.float64():
        twins = _model(tail, seed), _model(tail, SEEDS + seed)
        teacher_maps = _unit(_measured(
            twins[0], self.images, step, training=False))
        student_maps = _unit(_measured(
            twins[1], self.images, step, training=True))
      cosines = (teacher_maps * student_maps).sum((-2, -1))
      # The class whose maps have most in common; dead maps have nothing.
      classes = cosines.argmax(1)
      if (cosines[rows, classes] > 0).all():
        break
    else:
      self.fail("There are no models whose maps are alive.")
    # In float32, where layers take fused operations; but these draw otherwise.
    with tiny.float64() if tail in RANDOM else contextlib.nullcontext():
      models = []
      for twin in twins:
        models.append(_model(tail, 0))
        models[-1].set_weights(twin.get_weights())
      teacher, student = models
      images = self.images.astype(teacher.dtype)
      maps = attribution.grad_cam(teacher, images, classes, "act")
      np.testing.assert_allclose(
          _unit(maps), teacher_maps[rows, classes], atol=FLOAT32)

      student.compile("sgd", tiny.no_task)
      train = TrainStep(student, teacher, WCAM("act", target="label"))
      train.loss(tf.constant(images), tf.constant(classes))
      results = {
          metric.name: float(metric.result()) for metric in train.metrics}
      self.assertAlmostEqual(
          results["attr_agreement"], cosines[rows, classes].mean(),
          delta=FLOAT32)

  def test_the_map_of_a_file(self):
    self._check_file("layer normalization")

  @parameterized.parameters(*FILES)
  @pytest.mark.slow("files")
  def test_the_map_of_a_file_of_others(self, tail):
    self._check_file(tail)

  @parameterized.parameters(*REFUSED)
  @pytest.mark.slow("files")
  def test_no_file_with_another_gradient(self, tail):
    with self.assertRaisesRegex(
        ValueError, "layer 'act': TFLite cannot express the backward pass"):
      kap.export.convert(_model(tail, 0), WCAM("act"), mode="float32")

  def _check_file(self, tail):
    rows = np.arange(COUNT)
    for seed in range(SEEDS):
      model = _model(tail, seed)
      with tiny.float64():
        twin = _model(tail, seed)
        twin.set_weights(model.get_weights())
        every = _unit(_measured(
            twin, self.images, WIDE_STEP if tail in IN_FLOAT32 else STEP,
            training=False))
      alive = every.any((-2, -1))
      if alive.any(1).all():
        break
    classes = alive.argmax(1)
    images = self.images.astype(np.float32)
    content = kap.export.convert(
        model, WCAM("act"), mode="float32", representative_images=images)
    maps = kap.export.Interpreter(content).explain(images, classes).maps
    np.testing.assert_allclose(
        _unit(maps), every[rows, classes], atol=FLOAT32)


if __name__ == "__main__":
  absltest.main()
