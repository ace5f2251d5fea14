"""Tests of tap.py and logits.py: features and logits."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

from keras_attr_preserve.models import layers, tap
from keras_attr_preserve.models.scores import top_class_seed
from tests import tiny

WRAPS = {
    "plain": lambda model: model,
    "prune": tiny.prune,
    "quantize": tiny.quantize,
    "quantize_sparse": tiny.quantize_sparse,
}
_HEADS = ("softmax", "sigmoid", "softmax_layer", "activation_layer")
# Each wrapper with a head inside the last layer and with one behind it.
_QUICK = (*(("plain", head) for head in _HEADS), ("prune", "softmax"),
          ("quantize", "sigmoid"), ("quantize_sparse", "softmax_layer"))
# Float32 sums of the same layers in another graph, nested or traced.
FLOAT32 = 1e-5


@functools.cache
def _without_a_head(wrap):
  """Outputs of a model that returns logits."""
  return WRAPS[wrap](tiny.conv_net(head="linear"))(tiny.images(3)).numpy()


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
    tapped = tap.Tap(model, ["conv"])(np.float32([[[[1], [3]]]]))
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
    direct = keras.Model(model.inputs, [
        model.layers[names.index(
            layers.find_layer(model, name).name)].output
        for name in ("act2", "act")])
    tapped = tap.Tap(model, ["act2", "act"])(pictures)
    for got, want in zip(tapped.features, direct(pictures)):
      np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(tapped.output, model(pictures))
    self.assertEqual(tapped.logits.shape, (3, tiny.CLASSES))

  def test_training_reaches_the_layers(self):
    model = tiny.conv_net()
    pictures = tiny.images(3)
    reader = tap.Tap(model, ["act"])
    still = reader(pictures)
    before = model.get_layer("bn").moving_mean.numpy()
    np.testing.assert_array_equal(reader(pictures).logits, still.logits)
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, before)
    moved = reader(pictures, training=True)
    # Rounding is far smaller; a batch's statistics are not those drawn by
    # shake.
    self.assertGreater(np.abs(moved.logits - still.logits).max(), 0.01)
    # Momentum .99 lets a hundredth of the difference in.
    self.assertGreater(
        np.abs(model.get_layer("bn").moving_mean - before).max(), 1e-4)

  @parameterized.parameters(*_QUICK)
  def test_logits_are_those_before_the_head(self, wrap, head):
    self._check_logits(wrap, head)

  @parameterized.parameters(*(
      (wrap, head) for wrap in WRAPS for head in _HEADS
      if (wrap, head) not in _QUICK))
  @pytest.mark.slow("explaining")
  def test_logits_are_those_before_other_heads(self, wrap, head):
    self._check_logits(wrap, head)

  def _check_logits(self, wrap, head):
    model = WRAPS[wrap](tiny.conv_net(head=head))
    pictures = tiny.images(3)
    # Equal weights, and nothing after the last Dense.
    want = _without_a_head(wrap)
    reader = tap.Tap(model)
    got = reader(pictures)
    # Equal weights, and one head cut off or replaced: float32 rounding.
    np.testing.assert_allclose(got.logits, want, atol=1e-6)
    squash = tf.sigmoid if head == "sigmoid" else tf.nn.softmax
    np.testing.assert_allclose(got.output, squash(want), atol=1e-6)
    self.assertFalse(reader.gives_logits)
    self.assertEqual(reader.classes, tiny.CLASSES)
    traced = tf.function(reader)(pictures)
    # Float32 arithmetic in another order, through quantizers of steps of 12/255
    # that could turn that into one step; on these weights none does.
    np.testing.assert_allclose(traced.logits, want, atol=1e-5)

  @parameterized.parameters(*WRAPS)
  def test_logits_of_a_linear_head_are_the_output(self, wrap):
    model = WRAPS[wrap](tiny.conv_net(head="linear"))
    reader = tap.Tap(model)
    got = reader(tiny.images(3))
    np.testing.assert_array_equal(got.logits, got.output)
    self.assertTrue(reader.gives_logits)
    self.assertEmpty(got.features)

  def test_logits_in_training_mode_under_quantization(self):
    pictures = tiny.images(3)
    plain, model = (tiny.quantize(tiny.conv_net(head=head))
                    for head in ("linear", "softmax"))
    np.testing.assert_array_equal(
        tap.Tap(model)(pictures, training=True).logits,
        plain(pictures, training=True))

  def test_other_scores_are_left_as_they_are(self):
    """An activation that is no softmax belongs to the score."""
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Activation("tanh")(x))
    reader = tap.Tap(model, ["conv"])
    got = reader(tiny.images(2, size=4))
    np.testing.assert_array_equal(got.logits, got.output)

  def test_a_softmax_it_cannot_look_behind_is_refused(self):
    """Rather than taken for a logit: its gradient fades where it is sure."""
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Lambda(lambda z: tf.nn.softmax(2 * z + 1))(x)
    with self.assertRaisesRegex(ValueError, "(?i)softmax"):
      tap.Tap(keras.Model(inputs, x), ["conv"])(tiny.images(2, size=4))

  def test_a_stripped_model(self):
    """Trap 5: its layers' `output` belongs to the old graph."""
    pictures = tiny.images(3)
    pruned = tiny.prune(tiny.conv_net(head="softmax"))
    want = tap.Tap(pruned, ["act"])(pictures)
    stripped = tfmot.sparsity.keras.strip_pruning(pruned)
    layer = layers.find_layer(stripped, "act")
    with self.assertRaises((ValueError, AttributeError)):  # The trap is real.
      keras.Model(stripped.inputs, layer.output)(pictures)
    got = tap.Tap(stripped, ["act"])(pictures)
    np.testing.assert_array_equal(got.features[0], want.features[0])
    np.testing.assert_array_equal(got.logits, want.logits)
    # The old model still has its features.
    again = tap.Tap(pruned, ["act"])(pictures)
    np.testing.assert_array_equal(again.features[0], want.features[0])

  def test_a_quantized_convolution_comes_before_the_normalization(self):
    """Trap 6."""
    pictures = tiny.images(3)
    model = tiny.conv_net()
    with tiny.fine_quantizers():
      got = tap.Tap(tiny.quantize(model), ["conv", "act"])(pictures)
    inside = keras.Model(model.inputs, [
        model.get_layer(name).output for name in ("conv", "bn", "act")])
    conv, normalized, act = inside(pictures)
    # 16 bits over -6..6, steps of 2e-4, on 18 weights.
    np.testing.assert_allclose(got.features[0], conv, atol=2e-3)
    # Twice that: the normalization's slope stretches the error before it.
    np.testing.assert_allclose(got.features[1], act, atol=4e-3)
    # Far above both bounds, so that it is not the normalized convolution.
    self.assertGreater(np.abs(got.features[0] - normalized).max(), 0.1)

  def test_runs_the_model_once(self):
    """Trap 4: pruning wrappers count forward calls."""
    model = tiny.prune(tiny.conv_net())
    for layer in model.layers:
      if hasattr(layer, "pruning_step"):
        layer.pruning_step.assign(0)
    reader = tap.Tap(model, ["conv", "act"])
    reader(tiny.images(2), training=True)
    self.assertEqual(set(tiny.pruning_steps(model)), {1})
    reader(tiny.images(2), training=False)
    self.assertEqual(set(tiny.pruning_steps(model)), {1})

  def test_leaves_the_model_as_it_is(self):
    model = tiny.conv_net()
    before, config = set(vars(model)), model.get_config()
    nodes = [len(layer.outbound_nodes) for layer in model.layers]
    weights = model.get_weights()
    tap.Tap(model, ["act"])(tiny.images(2))
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
      tap.Tap(model)

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras"):
      tap.Tap("net")


