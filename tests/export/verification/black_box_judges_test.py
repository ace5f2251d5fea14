"""Tests of black_box_judges.py: methods that see scores alone."""

import contextlib
import functools
import io
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.attribution import occlusion, rise
from keras_attr_preserve.export.verification import black_box_judges
from tests import export_helpers as helpers

BOTH = ("occlusion", "rise")


def verify(content=None, **settings):
  return kap.export.verify(
      helpers.converted("gap", "int8", seed=5) if content is None else content,
      helpers.net(), helpers.wcam(), helpers.images(6), **settings)


def few_masks():
  """A test needs no five hundred of them."""
  return mock.patch.dict(black_box_judges.JUDGES, {
      "rise": functools.partial(rise, masks=20, centred=True)})


class ScoresTest(parameterized.TestCase):

  def test_recomputed(self):
    """From the public functions, on the logits of the teacher's top class."""
    self.assertEqual(
        black_box_judges.JUDGES["rise"].keywords,
        {"masks": 500, "centred": True})
    with few_masks():
      report = verify(judges=BOTH, judge_images=4)
    images = helpers.images(6)[:4]
    teacher = helpers.net()
    top = teacher.predict(images, verbose=0).argmax(1)
    file = kap.export.Interpreter(helpers.converted("gap", "int8", seed=5))
    for name, judge in (
        ("occlusion", occlusion),
        ("rise", functools.partial(rise, masks=20, centred=True))):
      of_file = judge(lambda batch: file.predict(batch, logits=True), images,
                      top)
      of_teacher = judge(lambda batch: teacher(batch).numpy(), images, top)
      want = kap.evaluation.agreement(of_teacher, of_file)
      for score, values in want.items():
        got = report.scores[f"{name}_{score}"]
        # Float32 logits of batches of another size.
        np.testing.assert_allclose(got[:4], values, atol=1e-4)
        self.assertTrue(np.isnan(got[4:]).all())
      self.assertLess(want["cosine"].mean(), 0.95)  # Another model.
    self.assertEqual(report.facts["judge_images"], 4)

  @parameterized.parameters(
      ("gap", "linear"), ("block", "linear"), ("gap", "softmax"))
  def test_a_faithful_file(self, tail, head):
    with few_masks():
      report = kap.export.verify(
          helpers.converted(tail, head=head), helpers.net(tail, head=head),
          helpers.wcam(), helpers.images(3), judges=BOTH)
    # Float32 rounding; ranks may change places where maps are flat.
    report.require(
        occlusion_cosine_worst=1 - 1e-6, rise_cosine_worst=1 - 1e-6,
        occlusion_spearman=0.999, rise_pearson=0.999)

  def test_logits_are_judged_not_probabilities(self):
    """A softmax mixes the classes: maps of its outputs are others."""
    images, model = helpers.images(3), helpers.net(head="softmax")
    content = helpers.converted("gap", head="softmax", seed=5)  # Another model.
    with few_masks():
      linear, softmax = (
          kap.export.verify(
              helpers.converted("gap", head=head, seed=5),
              helpers.net(head=head), helpers.wcam(), images, judges=BOTH)
          for head in ("linear", "softmax"))
    top = model.predict(images, verbose=0).argmax(1)
    for name, judge in (
        ("occlusion", occlusion),
        ("rise", functools.partial(rise, masks=20, centred=True))):
      scores = softmax.scores[f"{name}_ssim"]
      # Float32 rounding of logits, read before the softmax in both.
      np.testing.assert_allclose(
          linear.scores[f"{name}_ssim"], scores, atol=1e-4)
      of_probabilities = kap.evaluation.agreement(*(
          judge(side, images, top) for side in (
              lambda batch: model(batch).numpy(),
              kap.export.Interpreter(content).predict)))["ssim"]
      # Far above rounding. Measured: .3 at least.
      self.assertGreater(np.abs(of_probabilities - scores).min(), 0.1)

  def test_in_the_summary_and_the_gate(self):
    with few_masks():
      report = verify(judges=["rise"])
    self.assertContainsSubset({"rise_cosine", "rise_l2"}, report.summary())
    self.assertNotIn("occlusion_cosine", report.summary())
    self.assertRegex(str(report), r"(?m)^rise_cosine +-?0\.\d+ ")
    with self.assertRaisesRegex(
        kap.evaluation.ShortfallError, "rise_cosine .*, at least 0.999"):
      report.require(rise_cosine=0.999)
    with self.assertRaisesRegex(
        kap.evaluation.ShortfallError, "rise_l2 .*, at most 0.01 required"):
      report.require(rise_l2=0.01)

  def test_none_by_default(self):
    report = verify()
    self.assertNotIn("judge_images", report.facts)
    self.assertNotIn("occlusion_cosine", report.scores)

  def test_the_first_twenty_by_default(self):
    report = kap.export.verify(
        helpers.converted("gap", "int8", seed=5), helpers.net(), helpers.wcam(),
        helpers.images(22),
        judges={"ones": lambda _, images, __: np.ones((len(images), 2, 2))})
    self.assertEqual(report.facts["judge_images"], 20)
    np.testing.assert_array_equal(
        np.isnan(report.scores["ones_cosine"]), np.arange(22) >= 20)

  def test_a_judge_of_one_s_own(self):
    seen = []

    def edges(predict, images, targets):
      seen.append((predict(images), images, targets))
      return np.ones((len(images), 2, 2)) + len(seen)

    report = verify(judges={"edges": edges}, judge_images=3)
    (teacher, images, top), (file, others, same) = seen
    np.testing.assert_array_equal(images, helpers.images(6)[:3])
    np.testing.assert_array_equal(images, others)
    np.testing.assert_array_equal(top, teacher.argmax(1))
    np.testing.assert_array_equal(top, same)
    self.assertFalse(np.allclose(teacher, file))
    np.testing.assert_allclose(report.scores["edges_cosine"][:3], 1)

  def test_on_each_runtime(self):
    with few_masks():
      both = verify(judges=BOTH, judge_images=2,
                    runtime=("xnnpack", "reference"))
    for report in both.reports.values():
      self.assertTrue(np.isfinite(report.scores["rise_cosine"][:2]).all())

  def test_the_same_probes_for_both_sides(self):
    probes = []

    class Spy(kap.export.Interpreter):
      def predict(self, images, **settings):
        probes.append(images)
        return super().predict(images, **settings)

    with few_masks(), mock.patch(
        "keras_attr_preserve.export.verification.explainers.Interpreter", Spy):
      verify(helpers.converted(), judges=["rise"])
      first, probes[:] = list(probes), []
      verify(helpers.converted(seed=5), judges=["rise"])
    for values, other in zip(first, probes, strict=True):
      np.testing.assert_array_equal(values, other)


  def test_a_picture_of_next_to_nothing(self):
    """An integer file refuses it by itself, among others not."""
    images = helpers.images(3)
    images[1] = 0
    images[1, 0, 0, 0] = 1e-3
    content = helpers.converted("gap", "int8")
    with self.assertRaisesRegex(ValueError, "images must be in the range"):
      kap.export.Interpreter(content).predict(images[1:2])
    with few_masks():
      report = kap.export.verify(
          content, helpers.net(), helpers.wcam(), images, judges=BOTH)
    self.assertTrue(np.isfinite(report.scores["rise_cosine"][[0, 2]]).all())


