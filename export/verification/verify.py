"""Compares the maps of a shipped file with its teacher's."""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.evaluation.agreement import agreement, dead_maps
from keras_attr_preserve.evaluation.report import (
  Examples,
  Report,
  worst_numbers,
)
from keras_attr_preserve.evaluation.runtime_comparison import Comparison, apart
from keras_attr_preserve.export.runtime.interpreter import RUNTIMES
from keras_attr_preserve.export.runtime.known_facts import (
  file_metadata,
  known_wcam,
)
from keras_attr_preserve.export.tflite.sizes import file_sizes
from keras_attr_preserve.export.verification.black_box_judges import (
  Judges,
  checked_judges,
  judged_maps,
)
from keras_attr_preserve.export.verification.explainers import (
  Explainer,
  check_classes,
  file_content,
  file_explainer,
  file_facts,
  logit_step,
  teacher_explainer,
)
from keras_attr_preserve.export.verification.sensitivity_check import (
  check_sensitivities,
  says_otherwise,
)
from keras_attr_preserve.map_formulas import same_size
from keras_attr_preserve.models.inputs import ImageInput
from keras_attr_preserve.models.scores import top_classes
from keras_attr_preserve.training.wcam import WCAM
from keras_attr_preserve.utils.progress import Progress

__all__ = ["ALL_RUNTIMES", "verify"]

ALL_RUNTIMES = "all"
_EXAMPLES = 5


class _Side(NamedTuple):
  """The maps and logits of one side."""

  maps: np.ndarray
  logits: np.ndarray
  judged: Mapping[str, np.ndarray]


def verify(
    tflite_model: bytes | str | os.PathLike,
    teacher: keras.Model | bytes | str | os.PathLike,
    wcam: WCAM | None,
    images: np.ndarray,
    *,
    runtime: str | Sequence[str] = "xnnpack",
    judges: Judges = (),
    judge_images: int = 20,
    progress: Progress = None,
    foreign: Mapping[str, Any] | None = None,
) -> Report | Comparison:
  """Compares a file's attribution maps with its teacher's.

  Both explain the teacher's top class of each image. The file's maps come from
  `Interpreter.explain`. The teacher's maps are Grad-CAM (or equal-weighted
  maps) of the WCAM's layer.

  `check_sensitivities` also checks the teacher's sensitivities. It changes some
  feature values a little and measures how the scores move. The report's first
  line warns if they do not move as the sensitivities say.

  Judges are methods that see scores alone; nothing was trained on them. They
  probe the first `judge_images` images through the file, on each runtime, and
  through the teacher. Both times the score is the logit of the teacher's top
  class. "occlusion" is `occlusion(predict, images, classes)` and costs some 225
  runs per image and side. "rise" is `rise(..., masks=500, centred=True)` and
  costs 500 runs per image and side. "reference" and "tflm" run small models at
  10 to 20 ms per image, so 20 images take minutes.

  Args:
    tflite_model: the file's bytes or path, made by `convert`; or a third
      party's classifier, whose features and scores `explainer` finds.
    teacher: the float model to agree with, not changed; or a .tflite file in
      its place, by bytes or path, run on "xnnpack".
    wcam: names the teacher's layer and the method; the first layer is compared.
      For a file made by `convert`, the student's layer and the method must be
      the file's; None takes both from the file.
    images: `[images, height, width, channels]`, in the teacher's range; images
      used neither in training nor in model selection.
    runtime: see `Interpreter`; several, for a comparison; or "all" for every
      runtime that can run this file.
    judges: names out of "occlusion" and "rise"; or a mapping of new names to
      functions, `{"fine": functools.partial(occlusion, patch=2)}`. Each takes a
      function of images, images and class numbers, and returns maps.
    judge_images: the number of images for the judges, 1 or more.
    progress: progress of the judges; True for a line each on stderr, or a
      function of two numbers, images done and images in all.
    foreign: settings of `explainer` for a third party's file, such as
      `{"preprocess": lambda images: images * 255}`.

  Returns:
    For one runtime its report; for several, or "all", a `Comparison` of
    reports. Where two maps differ in size, the larger is resized to the
    smaller. A judge's scores carry its name: "occlusion_cosine".

  Raises:
    OSError: a path cannot be read.
    TypeError, ValueError: an argument is not as above; the file explains by
      another method or another layer, or has other classes; a named runtime
      refuses the file, or all runtimes do.
    ImportError: "tflm" was named and is not installed.
  """
  names = _runtimes(runtime)
  judges = checked_judges(judges)
  if isinstance(judge_images, bool) or not (
      isinstance(judge_images, int) and judge_images >= 1):
    raise ValueError(f"judge_images must be 1 or more; got {judge_images!r}.")
  content = file_content(tflite_model)
  wcam = known_wcam(file_metadata(content), wcam)
  original = teacher_explainer(teacher, wcam)
  images = original.input.check(images)

  def ask(explainer: Explainer, top: np.ndarray, whose: str) -> _Side:
    maps, logits = explainer.explain(images, top)
    return _Side(maps, logits, judged_maps(
        functools.partial(explainer.predict, logits=True),
        images[:judge_images], top[:judge_images], judges, whose, progress,
        original.input.data_format))

  # Opening comes before any run, so that a wrong file fails at once.
  files, refused = _each(
      names, lambda name: file_explainer(
          content, wcam, wcam.student_layers[0], name, teacher=teacher,
          images=images, foreign=foreign), runtime)
  top = top_classes(original.predict(images, logits=True), True)
  reference = ask(original, top, "teacher")
  for file in files.values():
    check_classes(file, reference.logits.shape[1])
  sides, more = _each(files, lambda name: ask(files[name], top, name), runtime)

  facts = {"images": len(images), **file_sizes(content),
           "sha256": _digest(content),
           "teacher": teacher.name if isinstance(teacher, keras.Model)
           else f"file {_digest(file_content(teacher))}",
           "sensitivity_check": _sensitivity_check(teacher, wcam, images, top)}
  reports = {
      name: _report(side, reference, top, images, original.input, {
          **facts, "runtime": name, **file_facts(files[name], wcam)})
      for name, side in sides.items()}
  if isinstance(runtime, str) and runtime != ALL_RUNTIMES:
    return reports[runtime]
  return Comparison(reports, refused | more, {
      (name, other): apart(
          sides[name].maps, sides[name].logits, sides[other].maps,
          sides[other].logits, logit_step(files[name]))
      for name, other in itertools.combinations(sides, 2)})


