"""Tests of layers.py: features, logits and sensitivities of any model."""

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve import layers
from tests import tiny


def _cluster(model):
  return tfmot.clustering.keras.cluster_weights(
      tiny.copy_of(model), number_of_clusters=2,
      cluster_centroids_init=(
          tfmot.clustering.keras.CentroidInitialization.LINEAR))


WRAPS = {
    "plain": lambda model: model,
    "prune": tiny.prune,
    "quantize": tiny.quantize,
    "quantize_sparse": tiny.quantize_sparse,
    "cluster": _cluster,
}
WRAPPED_NAMES = {
    "plain": "act", "prune": "prune_low_magnitude_act", "quantize": "quant_act",
    "quantize_sparse": "quant_act", "cluster": "cluster_act"}


class FindLayerTest(parameterized.TestCase):

  @parameterized.parameters(
      ("act", "act"), ("quant_act", "act"), ("prune_low_magnitude_act", "act"),
      ("cluster_act", "act"), ("quant_prune_low_magnitude_act", "act"),
      ("quantize_layer", "quantize_layer"), ("my_quant_act", "my_quant_act"))
  def test_unwrapped_name(self, name, want):
    self.assertEqual(layers.unwrapped_name(name), want)

  @parameterized.parameters(*WRAPPED_NAMES)
  def test_finds_it_behind(self, wrap):
    model = WRAPS[wrap](tiny.conv_net())
    self.assertEqual(
        layers.find_layer(model, "act").name, WRAPPED_NAMES[wrap])
    # A name read off the wrapped model works on every other.
    for name in WRAPPED_NAMES.values():
      self.assertIs(layers.find_layer(model, name),
                    layers.find_layer(model, "act"))

  def test_an_exact_name_goes_first(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="act")(inputs)
    x = keras.layers.Conv2D(2, 1, name="quant_act")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.find_layer(model, "act").name, "act")
    self.assertEqual(layers.find_layer(model, "quant_act").name, "quant_act")
    with self.assertRaisesRegex(ValueError, "'cluster_act'.* 2 layers"):
      layers.find_layer(model, "cluster_act")

  def test_a_layer_called_twice_is_refused(self):
    """Which of its two outputs would be meant?"""
    inputs = keras.Input((4, 4, 2))
    relu = keras.layers.ReLU(name="relu")
    x = relu(keras.layers.Conv2D(2, 1, name="conv")(inputs))
    x = relu(keras.layers.Conv2D(2, 1, name="conv2")(x))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.find_layer(model, "conv2").name, "conv2")
    with self.assertRaisesRegex(ValueError, "layer 'relu'"):
      layers.find_layer(model, "relu")

  def test_no_such_layer_lists_those_with_a_map(self):
    for wrap in WRAPS.values():
      with self.assertRaisesRegex(
          ValueError, "'relu9'.*'net.*no layer of that name.* conv, bn, act"):
        layers.find_layer(wrap(tiny.conv_net()), "relu9")

  def test_a_layer_without_positions_lists_those_that_have_some(self):
    for name in ("pool", "logits"):
      with self.assertRaisesRegex(
          ValueError, f"'{name}'.*no spatial map.*None.* conv, bn, act"):
        layers.find_layer(tiny.conv_net(), name)

  def test_a_long_list_is_cut_to_the_last(self):
    model = keras.Sequential([keras.Input((4, 4, 1))] + [
        keras.layers.ReLU(name=f"layer{i}") for i in range(20)])
    with self.assertRaisesRegex(
        ValueError, r"are \.\.\., layer8, .*layer19\."):
      layers.find_layer(model, "other")

  def test_one_position_is_no_map(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="wide")(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True, name="point")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    self.assertEqual(layers.spatial_layers(model), ["wide"])
    with self.assertRaisesRegex(ValueError, "more than one position"):
      layers.find_layer(model, "point")

  def test_sizes_that_are_not_known_are_maps(self):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 1, name="any")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    self.assertEqual(layers.last_spatial_layer(model), "any")

  @parameterized.parameters(*WRAPS)
  def test_last_spatial_layer(self, wrap):
    model = WRAPS[wrap](tiny.conv_net(tail="depthwise"))
    self.assertEqual(layers.last_spatial_layer(model), "act2")
    self.assertEqual(
        [name for name in layers.spatial_layers(model)
         if not name.startswith("quantize_layer")],
        ["conv", "bn", "act", "depthwise", "conv2", "bn2", "sum", "act2"])

  def test_no_spatial_layer(self):
    model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    with self.assertRaisesRegex(ValueError, "sequential.* no layer with a sp"):
      layers.last_spatial_layer(model)


