"""What a student still knows, what it looks at, and what it weighs.

All variants of an experiment are judged on the same images and the same (image,
class) pairs, against the same maps of the teacher.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import keras_attr_preserve as kap
from examples.experiment.runs.fitting import in_range
from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.evaluation.report import summarize
from keras_attr_preserve.models.scores import top_classes
from keras_attr_preserve.models.tap import Tap

__all__ = ["Judge", "task_figures"]

_SCORES = ("cosine", "spearman", "ssim", "top_k_iou")
POINTING_TOLERANCE = 15
"""Pixels, as in Zhang et al. 2018."""
PATH_STEPS = 16
_BATCH = 64

Explain = Callable[[np.ndarray, np.ndarray], np.ndarray]


def task_figures(
    labels: np.ndarray, logits: np.ndarray, multi_label: bool
) -> dict[str, float]:
  """Figures of the task.

  Args:
    labels: `[images, classes]`, 0 or 1.
    logits: `[images, classes]`, before any softmax.
    multi_label: whether they do not; a class is then found above logit 0.

  Returns:
    "map", mean average precision over the classes; "map_chance", what it is on
    average in a random order; "accuracy", of the top class or of all decisions;
    "f1", mean over the classes. 0..1.
  """
  truth = labels > 0.5
  if multi_label:
    predicted = logits > 0
  else:
    predicted = np.arange(logits.shape[1]) == logits.argmax(1)[:, None]
  hits = (predicted & truth).sum(0)
  f1 = 2 * hits / np.maximum(predicted.sum(0) + truth.sum(0), 1)
  right = predicted == truth if multi_label else (predicted & truth).any(1)
  return {
      "map": evaluation.mean_average_precision(
          labels, logits if multi_label else _margins(logits)),
      "map_chance": _chance(truth),
      "accuracy": float(right.mean()),
      "f1": float(f1[truth.any(0)].mean()),
  }


def _chance(truth: np.ndarray) -> float:
  """Mean average precision of a random order, by Bestgen 2015's formula."""
  count, hits = len(truth), truth.sum(0)
  hits = hits[hits > 0]
  if count < 2 or not len(hits):
    return 1.0 if len(hits) else float("nan")
  harmonic = (1 / np.arange(1, count + 1)).sum()
  return float(np.mean(
      ((hits - 1) + (count - hits) / count * harmonic) / (count - 1)))


