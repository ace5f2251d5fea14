"""The common flags of all binaries, and the functions that use them."""

import contextlib
import logging as python_logging
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from tqdm import tqdm

import keras_attr_preserve as kap
from examples.experiment.data.data_sets import Data, load
from examples.experiment.runs import nets
from examples.experiment.runs.compressing import check_strength, kinds
from examples.experiment.runs.experiment import KINDS, Experiment, Run, Settings
from examples.experiment.runs.fitting import Recipe, fit
from examples.experiment.runs.grids import expand
from examples.experiment.runs.judge import task_figures
from examples.experiment.runs.teaching import predict
from examples.experiment.runs.variants import CALLBACK_ARMS
from keras_attr_preserve.compat import keras
from keras_attr_preserve.export.commands.sidecars import (
  Sidecar,
  read_sidecar,
  settled,
)
from keras_attr_preserve.models.tap import Tap

__all__ = ["FLAGS", "adopt", "check_known", "command", "define_data_flags",
           "define_flags", "define_run_flags", "load_data", "open_experiment",
           "pixel_range", "read_net", "refused", "run_all", "run_grid", "show",
           "start"]

FLAGS = flags.FLAGS
# The flags defined here are those of the program, and --help shows them.
flags.disclaim_key_flags()

_SHOWN = {
    "map": "mAP", "accuracy": "accuracy", "cosine_mean": "cosine",
    "cosine_p5": "5th percentile", "spearman_mean": "Spearman",
    "roc_auc": "ROC-AUC", "pointing": "pointing",
    "gradient_cosine_mean": "int. gradients", "occlusion_cosine_mean":
    "occlusion", "dead": "dead", "bytes_gzipped": "bytes gzipped"}
_SMOKE = {
    "data": "digits", "size": 32, "limit": 24, "batch_size": 8, "probes": 2,
    "pixel_range": ["0", "1"],
    "layers": ["relu3"], "judged_layer": "relu3", "classes": None,
    **{f"{kind}_steps": 20 if kind == "prune" else 4 for kind in KINDS}}


def define_data_flags() -> None:
  """Defines the flags of the data and of the models' pixel range.

  `adopt` sets flags from the file that `train_teacher` wrote beside a model.
  """
  flags.DEFINE_string(
      "data", "digits", "What to compress for: 'digits', a VOCdevkit folder, "
      "an image folder, an .npz file or 'tfds:NAME'; see "
      "experiment/data/data_sets.py.")
  flags.DEFINE_list("classes", None, "Classes to keep; all where not set.")
  flags.DEFINE_string("background_class", None,
                      "Name of the absence of the one class in --classes.")
  flags.DEFINE_integer("size", 64, "Height and width of pictures; those of the "
                       "net where its .json file says them.", lower_bound=1)
  flags.DEFINE_integer("limit", None, "Pictures of each part at most.",
                       lower_bound=1)
  flags.DEFINE_list("pixel_range", None,
                    "What the nets take for black and for white, as 0,1; what "
                    "the .json file beside the net says, if not given.")
  flags.DEFINE_bool("unsafe", False, "Run code that the net's file holds: only "
                    "for files of people you trust.")
  flags.DEFINE_bool("smoke", False, "A run of seconds, to see that all works.")


