"""Tests of wcam.py: settings, explained classes and the match."""

import itertools

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from keras_attr_preserve import WCAM
from keras_attr_preserve import map_formulas as maps_of
from keras_attr_preserve.models.tap import Tapped
from keras_attr_preserve.training.wcam import Match, check_wcam

# Cosines in float32: sums over up to 10 channels and 16 positions.
COSINE = 1e-6


def _tapped(features, kernel):
  """A model whose logits are the sum over positions of features @ kernel."""
  features = [tf.constant(tensor, tf.float32) for tensor in features]
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(features)
    logits = tf.add_n([
        tf.reduce_sum(tensor, [1, 2]) @ tf.constant(kernel, tf.float32)
        for tensor in features])
  return tape, Tapped(features, logits, logits)


def _match(wcam, teacher_tape, teacher, student_tape, student, labels=None,
           drop_seed=None):
  """A match of both models, the layers weighed by their shares."""
  guide = wcam.guide(teacher_tape, teacher, labels, drop_seed)
  match = wcam.match(guide, student_tape, student, labels)
  return Match(*(tf.reduce_sum(value * tf.constant(wcam.layer_weights), -1)
                 for value in match))


def _random(seed, batch=3, channels=4, classes=3, size=(2, 3)):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(batch, *size, channels)).astype(np.float32),
          rng.normal(size=(channels, classes)).astype(np.float32))


def _swa(features, kernel, classes):
  """Maps by NumPy: the sensitivity is the kernel's column times positions."""
  positions = features.shape[1] * features.shape[2]
  weights = positions * kernel[:, classes].T[:, None, None]
  return np.maximum((features * weights).sum(-1), 0)


def _cosine(first, second):
  first, second = (each.reshape(len(each), -1) for each in (first, second))
  norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
  return (first * second).sum(1) / norms


