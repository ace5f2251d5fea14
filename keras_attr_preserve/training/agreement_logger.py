"""The callback that logs a student's attribution maps, epoch by epoch."""

import importlib
import os
from typing import Any

import numpy as np

from keras_attr_preserve.attribution import equal_weighted, grad_cam
from keras_attr_preserve.compat import check_keras, keras, tf
from keras_attr_preserve.evaluation.agreement import agreement, dead_maps
from keras_attr_preserve.evaluation.report import summarize
from keras_attr_preserve.map_formulas import same_size
from keras_attr_preserve.models.running import run_batches
from keras_attr_preserve.models.scores import class_weights, top_class_seed
from keras_attr_preserve.models.tap import Tap
from keras_attr_preserve.utils.atomic_files import make_folder
from keras_attr_preserve.utils.drawing import side_by_side

__all__ = ["AgreementLogger"]

_METHODS = {"swa": grad_cam, "ewa": equal_weighted}


class AgreementLogger(keras.callbacks.Callback):
  """Compares a student's maps with its teacher's at the end of each epoch.

      logger = AgreementLogger(teacher, held_out, "relu5", log_dir="logs")
      student.fit(train, callbacks=[logger, keras.callbacks.EarlyStopping(
          "agreement", mode="max", patience=3)])

  It changes neither the model nor the teacher. It works for any training, with
  or without `PreserveAttribution`: of a plain model, a smaller model, or a
  model that tfmot wraps.

  It adds four figures to an epoch's logs, over the given images. Both models
  explain the same class. Images whose teacher map is all zero do not count.

  - `agreement`: the mean cosine of the maps, 0..1.
  - `agreement_p5`: its 5th percentile; one image in twenty is worse.
  - `agreement_spearman`: the mean rank correlation, -1..1; no loss here
    optimizes it.
  - `agreement_dead`: the share of the student's maps that are all zero, 0..1.

  They are NaN in an epoch that `every` leaves out, and if a student's map holds
  NaN or infinity. Put callbacks that read them, such as `CSVLogger` and
  `ModelCheckpoint`, after this callback.
  """

  def __init__(
      self,
      teacher: keras.Model,
      images: np.ndarray,
      layer: str,
      *,
      student_layer: str | None = None,
      method: str = "swa",
      targets: Any = None,
      log_dir: str | os.PathLike | None = None,
      pictures: int = 4,
      every: int = 1,
      batch_size: int = 32,
      name: str = "agreement",
  ):
    """Checks and keeps the settings.

    Args:
      teacher: the model to compare with. It explains the images once, when the
        first `fit` begins.
      images: `[images, height, width, channels]`, in the range the models take;
        not training images. A few hundred give steady figures. They are kept,
        not copied.
      layer: the teacher's layer, as in `WCAM`.
      student_layer: the student's layer, where its name differs.
      method: "swa", which is Grad-CAM, or "ewa", as in `WCAM`.
      targets: the explained class, as for `attribution.grad_cam`; None for the
        teacher's top class of each image. "ewa" has no class.
      log_dir: a folder for TensorBoard, created if need be; None writes
        nothing. It gets the figures, and `agreement_pictures` (see
        `side_by_side`), at the step of the epoch. All is on the disk when an
        epoch ends. Of several workers only the chief writes.
      pictures: how many of the first images to draw, all if there are fewer; 0
        for none. Inputs without height and width are not drawn.
      every: compare in the first epoch, in each `every`th after it, and in the
        last epoch of a `fit`.
      batch_size: images a batch.
      name: prefix of the figures' names; two loggers need different names.

    Raises:
      TypeError, ValueError: an argument is not as above. Errors about the
        student are raised when `fit` starts, before any training.
      ImportError: a `log_dir` is given, and TensorBoard is not installed.
      OSError: `log_dir` cannot be created or written to.
    """
    super().__init__()
    for value, what in ((layer, "layer"), (student_layer or layer,
                        "student_layer"), (name, "name")):
      if not isinstance(value, str) or not value:
        raise TypeError(f"{what} must be a name; got {value!r}.")
    if method not in _METHODS:
      raise ValueError(
          f"method must be one of {tuple(_METHODS)}; got {method!r}.")
    self._pictures = _whole_number(pictures, "pictures", 0)
    self._every = _whole_number(every, "every", 1)
    self._batch_size = _whole_number(batch_size, "batch_size", 1)
    self._teacher = check_keras(teacher, "teacher")
    tap = Tap(teacher, [layer])
    self._classes = tap.classes
    self._input = tap.input
    self._images = self._input.check(images)
    # The explained classes, as weights of the logits.
    self._weights = None if targets is None else class_weights(
        targets, len(self._images), self._classes)
    self._layer = layer
    self._student_layer = student_layer or layer
    self._method = _METHODS[method]
    self._name = name
    self._reference: np.ndarray | None = None
    self._log_dir = None
    self._writer = None
    if log_dir is not None:
      _check_tensorboard()
      self._log_dir = make_folder(log_dir, "log_dir")

  def set_model(self, model: keras.Model) -> None:
    """Checks that the student can be compared; called when `fit` starts."""
    tap = Tap(model, [self._student_layer])
    if tap.classes != self._classes:
      raise ValueError(
          f"model {model.name!r} must have the classes of the teacher "
          f"{self._teacher.name!r}, which has {self._classes}; it has "
          f"{tap.classes}.")
    tap.input.check(self._images)
    super().set_model(model)

  def on_train_begin(self, logs: Any = None) -> None:
    """Computes the teacher's maps and opens the file."""
    if self._reference is None:
      self._reference = self._explain_by_teacher()
    self._close()  # An interrupted fit may have left it open.
    strategy = self.model.distribute_strategy
    if self._log_dir is not None and strategy.extended.should_save_summary:
      self._writer = tf.summary.create_file_writer(str(self._log_dir))

  def on_epoch_end(
      self, epoch: int, logs: dict[str, Any] | None = None) -> None:
    """Adds the figures to the logs, and writes them."""
    logs = {} if logs is None else logs
    last = epoch + 1 == (self.params or {}).get("epochs")
    if epoch % self._every and not last:
      figures = self._figures(None)
    else:
      # On every worker, since they read the variables together.
      maps = self._explain(self.model, self._student_layer)
      maps = maps if np.isfinite(maps).all() else None
      figures = self._figures(maps)
      self._write(epoch, figures, maps)
    taken = sorted(set(figures) & set(logs))
    if taken:
      raise ValueError(
          f"name must give figures that the logs do not hold yet; with "
          f"{self._name!r} {taken[0]!r} is there already.")
    logs.update(figures)

  def on_train_end(self, logs: Any = None) -> None:
    """Closes the file."""
    self._close()

  def _explain(self, model: keras.Model, layer: str) -> np.ndarray:
    return self._method(model, self._images, self._weights, layer,
                        batch_size=self._batch_size)

  def _explain_by_teacher(self) -> np.ndarray:
    if self._weights is None:
      tap = Tap(self._teacher)
      top = tf.function(lambda batch: (top_class_seed(tap(batch).logits),),
                        reduce_retracing=True)
      self._weights, = run_batches(
          top, self._images, batch_size=self._batch_size)
    maps = self._explain(self._teacher, self._layer)
    if not np.isfinite(maps).all() or dead_maps(maps).all():
      raise ValueError(
          f"teacher: its maps of layer {self._layer!r} hold NaN or infinity, "
          f"or are all zero on each of the {len(maps)} images; there is "
          "nothing to compare with.")
    return maps

  def _figures(self, maps: np.ndarray | None) -> dict[str, float]:
    """Scores the student's maps; NaN without maps."""
    cosine = spearman = dead = np.full(1, np.nan)
    if maps is not None:
      reference, maps = (resized.numpy() for resized in same_size(
          tf.convert_to_tensor(self._reference), tf.convert_to_tensor(maps)))
      scores = agreement(reference, maps)
      cosine, spearman = scores["cosine"], scores["spearman"]
      dead = dead_maps(maps)[~dead_maps(reference)]
    cosine = summarize(cosine)
    return {
        self._name: cosine["mean"],
        f"{self._name}_p5": cosine["p5"],
        f"{self._name}_spearman": summarize(spearman)["mean"],
        f"{self._name}_dead": float(dead.mean()),
    }

  def _write(
      self, epoch: int, figures: dict[str, float], maps: np.ndarray | None
  ) -> None:
    if self._writer is None:
      return
    # Keras's TensorBoard callback may have turned recording off.
    with tf.summary.record_if(True), self._writer.as_default(step=epoch):
      for name, value in figures.items():
        tf.summary.scalar(name, value)
      if self._pictures and maps is not None and self._input.is_picture:
        count = self._pictures
        tf.summary.image(
            f"{self._name}_pictures",
            side_by_side(
                self._input.pixels(self._images[:count]),
                self._reference[:count], maps[:count],
                value_range=(self._images.min(), self._images.max())),
            max_outputs=count,
            description="Picture, the teacher's map, the student's map.")
    self._writer.flush()  # So that an interrupted fit loses nothing.

  def _close(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None


def _whole_number(value: Any, name: str, least: int) -> int:
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f"{name} must be a whole number; got {value!r}.")
  if value < least:
    raise ValueError(f"{name} must be {least} or more; got {value}.")
  return int(value)


def _check_tensorboard() -> None:
  """Raises if TensorBoard, which TensorFlow needs for summaries, is missing."""
  try:
    importlib.import_module("tensorboard.summary.v2")
  except ImportError as error:
    raise ImportError(
        "log_dir needs TensorBoard, which is not installed or incomplete: "
        "pip install keras_attr_preserve[tensorboard].") from error
