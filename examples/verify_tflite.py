"""Compares the maps of a .tflite file with the maps of its original model.

    python -m examples.verify_tflite --tflite=out/net.tflite \
        --teacher=out/teacher/teacher.h5 --require_cosine=0.9

The script runs the shipped file on images of the test part. It exits with 1 if
the file falls short. `--smoke` converts a small model first.
"""

import sys
from pathlib import Path

from absl import app, flags

import keras_attr_preserve as kap
from examples.experiment.runs import running
from examples.experiment.runs.experiment import calibration
from examples.experiment.runs.fitting import in_range

running.define_data_flags()
TFLITE = flags.DEFINE_string("tflite", None, "The file.")
TEACHER = flags.DEFINE_string("teacher", None, "The float net.")
LAYER = flags.DEFINE_string(
    "layer", None, "The layer that is explained; the file's if not given.")
IMAGES = flags.DEFINE_integer(
    "images", 200, "Test pictures to compare at most.", lower_bound=1)
JUDGES = flags.DEFINE_multi_enum(
    "judge", [], ["occlusion", "rise"], "Black-box judges, too.")
RUNTIME = flags.DEFINE_string(
    "runtime", "xnnpack", "xnnpack, builtin, reference, tflm or all.")
REQUIRE = flags.DEFINE_float(
    "require_cosine", None, "The least mean cosine.", 0.0, 1.0)
OUTPUT = flags.DEFINE_string("output", "out/verify", "Folder of the report.")


def main(argv: list[str]) -> int:
  """Prints and saves the report; returns the exit code."""
  running.start(argv)
  known = running.adopt(TEACHER.value)
  data = running.load_data()
  teacher = running.read_net(data, TEACHER.value, known)
  if TFLITE.value:
    content = Path(TFLITE.value).read_bytes()
  elif running.FLAGS.smoke:
    content = kap.export.convert(
        teacher, kap.WCAM(LAYER.value or "relu3"),
        representative_images=calibration(data, running.pixel_range()))
  else:
    raise app.UsageError("--tflite must name the file.")
  report = kap.export.verify(
      content, teacher, LAYER.value and kap.WCAM(LAYER.value),
      in_range(data.test.images[:IMAGES.value], running.pixel_range()),
      runtime=RUNTIME.value, judges=tuple(JUDGES.value))
  print(report)
  report.save(OUTPUT.value)
  print(OUTPUT.value)
  if REQUIRE.value is None:
    return 0
  try:
    report.require(cosine=REQUIRE.value)
  except kap.evaluation.ShortfallError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  app.run(main)