def define_flags(output: str) -> None:
  """Defines the flags of every binary that compresses.

  Args:
    output: the default of `--output`.
  """
  define_data_flags()
  flags.DEFINE_string("output", output, "Folder of the results.")
  flags.DEFINE_string("experiment", "experiment", "A name for the results.")
  flags.DEFINE_string(
      "teacher", None, "The net to compress, a file that kap.load_model takes; "
      "train_teacher makes one.")
  flags.DEFINE_list("layers", None, "The layers whose maps are held.")
  flags.DEFINE_string("judged_layer", None,
                      "Where Grad-CAM judges; the last of --layers.")
  flags.DEFINE_enum("target", "teacher",
                    ["teacher", "top_k", "label", "present", "all"],
                    "Whose class's map is held; see WCAM.")
  flags.DEFINE_string("weight", "auto", "Weight of the maps, or 'auto'.")
  flags.DEFINE_string("hint_weight", "auto",
                      "Weight of the features, or 'auto'.")
  flags.DEFINE_float("agreement", 0.95, "What the arm 'agreement' holds.")
  flags.DEFINE_float("alpha", 0.9,
                     "Share of the teacher's scores, where they are taught.")
  flags.DEFINE_float("e2kd_weight", 1.0, "Weight of e2KD's maps.",
                     lower_bound=0.0)
  flags.DEFINE_float("catkd_weight", 4.0, "Weight of CAT-KD's maps.",
                     lower_bound=0.0)
  for kind, steps, rate, what in (
      ("prune", 600, 1e-3, "while weights are pruned and to recover"),
      ("refine", 600, 1e-3, "of what reconstruction left, zeros held"),
      ("tune", 600, 1e-3, "after filters are removed, or nothing is"),
      ("scratch", 1200, 2e-3, "of a net with fresh weights"),
      ("quantize", 300, 2e-4, "with clusters or under quantization")):
    flags.DEFINE_integer(f"{kind}_steps", steps, f"Steps {what}.",
                         lower_bound=1)
    flags.DEFINE_float(f"{kind}_rate", rate, f"Adam's learning rate {what}.",
                       lower_bound=0.0)
  flags.DEFINE_integer("batch_size", 32, "Pictures a step.", lower_bound=1)
  flags.DEFINE_bool("flip", False, "Mirror pictures at random.")
  flags.DEFINE_integer("probes", 100, "Pictures for the slow judges.",
                       lower_bound=1)
  flags.DEFINE_enum("judge_on", "test", ["test", "validation"],
                    "Which part to judge on; choose settings on validation.")
  flags.DEFINE_bool("keep", False, "Keep every student and its file.")


def define_run_flags(output: str) -> None:
  """Calls `define_flags`, and defines the flags of variants and seeds."""
  define_flags(output)
  flags.DEFINE_multi_enum("arm", ["plain", "swa_distillation"],
                          [*CALLBACK_ARMS], "What the student learns besides.")
  flags.DEFINE_multi_integer("seed", [1], "Seeds of weights and batches.")


def start(argv: list[str]) -> None:
  """Checks the command line, and silences the converter's log."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.ERROR)
  python_logging.getLogger("tensorflow").setLevel(python_logging.ERROR)
  if FLAGS.smoke:
    for name, value in _SMOKE.items():
      if name in FLAGS and not FLAGS[name].present:
        FLAGS[name].value = value


def adopt(path: str | None, flag: str = "--teacher") -> Sidecar:
  """Sets flags that are not given from the file beside a model.

  Args:
    path: the model's path; None for no model.
    flag: the flag with the path, for errors.

  Returns:
    The content of the file beside the model.

  Raises:
    app.UsageError: a given flag differs from the file, or the range of pixels
      is neither given nor in the file.
  """
  try:
    known = Sidecar(Path()) if path is None else read_sidecar(path)
    for name, value in (("pixel_range", known.pixel_range),
                        ("size", known.settings.get("size"))):
      settled(name, _given(name), value, known.path)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  adopted = {
      "pixel_range": known.pixel_range and [
          str(bound) for bound in known.pixel_range],
      "layers": known.layer and [known.layer],
      **{name: known.settings.get(name) for name in (
          "data", "size", *(
              () if FLAGS["classes"].present else (
                  "classes", "background_class")))}}
  for name, value in adopted.items():
    if value is not None and name in FLAGS and not FLAGS[name].present:
      FLAGS[name].value = value
  if path is not None and FLAGS.pixel_range is None:
    raise app.UsageError(
        f"--pixel_range must be what {flag} takes for black and for white, as "
        f"0,1 or -1,1 or 0,255: no file {str(known.path)!r} says it.")
  return known


def _given(name: str) -> Any:
  """Returns the value of a flag, in numbers; None if it is not given."""
  if not FLAGS[name].present:
    return None
  return pixel_range() if name == "pixel_range" else FLAGS[name].value


def load_data() -> Data:
  """Reads the data that the flags name.

  Raises:
    app.UsageError: the data cannot be read.
  """
  with refused("--data: "):
    return load(FLAGS.data, size=FLAGS.size, classes=FLAGS.classes,
                background_class=FLAGS.background_class, limit=FLAGS.limit)


@contextlib.contextmanager
def refused(prefix: str = "") -> Iterator[None]:
  """Turns errors into usage errors without a traceback, with a prefix."""
  try:
    yield
  except (ImportError, OSError, ValueError) as error:
    raise app.UsageError(f"{prefix}{error}") from error


def pixel_range() -> tuple[float, float]:
  """Returns the range of the model's images."""
  try:
    low, high = map(float, FLAGS.pixel_range or ())
  except ValueError:
    raise app.UsageError(
        "--pixel_range must be two numbers, as in 0,1; got "
        f"{','.join(FLAGS.pixel_range or ()) or 'none'}.") from None
  return low, high