class TapTest(parameterized.TestCase):

  def test_by_hand(self):
    inputs = keras.Input((1, 2, 1))
    x = keras.layers.Conv2D(2, 1, name="conv")(inputs)
    y = keras.layers.GlobalAveragePooling2D()(x)
    y = keras.layers.Dense(1, "sigmoid", name="head")(y)
    model = keras.Model(inputs, y)
    model.set_weights([
        np.float32([[[[1, -2]]]]), np.float32([0, 10]),
        np.float32([[1], [3]]), np.float32([-20])])
    tapped = layers.Tap(model, ["conv"])(np.float32([[[[1], [3]]]]))
    np.testing.assert_array_equal(
        tapped.features[0], [[[[1, 8], [3, 4]]]])
    # Means 2 and 6: 2 + 18 - 20 = 0, of which the sigmoid is a half.
    np.testing.assert_allclose(tapped.logits, [[0.0]], atol=1e-6)
    np.testing.assert_allclose(tapped.output, [[0.5]], atol=1e-6)

  @parameterized.parameters(*WRAPS)
  def test_gives_what_the_model_computes(self, wrap):
    model = WRAPS[wrap](tiny.conv_net(tail="block", head="softmax"))
    pictures = tiny.images(3)
    names = [layer.name for layer in model.layers]
    own = keras.Model(model.inputs, [
        model.layers[names.index(
            layers.find_layer(model, name).name)].output
        for name in ("act2", "act")])
    tapped = layers.Tap(model, ["act2", "act"])(pictures)
    for got, want in zip(tapped.features, own(pictures)):
      np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(tapped.output, model(pictures))
    self.assertEqual(tapped.logits.shape, (3, tiny.CLASSES))

  def test_training_reaches_the_layers(self):
    model = tiny.conv_net()
    pictures = tiny.images(3)
    tap = layers.Tap(model, ["act"])
    still = tap(pictures)
    before = model.get_layer("bn").moving_mean.numpy()
    np.testing.assert_array_equal(tap(pictures).logits, still.logits)
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, before)
    moved = tap(pictures, training=True)
    self.assertGreater(np.abs(moved.logits - still.logits).max(), 0.01)
    self.assertGreater(
        np.abs(model.get_layer("bn").moving_mean - before).max(), 1e-4)

  @parameterized.product(
      wrap=list(WRAPS),
      head=["softmax", "sigmoid", "softmax_layer", "activation_layer"])
  def test_logits_are_those_before_the_head(self, wrap, head):
    # Equal weights, and nothing after the last Dense.
    plain = WRAPS[wrap](tiny.conv_net(head="linear"))
    model = WRAPS[wrap](tiny.conv_net(head=head))
    pictures = tiny.images(3)
    want = plain(pictures)
    tap = layers.Tap(model)
    got = tap(pictures)
    np.testing.assert_allclose(got.logits, want, atol=1e-6)
    squash = tf.sigmoid if head == "sigmoid" else tf.nn.softmax
    np.testing.assert_allclose(got.output, squash(want), atol=1e-6)
    self.assertFalse(tap.gives_logits)
    self.assertEqual(tap.classes, tiny.CLASSES)
    # Float32 arithmetic in another order, through quantizers of steps of 12/255
    # that could turn that into one step; on these weights none does.
    traced = tf.function(tap)(pictures)
    np.testing.assert_allclose(traced.logits, want, atol=1e-5)

  @parameterized.parameters(*WRAPS)
  def test_logits_of_a_linear_head_are_the_output(self, wrap):
    model = WRAPS[wrap](tiny.conv_net(head="linear"))
    tap = layers.Tap(model)
    got = tap(tiny.images(3))
    np.testing.assert_array_equal(got.logits, got.output)
    self.assertTrue(tap.gives_logits)
    self.assertEmpty(got.features)

  def test_logits_in_training_mode_under_quantization(self):
    pictures = tiny.images(3)
    plain, model = (tiny.quantize(tiny.conv_net(head=head))
                    for head in ("linear", "softmax"))
    np.testing.assert_array_equal(
        layers.Tap(model)(pictures, training=True).logits,
        plain(pictures, training=True))

  def test_other_scores_are_left_as_they_are(self):
    """An activation that is no softmax belongs to the score."""
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Activation("tanh")(x))
    tap = layers.Tap(model, ["conv"])
    got = tap(tiny.images(2, size=4))
    np.testing.assert_array_equal(got.logits, got.output)

  @parameterized.parameters(
      "tf.nn.softmax inside", "tf.nn.softmax as a layer", "Softmax inside",
      "Lambda", "nested model")
  def test_a_softmax_it_cannot_look_behind_is_refused(self, kind):
    """Rather than taken for a logit: its gradient fades where it is sure."""
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    if kind == "tf.nn.softmax inside":
      x = keras.layers.Dense(3, activation=tf.nn.softmax)(x)
    elif kind == "tf.nn.softmax as a layer":
      x = tf.nn.softmax(x)
    elif kind == "Softmax inside":
      x = keras.layers.Dense(3, activation=keras.layers.Softmax())(x)
    elif kind == "Lambda":
      x = keras.layers.Lambda(tf.nn.softmax)(x)
    else:
      x = keras.Sequential(
          [keras.layers.Dense(3, "softmax", input_shape=(3,))])(x)
    with self.assertRaisesRegex(ValueError, "(?i)softmax"):
      layers.Tap(keras.Model(inputs, x), ["conv"])(tiny.images(2, size=4))

  def test_a_stripped_model(self):
    """Trap 5: its layers' `output` belongs to the old graph."""
    pictures = tiny.images(3)
    pruned = tiny.prune(tiny.conv_net(head="softmax"))
    want = layers.Tap(pruned, ["act"])(pictures)
    stripped = tfmot.sparsity.keras.strip_pruning(pruned)
    layer = layers.find_layer(stripped, "act")
    with self.assertRaises((ValueError, AttributeError)):  # The trap is real.
      keras.Model(stripped.inputs, layer.output)(pictures)
    got = layers.Tap(stripped, ["act"])(pictures)
    np.testing.assert_array_equal(got.features[0], want.features[0])
    np.testing.assert_array_equal(got.logits, want.logits)
    # The old model still has its own.
    again = layers.Tap(pruned, ["act"])(pictures)
    np.testing.assert_array_equal(again.features[0], want.features[0])

  def test_a_quantized_convolution_comes_before_the_normalization(self):
    """Trap 6."""
    pictures = tiny.images(3)
    net = tiny.conv_net()
    with tiny.fine_quantizers():
      got = layers.Tap(tiny.quantize(net), ["conv", "act"])(pictures)
    inside = keras.Model(net.inputs, [
        net.get_layer(name).output for name in ("conv", "bn", "act")])
    conv, normalized, act = inside(pictures)
    # 16 bits over -6..6, steps of 2e-4, on 18 weights.
    np.testing.assert_allclose(got.features[0], conv, atol=2e-3)
    np.testing.assert_allclose(got.features[1], act, atol=4e-3)
    self.assertGreater(np.abs(got.features[0] - normalized).max(), 0.1)

  def test_runs_the_model_once(self):
    """Trap 4: pruning wrappers count forward calls."""
    model = tiny.prune(tiny.conv_net())
    for layer in model.layers:
      if hasattr(layer, "pruning_step"):
        layer.pruning_step.assign(0)
    tap = layers.Tap(model, ["conv", "act"])
    tap(tiny.images(2), training=True)
    self.assertEqual(set(tiny.pruning_steps(model)), {1})
    tap(tiny.images(2), training=False)
    self.assertEqual(set(tiny.pruning_steps(model)), {1})

  def test_leaves_the_model_as_it_is(self):
    model = tiny.conv_net()
    before, config = set(vars(model)), model.get_config()
    nodes = [len(layer.outbound_nodes) for layer in model.layers]
    weights = model.get_weights()
    layers.Tap(model, ["act"])(tiny.images(2))
    self.assertEqual(set(vars(model)), before)
    self.assertEqual(model.get_config(), config)
    self.assertEqual(
        [len(layer.outbound_nodes) for layer in model.layers], nodes)
    self.assertTrue(tiny.weights_equal(model.get_weights(), weights))

  def test_an_output_that_is_no_row_of_scores(self):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    with self.assertRaisesRegex(
        ValueError, r"must give \[batch, classes\].*\(None, 4, 4, 2\)"):
      layers.Tap(model)

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras"):
      layers.Tap("net")