def _nested(seed=0, head="linear"):
  """A model made by transfer learning: a trunk, a pool and a new head."""
  plain = tiny.conv_net(tail="block", head=head, seed=seed)
  trunk = keras.Model(plain.input, plain.get_layer("act2").output, name="trunk")
  inner = keras.Model(trunk.input, trunk.output, name="inner")
  middle = keras.Sequential([inner], name="middle")
  top = keras.Sequential([
      keras.layers.Dense.from_config(plain.get_layer("logits").get_config())],
      name="top")
  inputs = keras.Input((tiny.SIZE, tiny.SIZE, 2))
  x = keras.layers.GlobalAveragePooling2D()(middle(inputs))
  model = keras.Model(inputs, top(x), name="outer")
  top.set_weights(plain.get_layer("logits").get_weights())
  return model, plain


class _Subclass(keras.Model):
  """A student as a subclass around a functional core."""

  def __init__(self, core, after=None):
    super().__init__()
    self.core = core
    self.before = keras.layers.Rescaling(1.0)
    self.after = after

  def call(self, inputs, training=None):
    output = self.core(self.before(inputs), training=training)
    return output if self.after is None else self.after(output)


class NestedTest(parameterized.TestCase):
  """Models that hold models: the same as without the nesting."""

  def _check(self, model, plain, names, **settings):
    pictures = tiny.images(3)
    want, got = tap.Tap(plain, names), tap.Tap(model, names, **settings)
    self.assertEqual(got.classes, want.classes)
    self.assertEqual(got.gives_logits, want.gives_logits)
    for training in (False, True):
      expected = want(pictures, training=training)
      for run in (got, tf.function(got)):
        result = run(pictures, training=training)
        for a, b in zip([*expected.features, expected.logits],
                        [*result.features, result.logits]):
          np.testing.assert_allclose(a, b, atol=FLOAT32)
        np.testing.assert_allclose(
            expected.output, model(pictures, training=training)
            if not settings else expected.output, atol=FLOAT32)

  @parameterized.parameters("linear", "softmax", "softmax_layer")
  def test_layers_and_head_inside_others(self, head):
    if head == "softmax_layer":
      plain = tiny.conv_net(tail="block", head=head)
      self._check(keras.Sequential([plain]), plain, ["act2", "act"])
      return
    self._check(*_nested(head=head), ["act2", "act"])

  def test_names_are_found_inside(self):
    model, _ = _nested()
    self.assertEqual(layers.spatial_layers(model), [
        "conv", "bn", "act", "conv2", "bn2", "act2"])
    with self.assertRaisesRegex(ValueError, "'relu9': model 'outer' has no la"):
      tap.Tap(model, ["relu9"])
    # A whole nested model is a layer too.
    pictures = tiny.images(2)
    whole, inside = tap.Tap(model, ["middle", "act2"])(pictures).features
    np.testing.assert_array_equal(whole, inside)

  def test_sensitivities_through_the_nesting(self):
    model, plain = _nested()
    pictures = tf.constant(tiny.images(3))
    gradients = []
    for each in (plain, model, _Subclass(model)):
      with tf.GradientTape() as tape:
        tape.watch(pictures)
        tapped = tap.Tap(each, ["act"])(pictures, training=True)
      gradients.append(tap.sensitivities(
          tape, tapped, top_class_seed(tapped.logits))[0])
    for each in gradients[1:]:
      np.testing.assert_allclose(each, gradients[0], atol=FLOAT32)

  @parameterized.parameters("linear", "softmax")
  def test_a_subclass_around_a_core(self, head):
    plain = tiny.conv_net(tail="block", head=head)
    self._check(_Subclass(plain), plain, ["act2", "act"])
    model, plain = _nested(head=head)
    self._check(_Subclass(model), plain, ["act2", "act"])

  def test_a_pruned_nested_model_runs_once(self):
    """Trap 4, inside a nested model and a subclass."""
    plain = tiny.prune(tiny.conv_net())
    for layer in plain.layers:
      if hasattr(layer, "pruning_step"):
        layer.pruning_step.assign(0)
    for model in (keras.Sequential([plain]), _Subclass(plain)):
      before = tiny.pruning_steps(plain)
      tap.Tap(model, ["act"])(tiny.images(2), training=True)
      self.assertEqual(
          set(tiny.pruning_steps(plain)), {before[0] + 1})

  def test_nothing_is_left_behind(self):
    model, _ = _nested()
    inner = [model, *(layer for layer in layers.graphs_in(model))]
    before = [set(vars(graph)) for graph in inner]
    nodes = [
        len(layer.outbound_nodes) for graph in inner for layer in graph.layers]
    reader = tap.Tap(model, ["act"])
    reader(tiny.images(2))
    with self.assertRaises(Exception):  # noqa: B017  Keras's own, by version.
      reader(np.ones((1, 2), np.float32))
    self.assertEqual([set(vars(graph)) for graph in inner], before)
    self.assertEqual(nodes, [
        len(layer.outbound_nodes) for graph in inner for layer in graph.layers])

  def test_what_an_inner_model_adds_to_its_loss_is_counted_once(self):
    plain = tiny.conv_net()
    plain.add_loss(tf.reduce_mean(plain.output**2))
    model = keras.Sequential([plain])
    pictures = tiny.images(2)
    tapped = tap.Tap(model, ["act"])(pictures)
    self.assertLen(model.losses, 1)
    # A mean of six squares in float32, by TensorFlow and by NumPy.
    self.assertAlmostEqual(
        float(model.losses[0]), np.mean(tapped.logits.numpy()**2), places=5)

  def test_what_it_refuses(self):
    plain = tiny.conv_net()
    twice = keras.Input((tiny.SIZE, tiny.SIZE, 2))
    twice = keras.Model(twice, keras.layers.Add()([plain(twice), plain(twice)]))
    with self.assertRaisesRegex(ValueError, "runs the model 'net'.* 2 times"):
      tap.Tap(twice, ["act"])(tiny.images(2))
    after = _Subclass(plain, after=tf.nn.softmax)
    with self.assertRaisesRegex(ValueError, "computes something after the mod"):
      tap.Tap(after, ["act"])(tiny.images(2))
    class Empty(keras.Model):
      pass
    with self.assertRaisesRegex(ValueError, r"must be Functional.*holds none"):
      tap.Tap(Empty())
    two = _Subclass(plain)
    two.other = tiny.conv_net(name="other")
    with self.assertRaisesRegex(ValueError, "it holds 'net', 'other'"):
      tap.Tap(two)


