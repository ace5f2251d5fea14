r"""The command `kap-verify`: gates a build on the maps of a .tflite file.

    kap-verify --tflite=net.tflite --teacher=net.h5 --layer=relu4 \
        --images=test.npz --require_cosine=0.9

Exits 0 when the file's maps agree with the teacher's as far as is required, 1
when they fall short, 2 on bad input.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import tensorflow_model_optimization as tfmot
from absl import app, flags

from keras_attr_preserve.compat import keras
from keras_attr_preserve.evaluation.report import Report, ShortfallError
from keras_attr_preserve.export.interpreter import RUNTIMES
from keras_attr_preserve.export.verify import verify
from keras_attr_preserve.regularizer import WCAM

__all__ = ["load_images", "load_teacher", "main", "run"]

FLAGS = flags.FLAGS

flags.DEFINE_string("tflite", None, "The .tflite file that ships.")
flags.DEFINE_string(
    "teacher", None,
    "The float model: a tf_keras .h5 or .keras file, or a SavedModel folder.")
flags.DEFINE_string("layer", None, "The teacher's layer whose maps count.")
flags.DEFINE_enum("method", "swa", ["swa", "ewa"], "The map; see WCAM.")
flags.DEFINE_string(
    "images", None,
    "Pictures, in the range the teacher takes: .npy, or .npz with the key "
    "--images_key.")
flags.DEFINE_string("images_key", "images", "Key of the pictures in an .npz.")
flags.DEFINE_enum("runtime", "xnnpack", RUNTIMES, "Where the file runs.")
flags.DEFINE_string(
    "output", None, "Folder for report.json and report.csv; none if not given.")
flags.DEFINE_float("require_cosine", None, "Least mean cosine of the maps.")
flags.DEFINE_float("require_cosine_p5", None,
                   "Least 5th percentile of the cosine.")
flags.DEFINE_float("require_spearman", None, "Least mean rank correlation.")
flags.DEFINE_float("require_prediction_agreement", None,
                   "Least share of equal top classes.")
flags.DEFINE_float("require_dead", None, "Largest share of dead maps.")

_NEEDED = ("tflite", "teacher", "layer", "images")
_REQUIRE = "require_"
_BAD_INPUT = (OSError, TypeError, ValueError, ImportError, KeyError)


def load_teacher(path: str) -> keras.Model:
  """Loads a float model for judging.

  Args:
    path: an .h5 or .keras file, or a SavedModel folder, saved by `tf_keras`.

  Returns:
    The model, not compiled.

  Raises:
    OSError: nothing is there, or it cannot be read.
    ValueError: it holds no `tf_keras` model.
  """
  if not Path(path).exists():
    raise FileNotFoundError(f"--teacher: no file or folder {path!r}.")
  with tfmot.quantization.keras.quantize_scope(), (
      tfmot.sparsity.keras.prune_scope()):
    try:
      model = keras.models.load_model(path, compile=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
          f"--teacher must hold a tf_keras model; {path!r}: {error}") from error
  return model


def load_images(path: str, key: str) -> np.ndarray:
  """Loads pictures from NumPy's files.

  Args:
    path: an .npy or .npz file.
    key: the array's name in an .npz.

  Returns:
    The array.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not NumPy's, or has no such key.
  """
  try:
    loaded = np.load(path, allow_pickle=False)
  except (EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
        f"--images must be a whole .npy or .npz file; {path!r}: "
        f"{error}") from error
  if isinstance(loaded, np.ndarray):
    return loaded
  with loaded:
    if key not in loaded:
      raise ValueError(
          f"--images_key must be one of {loaded.files} of {path!r}; got "
          f"{key!r}.")
    return loaded[key]


def _verified() -> Report:
  missing = [f"--{name}" for name in _NEEDED if FLAGS[name].value is None]
  if missing:
    raise ValueError(f"{', '.join(missing)} must be given.")
  report = verify(
      FLAGS.tflite, load_teacher(FLAGS.teacher),
      WCAM(FLAGS.layer, method=FLAGS.method),
      load_images(FLAGS.images, FLAGS.images_key), runtime=FLAGS.runtime)
  if FLAGS.output:
    report.save(FLAGS.output)
  return report


def main(argv: list[str]) -> int:
  """Verifies and prints.

  Args:
    argv: the program and what absl left over, which must be nothing.

  Returns:
    The exit code: 0, 1 or 2.
  """
  try:
    if len(argv) > 1:
      raise ValueError(f"unknown arguments: {' '.join(argv[1:])}.")
    report = _verified()
    limits = {name: FLAGS[_REQUIRE + name].value
              for name in ("cosine", "cosine_p5", "spearman",
                           "prediction_agreement", "dead")}
    report.require(**{name: value for name, value in limits.items()
                      if value is not None})
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
    # absl exits with 1 here, which stands for a shortfall.
    print(__doc__, FLAGS.module_help(sys.modules[__name__]), sep="\n")
    sys.exit(0)
  try:
    return FLAGS(argv)
  except flags.Error as error:
    print(f"kap-verify: bad input: {error}", file=sys.stderr)
    sys.exit(2)


def run() -> None:
  """The installed command."""
  app.run(main, flags_parser=_parse)


if __name__ == "__main__":
  run()