class SensitivitiesTest(parameterized.TestCase):

  def _sensitivities(self, model, names, pictures, seed, training=False):
    tap = layers.Tap(model, names)
    with tf.GradientTape() as tape:
      pictures = tf.constant(pictures)
      tape.watch(pictures)
      tapped = tap(pictures, training=training)
    return tapped, [one.numpy() for one in layers.sensitivities(
        tape, tapped, seed)]

  def _differences(self, model, name, pictures, seed, step):
    """How seed . logits rises as a whole channel is raised."""
    layer = model.get_layer(name)
    features = keras.Model(model.inputs, layer.output)(pictures).numpy()
    tail = keras.Model(layer.output, model.output)
    rises = []
    for channel in np.eye(features.shape[-1], dtype=np.float32):
      up, down = (tail(features + sign * step * channel).numpy()
                  for sign in (1, -1))
      rises.append(((up - down) * seed).sum(1) / (2 * step))
    return np.stack(rises, axis=1)

  def test_by_hand(self):
    """A mean over two positions, then weights 1 and 3: each passes a half."""
    inputs = keras.Input((1, 2, 1))
    x = keras.layers.Conv2D(2, 1, name="conv")(inputs)
    y = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(y))
    model.get_layer("head").set_weights(
        [np.float32([[1, 7], [3, -5]]), np.zeros(2)])
    pictures = np.ones((2, 1, 2, 1), np.float32)
    seed = np.float32([[1, 0], [0, 2]])  # Class 0; twice class 1.
    tapped, (got,) = self._sensitivities(model, ["conv"], pictures, seed)
    np.testing.assert_allclose(
        got, [[[[1, 3]]], [[[14, -10]]]], rtol=1e-6)
    with tf.GradientTape() as tape:
      pictures = tf.constant(pictures)
      tape.watch(pictures)
      tapped = layers.Tap(model, ["conv"])(pictures)
    gradient, = layers.feature_gradients(tape, tapped, seed)
    np.testing.assert_allclose(
        gradient, [[[[0.5, 1.5]] * 2], [[[7, -5]] * 2]], rtol=1e-6)

  @parameterized.parameters(
      ("gap", "relu"), ("flatten", "relu"), ("flatten", "tanh"),
      ("block", "relu"), ("block", "softplus"), ("depthwise", "relu"))
  def test_against_finite_differences(self, tail, activation):
    model = tiny.conv_net(tail=tail, activation=activation)
    pictures = tiny.images(3)
    seed = np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32)
    _, (got,) = self._sensitivities(model, ["act"], pictures, seed)
    self.assertEqual(got.shape, (3, 1, 1, 4))
    want = self._differences(model, "act", pictures, seed, step=1e-2)
    # Float32 logits of size 1 over a step of 1e-2: 1e-5; where a ReLU's kink
    # lies within the step, its share of the sum is wrong by a part.
    self.assertLess(tiny.relative_error(got[:, 0, 0], want),
                    2e-2 if activation == "relu" and tail != "gap" else 1e-3)

  def test_several_layers_upstream_of_one_another(self):
    model = tiny.conv_net(tail="block", activation="softplus", head="softmax")
    linear = tiny.conv_net(tail="block", activation="softplus")
    pictures = tiny.images(3)
    seed = np.eye(3, dtype=np.float32)
    names = ["act2", "conv", "act", "conv2"]
    tapped, got = self._sensitivities(model, names, pictures, seed)
    self.assertLen(tapped.features, 4)
    for name, one in zip(names, got):
      _, (alone,) = self._sensitivities(model, [name], pictures, seed)
      np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-6)
      self.assertLess(tiny.relative_error(one[:, 0, 0], self._differences(
          linear, name, pictures, seed, step=1e-2)), 1e-3)

  @parameterized.parameters(
      "softmax", "sigmoid", "softmax_layer", "activation_layer")
  def test_heads_do_not_matter(self, head):
    seed = np.eye(3, dtype=np.float32)
    _, (want,) = self._sensitivities(
        tiny.conv_net(), ["act"], tiny.images(3), seed)
    _, (got,) = self._sensitivities(
        tiny.conv_net(head=head), ["act"], tiny.images(3), seed)
    np.testing.assert_allclose(got, want, atol=1e-6)

  @parameterized.parameters("gap", "flatten", "block", "depthwise")
  def test_under_quantization_as_in_the_float_net(self, tail):
    net = tiny.conv_net(tail=tail)
    pictures, seed = tiny.images(3), np.eye(3, dtype=np.float32)
    _, (want,) = self._sensitivities(net, ["act"], pictures, seed)
    with tiny.fine_quantizers():
      _, (got,) = self._sensitivities(
          tiny.quantize(net), ["act"], pictures, seed)
    # 16 bits: steps of 2e-4 on weights of size 0.5, and a ReLU may flip.
    self.assertLess(tiny.relative_error(got, want), 2e-2)

  def test_alive_where_a_quantizer_clips_the_score(self):
    """Trap 2."""
    net = tiny.conv_net(head="softmax")
    net.get_layer("logits").bias.assign([50.0, -50.0, 0.0])
    model = tiny.quantize(net)
    pictures = tf.constant(tiny.images(3))
    tap = layers.Tap(model, ["act"])
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(pictures)
      tapped = tap(pictures)
    np.testing.assert_allclose(tapped.logits[:, :2], [[6, -6]] * 3, atol=0.1)
    seed = tf.constant([[1.0, 0, 0]] * 3)
    plain = tape.gradient(
        tapped.logits, tapped.features[0], output_gradients=seed)
    np.testing.assert_array_equal(plain, np.zeros_like(plain))  # The trap.
    got, = layers.sensitivities(tape, tapped, seed)
    # A mean over the positions: the quantized kernel's column, 8 bits of -6..6
    # before the first training step, so steps of 0.05.
    kernel = net.get_layer("logits").kernel.numpy()
    np.testing.assert_allclose(
        got[:, 0, 0], [kernel[:, 0]] * 3, atol=0.03)

  def test_frozen_models_are_explained_too(self):
    model = tiny.conv_net()
    _, (want,) = self._sensitivities(
        model, ["act"], tiny.images(2), np.eye(2, 3, dtype=np.float32))
    model.trainable = False
    _, (got,) = self._sensitivities(
        model, ["act"], tiny.images(2), np.eye(2, 3, dtype=np.float32))
    np.testing.assert_array_equal(got, want)

  def test_a_tail_without_a_gradient(self):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 1, name="conv")(inputs)
    x = keras.layers.Lambda(tf.round)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    with self.assertRaisesRegex(ValueError, "layer: .*do not depend"):
      self._sensitivities(model, ["conv"], np.ones((1, 4, 4, 1), np.float32),
                          np.float32([[1, 0]]))


class TopClassSeedTest(absltest.TestCase):

  def test_one_hot_of_the_largest(self):
    np.testing.assert_array_equal(
        layers.top_class_seed(tf.constant([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0]])),
        [[0, 1, 0], [1, 0, 0]])

  def test_one_logit_has_two_sides(self):
    np.testing.assert_array_equal(
        layers.top_class_seed(tf.constant([[2.0], [-3.0], [0.0]])),
        [[1], [-1], [1]])


if __name__ == "__main__":
  absltest.main()