def _sensitivity_check(teacher, wcam, images, top) -> dict[str, Any]:
  """Checks the teacher's sensitivities, or returns why that is impossible."""
  if wcam.method != "swa":
    return {"reason": f"maps of method {wcam.method!r} have no sensitivity"}
  if not isinstance(teacher, keras.Model):
    return {"reason": "the teacher is a file, whose features cannot be moved"}
  return check_sensitivities(teacher, wcam.layers[0], images, top)


def _doubts(facts: Mapping[str, Any]) -> list[str]:
  """Returns the warnings about a report's figures."""
  doubt = says_otherwise(facts["sensitivity_check"])
  return [] if doubt is None else [doubt]


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _runtimes(runtime: str | Sequence[str]) -> tuple[str, ...]:
  """Checks and returns the runtimes' names."""
  if runtime == ALL_RUNTIMES:
    return RUNTIMES
  names = (runtime,) if isinstance(runtime, str) else tuple(runtime)
  if not names or not set(names) <= set(RUNTIMES) or (
      len(set(names)) < len(names)):
    raise ValueError(
        f"runtime must be one of {RUNTIMES}, several of them, or "
        f"{ALL_RUNTIMES!r}; got {runtime!r}.")
  return names


def _each(
    names: Iterable[str], do: Callable[[str], Any], runtime: Any
) -> tuple[dict[str, Any], dict[str, str]]:
  """Calls a function for each runtime; for "all", runtimes may refuse.

  Returns:
    The results by runtime, and the reasons by runtime that refused.
  """
  done, refused = {}, {}
  for name in names:
    try:
      done[name] = do(name)
    except (ImportError, ValueError) as error:
      if runtime != ALL_RUNTIMES:
        raise
      refused[name] = " ".join(str(error).split())
  if not done:
    raise ValueError("no runtime can run the file. " + " ".join(
        f"{name}: {reason}" for name, reason in refused.items()))
  return done, refused


def _report(
    side: _Side, reference: _Side, top: np.ndarray, images: np.ndarray,
    taken: ImageInput, facts: Mapping[str, Any],
) -> Report:
  """Scores a file's side against the teacher's."""
  expected, maps = _same_size(reference.maps, side.maps)
  scores = agreement(expected, maps)
  scores["same_class"] = (
      top_classes(side.logits, True) == top).astype(float)
  for name, judged in side.judged.items():
    facts = {**facts, "judge_images": len(judged)}
    for score, values in agreement(
        *_same_size(reference.judged[name], judged)).items():
      scores[f"{name}_{score}"] = np.pad(
          values, (0, len(images) - len(judged)), constant_values=np.nan)
  alive = ~dead_maps(expected)
  dead = dead_maps(maps)[alive].mean() if alive.any() else 0.0
  worst = worst_numbers(scores["cosine"], _EXAMPLES)
  return Report(scores, dead, {
      **facts,
      "images_range": [float(images.min()), float(images.max())],
      "teacher_dead": float(1 - alive.mean()),
  }, Examples(worst, taken.pixels(images[worst]), expected[worst],
              maps[worst], (float(images.min()), float(images.max())))
              if taken.is_picture else None, _doubts(facts))


def _same_size(
    expected: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
  return tuple(maps.numpy() for maps in same_size(
      tf.convert_to_tensor(expected, tf.float32),
      tf.convert_to_tensor(other, tf.float32)))
