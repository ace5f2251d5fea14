"""Experiments: one teacher, one data set, and any number of runs.

A run is a compression at a strength, in a variant, with a seed. It makes a
student, converts it to an int8 .tflite file, judges the file, and adds a row to
the results file. A run with a row of the same settings is skipped.
"""

import dataclasses
import gc
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import keras_attr_preserve as kap
from examples.experiment.data.data_sets import Data
from examples.experiment.runs import costs, results_file
from examples.experiment.runs.compressing import (
  Starts,
  compress,
  kinds,
  starts_fresh,
)
from examples.experiment.runs.fitting import Recipe, fit, in_range
from examples.experiment.runs.judge import Judge
from examples.experiment.runs.records import add_row, digest, find_row
from examples.experiment.runs.variants import (
  ARM_SETTINGS,
  ARMS,
  arm_callbacks,
  recalibrates,
)
from keras_attr_preserve.compat import keras
from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

__all__ = ["KINDS", "Experiment", "Run", "Settings", "calibration", "versions"]

KINDS = ("prune", "refine", "tune", "scratch", "quantize")
CALIBRATION = 200
"""Number of images that calibrate an int8 file's ranges."""
RECALIBRATION = 512
"""Number of images that recalibrate batch normalizations."""
_PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization",
             "ai-edge-litert", "numpy")


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of all runs of an experiment.

  Attributes:
    steps: optimizer steps of each kind of fit, see `KINDS`.
    learning_rates: Adam's first learning rate of each kind.
    batch_size: images per step.
    flip: whether images are mirrored at random.
    pixel_range: the range of the models' input.
    layers: the layers whose maps are preserved.
    judged_layer: the layer of the judge's Grad-CAM maps.
    target: the class whose map is preserved; see `WCAM`.
    weight: the weight of the maps in the loss; see `WCAM`.
    hint_weight: the weight of the features in the loss; see `Hints`.
    agreement: the agreement that the variant "agreement" keeps.
    alpha: the share of the teacher's scores in the loss, if it has them.
    e2kd_weight: the weight of e2KD's maps.
    catkd_weight: the weight of CAT-KD's maps.
    probes: the number of images for the slow judges.
    judged_on: "test" or "validation".
  """

  steps: Mapping[str, int]
  learning_rates: Mapping[str, float]
  batch_size: int
  flip: bool
  pixel_range: tuple[float, float]
  layers: tuple[str, ...]
  judged_layer: str
  target: str = "teacher"
  weight: float | str = "auto"
  hint_weight: float | str = "auto"
  agreement: float = 0.95
  alpha: float = 0.9
  e2kd_weight: float = 1.0
  catkd_weight: float = 4.0
  probes: int = 100
  judged_on: str = "test"


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    compression: one of `COMPRESSIONS`.
    strength: see `compressing.parse`.
    arm: one of `ARMS`.
    seed: the seed of weights, batches and clusters.
  """

  compression: str
  strength: float
  arm: str
  seed: int

  def __post_init__(self):
    if self.arm not in ARMS:
      raise ValueError(f"arm must be one of {[*ARMS]}; got {self.arm!r}.")
    if (self.arm == "fine_tune") != (self.compression == "none"):
      raise ValueError(
          "the arm 'fine_tune' goes with the compression 'none' alone; got "
          f"{self.arm!r} with {self.compression!r}.")
    if starts_fresh(self.compression) and recalibrates(self.arm):
      raise ValueError(
          f"{self.compression!r} starts from fresh weights, with nothing to "
          f"recalibrate; got {self.arm!r}.")
    if not kinds(self.compression) and self.arm != "plain":
      raise ValueError(
          f"{self.compression!r} trains nothing; its arm is 'plain'; got "
          f"{self.arm!r}.")

  @property
  def name(self) -> str:
    """The run's name for files, such as "prune-0.9-swa-1"."""
    return f"{self.compression}-{self.strength:g}-{self.arm}-{self.seed}"