class OutputsTest(parameterized.TestCase):

  def _model(self, kind):
    single = tiny.conv_net(tail="block", head="softmax")
    size = keras.layers.Dense(1, name="size")(single.get_layer("pool").output)
    outputs = {"list": [size, single.output],
               "dict": {"a_size": size, "kind": single.output}}[kind]
    return keras.Model(single.input, outputs, name="several"), single

  @parameterized.parameters(("list", "logits"), ("dict", "kind"))
  def test_one_of_several(self, kind, name):
    model, single = self._model(kind)
    pictures = tiny.images(3)
    got = tap.Tap(model, ["act2"], output=name)(pictures)
    want = tap.Tap(single, ["act2"])(pictures)
    # The same layers in a graph of one head more: float32 rounding.
    np.testing.assert_allclose(got.logits, want.logits, atol=1e-6)
    np.testing.assert_allclose(got.features[0], want.features[0], atol=1e-6)
    tf.nest.map_structure(
        np.testing.assert_array_equal, got.output, model(pictures))

  def test_none_or_another_is_refused(self):
    model, _ = self._model("list")
    with self.assertRaisesRegex(
        ValueError, r"must have one output.*it has \['size', 'logits'\]"):
      tap.Tap(model)
    with self.assertRaisesRegex(
        ValueError, r"output must be one of model 'several'.*got 'kind'"):
      tap.Tap(model, output="kind")

  @parameterized.parameters("list", "dict")
  def test_several_inputs(self, kind):
    base = tiny.conv_net()
    extra = keras.Input((5,), name="extra")
    x = keras.layers.Concatenate()([base.get_layer("pool").output, extra])
    x = keras.layers.Dense(3, name="head")(x)
    inputs = ([base.input, extra] if kind == "list" else
              {"pictures": base.input, "extra": extra})
    model = keras.Model(inputs, x)
    data = [tf.constant(tiny.images(2)), tf.ones((2, 5))]
    if kind == "dict":
      data = {"extra": data[1], "pictures": data[0]}
    got = tap.Tap(model, ["act"])(data)
    np.testing.assert_array_equal(got.logits, model(data))


