"""Tests of the judge: figures by hand, and a teacher judged against itself."""

import itertools

import numpy as np
from absl.testing import absltest
from sklearn import metrics

import keras_attr_preserve as kap
from examples.experiment.data.data_sets import Split
from examples.experiment.runs.fitting import in_range
from examples.experiment.runs.judge import Judge, task_figures
from tests.examples.runs.compressing_test import net

# Of the same weights judged twice: float32 rounding of their maps and scores.
PLACES = 5


def split(count: int, classes: int = 3, seed: int = 0) -> Split:
  rng = np.random.default_rng(seed)
  labels = (rng.random([count, classes]) < 0.5).astype(np.float32)
  maps = np.zeros([count, 8, 8], np.uint8)
  maps[:, 2:5, 3:6] = rng.integers(1, classes + 1, [count, 1, 1])
  maps[:, 0] = 255
  return Split(rng.integers(0, 256, [count, 8, 8, 3], np.uint8), labels, maps)


def judge(teacher, part, **changed) -> Judge:
  return Judge(teacher, part, **{
      "class_names": ("a", "b", "c"), "class_ids": np.array([1, 2, 3]),
      "multi_label": True, "pixel_range": (-1, 1), "layer": "relu2",
      "probes": 4, **changed})


class TaskFiguresTest(absltest.TestCase):

  def test_multi_label_by_hand(self):
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    logits = np.array([[2, -1], [-1, 3], [1, 2], [-2, -3]])
    figures = task_figures(labels, logits, True)
    # Class 0: found images 0 and 2, of which 0 is right; 1 is missed.
    # Class 1: found 1 and 2, both right.
    self.assertAlmostEqual(figures["f1"], (0.5 + 1.0) / 2)
    self.assertAlmostEqual(figures["accuracy"], 6 / 8)
    self.assertAlmostEqual(figures["map"], np.mean([
        metrics.average_precision_score(labels[:, number], logits[:, number])
        for number in range(2)]))

  def test_exclusive_classes_rank_by_what_a_softmax_says(self):
    rng = np.random.default_rng(1)
    labels = np.eye(3)[rng.integers(0, 3, 40)]
    logits = rng.normal(size=[40, 3]) * 3
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    figures = task_figures(labels, logits, False)
    self.assertAlmostEqual(figures["map"], np.mean([
        metrics.average_precision_score(labels[:, number], softmax[:, number])
        for number in range(3)]))
    self.assertAlmostEqual(figures["f1"], metrics.f1_score(
        labels.argmax(1), logits.argmax(1), average="macro"))
    self.assertAlmostEqual(figures["accuracy"], metrics.accuracy_score(
        labels.argmax(1), logits.argmax(1)))

  def test_a_class_without_pictures_does_not_count(self):
    labels = np.array([[1, 0], [1, 0]])
    figures = task_figures(labels, np.array([[1, -1], [1, -1]]), True)
    self.assertEqual(figures, {
        "map": 1.0, "map_chance": 1.0, "accuracy": 1.0, "f1": 1.0})

  def test_chance_is_the_mean_over_all_orders(self):
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 0], [0, 0]])
    orders = [*itertools.permutations(range(5))]
    figures = task_figures(labels, np.zeros([5, 2]), True)["map_chance"]
    self.assertAlmostEqual(figures, np.mean([
        metrics.average_precision_score(labels[:, number], order)
        for order in orders for number in range(2)]))
    # By hand: first of two half of the time, else second.
    figures = task_figures(np.eye(2), np.zeros([2, 2]), False)["map_chance"]
    self.assertAlmostEqual(figures, 0.75)


class JudgeTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.teacher, cls.part = net(), split(12)
    cls.judge = judge(cls.teacher, cls.part)

  def test_a_teacher_agrees_with_itself(self):
    row = self.judge.judge_model(kap.clone_model(self.teacher))
    self.assertAlmostEqual(row["cosine_mean"], 1, places=PLACES)
    self.assertAlmostEqual(row["cosine_p5"], 1, places=PLACES)
    self.assertEqual(row["same_top_class"], 1)
    self.assertEqual(row["dead"], 0)
    for key in ("map", "roc_auc", "pointing", "pointing_15"):
      self.assertAlmostEqual(row[key], self.judge.teacher_row[key],
                             places=PLACES)

  def test_localization_is_that_of_the_library_over_all_pairs(self):
    images = in_range(self.part.images, (-1, 1))
    classes = self.part.label_maps[:, 3, 4] - 1
    maps = kap.attribution.grad_cam(self.teacher, images, classes, "relu2")
    scores = kap.evaluation.localization(
        maps, self.part.label_maps == (classes + 1)[:, None, None],
        self.part.label_maps != 255)
    for key in ("roc_auc", "pointing", "energy_inside"):
      # The same maps: all that is left is the rounding of a mean over images.
      self.assertAlmostEqual(
          self.judge.teacher_row[key], scores[key].mean(), places=6)

  def test_a_file_is_judged_by_its_own_maps_and_scores(self):
    content = kap.export.convert(
        self.teacher, kap.WCAM("relu2"), mode="float32")
    row = self.judge.judge_file(content, self.teacher)
    # Floats on another runtime.
    self.assertGreater(row["cosine_mean"], 0.9999)
    # Differences of nearly equal scores, in which rounding weighs more.
    self.assertGreater(row["occlusion_cosine_mean"], 0.999)
    # Of the Keras model that the file was made of, here the teacher itself.
    self.assertGreater(row["gradient_cosine_mean"], 0.9999)
    # Of ranks alone: equal, unless rounding has two scores change places.
    self.assertAlmostEqual(row["map"], self.judge.teacher_row["map"], places=6)
    self.assertEqual(row["bytes"], len(content))
    self.assertEqual(row["road"], "tail")
    self.assertEqual(set(row["per_class"]), {"a", "b", "c"})

  def test_another_net_does_not_agree(self):
    other = net()
    other.set_weights([weight[..., ::-1] for weight in other.get_weights()])
    row = self.judge.judge_model(other)
    # Below the 1 of a judge that holds the teacher against itself.
    self.assertLess(row["cosine_mean"], 0.99)

  def test_a_class_without_a_mask_is_not_judged_against_one(self):
    judged = judge(self.teacher, self.part, class_ids=np.array([0, 2, 0]))
    self.assertEqual({*judged.classes}, {1})

  def test_pictures_without_masks_have_no_localization(self):
    bare = self.part._replace(label_maps=None)
    judged = judge(self.teacher, bare)
    self.assertNotIn("roc_auc", judged.teacher_row)
    row = judged.judge_model(self.teacher)
    self.assertAlmostEqual(row["cosine_mean"], 1, places=PLACES)
    self.assertNotIn("roc_auc", row)


if __name__ == "__main__":
  absltest.main()
