"""Tests of filter_refitting.py: by hand, by brute force, on models."""

import itertools
from unittest import mock

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.compression.channel_graph import ChannelGraph
from keras_attr_preserve.compression.filter_refitting import (
  rank_channels,
  reader_moments,
)
from keras_attr_preserve.compression.least_squares import moments
from keras_attr_preserve.compression.prune_filters import (
  filter_sparsities,
  prune_filters,
)
from keras_attr_preserve.models.tap import Tap
from tests import channel_nets as nets
from tests import tiny
from tests.export.conversion import pretrained_test as pretrained

_layers = keras.layers


def _undamped():
  return mock.patch.object(moments, "DAMPING", 1e-12)


def _pair(channels=5, behind=None):
  """Two convolutions and a head, or `behind` after the first one."""
  def build(x):
    x = nets.conv(x, channels, "first")
    return (behind or (lambda x: nets.conv(x, 4, "second")))(x)
  return nets.net(build)


def _outputs(model, name, images):
  return keras.Model(model.inputs, model.get_layer(name).output)(
      images).numpy().astype(np.float64)


def _error(seen, expected):
  """Sum of squares that least squares leaves."""
  if not seen.shape[1]:
    return np.sum(np.square(expected))
  solution = np.linalg.lstsq(seen, expected, rcond=None)[0]
  return np.sum(np.square(seen @ solution - expected))