def read_net(
    data: Data, path: str | None, known: Sidecar, flag: str = "--teacher"
) -> keras.Model:
  """Loads a model that fits the data, or makes one for a smoke run.

  Args:
    data: the images.
    path: the model's path; None for no model.
    known: the content of the file beside it; see `adopt`.
    flag: the flag with the path, for errors.

  Raises:
    app.UsageError: the model does not fit the data, or scores far lower on the
      validation images than when it was saved.
  """
  if path is not None:
    try:
      model = kap.load_model(path, safe_mode=not FLAGS.unsafe)
    except (OSError, ValueError) as error:
      raise app.UsageError(f"{flag}: {error}") from error
    model = fitting_net(model, data, flag)
    check_known(model, data, known, flag)
    return model
  if not FLAGS.smoke:
    raise app.UsageError(
        f"{flag} must name a net; python -m examples.train_teacher makes one.")
  keras.utils.set_random_seed(0)
  model = nets.build("small", size=FLAGS.size, classes=len(data.class_names),
                     width=0.25)
  fit(model, data.train, Recipe(
      steps=4, learning_rate=2e-3, batch_size=_SMOKE["batch_size"], seed=0,
      pixel_range=pixel_range(), flip=False, multi_label=data.multi_label))
  return model


def fitting_net(net: keras.Model, data: Data, flag: str) -> keras.Model:
  """Returns the model if it fits the data's images and classes.

  Raises:
    app.UsageError: the model does not fit; the text names the flag.
  """
  tap = Tap(net)
  shape, classes = data.train.images.shape[1:], len(data.class_names)
  if any(model_size not in (None, size)
         for model_size, size in zip(tap.input.shape, shape)):
    raise app.UsageError(
        f"{flag} takes pictures of {list(tap.input.shape)}; --size and "
        f"--data give {list(shape)}.")
  if tap.classes != classes:
    raise app.UsageError(
        f"{flag} scores {tap.classes} classes; --data and --classes give "
        f"{classes}: {', '.join(data.class_names)}.")
  return net


def check_known(
    net: keras.Model, data: Data, known: Sidecar, flag: str) -> None:
  """Raises an error if a model differs from its state when it was saved.

  Args:
    net: the loaded model.
    data: the images.
    known: the content of the file beside it.
    flag: the flag with the path, for errors.

  Raises:
    app.UsageError: the classes differ, or the mean average precision on the
      validation images has dropped by more than .02. With another number of
      images, chance matters: one over the root of their number is added to .02.
  """
  if known.class_names not in (None, tuple(data.class_names)):
    raise app.UsageError(
        f"{flag}: {str(known.path)!r} says that it scores "
        f"{', '.join(known.class_names)}; --data and --classes give "
        f"{', '.join(data.class_names)}.")
  figures = known.figures.get("validation", {})
  was = figures.get("map")
  if not isinstance(was, float):
    return
  split = data.validation
  score = task_figures(
      split.labels, predict(net, split.images, pixel_range()).astype(float),
      data.multi_label)["map"]
  count = len(split.images)
  allowed = 0.02 + (0 if figures.get("pictures") == count else count ** -0.5)
  if not score >= was - allowed:
    raise app.UsageError(
        f"{flag} has a mean average precision of {score:.3f} on {count} "
        f"validation pictures, and had {was:.3f} when {str(known.path)!r} was "
        "written: its weights, --data, --classes or --pixel_range are others.")


