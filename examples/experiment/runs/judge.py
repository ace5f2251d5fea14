"""Judges a student's predictions, attribution maps and file size.

The judge uses the same images, (image, class) pairs and teacher's maps for all
variants of an experiment.
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
  """Computes the figures of the task.

  Args:
    labels: `[images, classes]`, 0 or 1.
    logits: `[images, classes]`, before any softmax.
    multi_label: whether an image may show several classes. A logit above 0 then
      predicts its class.

  Returns:
    Figures in 0..1. "map" is the mean average precision over the classes,
    "map_chance" its expectation in a random order. "accuracy" is of the top
    class, or of all decisions if multi-label. "f1" is the mean over the
    classes.
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
  """Mean average precision of a random order, by Bestgen 2015."""
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
    """Computes the teacher's maps, once for all students.

    Args:
      teacher: the float model.
      split: unseen `images`, `labels` and `label_maps` (or None).
      class_names: names of the labels' columns.
      class_ids: each class's number in the label maps, 0 for none.
      multi_label: whether an image may show several classes.
      pixel_range: the range of the model's input.
      layer: the layer of the Grad-CAM maps.
      probes: the number of images for the slow judges, integrated gradients and
        occlusion. If there are masks, these are (image, class) pairs with a
        mask.
    """
    self._layer, self._class_names = layer, tuple(class_names)
    self._multi_label, self._labels = multi_label, split.labels
    self.images = in_range(split.images, pixel_range)
    predict = _logits(teacher)
    logits = predict(self.images)
    self._top = top_classes(logits, True)
    self._set_pairs(split, np.asarray(class_ids))
    # Even steps over the whole part, as a part may be sorted.
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
    """Returns the images and classes of the pairs."""
    return self.images[self.which], self.classes

  def shown(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns images, classes and masks to draw.

    Returns:
      The pairs with their masks. If no class has a mask: images at even steps,
      the teacher's top classes, and None.
    """
    if len(self.which):
      return *self.pairs(), self.masks
    return *self._probed(), None

  def centre_prior(self) -> dict[str, float]:
    """Localizes with a fixed map that is strongest in the middle."""
    prior = evaluation.centre_prior(*self.images.shape[1:3])
    return self._located(
        "", np.broadcast_to(prior, self.masks.shape), slice(None))

  def judge_file(self, content: bytes, student: keras.Model) -> dict[str, Any]:
    """Judges the shipped file; only integrated gradients use the model.

    Args:
      content: the .tflite file.
      student: the Keras model of the file.

    Returns:
      Figures by name. "per_class" has the figures of each class. "road" is the
      file's way to compute its map; see docs/device.md.
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
    """Judges a Keras model like a file, without probes and file sizes."""
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
    """Computes figures by a method that no student was trained on."""
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
    """Scores the localization of all pairs."""
    if not len(self.which):
      return {}
    return self._located("", explain(*self.pairs()), slice(None), per_class)

  def _located(
      self, prefix: str, maps: np.ndarray, chosen: Any,
      per_class: dict[str, dict[str, float]] | None = None,
  ) -> dict[str, float]:
    if not len(self.which):
      return {}
    maps = np.maximum(maps, 0)  # Only evidence for the class.
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
  """Returns each class's log odds under a softmax, to rank images."""
  logits = logits.astype(np.float64)
  others = np.stack([
      np.logaddexp.reduce(np.delete(logits, class_index, axis=1), axis=1)
      for class_index in range(logits.shape[1])], axis=1)
  return logits - others


def _even(count: int, chosen: int) -> np.ndarray:
  """Returns indices at even steps, as a part may be sorted."""
  return np.unique(np.linspace(0, count - 1, min(count, chosen)).astype(int))


def _logits(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from images to logits, before any softmax."""
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
