r"""The command `kap-verify`: gates a build on the maps of a .tflite file.

    kap-verify --tflite=net.tflite --teacher=net.h5 --images=test.npz \
        --require_cosine=0.9

    kap-verify ... --images=pictures/ --images_range=0,1 --runtime=all \
        --judges=occlusion,rise --require=cosine_median=0.99,ssim_p5=0.8 \
        --output=report

A file of kap-export names its layer and method; --layer and --method are for
other files. net.json beside net.h5, from examples.train_teacher, gives the
range of a folder's images.

Exits 0 when the file's maps agree with the teacher's as required, on every
named runtime, 1 when they fall short, 2 on bad input.
"""

import sys
from pathlib import Path

from absl import app, flags

from keras_attr_preserve.evaluation.report import Report, ShortfallError
from keras_attr_preserve.evaluation.runtime_comparison import Comparison
from keras_attr_preserve.export.commands.inputs import (
  define_loading_flags,
  load_images,
  load_pictures,
  load_teacher,
  picture_paths,
)
from keras_attr_preserve.export.commands.sidecars import (
  Sidecar,
  check_range,
  read_sidecar,
  settled,
)
from keras_attr_preserve.export.runtime.interpreter import RUNTIMES, Interpreter
from keras_attr_preserve.export.runtime.known_facts import file_metadata
from keras_attr_preserve.export.verification.black_box_judges import JUDGES
from keras_attr_preserve.export.verification.verify import ALL_RUNTIMES, verify
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layers import unwrapped_name
from keras_attr_preserve.training.wcam import WCAM

__all__ = ["main", "run"]

FLAGS = flags.FLAGS

flags.DEFINE_string("tflite", None, "The .tflite file that ships.")
flags.DEFINE_string(
    "teacher", None,
    "The float model: a tf_keras .h5 or .keras file, or a SavedModel folder; "
    "or a .tflite file in its stead.")
define_loading_flags(FLAGS)
flags.DEFINE_string(
    "layer", None, "The teacher's layer whose maps count; that of the file if "
    "not given.")
flags.DEFINE_string(
    "student_layer", None, "The file's layer, where the teacher's has another "
    "name.")
flags.DEFINE_enum("method", None, ["swa", "ewa"],
                  "The map; see WCAM. That of the file if not given.")
flags.DEFINE_string(
    "images", None,
    "Pictures, in the range the teacher takes: .npy, or .npz with the key "
    "--images_key; or a folder of PNG, JPEG or BMP files, taken in the order "
    "of their names.")
flags.DEFINE_string("images_key", "images", "Key of the pictures in an .npz.")
flags.DEFINE_list(
    "images_range", None,
    "What the teacher takes for black and white, such as 0,1 or -1,1 or 0,255: "
    "a folder's pictures are brought to it; what a .json file beside the "
    "teacher says, if not given.")
flags.DEFINE_list(
    "runtime", ["xnnpack"],
    f"Where the file runs: {', '.join(RUNTIMES)}; several, by commas; or all "
    "that can.")
flags.DEFINE_list(
    "judges", [],
    f"Methods that see scores alone, by commas: {', '.join(JUDGES)}. They cost "
    "some hundred runs of each picture, on each runtime and for the teacher.")
flags.DEFINE_integer(
    "judge_images", 20, "How many pictures the judges see.", lower_bound=1)
flags.DEFINE_string(
    "output", None,
    "Folder for report.json, report.csv and worst.png, and with several "
    "runtimes comparison.json; none if not given.")
flags.DEFINE_float("require_cosine", None, "Least mean cosine of the maps.")
flags.DEFINE_float("require_cosine_p5", None,
                   "Least 5th percentile of the cosine.")
flags.DEFINE_float("require_spearman", None, "Least mean rank correlation.")
flags.DEFINE_float("require_prediction_agreement", None,
                   "Least share of equal top classes.")
flags.DEFINE_float("require_dead", None, "Largest share of dead maps.")
flags.DEFINE_float("require_occlusion_cosine", None,
                   "Least mean cosine of the judge occlusion's maps.")
flags.DEFINE_float("require_rise_cosine", None,
                   "Least mean cosine of the judge RISE's maps.")
flags.DEFINE_list(
    "require", [],
    "Any other figures of the report, name=limit by commas, such as "
    "cosine_median=0.99,top_k_iou_worst=0.5,occlusion_spearman=0.8.")
flags.register_validator(
    "runtime", lambda names: names == [ALL_RUNTIMES] or (bool(names) and all(
        name in RUNTIMES for name in names)),
    f"must be of {', '.join(RUNTIMES)}, or {ALL_RUNTIMES}")
flags.register_validator(
    "judges", lambda names: all(name in JUDGES for name in names),
    f"must be of {', '.join(JUDGES)}")