class PathsTest(parameterized.TestCase):
  """A layer's features are its output, not its input that others share."""

  @parameterized.parameters(True, False)
  def test_a_layer_that_hands_on_its_input(self, first):
    """By hand: the mean of 3 x + 5 act(x), two positions, act(x) = x."""
    layers = keras.layers
    inputs = keras.Input((1, 2, 1))
    x = layers.Conv2D(1, 1, use_bias=False)(inputs)
    ways = [layers.Activation("linear", name="act")(x), x]
    last = [layers.Conv2D(1, 1, use_bias=False, name=name)(way)
            for name, way in sorted(zip(("behind", "beside"), ways),
                                    reverse=not first)]
    model = keras.Model(
        inputs, layers.GlobalAveragePooling2D()(layers.Add()(last)))
    model.get_layer("behind").set_weights([np.full((1, 1, 1, 1), 5.0)])
    model.get_layer("beside").set_weights([np.full((1, 1, 1, 1), 3.0)])
    images = tf.ones([1, 1, 2, 1])
    reader = tap.Tap(model, ["act"])
    for watched in (False, True):
      with tf.GradientTape(watch_accessed_variables=not watched) as tape:
        tapped = reader(images, tape=tape if watched else None)
      gradient, = tap.feature_gradients(tape, tapped, tf.ones([1, 1]))
      np.testing.assert_array_equal(np.ravel(gradient), [2.5, 2.5])


if __name__ == "__main__":
  absltest.main()
