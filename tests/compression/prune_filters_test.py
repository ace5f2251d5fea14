"""Tests of prune_filters.py and channel_slicing.py.

A pruned model is held against the same model with those channels at zero.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.prune_filters import prune_filters
from tests import channel_nets as nets
from tests import tiny
from tests.export.conversion import pretrained_test as pretrained

_layers = keras.layers
# Scores without the channels that are zero: float32 sums in another order, in
# all layers. Absolute, as scores may be near 0.
FLOAT32 = 1e-5


@functools.cache
def shared(build, *settings):
  """Builds a model once for all tests that leave it as it is."""
  return build(*settings)


def mobilenet_v1():
  return nets.settle(keras.applications.MobileNet(
      (32, 32, 3), alpha=0.25, weights=None, classes=5))


def mobilenet_v2():
  return nets.settle(keras.applications.MobileNetV2(
      (32, 32, 3), alpha=0.35, weights=None, classes=5))


def set_filters(layer, norms):
  """Gives each filter of a layer an L1 norm, biases in the order 0, 1, 2."""
  kernel, bias = layer.get_weights()
  kernel = np.ones_like(kernel) / kernel[..., 0].size * np.array(norms)
  layer.set_weights([kernel, np.arange(len(bias), dtype=np.float32)])


class _PruningTest(parameterized.TestCase):

  def check(self, model, sparsity, pictures=None, atol=FLOAT32, **settings):
    """Prunes, and holds the outputs against those of zeroed filters."""
    images = nets.pictures(model) if pictures is None else pictures
    if settings.get("criterion", "l1") != "l1":
      settings["images"] = images
    before = model.get_weights()
    # channel_gates_test has the scores of channels as a graph.
    with tiny.eager():
      pruned, channels = prune_filters(
          model, sparsity, return_channels=True, **settings)
    self.assertTrue(tiny.weights_equal(model.get_weights(), before))
    self.check_channels(model, pruned, channels)
    got = pruned(images).numpy()
    want = nets.zeroed_outputs(model, pruned, images)
    # Absolute alone: see FLOAT32, or the caller's reason for its own.
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    # The comparison says something: the outputs depend on the image, and on
    # the filters.
    self.assertGreater(np.std(got, axis=0).max(), 1e-3)
    whole = model(images).numpy()
    # Above any rounding that `atol` allows: the filters that went did count.
    self.assertGreater(np.abs(got - whole).max(), 1e-2)
    self.assertLess(pruned.count_params(), model.count_params())
    self.assertEqual([layer.name for layer in pruned.layers],
                     [layer.name for layer in model.layers])
    self.assertEqual(pruned.output_shape, model.output_shape)
    return pruned

  def check_channels(self, model, pruned, channels):
    """Biases and normalizations are those of the channels that are named."""
    narrower = {
        layer.name for layer in pruned.layers
        if layer.output_shape != model.get_layer(layer.name).output_shape}
    self.assertNotEmpty(narrower)
    self.assertEqual(set(channels), narrower)
    for layer in pruned.layers:
      if type(layer) is keras.layers.BatchNormalization:
        count = 4
      elif getattr(layer, "use_bias", False):
        count = 1  # The last of its weights.
      else:
        continue
      left = channels.get(layer.name, slice(None))
      for weight, whole in zip(
          layer.get_weights()[-count:],
          model.get_layer(layer.name).get_weights()[-count:]):
        np.testing.assert_array_equal(weight, whole[left])


class EqualToZeroedTest(_PruningTest):

  @parameterized.named_parameters(
      ("vgg", lambda: nets.vgg(False)),
      ("resnet_8", nets.resnet_8),
      ("densenet", nets.densenet),
      ("squeeze_excite_dense", lambda: nets.squeeze_excite(True)),
      ("prelu", lambda: nets.prelu(False)),
      ("prelu_shared", lambda: nets.prelu(True)),
      ("depth_multiplier", lambda: nets.separable(2)),
      ("shapes", nets.shapes),
      ("merges", nets.merges))
  def test_shape(self, build):
    self.check_criteria(build())

  @parameterized.named_parameters(
      ("vgg_bn", lambda: nets.vgg(True)),
      ("squeeze_excite_conv", lambda: nets.squeeze_excite(False)),
      ("separable", lambda: nets.separable(1)),
      ("mobilenet_v1", mobilenet_v1),
      ("mobilenet_v2", mobilenet_v2))
  @pytest.mark.slow("pruning")
  def test_more_shapes(self, build):
    self.check_criteria(build())

  def check_criteria(self, model):
    self.check(model, 0.4)
    self.check(model, 0.25, criterion="taylor")

  @pytest.mark.slow("pruning")
  def test_mobilenet_v3(self):
    self.check(nets.settle(keras.applications.MobileNetV3Small(
        (32, 32, 3), weights=None, classes=5)), 0.3)

  @pytest.mark.slow("pruning")
  def test_efficientnet(self):
    self.check(nets.settle(keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None, classes=5)), 0.3)

  @pytest.mark.slow("pruning")
  def test_densenet_121(self):
    self.check(nets.settle(keras.applications.DenseNet121(
        input_shape=(32, 32, 3), weights=None, classes=5)), 0.3)

  @pytest.mark.slow("pruning")
  def test_vgg_16(self):
    base = keras.applications.VGG16(
        include_top=False, input_shape=(32, 32, 3), weights=None)
    x = _layers.Flatten(name="flatten")(base.output)
    x = _layers.Dense(64, "relu", name="fc1")(x)
    x = _layers.Dense(5, name="predictions")(x)
    self.check(nets.settle(keras.Model(base.inputs, x)), 0.3)

  @parameterized.parameters(
      (nets.functions, ("a_bn", "b_bn", "c_bn")), (nets.smooth, ("a", "b")))
  def test_channels_that_do_not_vanish_are_zero_where_they_are_read(
      self, build, names):
    # A sigmoid makes 1/2 of a zeroed filter; a removed one gives nothing.
    model = build()
    pruned = prune_filters(model, 0.5)
    masks = {name: nets.kept(model, pruned, name) for name in names}
    reference = build(masks)
    reference.set_weights(model.get_weights())
    images = nets.pictures(model)
    # Absolute alone: see FLOAT32.
    np.testing.assert_allclose(
        pruned(images), reference(images), rtol=0, atol=FLOAT32)
    # Control: filters that are zeroed where they are made give other scores.
    self.assertGreater(
        np.abs(pruned(images) - nets.zeroed_outputs(
            model, pruned, images)).max(), 0.01)

  def test_a_hidden_dense_layer_that_is_named(self):
    pruned = self.check(nets.vgg(False), {"fc1": 0.5, "conv2_b": 0.25})
    self.assertEqual(pruned.get_layer("fc1").units, 5)
    self.assertEqual(pruned.get_layer("fc2").units, 9)
    self.assertEqual(pruned.get_layer("conv2_b").filters, 12)

  def test_what_is_not_known_stays_whole_and_right(self):
    def build(x):
      x = nets.conv(x, 6, "a")
      x = nets.conv(x, 6, "b")
      x = _layers.Conv2D(6, 3, groups=2, padding="same", name="grouped")(x)
      x = _layers.LayerNormalization(name="norm")(x)
      x = nets.conv(x, 5, "c")
      x = _layers.Lambda(lambda features: features[..., ::-1], name="turn")(x)
      return nets.conv(x, 4, "d")
    pruned = self.check(nets.net(build), 0.5, exclude="norm")
    self.assertEqual(
        [pruned.get_layer(name).filters for name in "abcd"], [3, 6, 5, 2])

  def test_what_was_measured_on_the_data_stays(self):
    norm = _layers.Normalization(name="norm")
    pruned = self.check(
        nets.net(lambda x: nets.conv(norm(x), 8, "conv")), 0.5)
    images = nets.pictures(pruned)
    np.testing.assert_array_equal(
        pruned.get_layer("norm")(images), norm(images))
    # Control: the layer changes its inputs.
    self.assertGreater(np.abs(norm(images) - images).max(), 0.1)

  def test_shared_layers(self):
    def build(x):
      twice = _layers.Conv2D(6, 3, padding="same", name="twice")
      norm = _layers.BatchNormalization(name="norm")
      relu = _layers.ReLU(name="relu")
      first, second = nets.conv(x, 4, "a"), nets.conv(x, 4, "b")
      x = _layers.Concatenate(name="join")(
          [relu(norm(twice(first))), relu(norm(twice(second)))])
      return nets.conv(x, 6, "c")
    pruned = self.check(nets.net(build), 0.5)
    self.assertLen(pruned.get_layer("twice").inbound_nodes, 2)

  def test_a_nested_model_stays_whole(self):
    inside = nets.settle(tiny.conv_net(width=5, classes=6))
    def build(x):
      x = nets.conv(x, 4, "a")
      x = _layers.Cropping2D(1, name="crop")(nets.conv(x, 2, "b"))
      return _layers.Dense(3, name="logits")(inside(x))
    model = nets.net(build, head=False)
    pruned = prune_filters(model, 0.5)
    self.assertEqual(pruned.get_layer("a").filters, 2)
    self.assertEqual(pruned.get_layer("b").filters, 2)
    images = nets.pictures(model)
    reference = tiny.copy_of(model)
    stays = nets.kept(model, pruned, "a_bn")
    for weight in reference.get_layer("a_bn").trainable_weights:
      weight.assign(weight * stays)
    np.testing.assert_allclose(pruned(images), reference(images), atol=FLOAT32)

  def test_sequential(self):
    model = keras.Sequential([
        _layers.Conv2D(6, 3, activation="relu", input_shape=(8, 8, 2)),
        _layers.Conv2D(5, 3), _layers.ReLU(), _layers.Flatten(),
        _layers.Dense(3)])
    pruned = self.check(nets.settle(model), 0.5)
    self.assertIsInstance(pruned, keras.Sequential)
    self.check(model, 0.5, criterion="taylor")

  def test_sequential_that_was_built_late(self):
    model = keras.Sequential([
        _layers.Conv2D(6, 3, activation="relu"), _layers.Flatten(),
        _layers.Dense(3)])
    model.build((None, 8, 8, 2))
    self.check(nets.settle(model), 0.5)
    self.check(model, 0.5, criterion="taylor")

  def test_two_inputs(self):
    inputs = [keras.Input((8, 8, 2)) for _ in range(2)]
    x = _layers.Add()([nets.conv(tensor, 6, name)
                       for tensor, name in zip(inputs, "ab")])
    x = _layers.Dense(3)(_layers.GlobalAveragePooling2D()(x))
    model = tiny.shake(keras.Model(inputs, x))
    pruned = prune_filters(model, 0.5)
    images = list(tiny.images(8, size=8).reshape(2, 4, 8, 8, 2))
    np.testing.assert_allclose(
        pruned(images), nets.zeroed_outputs(model, pruned, images),
        atol=FLOAT32)
    with self.assertRaisesRegex(ValueError, "must take one input.*takes 2"):
      prune_filters(model, 0.5, criterion="taylor", images=images[0])

  def test_stripped_of_pruning(self):
    model = tfmot.sparsity.keras.strip_pruning(
        tiny.prune(nets.settle(tiny.conv_net(width=6, tail="block"))))
    self.check(model, 0.5)

  def test_float64(self):
    with tiny.float64():
      model = nets.settle(tiny.conv_net(width=6, tail="depthwise"))
    # The same sums in float64.
    pruned = self.check(model, 0.5, criterion="taylor", atol=1e-12)
    self.assertEqual(pruned.output.dtype, tf.float64)

  def test_half_precision(self):
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
      model = nets.settle(tiny.conv_net(
          head="softmax", width=6, tail="depthwise"))
    finally:
      keras.mixed_precision.set_global_policy(policy)
    # The same sums in float16, whose steps are 1/2048 just below 1: four steps.
    pruned = self.check(model, 0.5, criterion="taylor", atol=2e-3)
    self.assertEqual(pruned.get_layer("conv").compute_dtype, "float16")


class ChoiceTest(_PruningTest):

  def setUp(self):
    super().setUp()
    # channel_gates_test has the scores of channels as a graph.
    self.enter_context(tiny.eager())

  def test_the_least_norms_go(self):
    model = tiny.copy_of(nets.vgg(False))
    set_filters(model.get_layer("conv0_a"), [3, 1, 8, 2, 5, 9, 4, 7])
    pruned = prune_filters(model, 0.375)
    np.testing.assert_array_equal(
        pruned.get_layer("conv0_a").bias, [2, 4, 5, 6, 7])

  def test_tied_norms_are_relative_to_their_layer(self):
    def build(x):
      return _layers.Add()([
          _layers.Conv2D(4, 3, padding="same", name="large")(x),
          _layers.Conv2D(4, 1, name="small")(x)])
    model = nets.net(build)
    # The sums of the plain norms are 140, 123, 156, 181; relative to the means
    # of 100 and 50 they are 1.9, 1.83, 2.08, 2.19; times 5 in the second layer.
    set_filters(model.get_layer("large"), [90, 103, 107, 100])
    set_filters(model.get_layer("small"), [5, 4, 5, 6])
    # Relative: .9 + 1, 1.03 + .8, 1.07 + 1, 1 + 1.2. Plain sums would remove
    # the first, whose 95 is the least.
    pruned = prune_filters(model, 0.25)
    for name in ("large", "small"):
      np.testing.assert_array_equal(pruned.get_layer(name).bias, [0, 2, 3])

  def test_ties_keep_their_order_and_zeros_do_no_harm(self):
    model = nets.vgg(False)
    for norm in (1, 0):
      set_filters(model.get_layer("conv0_a"), [norm] * 8)
      pruned = prune_filters(model, 0.25)
      np.testing.assert_array_equal(
          pruned.get_layer("conv0_a").bias, range(2, 8))

  @parameterized.parameters(
      (0, 1, 8), (0.05, 1, 8), (0.07, 1, 7), (0.3, 1, 6), (0.99, 1, 1),
      (0.99, 3, 3), (0.5, 100, 8))
  def test_how_many_stay(self, sparsity, min_filters, left):
    pruned = prune_filters(
        shared(nets.vgg, False), sparsity, min_filters=min_filters)
    self.assertEqual(pruned.get_layer("conv0_a").filters, left)

  def test_no_sparsity_gives_a_copy(self):
    model = shared(nets.resnet_8)
    pruned = prune_filters(model, 0.0)
    self.assertTrue(
        tiny.weights_equal(pruned.get_weights(), model.get_weights()))
    self.assertEmpty({id(variable) for variable in pruned.variables}
                     & {id(variable) for variable in model.variables})

  def test_by_name(self):
    model = shared(nets.resnet_8)
    pruned = prune_filters(model, {"s1_a": 0.5, "stem": 0.25})
    filters = {layer.name: layer.filters for layer in pruned.layers
               if isinstance(layer, _layers.Conv2D)}
    self.assertEqual(filters, {
        "stem": 6, "s0_a": 8, "s0_b": 6, "s1_a": 6, "s1_b": 12,
        "s1_short": 12, "s2_a": 16, "s2_b": 16, "s2_short": 16})

  def test_exclude(self):
    model = shared(nets.resnet_8)
    for exclude in ("s1_act", ["s1_b"], ("s1_short", "s1_sum")):
      pruned = prune_filters(model, 0.5, exclude=exclude)
      self.assertEqual(
          [pruned.get_layer(name).filters for name in (
              "s0_b", "s1_a", "s1_b", "s1_short")], [4, 6, 12, 12])

  @parameterized.parameters("taylor", "map")
  def test_what_the_score_does_not_rest_on_goes(self, criterion):
    model = nets.settle(tiny.conv_net(width=4))
    kernel = np.zeros((4, 3), np.float32)
    kernel[[1, 3]] = 1  # The score does not read the others.
    model.get_layer("logits").kernel.assign(kernel)
    pruned = prune_filters(
        model, 0.5, criterion=criterion, images=tiny.images(8))
    images = tiny.images(3, seed=5)
    np.testing.assert_allclose(pruned(images), model(images), atol=FLOAT32)
    # Control: by their norms alone, filters go that the score rests on.
    self.assertGreater(
        np.abs(prune_filters(model, 0.5)(images) - model(images)).max(), 0.01)

  @parameterized.parameters("taylor", "map")
  def test_the_same_every_time(self, criterion):
    model = tiny.conv_net(width=8, tail="depthwise")
    first, second = (prune_filters(
        model, 0.5, criterion=criterion, images=tiny.images(8))
        for _ in range(2))
    self.assertTrue(
        tiny.weights_equal(first.get_weights(), second.get_weights()))

  def test_the_map_of_an_earlier_layer(self):
    model = nets.settle(tiny.conv_net(width=8, tail="block"))
    first, second = (
        self.check(model, 0.5, criterion="map", layer=layer).get_weights()
        for layer in ("act", None))
    self.assertFalse(tiny.weights_equal(first, second))

  def test_layers_out_of_training_stay_so(self):
    model = nets.resnet_8()
    model.get_layer("s0_a").trainable = False
    model.get_layer("s0_a_bn").trainable = False
    pruned = self.check(model, 0.5)
    self.assertFalse(pruned.get_layer("s0_a_bn").trainable)
    self.assertTrue(pruned.get_layer("s0_b").trainable)


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      (1.0, "got 1.0"), (-0.1, "got -0.1"), (float("nan"), "got nan"),
      ("0.5", "got '0.5'"), (True, "got True"), (None, "got None"),
      ({"conv0_a": 1}, "got 1"))
  def test_sparsity(self, sparsity, got):
    with self.assertRaisesRegex(
        ValueError, f"sparsity must be a number of 0 or more, below 1.*{got}"):
      prune_filters(shared(nets.vgg, False), sparsity)

  def test_names(self):
    model = shared(nets.resnet_8)
    with self.assertRaisesRegex(
        ValueError, "no filters free to go in layer 'conv9'.*'s0_a'"):
      prune_filters(model, {"conv9": 0.5})
    with self.assertRaisesRegex(
        ValueError, "in layer 'logits'.*reach the model's output"):
      prune_filters(model, {"logits": 0.5})
    with self.assertRaisesRegex(
        ValueError, "must be equal for layers whose filters are tied; got "
        "{'stem': 0.5, 's0_b': 0.25}"):
      prune_filters(model, {"stem": 0.5, "s0_b": 0.25})
    with self.assertRaisesRegex(ValueError, "in layer 's0_b'.*are excluded"):
      prune_filters(model, {"s0_b": 0.25}, exclude="stem")
    with self.assertRaisesRegex(
        ValueError, "exclude must name layers of model 'net'; it has no 'no'"):
      prune_filters(model, 0.5, exclude=["stem", "no"])

  def test_other_settings(self):
    model = shared(nets.vgg, False)
    with self.assertRaisesRegex(
        ValueError, "criterion must be one of .*got 'l2'"):
      prune_filters(model, 0.5, criterion="l2")
    for number in (0, 1.5, None):
      with self.assertRaisesRegex(ValueError, "min_filters must be an integer"):
        prune_filters(model, 0.5, min_filters=number)
    for criterion in ("taylor", "map"):
      with self.assertRaisesRegex(
          ValueError, f"images must be given.*'{criterion}'"):
        prune_filters(model, 0.5, criterion=criterion)

  def test_nothing_is_free(self):
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(
        inputs, _layers.Dense(3, name="logits")(_layers.Flatten()(inputs)))
    with self.assertRaisesRegex(
        ValueError, "has no filter that is free to go; those of 'logits' reach "
        "the model's output.*Nested models are left whole; kap.unnest"):
      prune_filters(model, 0.5)
    model = tiny.conv_net()
    with self.assertRaisesRegex(ValueError, "has no filter that is free"):
      prune_filters(model, 0.5, exclude="conv")

  def test_wrapped(self):
    for wrap in (tiny.prune, tiny.quantize):
      with self.assertRaisesRegex(ValueError, "strip it first"):
        prune_filters(wrap(tiny.conv_net()), 0.5)

  def test_weights_that_are_not_numbers(self):
    model = tiny.conv_net()
    kernel = model.get_layer("conv").kernel
    kernel.assign(kernel * np.nan)
    with self.assertRaisesRegex(ValueError, "'conv' has weights that are not"):
      prune_filters(model, 0.5)
    with self.assertRaisesRegex(ValueError, "gradient that is not finite"):
      prune_filters(model, 0.5, criterion="taylor", images=tiny.images())

  def test_no_model(self):
    with self.assertRaisesRegex(TypeError, "model must be a tf_keras.Model"):
      prune_filters(None, 0.5)


class AfterwardsTest(_PruningTest):

  def test_as_a_student(self):
    teacher = nets.settle(tiny.conv_net(width=8, tail="block"))
    student = prune_filters(teacher, 0.5)
    self.assertIsNone(student.optimizer)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True),
                    run_eagerly=True)
    before = [weight.copy() for weight in teacher.get_weights()]
    history = student.fit(
        tiny.images(8), tiny.labels(8), batch_size=4, verbose=0,
        callbacks=[kap.PreserveAttribution(teacher, kap.WCAM("act2"))])
    self.assertTrue(np.isfinite(history.history["attr_loss"]).all())
    self.assertBetween(history.history["attr_agreement"][0], 0, 1 - 1e-4)
    self.assertTrue(tiny.weights_equal(teacher.get_weights(), before))

  @parameterized.parameters(".h5", ".keras")
  def test_saves_and_loads(self, suffix):
    pruned = prune_filters(nets.squeeze_excite(True), 0.5)
    path = tiny.folder(self) / f"pruned{suffix}"
    pruned.save(path)
    loaded = keras.models.load_model(path)
    images = nets.pictures(pruned)
    np.testing.assert_array_equal(loaded(images), pruned(images))

  def test_ships(self):
    self.check_ships(nets.settle(
        tiny.conv_net(width=8, tail="block")), "act2", "float32", 1e-5)

  @pytest.mark.slow("pruning")
  def test_ships_in_eight_bits(self):
    self.check_ships(shared(nets.resnet_8), "s2_act", "int8", 0.1)

  def check_ships(self, model, layer, mode, error):
    pruned = prune_filters(model, 0.5)
    images = nets.pictures(pruned, 32)
    content = kap.export.convert(
        pruned, kap.WCAM(layer), mode=mode, representative_images=images)
    np.testing.assert_allclose(
        kap.export.Interpreter(content).predict(images),
        pruned.predict(images, verbose=0), atol=error)

  def test_prunes_again_and_wraps(self):
    once = prune_filters(shared(nets.resnet_8), 0.5)
    twice = self.check(nets.settle(once), 0.5)
    self.assertEqual(twice.get_layer("stem").filters, 2)
    tfmot.quantization.keras.quantize_model(twice)


@pytest.mark.slow("pruning")
class PretrainedTest(_PruningTest):
  """On trained models; these end in a softmax."""

  def test_resnet_8(self):
    model = pretrained.load(pretrained.ResNet8Test.path)
    images = pretrained.cifar("test", 16)
    self.check(model, 0.25, images)
    self.check(model, 0.25, images, criterion="taylor")

  def test_visual_wake_words(self):
    model = pretrained.load(pretrained.VisualWakeWordsTest.path)
    images = pretrained.voc(2, 16, 96) / 255
    self.check(model, 0.1, images)
    self.check(model, 0.1, images, criterion="taylor")

  def test_the_map_criterion_keeps_the_map(self):
    model = pretrained.load(pretrained.ResNet8Test.path)
    images = pretrained.cifar("test", 200)
    classes = model.predict(images, verbose=0).argmax(1)
    maps = kap.attribution.grad_cam(model, images, classes)
    cosines = {}
    for criterion in ("l1", "taylor", "map"):
      pruned = prune_filters(model, 0.125, criterion=criterion,
                             images=pretrained.cifar("train", 128))
      others = kap.attribution.grad_cam(pruned, images, classes)
      cosines[criterion] = (tiny.unit(maps) * tiny.unit(others)).sum(1).mean()
    # Measured: .515 for l1, .600 for taylor, .655 for map.
    self.assertGreater(cosines["map"], cosines["l1"] + 0.05)

  def test_mobilenet(self):
    model = pretrained.mobile_net(224)
    self.check(model, 0.1, pretrained.voc(2, 8, 224) / 127.5 - 1)

  def test_streaming_wakeword(self):
    folder = pretrained.MLPERF / "streaming_wakeword"
    model = pretrained.load(folder / "str_ww_ref_model.h5")
    with np.load(pretrained.model_path(
        folder / "calibration_samples.npz")) as file:
      self.check(model, 0.2, np.float32(file["specs"][:16]))


if __name__ == "__main__":
  absltest.main()
