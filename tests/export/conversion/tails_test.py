"""What may follow the explained layer: a map for each, held against Keras."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny

_LAYERS = keras.layers
_MEAN = _LAYERS.GlobalAveragePooling2D


def _then(*layers):
  """Layers in a row; the last gives [batch, channels]."""
  def tail(x):
    for layer in layers:
      x = layer(x)
    return x
  return tail


def _conv(activation="relu", size=3, **settings):
  return _LAYERS.Conv2D(8, size, activation=activation, **settings)


def _squeeze_and_excite(x):
  y = _LAYERS.GlobalAveragePooling2D(keepdims=True)(x)
  y = _conv("sigmoid", 1)(_LAYERS.Conv2D(4, 1, activation="relu")(y))
  return _MEAN()(_conv()(_LAYERS.Multiply()([x, y])))


def _hard_swish(x):
  y = _conv(None)(x)
  return _MEAN()(_LAYERS.Multiply()([y, _LAYERS.ReLU(6.0)(y + 3.0) / 6.0]))


def _attention(x):
  y = _LAYERS.Reshape((36, 8))(x)
  y = _LAYERS.LayerNormalization()(y + _LAYERS.MultiHeadAttention(2, 4)(y, y))
  return _LAYERS.GlobalAveragePooling1D()(y)


def _together(join, activation=None, **settings):
  return lambda x: _MEAN()(_LAYERS.ReLU()(
      join([x, _conv(activation, padding="same", **settings)(x)])))


_FLAT = (_LAYERS.Flatten, lambda: _LAYERS.Dense(8, "relu"))

# Each makes new layers when it is called.
TAILS = {
    "gap": lambda: _then(_MEAN()),
    "flatten": lambda: _then(*(make() for make in _FLAT)),
    "batch_norm": lambda: _then(_LAYERS.BatchNormalization(), _MEAN()),
    "relu6": lambda: _then(_conv(None), _LAYERS.ReLU(6.0), _MEAN()),
    "depthwise": lambda: _then(
        _LAYERS.DepthwiseConv2D(3, 2, "same"), _LAYERS.BatchNormalization(),
        _LAYERS.ReLU(), _MEAN()),
    "max_pool": lambda: _then(
        _LAYERS.MaxPooling2D(), *(make() for make in _FLAT)),
    "max_pool_overlapping": lambda: _then(
        _LAYERS.MaxPooling2D(3, 1, "same"), _conv(), _MEAN()),
    "average_pool": lambda: _then(
        _LAYERS.AveragePooling2D(), *(make() for make in _FLAT)),
    "residual": lambda: _together(_LAYERS.Add()),
    "global_max": lambda: _then(_LAYERS.GlobalMaxPooling2D()),
    "hidden_batch_norm": lambda: _then(
        _LAYERS.Flatten(), _LAYERS.Dense(8), _LAYERS.BatchNormalization(),
        _LAYERS.ReLU()),
    "swish": lambda: _then(_conv("swish"), _MEAN()),
    "hard_sigmoid": lambda: _then(_conv("hard_sigmoid"), _MEAN()),
    "hard_swish": lambda: _hard_swish,
    "gelu": lambda: _then(
        _conv(lambda x: tf.nn.gelu(x, approximate=True)), _MEAN()),
    "prelu": lambda: _then(
        _conv(None), _LAYERS.PReLU(shared_axes=[1, 2]), _MEAN()),
    "elu": lambda: _then(_conv("elu"), _MEAN()),
    "selu": lambda: _then(_conv("selu"), _MEAN()),
    "softplus": lambda: _then(_conv("softplus"), _MEAN()),
    "softsign": lambda: _then(_conv("softsign"), _MEAN()),
    "exponential": lambda: _then(_conv("exponential"), _MEAN()),
    "layer_norm": lambda: _then(_LAYERS.LayerNormalization(), _conv(), _MEAN()),
    "group_norm": lambda: _then(
        _LAYERS.GroupNormalization(4), _conv(), _MEAN()),
    "squeeze_and_excite": lambda: _squeeze_and_excite,
    "groups": lambda: _then(_conv(groups=2), _MEAN()),
    "dilated": lambda: _then(_conv(dilation_rate=2), _MEAN()),
    "dilated_depthwise": lambda: _then(
        _LAYERS.DepthwiseConv2D(3, dilation_rate=2), _LAYERS.ReLU(), _MEAN()),
    "upsampling": lambda: _then(_LAYERS.UpSampling2D(), _conv(), _MEAN()),
    "upsampling_bilinear": lambda: _then(
        _LAYERS.UpSampling2D(interpolation="bilinear"), _conv(), _MEAN()),
    "transposed": lambda: _then(
        _LAYERS.Conv2DTranspose(8, 3, 2, activation="relu"), _MEAN()),
    "separable": lambda: _then(
        _LAYERS.SeparableConv2D(8, 3, activation="relu"), _MEAN()),
    "maximum": lambda: _together(_LAYERS.Maximum()),
    "average": lambda: _together(_LAYERS.Average(), "tanh"),
    "subtract": lambda: _together(_LAYERS.Subtract(), "sigmoid"),
    "concatenate": lambda: _together(_LAYERS.Concatenate()),
    "softmax_inside": lambda: _together(_LAYERS.Multiply(), "softmax"),
    "attention": lambda: _attention,
    "permute": lambda: _then(
        _LAYERS.Permute((3, 1, 2)), *(make() for make in _FLAT)),
    "dense_in_place": lambda: _then(_LAYERS.Dense(8, "relu"), _MEAN()),
    "lambda": lambda: lambda x: _MEAN()(
        tf.nn.relu(tf.abs(x - 1.0) * 2.0 + tf.sqrt(x + 1.0))),
    "several": lambda: _then(
        # Straight behind the layer, where zeros of its ReLU are ties.
        _LAYERS.MaxPooling2D(3, 1, "same"),
        _LAYERS.UpSampling2D(interpolation="bilinear"), _conv(groups=2),
        _MEAN()),
    "power_mean": lambda: lambda x: tf.sqrt(_MEAN()(tf.square(x)) + 1e-6),
}


def net(tail, classes=3, head=None) -> keras.Model:
  keras.utils.set_random_seed(0)
  images = keras.Input((8, 8, 2))
  x = _LAYERS.Conv2D(8, 3, activation="relu", name=helpers.LAYER)(images)
  x = TAILS[tail]()(x)
  return tiny.shake(
      keras.Model(images, _LAYERS.Dense(classes, head)(x)), 3)


class TailsTest(parameterized.TestCase):

  def check(self, model, mode):
    images, targets = helpers.images(), [0, 1] * 4
    content = kap.export.convert(
        model, helpers.wcam(), mode=mode,
        representative_images=helpers.calibration())
    runner = kap.export.Interpreter(content)
    self.assertEqual(runner.metadata["road"], "tail")
    maps, logits = runner.explain(images, targets)
    np.testing.assert_array_equal(logits, runner.predict(images, logits=True))
    want = kap.attribution.grad_cam(model, images, targets, helpers.LAYER)
    cosines = kap.evaluation.agreement(want, maps)["cosine"]
    # Measured in int8: .9979 behind a layer normalization, else .9996 or more.
    self.assertGreater(
        np.nanmedian(cosines), 0.995 if mode == "int8" else 0.99999)
    for names in helpers.operators(content):
      self.assertNotIn("CUSTOM", names)

  @parameterized.product(tail=tuple(TAILS), mode=("float32", "int8"))
  @pytest.mark.slow("explaining")
  def test_tail(self, tail, mode):
    self.check(net(tail), mode)

  @parameterized.product(
      head=(("softmax", 3), ("sigmoid", 3), ("sigmoid", 1), (None, 1)),
      mode=("float32", "int8"))
  @pytest.mark.slow("explaining")
  def test_head(self, head, mode):
    activation, classes = head
    self.check(net("residual", classes, activation), mode)

  @pytest.mark.slow("files")
  def test_several_at_once(self):
    self.check(net("several"), "float32")


if __name__ == "__main__":
  absltest.main()