class SettingsTest(parameterized.TestCase):

  def test_keeps_them(self):
    wcam = WCAM(["a", "b"], method="ewa", weight=2, drop_rate=0.3,
                student_layer=["c", "d"], target="label")
    self.assertEqual(wcam.layers, ("a", "b"))
    self.assertEqual(wcam.student_layers, ("c", "d"))
    self.assertEqual(
        (wcam.method, wcam.weight, wcam.drop_rate, wcam.target),
        ("ewa", 2.0, 0.3, "label"))

  def test_one_name_for_both_nets(self):
    wcam = WCAM("relu5")
    self.assertEqual(wcam.layers, ("relu5",))
    self.assertEqual(wcam.student_layers, ("relu5",))
    self.assertEqual(
        (wcam.method, wcam.weight, wcam.drop_rate, wcam.target),
        ("swa", "auto", 0.0, "teacher"))

  def test_the_least_and_the_most_that_may_be(self):
    self.assertEqual(WCAM("a", top_k=1).top_k, 1)
    self.assertEqual(WCAM("a", weight=0).weight, 0)  # It only observes.
    self.assertEqual(WCAM("a", weight=0.5, agreement=0.9).weight, 0.5)
    self.assertEqual(
        WCAM(["a", "b"], layer_weights=[0, 0.5]).layer_weights, (0, 1))

  def test_a_schedule_is_a_weight(self):
    def weight(step):
      return step
    self.assertIs(WCAM("a", weight=weight).weight, weight)

  def test_what_is_no_wcam(self):
    wcam = WCAM("a")
    self.assertIs(check_wcam(wcam), wcam)
    with self.assertRaisesRegex(TypeError, "wcam must be a WCAM; got 'a'"):
      check_wcam("a")

  @parameterized.parameters(
      ({"method": "lrp"}, "method must be one of .*swa.*ewa.*got 'lrp'"),
      ({"target": "every"}, "target must be one of .*label.*got 'every'"),
      ({"top_k": 0}, "top_k must be a number of 1 or more; got 0"),
      ({"top_k": 2.5}, "top_k must be a number of 1 or more; got 2.5"),
      ({"agreement": 1}, "agreement must be a cosine between 0 and 1; got 1"),
      ({"agreement": 0.0}, "agreement must be a cosine .* got 0.0"),
      ({"agreement": 0.9, "weight": 0.0}, "weight must be a number of more th"),
      ({"layer_weights": [1, 1]}, r"layer_weights must be 1 numbers.*\[1, 1\]"),
      ({"layer_weights": [-1]}, "layer_weights must be 1 numbers of 0 or more"),
      ({"layer_weights": [0]}, "layer_weights must be .*not all 0; got"),
      ({"layer_weights": [float("inf")]}, "layer_weights must be 1 numbers"),
      ({"weight": -1}, "weight must be a number of 0 or more; got -1"),
      ({"weight": float("inf")}, "weight must be .* got inf"),
      ({"weight": float("nan")}, "weight must be .* got nan"),
      ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\); got 1.0"),
      ({"drop_rate": -0.1}, r"drop_rate must be in \[0, 1\); got -0.1"),
      ({"student_layer": ["a", "b"]},
       "student_layer must name one layer for each of layer's 1; got 2"))
  def test_errors(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      WCAM("relu5", **settings)

  def test_weights_that_are_none(self):
    with self.assertRaisesRegex(
        TypeError, "weight must be 'auto', a number or a schedule; got '4'"):
      WCAM("relu5", weight="4")
    with self.assertRaisesRegex(
        TypeError, "weight must be 'auto' or a number, where agreement= find"):
      WCAM("relu5", weight=lambda step: step, agreement=0.9)

  def test_layer_weights_sum_to_one(self):
    self.assertEqual(
        WCAM(["a", "b"], layer_weights=[1, 3]).layer_weights, (0.25, 0.75))
    self.assertEqual(WCAM(["a", "b"]).layer_weights, (0.5, 0.5))

  @parameterized.parameters("", None, 5, [[]], [[""]], [["a", 5]])
  def test_names_that_are_none(self, layer):
    with self.assertRaisesRegex(TypeError, "layer must be a layer's name or a"):
      WCAM(layer)

  def test_student_names_that_are_none(self):
    with self.assertRaisesRegex(TypeError, "student_layer must be a layer's"):
      WCAM("relu5", student_layer=[])


class SeedsTest(parameterized.TestCase):

  LOGITS = np.float32([[1, 3, 2], [5, -1, 0]])

  def seeds(self, wcam, labels=None, logits=None):
    """Each slot's weights of the logits, and who has a class there."""
    seeds = wcam.seeds(
        tf.constant(self.LOGITS if logits is None else logits),
        None if labels is None else tf.constant(labels))
    self.assertEqual(seeds.slots, wcam.slots(seeds.classes))
    return [(seeds.seed(k), tf.abs(seeds.weights[:, k]))
            for k in range(seeds.slots)]

  def test_teacher(self):
    (seed, has), = self.seeds(WCAM("a"))
    np.testing.assert_array_equal(seed, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(has, [1, 1])

  @parameterized.parameters(
      ([2, 0],), ([[2], [0]],), ([[0, 0, 1], [1, 0, 0]],),
      ([[0.1, 0.1, 0.8], [0.9, 0.1, 0.0]],))  # Smoothed labels too.
  def test_label(self, labels):
    (seed, has), = self.seeds(WCAM("a", target="label"), labels)
    np.testing.assert_array_equal(seed, [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(has, [1, 1])

  def test_present(self):
    """Marked classes in the first slots; in the others nothing."""
    first, second, third = self.seeds(
        WCAM("a", target="present"),
        # One half is less than a mark, as in Keras's binary accuracy.
        [[0, 1, 1], [0, 0.5, 1]])
    np.testing.assert_array_equal(first[0], [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(second[0], [[0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(third[0], np.zeros((2, 3)))
    for (_, has), want in zip((first, second, third), ([1, 1], [1, 0], [0, 0])):
      np.testing.assert_array_equal(has, want)

  def test_only_filled_slots_are_gone_through(self):
    wcam = WCAM("a", target="present")
    for labels, want in (([[0, 1, 1], [0, 0, 1]], 2), ([[0, 1, 0]] * 2, 1),
                         ([[0, 0, 0]] * 2, 1), (np.zeros((0, 3)), 1)):
      seeds = wcam.seeds(tf.zeros([len(labels), 3]), tf.constant(labels))
      got, = seeds.explain(
          lambda seed: [seed], [tf.TensorSpec([None, 3], tf.float32)])
      np.testing.assert_array_equal(
          got, [seeds.seed(k) for k in range(want)])

  def test_top_k(self):
    first, second = self.seeds(WCAM("a", target="top_k", top_k=2))
    np.testing.assert_array_equal(first[0], [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(second[0], [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(second[1], [1, 1])
    self.assertLen(self.seeds(WCAM("a", target="top_k", top_k=3)), 3)
    with self.assertRaisesRegex(
        ValueError, "top_k must be at most the model's 3 classes; got 4"):
      self.seeds(WCAM("a", target="top_k", top_k=4))

  def test_all(self):
    seeds = self.seeds(WCAM("a", target="all"))
    self.assertLen(seeds, 3)
    for k, (seed, has) in enumerate(seeds):
      np.testing.assert_array_equal(seed, np.eye(3)[[k, k]])
      np.testing.assert_array_equal(has, [1, 1])

  def test_the_score_of_a_regression(self):
    """Not its negative below zero, as for a logit of two classes."""
    wcam = WCAM("a", target="score")
    (seed, has), = self.seeds(wcam, logits=[[2.0], [-3.0]])
    np.testing.assert_array_equal(seed, [[1], [1]])
    np.testing.assert_array_equal(has, [1, 1])
    with self.assertRaisesRegex(
        ValueError, "target 'score' needs a model of one output; it has 3"):
      self.seeds(wcam)

  @parameterized.parameters(
      ({}, 1), ({"target": "top_k"}, 3), ({"target": "present"}, 5),
      ({"target": "all"}, 5), ({"target": "label"}, 1),
      ({"target": "all", "method": "ewa"}, 1),
      ({"target": "present", "method": "ewa"}, 1))
  def test_how_many_maps(self, settings, want):
    wcam = WCAM("a", **settings)
    self.assertEqual(wcam.slots(5), want)
    self.assertLen(self.seeds(wcam, np.zeros((2, 5)), np.zeros((2, 5))), want)

  def test_any_class_marks_an_image_for_equal_weights(self):
    (_, has), = self.seeds(
        WCAM("a", target="present", method="ewa"), [[0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(has, [1, 0])

  def test_one_logit(self):
    logits = [[2.0], [-3.0]]
    (seed, _), = self.seeds(WCAM("a"), logits=logits)
    np.testing.assert_array_equal(seed, [[1], [-1]])
    for labels in ([0, 1], [[0], [1]], [[0.0], [1.0]], [[0.5], [0.6]]):
      (seed, has), = self.seeds(WCAM("a", target="label"), labels, logits)
      np.testing.assert_array_equal(seed, [[-1], [1]])
      np.testing.assert_array_equal(has, [1, 1])
    (seed, has), = self.seeds(
        WCAM("a", target="present"), [[0], [1]], logits)
    np.testing.assert_array_equal(seed, [[0], [1]])
    np.testing.assert_array_equal(has, [0, 1])

  @parameterized.parameters("label", "present")
  def test_no_labels(self, target):
    for labels in (None, {"a": 1}):
      with self.assertRaisesRegex(
          ValueError, f"target '{target}' needs labels"):
        WCAM("a", target=target).seeds(tf.constant(self.LOGITS), labels)

  @parameterized.parameters(([1, 2],), ([[1], [2]],), ([[0, 1], [1, 0]],))
  def test_present_takes_multi_hot_alone(self, labels):
    with self.assertRaisesRegex(
        ValueError, r"'present' needs multi-hot labels \[batch, 3\]; got .*2"):
      WCAM("a", target="present").seeds(
          tf.constant(self.LOGITS), tf.constant(labels))


class MatchTest(parameterized.TestCase):

  def test_by_hand(self):
    """One position, two channels, one class: maps of two positions."""
    teacher = [[[[[3.0, 0.0], [0.0, 4.0]]]]]
    student = [[[[[4.0, 0.0], [0.0, 3.0]]]]]
    kernel = [[0.5], [0.5]]  # A sum over two positions: weights of 1.
    got = _match(
        WCAM("a"), *_tapped(teacher, kernel), *_tapped(student, kernel))
    # Maps (3, 4) and (4, 3), whose cosine is 24/25.
    np.testing.assert_allclose(got.distance, [0.04], atol=COSINE)
    np.testing.assert_allclose(got.agreement, [0.96], atol=COSINE)
    np.testing.assert_array_equal(got.dead, [0])
    np.testing.assert_array_equal(got.valid, [1])
    got = _match(WCAM("a", method="ewa"),
        None, Tapped([tf.constant(teacher[0])], tf.zeros([1, 1]), None),
        None, Tapped([tf.constant(student[0])], tf.zeros([1, 1]), None))
    # Maps (9, 16) / 2 and (16, 9) / 2: 288 / 337.
    np.testing.assert_allclose(got.agreement, [288 / 337], atol=COSINE)

  @parameterized.parameters("teacher", "label")
  def test_sensitivity_weighted_against_numpy(self, target):
    (teacher, kernel), (student, other) = _random(0), _random(1)
    labels = [2, 0, 1]
    wcam = WCAM("a", target=target)
    teacher_tapped = _tapped([teacher], kernel)
    got = _match(wcam, *teacher_tapped, *_tapped([student], other),
                     tf.constant(labels))
    classes = (labels if target == "label" else
               teacher_tapped[1].logits.numpy().argmax(1))
    want = _cosine(
        _swa(teacher, kernel, classes), _swa(student, other, classes))
    self.assertTrue((want > 0).all())
    np.testing.assert_allclose(got.agreement, want, atol=COSINE)
    np.testing.assert_allclose(got.distance, 1 - want, atol=COSINE)

  def test_equal_weighted_against_numpy(self):
    (teacher, kernel), (student, other) = _random(0), _random(1)
    got = _match(WCAM("a", method="ewa"),
        *_tapped([teacher], kernel), *_tapped([student], other))
    np.testing.assert_allclose(
        got.agreement,
        _cosine((teacher**2).mean(-1), (student**2).mean(-1)), atol=COSINE)

  def test_several_layers_count_alike(self):
    (first, kernel), (second, _) = _random(0), _random(2, size=(4, 4))
    (other_first, other), (other_second, _) = (
        _random(1), _random(3, size=(4, 4)))
    got = _match(WCAM(["a", "b"], method="ewa"),
        *_tapped([first, second], kernel),
        *_tapped([other_first, other_second], other))
    want = (_cosine((first**2).mean(-1), (other_first**2).mean(-1))
            + _cosine((second**2).mean(-1), (other_second**2).mean(-1))) / 2
    np.testing.assert_allclose(got.agreement, want, atol=COSINE)
    np.testing.assert_allclose(got.distance, 1 - want, atol=COSINE)

  def test_layers_with_weights_of_their_own(self):
    (first, kernel), (second, _) = _random(0), _random(2, size=(4, 4))
    (other_first, other), (other_second, _) = (
        _random(1), _random(3, size=(4, 4)))
    got = _match(
        WCAM(["a", "b"], method="ewa", layer_weights=[3, 1]),
        *_tapped([first, second], kernel),
        *_tapped([other_first, other_second], other))
    want = (3 * _cosine((first**2).mean(-1), (other_first**2).mean(-1))
            + _cosine((second**2).mean(-1), (other_second**2).mean(-1))) / 4
    np.testing.assert_allclose(got.distance, 1 - want, atol=COSINE)

  @parameterized.parameters(("all", [0, 1, 2]), ("top_k", None))
  def test_several_classes(self, target, classes):
    (teacher, kernel), (student, other) = _random(4), _random(5)
    tapped = _tapped([teacher], kernel)
    got = _match(WCAM("a", target=target, top_k=2), *tapped,
                 *_tapped([student], other))
    orders = np.argsort(-tapped[1].logits.numpy(), axis=1)
    want = []
    for i in range(3):
      chosen = classes if classes else orders[i, :2]
      maps = [(_swa(teacher, kernel, [k] * 3)[i:i + 1],
               _swa(student, other, [k] * 3)[i:i + 1]) for k in chosen]
      self.assertTrue(all(a.any() and b.any() for a, b in maps))
      want.append(np.mean([_cosine(*pair) for pair in maps]))
    # Float32 sums of both signs cancel, and the maps keep only values above 0:
    # fewer digits than COSINE allows for.
    np.testing.assert_allclose(got.agreement, want, atol=1e-5)

  def test_every_class_that_is_present(self):
    (teacher, kernel), (student, other) = _random(4), _random(5)
    labels = np.int32([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    got = _match(WCAM("a", target="present"),
        *_tapped([teacher], kernel), *_tapped([student], other),
        tf.constant(labels))
    want = np.zeros(3)
    for i, row in enumerate(labels):
      each = [_cosine(_swa(teacher, kernel, [k] * 3),
                      _swa(student, other, [k] * 3))[i]
              for k in np.flatnonzero(row)]
      want[i] = np.mean(each) if each else 0
    self.assertTrue(np.isfinite(want).all())
    np.testing.assert_allclose(got.agreement, want, atol=COSINE)
    # An image without any class counts nowhere.
    np.testing.assert_allclose(
        got.distance, [1 - want[0], 1 - want[1], 0], atol=COSINE)
    np.testing.assert_array_equal(got.valid, [1, 1, 0])
    np.testing.assert_array_equal(got.explained, [1, 1, 0])

  def test_dead_maps(self):
    alive = np.ones((1, 2, 2, 1))
    teacher = np.concatenate([alive, -alive, alive, -alive])
    student = np.concatenate([alive, alive, -alive, -alive])
    got = _match(WCAM("a", target="label"),
        *_tapped([teacher], [[1.0, 1.0]]), *_tapped([student], [[1.0, 1.0]]),
        tf.constant([0, 0, 0, 0]))
    np.testing.assert_array_equal(got.valid, [1, 0, 1, 0])
    np.testing.assert_array_equal(got.dead, [0, 0, 1, 0])
    np.testing.assert_allclose(got.agreement, [1, 0, 0, 0], atol=COSINE)
    np.testing.assert_allclose(got.distance, [0, 0.5, 0.5, 0], atol=COSINE)

  def test_one_dead_map_of_two(self):
    alive = np.ones((1, 2, 2, 1))
    kernel = [[1.0]]
    got = _match(WCAM(["a", "b"]),
        *_tapped([alive, alive], kernel),
        *_tapped([-alive, alive], kernel))
    np.testing.assert_array_equal(got.valid, [1])
    np.testing.assert_array_equal(got.dead, [0.5])
    np.testing.assert_allclose(got.agreement, [0.5], atol=COSINE)
    np.testing.assert_allclose(got.distance, [0.25], atol=COSINE)

  def test_maps_of_different_sizes(self):
    (teacher, kernel), (student, other) = (
        _random(0), _random(1, size=(4, 6)))
    got = _match(WCAM("a", method="ewa"),
        *_tapped([teacher], kernel), *_tapped([student], other))
    self.assertEqual(got.distance.shape, (3,))
    # Bilinear and antialiased, by hand: a triangle two pixels wide to each side
    # has 1, 3, 3 and 1 parts of four pixels, where there are as many.
    rows = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    columns = np.array([
        [3 / 7, 3 / 7, 1 / 7, 0, 0, 0], [0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0],
        [0, 0, 0, 1 / 7, 3 / 7, 3 / 7]])
    want = _cosine((teacher**2).sum(-1), np.einsum(
        "ih,bhw,jw->bij", rows, (student**2).sum(-1), columns))
    np.testing.assert_allclose(got.agreement, want, atol=COSINE)
    np.testing.assert_allclose(got.distance, 1 - want, atol=COSINE)

  def test_a_loss_of_ones_own_is_told_how_many_positions_a_map_has(self):
    class Summed(WCAM):
      def _loss(self, distance, positions):
        return distance * positions

    tapped = [*_tapped([_random(0)[0]], _random(0)[1]),
              *_tapped([_random(1)[0]], _random(1)[1])]
    np.testing.assert_allclose(
        _match(Summed("a"), *tapped).distance,
        6 * _match(WCAM("a"), *tapped).distance, rtol=COSINE)

  def test_a_guide_of_other_settings_is_refused(self):
    tape, tapped = _tapped([_random(0)[0]] * 2, _random(0)[1])
    guide = WCAM(["a", "b"]).guide(tape, tapped)
    with self.assertRaisesRegex(
        ValueError, "guide must hold maps of 1 layers; got 2"):
      WCAM("a").match(guide, tape, tapped)

  def test_dropping_touches_the_teacher_alone(self):
    (features, kernel) = _random(0, channels=10)
    wcam = WCAM("a", method="ewa", drop_rate=0.3)
    tapped = _tapped([features], kernel)
    same = _match(wcam, *tapped, *tapped)
    np.testing.assert_allclose(same.agreement, np.ones(3), atol=COSINE)
    got = _match(wcam, *tapped, *tapped, None, tf.constant([5, 0]))
    # Which three channels it was, every triple tried.
    errors = []
    for triple in itertools.combinations(range(10), 3):
      rest = np.delete(features, triple, axis=-1)
      want = _cosine((rest**2).sum(-1), (features**2).sum(-1))
      errors.append(np.abs(got.agreement - want).max())
    self.assertLess(sorted(errors)[0], COSINE)
    # Rounding must not turn another triple into the right one.
    self.assertGreater(sorted(errors)[1], 1e-4)

  def test_dropping_leaves_the_sensitivity(self):
    """The paper zeroes features; the weights of the others stay."""
    features, kernel = _random(0, channels=10)
    wcam = WCAM("a", drop_rate=0.5)
    tape, tapped = _tapped([features], kernel)
    got = _match(wcam, tape, tapped, tape, tapped, None, tf.constant([1, 0]))
    classes = tapped.logits.numpy().argmax(1)
    whole = _swa(features, kernel, classes)
    error = min(
        np.abs(got.agreement - np.nan_to_num(_cosine(_swa(
            np.where(np.isin(np.arange(10), five), 0, features),
            kernel, classes), whole))).max()
        for five in itertools.combinations(range(10), 5))
    self.assertLess(error, COSINE)

  def test_each_layer_draws_for_itself(self):
    features, kernel = _random(0, channels=30)
    wcam = WCAM(["a", "b"], method="ewa", drop_rate=0.5)
    tapped = _tapped([features, features], kernel)
    seed = tf.constant([3, 0])
    both = _match(wcam, *tapped, *tapped, None, seed).agreement
    single = _tapped([features], kernel)
    alone = _match(WCAM("a", method="ewa", drop_rate=0.5),
        *single, *single, None, seed).agreement
    # Were one draw used for both layers, float32 rounding alone would remain.
    self.assertGreater(np.abs(both - alone).max(), 1e-4)
    # By the step and the layer's number, so that no two draws have one seed.
    guide = wcam.guide(*tapped, None, seed)
    for i, (got,) in enumerate(guide.maps):
      np.testing.assert_array_equal(got, maps_of.equal_weighted_map(
          maps_of.drop_channels(features, 0.5, tf.constant([3, i]))))

  def test_gradients_reach_the_student_alone(self):
    (teacher, kernel), (student, other) = _random(0), _random(1)
    kernels = [tf.Variable(kernel), tf.Variable(other)]
    with tf.GradientTape() as outer:
      tapes = []
      for features, variable in zip((teacher, student), kernels):
        features = tf.constant(features) * variable[None, None, None, :, 0]
        with tf.GradientTape(persistent=True) as tape:
          tape.watch(features)
          logits = tf.reduce_sum(features, [1, 2]) @ variable
        tapes.append((tape, Tapped([features], logits, logits)))
      distance = tf.reduce_sum(_match(WCAM("a"), *tapes[0], *tapes[1]).distance)
    of_teacher, of_student = outer.gradient(distance, kernels)
    self.assertIsNone(of_teacher)
    # A gradient that is stopped on its way would be 0 or rounding.
    self.assertGreater(np.abs(of_student).max(), 1e-3)

  def test_half_precision_is_matched_in_float32(self):
    features, kernel = _random(0)
    features = tf.constant(features, tf.float16)
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(features)
      logits = tf.reduce_sum(features, [1, 2]) @ tf.constant(
          kernel, tf.float16)
    tapped = Tapped([features], logits, logits)
    got = _match(WCAM("a"), tape, tapped, tape, tapped)
    for value in got:
      self.assertEqual(value.dtype, tf.float32)
    np.testing.assert_allclose(got.agreement, [1, 1, 1], atol=COSINE)


if __name__ == "__main__":
  absltest.main()
