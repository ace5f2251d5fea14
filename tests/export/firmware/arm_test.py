"""Tests of the C sources on emulated boards of each Cortex-M."""

import pytest
from absl.testing import absltest, parameterized

from tests import c_programs, tiny
from tests import device_exports as exports

# The most bytes of code and constants that the head may have, with -Os.
# Measured at most, over the processors: 652, 652, 640, 1278, 356, 180.
LARGEST = {"linear": 700, "hidden": 1400, "gradient": 400, "ewa": 220}


@c_programs.needs_arm
class ArmTest(parameterized.TestCase):

  # Every processor, and every way to make a map on the smallest of them.
  @parameterized.parameters(
      *((processor, "hidden") for processor in c_programs.BOARDS),
      *(("cortex-m0", kind) for kind in ("linear", "gradient", "ewa")))
  @pytest.mark.slow("firmware")
  def test_maps_bit_for_bit(self, processor, kind):
    self.check_maps(processor, kind)

  @parameterized.parameters(
      *((processor, kind) for processor in c_programs.BOARDS
        for kind in ("linear", "single", "gradient", "ewa")
        if processor != "cortex-m0" or kind == "single"))
  @pytest.mark.slow("firmware")
  def test_maps_of_other_kinds(self, processor, kind):
    self.check_maps(processor, kind)

  def check_maps(self, processor, kind):
    done, size = c_programs.board_test(
        exports.exported(kind), exports.NAME, processor)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    count = 4 if kind == "ewa" else 13
    self.assertEqual(
        done.stdout, f"passed: {count} maps of 4 images, 0 numbers differ\n")
    print(f"{processor}, {kind}: {size} bytes")
    self.assertLess(size, LARGEST[exports.KINDS[kind]])

  def test_a_wrong_expectation_is_found(self):
    folder = tiny.folder(self)
    for path in exports.exported("linear").iterdir():
      content = path.read_bytes()
      if path.name.endswith("_vectors.h"):
        content = content.replace(b" 255,", b" 254,", 1)
      (folder / path.name).write_bytes(content)
    done, _ = c_programs.board_test(folder, exports.NAME, "cortex-m4")
    self.assertEqual(done.returncode, 1)
    self.assertStartsWith(done.stdout, "FAILED")


if __name__ == "__main__":
  absltest.main()