class Experiment:
  """Makes and records runs with common settings."""

  def __init__(
      self,
      name: str,
      teacher: keras.Model,
      data: Data,
      settings: Settings,
      folder: str | Path,
      *,
      described: Mapping[str, Any] | None = None,
      keep: bool = False,
  ):
    """Creates or continues the results in a folder.

    Args:
      name: the experiment's name in its rows.
      teacher: the float model.
      data: the images.
      settings: the settings of all runs.
      folder: the folder of `results.jsonl` and the kept files.
      described: further settings for the rows.
      keep: whether to keep each run's student and file.
    """
    self.name, self.teacher, self.data = name, teacher, data
    self.settings, self.keep = settings, keep
    self.folder = make_folder(folder, "output")
    self.path = self.folder / "results.jsonl"
    self.path.touch()
    self._described = {
        **dataclasses.asdict(settings), **(described or {}),
        "teacher": _fingerprint(teacher.get_weights()),
        "data": _fingerprint([
            array for split in data[:3] for array in split
            if array is not None])}
    self._judge: Judge | None = None
    self._starts: dict[bool, Starts] = {False: {}, True: {}}

  @property
  def judge(self) -> Judge:
    """The judge, created at first use."""
    if self._judge is None:
      data, settings = self.data, self.settings
      self._judge = Judge(
          self.teacher, getattr(data, settings.judged_on),
          class_names=data.class_names, class_ids=data.class_ids,
          multi_label=data.multi_label, pixel_range=settings.pixel_range,
          layer=settings.judged_layer, probes=settings.probes)
    return self._judge

  def references(self) -> None:
    """Adds the rows of the teacher and of the centre prior."""
    for arm in ("teacher", "centre_prior"):
      if self._find("none", 0.0, arm, 0) is None:
        figures = (self.judge.teacher_row if arm == "teacher"
                   else self.judge.centre_prior())
        if arm == "teacher":
          figures = {**figures, **_sizes(self.teacher)}
        self._add("none", 0.0, arm, 0, figures, 0.0)

  def rows(self) -> list[dict[str, Any]]:
    """Returns the rows with these settings."""
    return [row for row in results_file.read_rows(self.path)
            if row.get("digest") == digest(self._settings_of(
                row["compression"], row["arm"]))]

  def kept(self, run: Run) -> bytes | None:
    """Returns the kept file of a run, or None."""
    path = self.folder / "students" / f"{run.name}.tflite"
    return path.read_bytes() if path.exists() else None

  def find(self, run: Run) -> Mapping[str, Any] | None:
    """Returns the row of a run with these settings, or None."""
    return self._find(run.compression, run.strength, run.arm, run.seed)

  def run(self, run: Run, verbose: int = 0) -> Mapping[str, Any]:
    """Makes and judges a student, unless its row exists.

    Args:
      run: the run.
      verbose: as for `fit`.

    Returns:
      The row.
    """
    row = self.find(run)
    if row is not None:
      return row
    self.judge  # noqa: B018  Not part of the run's time.
    start = time.monotonic()
    student, logs = self._student(run, verbose)
    trained = time.monotonic() - start
    content = self._ship(student)
    figures = {
        **self.judge.judge_file(content, student),
        **{f"float_{key}": value
           for key, value in self.judge.judge_model(student).items()
           if key != "per_class"},
        **_sizes(student), "logs": logs, "train_seconds": round(trained, 1)}
    if self.keep:
      self._keep(run, student, content)
    row = self._add(run.compression, run.strength, run.arm, run.seed, figures,
                    time.monotonic() - start)
    del student
    keras.backend.clear_session()
    gc.collect()
    return row

  def _student(self, run: Run, verbose: int):
    settings, data, logs = self.settings, self.data, {}
    # The row has no other steps, so the run must not use them.
    steps = {kind: settings.steps[kind] for kind in kinds(run.compression)}

    def train(kind, build, epochs=1, callbacks=(), channels=None):
      # The seed sets fresh weights and centroids of the new model.
      keras.utils.set_random_seed(run.seed)
      recipe = Recipe(
          steps=steps[kind],
          learning_rate=settings.learning_rates[kind],
          batch_size=settings.batch_size, seed=run.seed,
          pixel_range=settings.pixel_range, flip=settings.flip,
          multi_label=data.multi_label)
      each = recipe.steps // epochs
      if each < 1:
        raise ValueError(
            f"steps[{kind!r}] must be {epochs} or more at this strength; got "
            f"{recipe.steps}.")
      student = build(each)
      preserve = arm_callbacks(
          run.arm, self.teacher, multi_label=data.multi_label,
          channels=channels,
          **{name: getattr(settings, name) for name in ARM_SETTINGS[run.arm]})
      logs[kind] = fit(student, data.train, recipe, [*callbacks, *preserve],
                       epochs=epochs, verbose=verbose)
      return student

    def pictures():
      return calibration(data, settings.pixel_range, RECALIBRATION)

    start = self.teacher
    if recalibrates(run.arm):
      start = kap.recalibrate_batch_norm(start, pictures())
    return compress(
        run.compression, run.strength, start, train, pictures,
        self._starts[recalibrates(run.arm)]), logs

  def _ship(self, student: keras.Model) -> bytes:
    return kap.export.convert(
        student, kap.WCAM(self.settings.judged_layer), mode="int8",
        representative_images=calibration(
            self.data, self.settings.pixel_range))

  def _keep(self, run: Run, student: keras.Model, content: bytes) -> None:
    folder = make_folder(self.folder / "students", "output")
    kap.save_model(student, folder / f"{run.name}.h5")
    write_whole(folder / f"{run.name}.tflite", content)
    # Later commands read these settings from the file.
    write_whole(folder / f"{run.name}.json", json.dumps({
        "pixel_range": self.settings.pixel_range,
        "class_names": self.data.class_names,
        "multi_label": self.data.multi_label,
        "layer": self.settings.judged_layer}, indent=2) + "\n")

  def _find(self, compression, strength, arm, seed):
    return find_row(self.rows(), {
        "experiment": self.name, "compression": compression,
        "strength": strength, "arm": arm, "seed": seed})

  def _settings_of(self, compression: str, arm: str) -> dict[str, Any]:
    """Returns the settings that a row's figures depend on."""
    used = kinds(compression) if arm in ARM_SETTINGS else ()
    arm_settings = ARM_SETTINGS.get(arm, ())
    others = {name for names in ARM_SETTINGS.values() for name in names
              if name not in arm_settings}
    if not used:
      others |= {"batch_size", "flip"}
    return {
        **{key: value for key, value in self._described.items()
           if key not in others},
        **{key: {kind: self._described[key][kind] for kind in used}
           for key in ("steps", "learning_rates")}}

  def _add(self, compression, strength, arm, seed, figures, seconds):
    settings = self._settings_of(compression, arm)
    row = {
        "experiment": self.name, "compression": compression,
        "strength": strength, "arm": arm, "seed": seed,
        "digest": digest(settings), **figures, "seconds": round(seconds, 1),
        "settings": settings, "versions": versions()}
    row = json.loads(json.dumps(row, default=_plain))
    add_row(self.path, row)
    return row


def calibration(
    data: Data, pixel_range: tuple[float, float], count: int = CALIBRATION
) -> np.ndarray:
  """Draws the same training images every time, to measure ranges.

  Args:
    data: the data set with the training part.
    pixel_range: the model's values for black and for white.
    count: the largest number of images.

  Returns:
    `[count, height, width, 3]`, float32, in that range.
  """
  images = data.train.images
  chosen = np.random.default_rng(0).permutation(len(images))[:count]
  return in_range(images[np.sort(chosen)], pixel_range)


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages."""
  return {"python": platform.python_version(),
          **{name: metadata.version(name) for name in _PACKAGES}}


def _sizes(model: keras.Model) -> dict[str, float]:
  return {"parameters": costs.count_parameters(model),
          "macs": costs.count_macs(model)}


def _fingerprint(arrays: Sequence[np.ndarray]) -> str:
  """Returns a hash of the arrays' types, shapes and values."""
  content = hashlib.sha256()
  for array in arrays:
    content.update(f"{array.dtype} {array.shape}".encode())
    content.update(np.ascontiguousarray(array))
  return content.hexdigest()[:12]


def _plain(value: Any) -> Any:
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, Sequence | np.ndarray):
    return list(value)
  return str(value)