class Judge:
  """Judges students against a teacher on one part of the data."""

  def __init__(
      self,
      teacher: keras.Model,
      split: Any,
      *,
      class_names: Sequence[str],
      class_ids: np.ndarray,
      multi_label: bool,
      pixel_range: tuple[float, float],
      layer: str,
      probes: int = 100,
  ):
    """Takes the teacher's maps, once for all students.

    Args:
      teacher: the float model.
      split: `images`, `labels` and `label_maps` (or None) that no model has seen.
      class_names: of the labels' columns.
      class_ids: each class's number in the label maps, 0 for none.
      multi_label: whether classes do not exclude each other.
      pixel_range: of the net's input.
      layer: where Grad-CAM explains.
      probes: images that the slow judges, integrated gradients and occlusion,
        look at; of those with masks, where there are masks.
    """
    self._layer, self._class_names = layer, tuple(class_names)
    self._multi_label, self._labels = multi_label, split.labels
    self.images = in_range(split.images, pixel_range)
    predict = _logits(teacher)
    logits = predict(self.images)
    self._top = top_classes(logits, True)
    self._set_pairs(split, np.asarray(class_ids))
    # Judged at even steps, not at the beginning: parts may be sorted.
    self._probes = _even(len(self.which), probes)
    self._loose = _even(len(self.images), probes)
    self.explain_teacher = self._grad_cam(teacher)
    self.teacher_maps = self.explain_teacher(self.images, self._top)
    self._references = {
        "gradient": _path_maps(teacher)(*self._probed()),
        "occlusion": _occlusion(predict)(*self._probed()),
    }
    per_class: dict[str, dict[str, float]] = {}
    self.teacher_row = {
        **self._task(logits, per_class),
        **self._locate(self.explain_teacher, per_class),
        **{key: value for name, maps in self._references.items()
           for key, value in self._located(
               f"{name}_", maps, self._probes).items()},
        "per_class": per_class,
    }

  def _set_pairs(self, split: Any, class_ids: np.ndarray) -> None:
    """Finds the (image, class) pairs that have a mask."""
    with_mask = np.flatnonzero(class_ids)
    if split.label_maps is None or not len(with_mask):
      self.which = self.classes = np.zeros([0], int)
      self.masks = self.valid = np.zeros([0, *self.images.shape[1:3]], bool)
      return
    self.which, class_indices = evaluation.mask_pairs(
        split.label_maps, class_ids[with_mask])
    self.classes = with_mask[class_indices]
    marked = split.label_maps[self.which]
    self.masks = marked == class_ids[self.classes][:, None, None]
    self.valid = marked != evaluation.VOID

  def pairs(self) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and classes of the pairs."""
    return self.images[self.which], self.classes

  def shown(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Pictures, classes and masks to draw.

    Returns:
      The pairs; where no class has a mask, images at even steps with the
      teacher's top classes, and None.
    """
    if len(self.which):
      return *self.pairs(), self.masks
    return *self._probed(), None

  def centre_prior(self) -> dict[str, float]:
    """Localization of a map that knows only that objects are in the middle."""
    prior = evaluation.centre_prior(*self.images.shape[1:3])
    return self._located(
        "", np.broadcast_to(prior, self.masks.shape), slice(None))

  def judge_file(self, content: bytes, student: keras.Model) -> dict[str, Any]:
    """Judges what ships; only the judge that needs gradients asks the model.

    Args:
      content: the .tflite file.
      student: the Keras model it was made from.

    Returns:
      Figures by name, "per_class" with those of each class, and "road", how the
      file comes by its map; see docs/device.md.
    """
    file = kap.export.Interpreter(content)

    def explain(images, targets):
      return file.explain(images, targets).maps

    def predict(images):
      return file.predict(images, logits=True)

    return {
        **self._judged(predict, explain),
        **self._outside("occlusion", _occlusion(predict)(*self._probed())),
        **self._outside("gradient", _path_maps(student)(*self._probed())),
        **kap.export.file_sizes(content), "road": file.metadata["road"]}

  def judge_model(self, student: keras.Model) -> dict[str, Any]:
    """Judges a Keras model as `judge_file` does a file, without probes."""
    return self._judged(_logits(student), self._grad_cam(student))

  def _judged(self, predict, explain: Explain) -> dict[str, Any]:
    logits = predict(self.images)
    maps = explain(self.images, self._top)
    scores = evaluation.agreement(self.teacher_maps, maps, scores=_SCORES)
    per_class: dict[str, dict[str, float]] = {}
    row = {**self._task(logits, per_class),
           "same_top_class": float((
               top_classes(logits, True) == self._top).mean()),
           "dead": float(np.mean(
               ~maps.any((1, 2))[self.teacher_maps.any((1, 2))]))}
    for name in _SCORES:
      summary = summarize(scores[name])
      row[f"{name}_mean"], row[f"{name}_p5"] = summary["mean"], summary["p5"]
    row |= self._locate(explain, per_class)
    for number, name in enumerate(self._class_names):
      cosines = scores["cosine"][self._top == number]
      if np.isfinite(cosines).any():
        per_class.setdefault(name, {})["cosine_mean"] = float(
            np.nanmean(cosines))
    return {**row, "per_class": per_class}

  def _outside(self, name: str, maps: np.ndarray) -> dict[str, float]:
    """Figures by a method that nothing was trained on."""
    scores = evaluation.agreement(
        self._references[name], maps, scores=("cosine", "spearman"))
    return {
        **{f"{name}_{key}_mean": summarize(values)["mean"]
           for key, values in scores.items()},
        **self._located(f"{name}_", maps, self._probes)}

  def _task(self, logits, per_class) -> dict[str, float]:
    ranks = logits if self._multi_label else _margins(logits)
    for number, name in enumerate(self._class_names):
      column = slice(number, number + 1)
      if self._labels[:, column].any():
        per_class.setdefault(name, {})["ap"] = (
            evaluation.mean_average_precision(
                self._labels[:, column], ranks[:, column]))
    return task_figures(self._labels, logits, self._multi_label)

  def _locate(self, explain: Explain, per_class) -> dict[str, float]:
    """Localization of all pairs."""
    if not len(self.which):
      return {}
    return self._located("", explain(*self.pairs()), slice(None), per_class)

  def _located(
      self, prefix: str, maps: np.ndarray, chosen: Any,
      per_class: dict[str, dict[str, float]] | None = None,
  ) -> dict[str, float]:
    if not len(self.which):
      return {}
    maps = np.maximum(maps, 0)  # Evidence for the class.
    masks, valid = self.masks[chosen], self.valid[chosen]
    scores = evaluation.localization(maps, masks, valid)
    row = {f"{prefix}{name}": float(scores[name].mean())
           for name in ("roc_auc", "pointing", "energy_inside")}
    row[f"{prefix}pointing_{POINTING_TOLERANCE}"] = float(
        evaluation.localization(maps, masks, valid,
                                tolerance=POINTING_TOLERANCE)["pointing"].mean())
    if per_class is not None:
      for number in np.unique(self.classes):
        per_class.setdefault(self._class_names[number], {})["roc_auc"] = float(
            scores["roc_auc"][self.classes == number].mean())
    return row

  def _grad_cam(self, model: keras.Model) -> Explain:
    return lambda images, targets: attribution.grad_cam(
        model, images, targets, self._layer)

  def _probed(self) -> tuple[np.ndarray, np.ndarray]:
    if len(self.which):
      images, classes = self.pairs()
      return images[self._probes], classes[self._probes]
    return self.images[self._loose], self._top[self._loose]


def _margins(logits: np.ndarray) -> np.ndarray:
  """The log odds of each class under a softmax: these rank pictures."""
  logits = logits.astype(np.float64)
  others = np.stack([
      np.logaddexp.reduce(np.delete(logits, class_index, axis=1), axis=1)
      for class_index in range(logits.shape[1])], axis=1)
  return logits - others


def _even(count: int, chosen: int) -> np.ndarray:
  """Numbers at even steps; a part may be sorted."""
  return np.unique(np.linspace(0, count - 1, min(count, chosen)).astype(int))


def _logits(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
  """A function of images to the logits, before any softmax."""
  tap = Tap(model, [])
  run = tf.function(lambda images: tap(images).logits, input_signature=[
      tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)])
  return lambda images: np.concatenate([
      run(tf.constant(images[i:i + _BATCH])).numpy()
      for i in range(0, len(images), _BATCH)])


def _path_maps(model: keras.Model) -> Explain:
  return lambda images, targets: attribution.integrated_gradients(
      model, images, targets, steps=PATH_STEPS)


def _occlusion(predict: Callable[[np.ndarray], np.ndarray]) -> Explain:
  return lambda images, targets: attribution.occlusion(
      predict, images, targets)
