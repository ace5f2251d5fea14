"""verify on files that others have made."""

import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.verification.verify import verify
from tests import export_helpers as helpers
from tests import foreign_files


class VerifyForeignTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", "head", 0.998), ("block", "teacher's tail", 0.995))
  def test_against_the_keras_original(self, tail, road, least):
    content = foreign_files.converted(tail, "int8")
    report = verify(
        content, helpers.net(tail), kap.WCAM("act"), helpers.images(16))
    report.require(cosine=least, dead=0, prediction_agreement=0.9)
    self.assertEqual(report.facts["road"], road)
    self.assertEqual(report.facts["mode"], "int8")
    self.assertEqual(report.facts["method"], "swa")
    self.assertIn("matched by name and numbers", report.facts["source"])
    self.assertIn("matched by name and numbers", str(report))

  @pytest.mark.slow("files")
  def test_on_every_runtime(self):
    comparison = verify(
        foreign_files.converted("gap", "int8"), helpers.net("gap"),
        kap.WCAM("act", method="ewa"), helpers.images(8), runtime="all",
        judges=("occlusion",), judge_images=2)
    self.assertContainsSubset({*helpers.LITERT_RUNTIMES}, comparison.reports)
    for report in comparison.reports.values():
      report.require(cosine=0.999)

  def test_file_against_file(self):
    first, second = (foreign_files.converted("flatten", mode)
                     for mode in ("int8", "float32"))
    verify(first, second, kap.WCAM("act"), helpers.images(8)).require(
        cosine=0.99)
    # One made by `convert` may stand on either side.
    preserving = helpers.converted("gap", "int8")
    foreign = foreign_files.converted("gap")
    for pair in ((preserving, foreign), (foreign, preserving)):
      verify(*pair, kap.WCAM("act"), helpers.images(8)).require(cosine=0.99)

  def test_settings_of_the_explainer(self):
    model, images = helpers.net("gap"), helpers.images(16).clip(-1, 1)
    content = foreign_files.convert(foreign_files.rescaled(model))
    with self.assertRaisesRegex(ValueError, r"\(images \+ 1\) \* 127.5"):
      verify(content, model, kap.WCAM("act"), images)
    verify(content, model, kap.WCAM("act"), images, foreign={
        "preprocess": lambda batch: (batch + 1) * 127.5}).require(cosine=0.9999)

  def test_a_black_box_is_no_match(self):
    with self.assertRaisesRegex(
        ValueError, "only be explained by its scores.*no match for .*'swa'"):
      verify(foreign_files.converted("gap"), helpers.net("gap"),
             kap.WCAM("act"), helpers.images(8),
             foreign={"black_box": "occlusion"})


if __name__ == "__main__":
  absltest.main()