_NEEDED = ("tflite", "teacher", "images")
_REQUIRE = "require_"
_REQUIRED = ("cosine", "cosine_p5", "spearman", "prediction_agreement", "dead",
             "occlusion_cosine", "rise_cosine")
_BAD_INPUT = (OSError, TypeError, ValueError, ImportError, KeyError)


def _verified() -> Report | Comparison:
  missing = [f"--{name}" for name in _NEEDED if FLAGS[name].value is None]
  if missing:
    raise ValueError(f"{', '.join(missing)} must be given.")
  _limits()  # Raises on a wrong limit before the work.
  content, teacher = Path(FLAGS.tflite).read_bytes(), FLAGS.teacher
  wcam, known = _wcam(content), Sidecar(Path())
  if not teacher.endswith(".tflite"):
    known = read_sidecar(teacher)
    teacher = load_teacher(teacher, FLAGS)
  names = FLAGS.runtime
  report = verify(
      content, teacher, wcam, _images(teacher, known),
      runtime=names[0] if len(names) == 1 else names, judges=FLAGS.judges,
      judge_images=FLAGS.judge_images, progress=sys.stderr.isatty())
  if FLAGS.output:
    if Path(FLAGS.images).is_dir():
      for single in (report.reports.values()
                     if isinstance(report, Comparison) else [report]):
        # A file's name may hold bytes that are no UTF-8; a report cannot.
        single.image_names = [
            path.name.encode("utf-8", "backslashreplace").decode()
            for path in picture_paths(FLAGS.images)]
    report.save(FLAGS.output)
  return report


def _wcam(content: bytes) -> WCAM:
  """Returns layer and method of the flags, else of the file."""
  known = file_metadata(content)
  if known is None:
    if FLAGS.layer is None:
      raise ValueError(
          "--layer must be given, since --tflite was not made by kap-export "
          "and does not say it.")
    known = {"layer": FLAGS.layer, "method": "swa"}
  else:
    settled("method", FLAGS.method, known["method"], FLAGS.tflite)
    flag = "layer" if FLAGS.student_layer is None else "student_layer"
    given = FLAGS[flag].value
    settled(flag, given and unwrapped_name(given),
            unwrapped_name(known["layer"]), FLAGS.tflite)
  return WCAM(FLAGS.layer or known["layer"],
              method=FLAGS.method or known["method"],
              student_layer=FLAGS.student_layer)


def _images(teacher, known: Sidecar):
  if not Path(FLAGS.images).is_dir():
    images = load_images(FLAGS.images, FLAGS.images_key)
    check_range(images, known, "--images")
    return images
  taken = (Interpreter(teacher).input if isinstance(teacher, str)
           else model_input(teacher))
  loaded = taken.own(load_pictures(
      FLAGS.images, taken.pixel_shape, settled(
          "images_range", _numbers(FLAGS.images_range), known.pixel_range,
          known.path)))
  return loaded if taken.is_float else loaded.round()


def _numbers(texts: list[str] | None) -> tuple[float, ...] | None:
  """Returns the numbers of a flag, or its texts if they are no numbers."""
  try:
    return None if texts is None else tuple(map(float, texts))
  except ValueError:
    return tuple(texts)


def _limits() -> dict[str, float]:
  limits = {name: FLAGS[_REQUIRE + name].value for name in _REQUIRED}
  limits = {name: value for name, value in limits.items() if value is not None}
  for entry in FLAGS.require:
    name, _, value = entry.partition("=")
    if name in limits:
      raise ValueError(f"--require: {name} is given twice.")
    try:
      limits[name] = float(value)
    except ValueError as error:
      raise ValueError(
          f"--require must be name=limit by commas; got {entry!r}.") from error
  return limits


def main(argv: list[str]) -> int:
  """Verifies the file and prints the report.

  Args:
    argv: the program; further arguments are bad input.

  Returns:
    The exit code: 0, 1 or 2.
  """
  try:
    if len(argv) > 1:
      raise ValueError(f"unknown arguments: {' '.join(argv[1:])}.")
    report = _verified()
    report.require(**_limits())
  except ShortfallError as error:
    print(f"kap-verify: falls short: {error}")
    return 1
  except _BAD_INPUT as error:
    print(f"kap-verify: bad input: {error}", file=sys.stderr)
    return 2
  print(report)
  return 0


def _parse(argv: list[str]) -> list[str]:
  if {"-h", "--help", "--helpshort", "--helpfull"} & set(argv[1:]):
    # absl exits with 1 here, but 1 means a shortfall.
    print(__doc__, FLAGS.module_help(sys.modules[__name__]), sep="\n")
    sys.exit(0)
  try:
    return FLAGS(argv)
  except flags.Error as error:
    print(f"kap-verify: bad input: {error}", file=sys.stderr)
    sys.exit(2)


def run() -> None:
  """Runs the installed command."""
  app.run(main, flags_parser=_parse)


if __name__ == "__main__":
  run()
