"""Tests of explain_cost.py: what explain costs beside predict."""

from absl.testing import absltest, parameterized

from keras_attr_preserve.export.runtime.arena import phone_arena
from keras_attr_preserve.export.runtime.explain_cost import explain_cost
from tests import export_helpers as helpers
from tests import tiny


class ExplainCostTest(parameterized.TestCase):

  @parameterized.parameters(
      ("block", "float32", "phone", "tail"), ("block", "int8", "phone", "tail"),
      ("block", "int8", "microcontroller", "gradient"),
      ("gap", "int8", "microcontroller", "features"))
  def test_figures(self, tail, mode, target, road):
    content = helpers.converted(tail, mode, target=target)
    cost = explain_cost(content, calls=5)
    self.assertEqual(cost.road, road)
    self.assertEqual(cost.bytes, len(content))
    self.assertEqual(cost.arena, phone_arena(content))
    bare = helpers.bare(tail, mode)
    # The converter's own file, but for a note, a seal and shared tables.
    self.assertAlmostEqual(cost.predict_bytes / len(bare), 1, delta=0.2)
    self.assertLess(cost.predict_bytes, cost.bytes + 16)
    self.assertGreater(cost.time_ratio, 0)
    self.assertGreater(cost.predict_ms, 0)
    self.assertGreaterEqual(cost.arena, cost.predict_arena)
    self.assertGreater(cost.predict_arena, 0)
    self.assertRegex(
        str(cost), rf"road '{road}': .* bytes, [-+].*% over the .* of predict "
        r"alone; explain takes .* times predict's time")

  def test_a_path(self):
    path = tiny.folder(self) / "net.tflite"
    path.write_bytes(helpers.converted())
    self.assertEqual(explain_cost(path, calls=1).bytes,
                     len(helpers.converted()))

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, "runtime must be one of"):
      explain_cost(helpers.converted(), runtime="tflm")
    for calls in (0, 2.5):
      with self.assertRaisesRegex(ValueError, "calls must be"):
        explain_cost(helpers.converted(), calls=calls)
    with self.assertRaisesRegex(ValueError, "carries no attribution"):
      explain_cost(helpers.foreign(helpers.converted()))


if __name__ == "__main__":
  absltest.main()