class RankChannelsTest(parameterized.TestCase):

  def choose(self, model, images, count, name="first"):
    """Which filters of a layer go, by their place in it."""
    graph = ChannelGraph(model)
    channels = graph.uses[name].outputs
    chosen, costs = rank_channels(
        model, graph, channels, count,
        reader_moments(model, graph, images, 32))
    self.assertLen(costs, count)
    return [int(np.flatnonzero(channels == channel)[0]) for channel in chosen]

  @parameterized.parameters(*itertools.product((1, 2, 3), range(3)))
  def test_as_by_brute_force(self, count, seed):
    # One at a time, each when the others have made up for those before it.
    images = tiny.images(40, size=nets.SIZE, seed=seed)
    model = nets.net(lambda x: nets.conv(
        nets.conv(x, 5, "first"), 4, "second", size=1, norm=False,
        activation=None), seed=seed)
    seen = _outputs(model, "first_act", images).reshape(-1, 5)
    kernel = model.get_layer("second").get_weights()[0].reshape(5, 4)
    left, gone = [*range(5)], []
    for _ in range(count):
      errors = [
          _error(seen[:, [channel for channel in left if channel != without]],
                 seen @ kernel) for without in left]
      gone.append(left.pop(int(np.argmin(errors))))
    with _undamped():
      self.assertEqual(self.choose(model, images, count), gone)

  @parameterized.parameters(2, 3)
  def test_a_window_reads_several_rows_of_a_channel(self, span):
    images = tiny.images(60, size=nets.SIZE)
    model = _pair(behind=lambda x: nets.conv(
        x, 4, "second", size=span, norm=False, activation=None))
    features = np.pad(_outputs(model, "first_act", images), [
        (0, 0), ((span - 1) // 2, span // 2), ((span - 1) // 2, span // 2),
        (0, 0)])
    seen = np.lib.stride_tricks.sliding_window_view(
        features, (span, span), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    kernel = model.get_layer("second").get_weights()[0]
    expected = seen.reshape(-1, kernel[..., 0].size) @ kernel.reshape(
        -1, kernel.shape[-1])
    errors = [
        _error(np.delete(seen, channel, axis=-1).reshape(len(expected), -1),
               expected) for channel in range(5)]
    with _undamped():
      self.assertEqual(self.choose(model, images, 1), [np.argmin(errors)])

  def test_so_does_a_dense_layer_behind_a_flatten(self):
    images = tiny.images(60, size=nets.SIZE)
    inputs = keras.Input((nets.SIZE, nets.SIZE, 2))
    x = _layers.AveragePooling2D(4, name="small")(
        nets.conv(inputs, 5, "first"))
    model = nets.settle(keras.Model(inputs, _layers.Dense(
        4, name="second")(_layers.Flatten()(x))))
    seen = _outputs(model, "small", images).reshape(60, 4, 5)
    expected = seen.reshape(60, -1) @ model.get_layer("second").get_weights()[0]
    errors = [_error(np.delete(seen, channel, axis=-1).reshape(60, -1),
                     expected) for channel in range(5)]
    with _undamped():
      self.assertEqual(self.choose(model, images, 1), [np.argmin(errors)])

  def test_all_who_read_it_count_by_what_they_give(self):
    # "loud" reads both alike and gives much; "quiet" reads the second channel
    # alone. Of "loud" one makes up for the other, of "quiet" nothing does.
    inputs = keras.Input((nets.SIZE, nets.SIZE, 2))
    x = _layers.Conv2D(2, 1, use_bias=False, name="first")(inputs)
    loud = _layers.Conv2D(1, 1, use_bias=False, name="loud")(x)
    quiet = _layers.Conv2D(1, 1, use_bias=False, name="quiet")(x)
    model = keras.Model(inputs, _layers.Dense(2)(
        _layers.GlobalAveragePooling2D()(
            _layers.Concatenate()([loud, quiet]))))
    model.get_layer("first").set_weights([np.eye(2)[None, None]])
    model.get_layer("loud").set_weights([np.full((1, 1, 2, 1), 1e3)])
    model.get_layer("quiet").set_weights(
        [np.array([0.0, 1e-3]).reshape(1, 1, 2, 1)])
    self.assertEqual(
        self.choose(model, tiny.images(9, size=nets.SIZE), 1), [0])

  def test_costs_are_shares_of_what_the_reader_gives(self):
    # Of what a Dense layer gives, all is lost where all that it reads goes.
    inputs = keras.Input((nets.SIZE, nets.SIZE, 2))
    x = _layers.GlobalAveragePooling2D()(nets.conv(inputs, 5, "first"))
    model = nets.settle(keras.Model(inputs, _layers.Dense(3)(x)))
    graph = ChannelGraph(model)
    with _undamped():
      _, costs = rank_channels(
          model, graph, graph.uses["first"].outputs, 5, reader_moments(
              model, graph, tiny.images(40, size=nets.SIZE), 32))
    # With a damping of 1e-12 alone H's condition multiplies float64 rounding.
    self.assertAlmostEqual(costs.sum(), 1.0, places=5)

  def test_no_reader_to_refit(self):
    model = _pair(behind=lambda x: _layers.SeparableConv2D(4, 3)(x))
    graph = ChannelGraph(model)
    self.assertIsNone(rank_channels(
        model, graph, graph.uses["first"].outputs, 2, {}))


class PruneFiltersTest(parameterized.TestCase):
  """The criterion "obs" and `reconstruct`, as users see them."""

  @pytest.mark.slow("pruning")
  def test_nearer_to_the_teacher_than_without(self):
    self.check_nearer(nets.squeeze_excite(True))

  @parameterized.parameters(*sorted({*nets.NETS} - {"squeeze_excite"}))
  @pytest.mark.slow("pruning")
  def test_nearer_to_more_teachers_than_without(self, name):
    self.check_nearer(nets.NETS[name]())

  def check_nearer(self, teacher):
    before = teacher.get_weights()
    images, unseen = (nets.pictures(teacher, count, seed)
                      for count, seed in ((120, 3), (32, 4)))
    expected = _logits(teacher, unseen)
    errors, sizes = {}, set()
    for criterion, reconstruct in (
        ("l1", False), ("l1", True), ("obs", True)):
      student = prune_filters(
          teacher, 0.3, criterion=criterion, reconstruct=reconstruct,
          images=images, batch_size=60)
      errors[criterion, reconstruct] = np.linalg.norm(
          _logits(student, unseen) - expected)
      sizes.add(student.count_params())
    self.assertLen(sizes, 1)
    self.assertTrue(tiny.weights_equal(before, teacher.get_weights()))
    self.assertLess(errors["l1", True], errors["l1", False])
    self.assertLess(errors["obs", True], errors["l1", True])
    self.assertLess(errors["obs", True], 0.8 * errors["l1", False])

  def test_says_how_far_it_is(self):
    calls, model = [], _pair(channels=4)
    prune_filters(
        model, {"first": 0.5}, reconstruct=True,
        images=nets.pictures(model, 8),
        progress=lambda *counts: calls.append(counts))
    self.assertEqual(calls, [(1, 1)])

  def test_a_twin_takes_over(self):
    model = _pair(channels=4)
    for layer in ("first", "first_bn"):
      weights = model.get_layer(layer).get_weights()
      for weight in weights:
        weight[..., 2:] = weight[..., :2]
      model.get_layer(layer).set_weights(weights)
    images = tiny.images(40, size=nets.SIZE)
    with mock.patch.object(moments, "DAMPING", 1e-6):
      student = prune_filters(model, {"first": 0.5}, criterion="obs",
                              reconstruct=True, images=images)
    unseen = tiny.images(5, size=nets.SIZE, seed=4)
    # What a damping of 1e-6 holds back where inputs hardly vary, and float32.
    np.testing.assert_allclose(student(unseen), model(unseen), atol=1e-3)
    without = prune_filters(model, {"first": 0.5}, images=images)
    # Control: without a refit the twin's share is missing.
    self.assertGreater(np.abs(without(unseen) - model(unseen)).max(), 0.1)

  def test_readers_are_refitted_from_what_pruned_layers_give(self):
    model = nets.vgg(False)
    images = nets.pictures(model, 100)
    student = prune_filters(
        model, {"conv2_a": 0.5, "conv2_b": 0.5}, criterion="obs",
        reconstruct=True, images=images)
    # "fc1" stays whole and reads, through Flatten, half of its old inputs.
    seen, expected = (
        keras.Model(version.inputs, version.get_layer("fc1").input)(
            images).numpy().astype(np.float64) for version in (student, model))
    self.assertEqual(seen.shape[1], expected.shape[1] // 2)
    new, old = (version.get_layer("fc1").get_weights()[0].astype(np.float64)
                for version in (student, model))
    rows = np.array([np.flatnonzero(bias == model.get_layer(
        "conv2_b").get_weights()[1])[0] for bias in student.get_layer(
            "conv2_b").get_weights()[1]])
    old_rows = old.reshape(-1, 16, old.shape[-1])[:, rows].reshape(new.shape)
    slope = seen.T @ (seen @ new - expected @ old)
    slope += moments.DAMPING * np.sum(np.square(seen)) / (
        new.shape[0]) * (new - old_rows)
    # Terms of 1e4, and weights rounded to float32: 2e-4 was measured. Another
    # damping, such as half of it, would leave 3.
    self.assertLess(np.abs(slope).max(), 2e-3)
    # Control: the refit moved weights, which would else be equal to the bit.
    self.assertGreater(np.abs(new - old_rows).max(), 0.01)

  def test_a_layer_called_twice_and_a_transposed_one_stay(self):
    def build(x):
      x = nets.conv(x, 6, "before")
      twice = _layers.Conv2D(6, 3, padding="same", name="twice")
      x = twice(twice(x))
      x = nets.conv(x, 6, "after")
      return _layers.Conv2DTranspose(6, 3, name="back")(x)
    model = nets.net(build)
    images = tiny.images(30, size=nets.SIZE)
    student = prune_filters(model, 0.5, criterion="obs", reconstruct=True,
                            images=images)
    by_norm = prune_filters(model, 0.5)
    # Nothing that could be refitted reads "after", which goes by its norms.
    self.assertTrue(tiny.weights_equal(
        student.get_layer("after_bn").get_weights(),
        by_norm.get_layer("after_bn").get_weights()))
    for name in ("twice", "back"):
      old, new = (version.get_layer(name).get_weights()[0].ravel()
                  for version in (model, student))
      self.assertContainsSubset(new.tolist(), old.tolist())
    read = student.get_layer("after").get_weights()[0].ravel()
    self.assertNoCommonElements(
        read.tolist(), model.get_layer("after").get_weights()[0].ravel())

  @parameterized.parameters(
      (lambda: tiny.conv_net(width=8, tail="depthwise"), 8),
      (lambda: nets.separable(2), 1))
  def test_the_same_every_time_and_one_picture(self, build, count):
    model = build()
    first, second = (prune_filters(
        model, 0.5, criterion="obs", reconstruct=True,
        images=nets.pictures(model, count)) for _ in range(2))
    self.assertTrue(
        tiny.weights_equal(first.get_weights(), second.get_weights()))
    self.assertTrue(all(np.isfinite(x).all() for x in first.get_weights()))

  def test_dead_channels_go_first(self):
    model = _pair(channels=4)
    scale, offset, mean, variance = model.get_layer("first_bn").get_weights()
    scale[[1, 2]], offset[[1, 2]] = 0, -1  # The ReLU behind it gives zeros.
    model.get_layer("first_bn").set_weights([scale, offset, mean, variance])
    images = tiny.images(20, size=nets.SIZE)
    student = prune_filters(model, {"first": 0.5}, criterion="obs",
                            images=images)
    # Sums of float32 without the zeros of dead channels, in another order.
    np.testing.assert_allclose(student(images), model(images), atol=1e-5)

  def test_bad_settings(self):
    model = tiny.conv_net()
    for settings in ({"criterion": "obs"}, {"reconstruct": True}):
      with self.assertRaisesRegex(ValueError, "images must be given"):
        prune_filters(model, 0.5, **settings)
      bad = tiny.images(2)
      bad[0, 0, 0, 0] = np.nan
      with self.assertRaisesRegex(ValueError, "1 of 2 hold NaN"):
        prune_filters(model, 0.5, images=bad, **settings)
      with self.assertRaisesRegex(ValueError, "batch_size must be"):
        prune_filters(
            model, 0.5, images=tiny.images(2), batch_size=0, **settings)


class FilterSparsitiesTest(parameterized.TestCase):

  def model(self, width=6, spare=3):
    """A layer of which some filters are copies, and one of which none are."""
    def build(x):
      x = nets.conv(x, width, "spare")
      return nets.conv(x, width, "needed")
    model = nets.net(build)
    for layer in ("spare", "spare_bn"):
      weights = model.get_layer(layer).get_weights()
      for weight in weights:
        weight[..., -spare:] = weight[..., :spare]
      model.get_layer(layer).set_weights(weights)
    return model

  def test_takes_most_where_most_are_spared(self):
    images = tiny.images(60, size=nets.SIZE)
    with mock.patch.object(moments, "DAMPING", 1e-6):
      shares = filter_sparsities(self.model(), 0.25, images)
      self.assertEqual(shares, {"spare": 0.5, "needed": 0.0})
      student = prune_filters(self.model(), shares, criterion="obs",
                              reconstruct=True, images=images)
    unseen = tiny.images(5, size=nets.SIZE, seed=4)
    # What a damping of 1e-6 holds back where inputs hardly vary, and float32.
    np.testing.assert_allclose(
        student(unseen), self.model()(unseen), atol=1e-3)

  @parameterized.parameters(
      (0.9, "vgg"), (0.9, "resnet_8"), (0.1, "merges"))
  def test_as_many_as_asked_go(self, sparsity, name):
    self.check_count(sparsity, nets.NETS[name](), name)

  @parameterized.parameters(
      (0.1, "vgg"), (0.1, "resnet_8"), (0.9, "merges"))
  @pytest.mark.slow("pruning")
  def test_as_many_as_asked_go_of_others(self, sparsity, name):
    self.check_count(sparsity, nets.NETS[name](), name)

  def check_count(self, sparsity, model, name):
    before = model.get_weights()
    images = nets.pictures(model, 20)
    shares = filter_sparsities(model, sparsity, images, min_filters=2)
    self.assertTrue(tiny.weights_equal(before, model.get_weights()))
    student = prune_filters(model, shares, min_filters=2)
    groups = [group for group in ChannelGraph(model).groups
              if group.layers[0] in shares]
    widths = [[len(group.channels) for group in groups], [
        student.get_layer(group.layers[0]).get_weights()[-1].shape[-1]
        for group in groups]]
    self.assertGreaterEqual(min(widths[1]), 2)
    most = sum(width - 2 for width in widths[0])
    # In "merges" groups share layers, and their shares are rounded apart.
    self.assertAlmostEqual(
        sum(widths[0]) - sum(widths[1]), min(
            round(sparsity * sum(widths[0])), most),
        delta=2 if name == "merges" else 0)

  def test_what_stays_does_not_count(self):
    model = self.model()
    images = tiny.images(60, size=nets.SIZE)
    self.assertEqual(filter_sparsities(model, 0.5, images, exclude="needed"),
                     {"spare": 0.5})
    # Hidden Dense layers only go by name, as in prune_filters.
    shares = filter_sparsities(
        nets.vgg(False), 0.3, nets.pictures(nets.vgg(False), 20))
    self.assertNotIn("fc1", shares)
    self.assertIn("conv0_a", shares)

  def test_bad_settings(self):
    model, images = tiny.conv_net(), tiny.images(2)
    for settings, text in (
        ({"sparsity": 0}, "above 0, below 1; got 0"),
        ({"sparsity": 1.0}, "below 1"),
        ({"sparsity": {"conv": 0.5}}, "must be a number above 0"),
        ({"min_filters": 0}, "min_filters must be"),
        ({"exclude": "nowhere"}, "has no 'nowhere'"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"images": images[:, :3]}, "images must have shape")):
      with self.assertRaisesRegex(ValueError, text):
        filter_sparsities(**{
            "model": model, "sparsity": 0.5, "images": images, **settings})
    with self.assertRaisesRegex(ValueError, "no filter that a Conv2D"):
      filter_sparsities(
          _pair(behind=lambda x: _layers.SeparableConv2D(
              4, 3, name="second")(x)), 0.5,
          tiny.images(2, size=nets.SIZE), exclude="second")


class PretrainedTest(absltest.TestCase):

  @pytest.mark.slow("pruning")
  def test_the_person_detector_spares_half_of_its_filters(self):
    model = pretrained.load(pretrained.VisualWakeWordsTest.path)
    images = pretrained.voc(2, 128, 96) / 255
    shares = filter_sparsities(model, 0.5, images)
    student = prune_filters(model, shares, criterion="obs", reconstruct=True,
                            images=images)
    unseen = pretrained.voc(2, 200, 96)[128:] / 255
    maps, others, by_norm = (
        tiny.unit(kap.attribution.grad_cam(version, unseen, 1, "activation_22"))
        for version in (model, student, prune_filters(model, shares)))
    # Half of its filters say next to nothing: of 72 images 1 less float32
    # rounding was measured at worst, with a refit or without; by norms .994.
    self.assertGreater((maps * others).sum(1).min(), 1 - 1e-5)
    # Control: other filters go.
    self.assertLess((maps * by_norm).sum(1).min(), 0.999)
    self.assertLess(student.count_params(), model.count_params() / 3)


def _logits(model, images):
  """Scores, also of models that end in a softmax."""
  return Tap(model)(images).logits.numpy()


if __name__ == "__main__":
  absltest.main()