def open_experiment() -> Experiment:
  """Reads the data and the teacher, and opens the results."""
  known = adopt(FLAGS.teacher)
  if not FLAGS.layers:
    raise app.UsageError("--layers must name a layer whose map is held.")
  data = load_data()
  teacher = read_net(data, FLAGS.teacher, known)
  settings = Settings(
      steps={kind: FLAGS[f"{kind}_steps"].value for kind in KINDS},
      learning_rates={kind: FLAGS[f"{kind}_rate"].value for kind in KINDS},
      batch_size=FLAGS.batch_size, flip=FLAGS.flip, pixel_range=pixel_range(),
      layers=tuple(FLAGS.layers),
      judged_layer=FLAGS.judged_layer or FLAGS.layers[-1],
      target=FLAGS.target, weight=_weight("weight"),
      hint_weight=_weight("hint_weight"), agreement=FLAGS.agreement,
      alpha=FLAGS.alpha, e2kd_weight=FLAGS.e2kd_weight,
      catkd_weight=FLAGS.catkd_weight, probes=FLAGS.probes,
      judged_on=FLAGS.judge_on)
  return Experiment(
      FLAGS.experiment, teacher, data, settings, FLAGS.output,
      described={"classes": data.class_names, "size": FLAGS.size,
                 "limit": FLAGS.limit}, keep=FLAGS.keep)


def run_all(experiment: Experiment, runs: Iterable[Run]) -> None:
  """Makes the missing runs, and prints the row of each run.

  Args:
    experiment: the experiment of the runs.
    runs: the runs, in their order.
  """
  runs = [*runs]
  missing = [run for run in runs if experiment.find(run) is None]
  if len(missing) < len(runs):
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in "
          f"{experiment.path} already.")
  experiment.references()
  with tqdm(missing, unit="run", disable=len(missing) < 2) as bar:
    for run in bar:
      bar.set_description(run.name)
      experiment.run(run, verbose=2 if len(missing) == 1 else 0)
  for run in runs:
    row = experiment.find(run)
    if row is None:
      raise RuntimeError(f"{run.name} has no row in {experiment.path}.")
    print(show(row))


def show(row: Mapping[str, Any]) -> str:
  """Formats a row as a line of text."""
  figures = ", ".join(
      f"{label} {row[key]:,}" if isinstance(row[key], int)
      else f"{label} {row[key]:.3f}"
      for key, label in _SHOWN.items() if row.get(key) is not None)
  return (f"{row['compression']} {row['strength']:g}, {row['arm']}, seed "
          f"{row['seed']}: {figures} ({row['seconds']:.0f} s)")


def run_grid(compressions: Iterable[tuple[str, float]]) -> None:
  """Opens the experiment, and runs compressions in all variants and seeds."""
  started = time.monotonic()
  try:
    runs = expand([
        (name, check_strength(name, strength),
         FLAGS.arm if kinds(name) else ["plain"])
        for name, strength in compressions], FLAGS.seed)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  experiment = open_experiment()
  run_all(experiment, runs)
  print(f"{experiment.path} ({time.monotonic() - started:.0f} s)")


def _weight(flag: str) -> float | str:
  text = FLAGS[flag].value
  if text == "auto":
    return "auto"
  try:
    return float(text)
  except ValueError:
    raise app.UsageError(
        f"--{flag} must be a number or 'auto'; got {text}.") from None


def command(name: str) -> str:
  """Returns the command line that reproduces these results."""
  return " ".join([f"python -m examples.{name}", *(
      shlex.quote(argument) for argument in sys.argv[1:])])