class ProgressTest(absltest.TestCase):

  def test_a_line_for_each_judge_and_side(self):
    with few_masks(), contextlib.redirect_stderr(io.StringIO()) as err:
      verify(judges=BOTH, judge_images=1, progress=True)
    last = [line.split("\r")[-1] for line in err.getvalue().split("\n")]
    self.assertEqual(last, [
        "occlusion, teacher: 64 of 64 pictures run",
        "rise, teacher: 20 of 20 pictures run",
        "occlusion, xnnpack: 64 of 64 pictures run",
        "rise, xnnpack: 20 of 20 pictures run", ""])

  def test_a_function(self):
    calls = []
    verify(judges=["occlusion"], judge_images=1,
           progress=lambda *arguments: calls.append(arguments))
    self.assertEqual(calls, [(64, 64)] * 2)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("occlusion",), (["lime"],), (["occlusion", "lime"],), ([3],))
  def test_names(self, asked):
    with self.assertRaisesRegex(
        ValueError, r"judges must be a sequence of \('occlusion', 'rise'\)"):
      verify(judges=asked)

  def test_no_functions(self):
    with self.assertRaisesRegex(TypeError, "judges must be functions by names"):
      verify(judges={"mine": 3})
    with self.assertRaisesRegex(ValueError, "must be an identifier; got 'a b'"):
      verify(judges={"a b": occlusion})

  @parameterized.parameters(0, -1, 2.5, True)
  def test_judge_images(self, count):
    with self.assertRaisesRegex(ValueError, "judge_images must be 1 or more"):
      verify(judges=["occlusion"], judge_images=count)

  def test_maps_of_another_shape(self):
    with self.assertRaisesRegex(
        ValueError, r"judges: 'mine' must return maps \[6, height, width\]; "
        r"got \[2\]"):
      verify(judges={"mine": lambda *_: np.ones(2)})


if __name__ == "__main__":
  absltest.main()
