"""Tests of the grid's text, and of every compression on a tiny model."""

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from examples.experiment.runs import compressing, costs
from examples.experiment.runs.compressing import compress, parse
from keras_attr_preserve.compat import keras
from keras_attr_preserve.models.layers import find_layer


def net() -> keras.Model:
  keras.utils.set_random_seed(3)
  inputs = x = keras.Input([8, 8, 3])
  for number, filters in enumerate((4, 8, 8)):
    x = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
    x = keras.layers.BatchNormalization(name=f"bn{number}")(x)
    x = keras.layers.ReLU(name=f"relu{number}")(x)
  x = keras.layers.GlobalAveragePooling2D()(x)
  return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))


# Between them every step that trains, and every one that says which channels
# are left.
SOME = ("none", "ptq", "lamp", "filters+qat", "narrow",
        "obs_narrow+refine", "prune+cluster+qat")
OTHERS = tuple(
    name for name in compressing.COMPRESSIONS if name not in SOME)


def fit(kind, build, epochs=1, callbacks=(), channels=None):
  """Two steps an epoch, eager: to trace them takes longer than to take them."""
  del kind, channels
  student = build(2)
  student.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True),
                  run_eagerly=True)
  rng = np.random.default_rng(0)
  student.fit(rng.normal(size=[8, 8, 8, 3]).astype(np.float32),
              rng.integers(0, 2, [8, 3]).astype(np.float32), batch_size=4,
              epochs=epochs, callbacks=[*callbacks], verbose=0)
  return student


def untrained(kind, build, epochs=1, callbacks=(), channels=None):
  """In place of `fit` where training is not the subject."""
  del kind, epochs, callbacks, channels
  return build(2)


def zeros(layer) -> float:
  kernel = layer.get_weights()[0]
  return float((kernel == 0).mean())


class ParseTest(parameterized.TestCase):

  def test_a_grid(self):
    self.assertEqual(parse(" prune:0.8,.9 ;narrow:4; qat;cluster;none"), [
        ("prune", 0.8), ("prune", 0.9), ("narrow", 4.0), ("qat", 8.0),
        ("cluster", 16.0), ("none", 0.0)])

  @parameterized.parameters(
      ("", "must name"), ("melt:0.5", "must be one of"),
      ("prune", "needs a strength"), ("prune:1", "between 0 and 1"),
      ("prune:nan", "between 0 and 1"), ("filters:x", "must be a number"),
      ("narrow:0.5", "1 or more"), ("qat:4", "must be 8"))
  def test_what_it_refuses(self, text, said):
    with self.assertRaisesRegex(ValueError, said):
      parse(text)


def pictures() -> np.ndarray:
  return np.random.default_rng(0).normal(size=[16, 8, 8, 3]).astype(np.float32)


class CompressTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.teacher, cls.starts = net(), {}
    cls.before = cls.teacher.get_weights()

  def tearDown(self):
    for expected, weight in zip(self.before, self.teacher.get_weights()):
      np.testing.assert_array_equal(expected, weight)
    super().tearDown()

  def test_pruned_in_rounds_but_for_the_first_and_the_last_layer(self):
    student = compress("prune", 0.5, self.teacher, fit, pictures)
    for name in ("conv1", "conv2"):
      # tfmot rounds the number of weights that stay.
      self.assertAlmostEqual(zeros(student.get_layer(name)), 0.5, delta=0.01)
    for name in ("conv0", "logits"):
      self.assertEqual(zeros(student.get_layer(name)), 0)

  def test_half_of_the_filters_go(self):
    student = compress("filters", 0.5, self.teacher, fit, pictures)
    self.assertEqual(student.get_layer("conv1").filters, 4)

  def test_a_thinner_net_starts_from_fresh_weights(self):
    student = compress("narrow", 4, self.teacher, fit, pictures)
    self.assertEqual(student.get_layer("conv2").filters, 2)

  def test_nothing_at_all_is_a_copy(self):
    student = compress("ptq", 8, self.teacher, fit, pictures)
    for expected, weight in zip(self.before, student.get_weights()):
      np.testing.assert_array_equal(expected, weight)

  def test_clusters(self):
    student = compress("cluster", 16, self.teacher, fit, pictures)
    kernel = student.get_layer("conv1").get_weights()[0]
    self.assertLessEqual(len(np.unique(kernel)), compressing.CLUSTERS)
    self.assertGreater(len(np.unique(
        student.get_layer("conv0").get_weights()[0])), compressing.CLUSTERS)

  def check_kinds(self, name):
    asked = []

    def listed(kind, build, epochs=1, callbacks=(), channels=None):
      del epochs, callbacks
      asked.append(kind)
      student = build(2)
      for layer in {"relu0", "relu1", "relu2"} & {*channels}:
        self.assertLen(channels[layer],
                       find_layer(student, layer).output_shape[-1])
      self.assertEqual(bool(channels), any(
          word in name for word in ("filters", "macs", "obs_narrow")))
      return student

    compress(name, 0.5 if "narrow" not in name else 2, self.teacher, listed,
             pictures, self.starts)
    self.assertEqual(tuple(dict.fromkeys(asked)), compressing.kinds(name))

  @parameterized.parameters(*SOME)
  def test_the_kinds_of_fit_it_asks_for(self, name):
    self.check_kinds(name)

  @parameterized.parameters(*OTHERS)
  @pytest.mark.slow("experiments")
  def test_the_kinds_of_fit_that_others_ask_for(self, name):
    self.check_kinds(name)

  @parameterized.parameters("qat", "calibrated_qat", "cluster+qat")
  @pytest.mark.slow("experiments")
  def test_a_quantize_aware_net_converts(self, name):
    student = compress(name, 8, self.teacher, fit, pictures)
    content = kap.export.convert(
        student, kap.WCAM("relu2"), mode="int8", representative_images=(
            np.random.default_rng(0).normal(size=[8, 8, 8, 3]).astype(
                np.float32)))
    self.assertGreater(kap.export.file_sizes(content)["bytes"], 0)

  def check_statistics(self, name, moved):
    # The teacher's statistics come from no images. Where the teacher itself is
    # quantized, the arm says whether they stay.
    def others():
      return pictures() + 3

    student = compress(name, 0.5 if "+" in name else 8, self.teacher, untrained,
                       others)
    means = [weight for weight in find_layer(student, "bn0").weights
             if "moving_mean" in weight.name]
    self.assertLen(means, 1)
    largest = float(np.abs(means[0].numpy()).max())
    if moved:
      # A mean that stayed is 0; images about 3 move it by far more.
      self.assertGreater(largest, 0.1)
    else:
      self.assertEqual(largest, 0)

  @parameterized.parameters(
      ("lamp+calibrated_qat", True), ("calibrated_qat", False))
  def test_statistics_are_those_of_what_was_done_before(self, name, moved):
    self.check_statistics(name, moved)

  @pytest.mark.slow("experiments")
  def test_statistics_are_those_of_reconstruction(self):
    self.check_statistics("obs+calibrated_qat", moved=True)

  def test_the_smallest_weights_go_and_the_others_stay(self):
    student = compress(
        "smallest", 0.75, self.teacher, fit, pictures, self.starts)
    self.assertEqual(zeros(student.get_layer("conv0")), 0)
    for name in ("conv1", "conv2"):
      before = self.teacher.get_layer(name).get_weights()[0]
      after = student.get_layer(name).get_weights()[0]
      gone = after == 0
      self.assertBetween(gone.mean(), 0.5, 0.9)  # LAMP's shares of each layer.
      self.assertLess(abs(before[gone]).max(), abs(before[~gone]).min())
      np.testing.assert_array_equal(after[~gone], before[~gone])

  def test_reconstructed_and_then_refined(self):
    student = compress(
        "obs", 0.75, self.teacher, fit, pictures, self.starts)
    # LAMP's shares count the two layers together.
    kernels = [student.get_layer(name).get_weights()[0]
               for name in ("conv1", "conv2")]
    # Shares are rounded to whole weights: 8 of 864 are allowed.
    self.assertAlmostEqual(
        sum(np.sum(array == 0) for array in kernels)
        / sum(array.size for array in kernels), 0.75, delta=0.01)
    self.assertEqual(zeros(student.get_layer("conv0")), 0)
    refined = compress(
        "obs+refine", 0.75, self.teacher, fit, pictures, self.starts)
    for name, kernel in zip(("conv1", "conv2"), kernels):
      other = refined.get_layer(name).get_weights()[0]
      np.testing.assert_array_equal(kernel == 0, other == 0)
      # Adam's steps are near 1e-3; kernels that stayed differ by 0.
      self.assertGreater(np.abs(kernel - other).max(), 1e-5)

  def check_that_it_is_made_once(self, name):
    asked, starts = [], {}

    def counted():
      asked.append(1)
      return pictures()

    alone = compress(f"{name}+refine", 0.5, self.teacher, fit, pictures)
    start = compress(name, 0.5, self.teacher, fit, counted, starts)
    before = start.get_weights()
    self.assertLen(asked, 1)
    for _ in range(2):
      refined = compress(
          f"{name}+refine", 0.5, self.teacher, fit, counted, starts)
      for expected, weight in zip(
          alone.get_weights(), refined.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, weight)
    self.assertLen(asked, 3)  # For what comes after, but not to start again.
    for expected, weight in zip(before, start.get_weights(), strict=True):
      np.testing.assert_array_equal(expected, weight)
    compress(name, 0.75, self.teacher, fit, counted, starts)
    self.assertLen(asked, 4)
    self.assertLen(starts, 2)

  @pytest.mark.slow("experiments")
  def test_what_trains_nothing_is_made_once(self):
    self.check_that_it_is_made_once("obs")

  @pytest.mark.slow("experiments")
  def test_removed_filters_are_made_once(self):
    self.check_that_it_is_made_once("obs_filters")

  def test_what_trains_is_made_each_time(self):
    starts, kinds = {}, []

    def counted(kind, build, **settings):
      kinds.append(kind)
      return untrained(kind, build, **settings)

    for _ in range(2):
      compress("filters", 0.5, self.teacher, counted, pictures, starts)
    self.assertEqual(kinds, ["tune"] * 2)
    self.assertEmpty(starts)

  def test_filters_are_removed_and_then_refined(self):
    student = compress(
        "obs_filters", 0.5, self.teacher, fit, pictures, self.starts)
    widths = [sum(layer.filters for layer in model.layers
                  if isinstance(layer, keras.layers.Conv2D))
              for model in (self.teacher, student)]
    self.assertEqual(widths[1], widths[0] // 2)
    refined = compress(
        "obs_filters+refine", 0.5, self.teacher, fit, pictures, self.starts)
    for layer in student.layers:
      self.assertEqual(refined.get_layer(layer.name).output_shape,
                       layer.output_shape)
    # Adam's steps are near 1e-3; a kernel that stayed differs by 0.
    self.assertGreater(np.abs(
        refined.get_layer("conv1").get_weights()[0]
        - student.get_layer("conv1").get_weights()[0]).max(), 1e-5)

  def test_filters_are_removed_until_enough_is_saved(self):
    student = compress(
        "obs_macs", 0.5, self.teacher, fit, pictures, self.starts)
    whole, left = map(costs.count_macs, (self.teacher, student))
    # Whole filters go; each takes 7 to 11 % of the products at first.
    self.assertAlmostEqual(left / whole, 0.5, delta=0.1)
    refined = compress(
        "obs_macs+refine", 0.5, self.teacher, fit, pictures, self.starts)
    self.assertEqual(costs.count_macs(refined), left)

  def test_a_student_of_the_teacher_s_own_filters(self):
    student = compress(
        "obs_narrow", 2, self.teacher, fit, pictures, self.starts)
    fresh = kap.narrow(self.teacher, 1 / 2)
    for layer in fresh.layers:
      self.assertEqual(student.get_layer(layer.name).output_shape,
                       layer.output_shape)
    kernel = self.teacher.get_layer("conv0").get_weights()[0]
    narrowed = student.get_layer("conv0").get_weights()[0]
    for filter_index in range(narrowed.shape[-1]):
      self.assertIn(narrowed[..., filter_index].tolist(), [
          kernel[..., other].tolist() for other in range(kernel.shape[-1])])

  @parameterized.parameters(
      "prune+qat", "obs+refine+qat", "obs+refine+calibrated_qat",
      "prune+cluster+qat")
  @pytest.mark.slow("experiments")
  def test_what_is_pruned_stays_pruned_under_what_follows(self, name):
    student = compress(name, 0.75, self.teacher, fit, pictures)
    content = kap.export.convert(student, kap.WCAM("relu2"), mode="int8",
                                 representative_images=np.random.default_rng(
                                     0).normal(size=[8, 8, 8, 3]).astype(
                                         np.float32))
    # 860 of the 972 kernel weights are in the two layers that are pruned.
    self.assertGreater(kap.export.file_sizes(content)["sparsity"], 0.6)


if __name__ == "__main__":
  absltest.main()
