"""Fits a teacher to the labels, from scratch or pretrained."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiment.runs.fitting import Recipe, fit, in_range
from examples.experiment.runs.judge import task_figures
from keras_attr_preserve import evaluation
from keras_attr_preserve.compat import keras

__all__ = ["fit_head", "fit_teacher", "has_backup", "predict",
           "teacher_figures"]

_BATCH = 64
# Candidates for the head's regularization, weakest last.
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)


def fit_teacher(
    model: keras.Model,
    data: Any,
    recipe: Recipe,
    *,
    epochs: int,
    head_first: bool = False,
    freeze_batch_norm: bool = False,
    backup: Path | None = None,
    verbose: int = 0,
) -> dict[str, float]:
  """Fits a model to a data set, and resumes an interrupted fit.

  A pretrained model needs `head_first`, `freeze_batch_norm` and a small
  learning rate. A random head's gradients, or new statistics of a few batches,
  would destroy its features.

  Args:
    model: a model of `nets.build`, trained in place.
    data: a `Data`; the fit trains on `train` and prints figures on
      `validation`.
    recipe: the settings of the fit, including its steps.
    epochs: the number of epochs, which share the steps equally. Each epoch ends
      with a backup and a validation.
    head_first: whether to call `fit_head` first.
    freeze_batch_norm: whether the moving statistics and scales of all
      BatchNormalization layers stay as they are.
    backup: the folder of the state to resume from, which stays after the fit;
      None for no backup. A resumed fit draws its batches from the start.
    verbose: as in Keras.

  Returns:
    The logs of the last epoch; empty if the backup was complete.

  Raises:
    ValueError: with `head_first`, a class is in no training image or in all.
  """
  callbacks = [_Validation(data, recipe)] if verbose else []
  if backup is not None:
    callbacks.append(keras.callbacks.BackupAndRestore(
        str(backup), delete_checkpoint=False))
  if head_first and (backup is None or not has_backup(backup)):
    fit_head(model, data, recipe)
  with _frozen_batch_norm(model) if freeze_batch_norm else (
      contextlib.nullcontext()):
    return fit(model, data.train, recipe, callbacks, epochs=epochs,
               verbose=2 if verbose else 0)


def fit_head(model: keras.Model, data: Any, recipe: Recipe) -> float:
  """Sets the last layer by logistic regression on the features before it.

  The best of several penalties on `data.validation` is used.

  Args:
    model: a model that ends in a Dense layer of logits.
    data: a `Data`.
    recipe: gives the range of pixels and whether the labels are multi-label.

  Returns:
    The mean average precision on the validation images.

  Raises:
    ValueError: a class is in no training image or in all, or the model ends in
      another layer.
  """
  from sklearn import linear_model

  head = model.layers[-1]
  if not isinstance(head, keras.layers.Dense):
    raise ValueError(
        f"model {model.name!r} must end in a Dense layer of logits; it ends in "
        f"{head.name!r} ({type(head).__name__}).")
  share = data.train.labels.mean(0)
  if not np.all((share > 0) & (share < 1)):
    wrong = np.flatnonzero((share == 0) | (share == 1))[0]
    raise ValueError(
        f"data: the class {data.class_names[wrong]!r} must have pictures that "
        f"show it and others; {share[wrong]:.0%} of the training part do.")
  body = keras.Model(model.inputs, head.input)

  def features_of(split):
    return predict(body, split.images, recipe.pixel_range)

  features = features_of(data.train)
  mean, scale = features.mean(0), features.std(0) + 1e-6
  features = (features - mean) / scale
  unseen = (features_of(data.validation) - mean) / scale
  best = (-1.0,)
  for inverse in _INVERSE_PENALTIES:
    regression = linear_model.LogisticRegression(C=inverse, max_iter=1000)
    kernel, bias = _regress(
        regression, features, data.train.labels, recipe.multi_label)
    score = task_figures(data.validation.labels, unseen @ kernel + bias,
                         recipe.multi_label)["map"]
    best = max(best, (score, kernel, bias), key=lambda result: result[0])
  score, kernel, bias = best
  kernel = kernel / scale[:, None]
  head.set_weights([kernel, bias - mean @ kernel])
  return score


def teacher_figures(
    model: keras.Model, split: Any, class_names: tuple[str, ...],
    recipe: Recipe,
) -> dict[str, Any]:
  """Judges a model on its task.

  Args:
    model: a model that returns logits.
    split: `images` and `labels` of a part.
    class_names: names of the labels' columns.
    recipe: gives the range of pixels and whether the labels are multi-label.

  Returns:
    "pictures", the number of images; the figures of `task_figures`; and
    "average_precision" of each class by name.
  """
  logits = predict(model, split.images, recipe.pixel_range).astype(np.float64)
  ranks = logits if recipe.multi_label else (
      logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
  columns = [slice(number, number + 1) for number in range(len(class_names))]
  return {
      "pictures": len(logits),
      **task_figures(split.labels, logits, recipe.multi_label),
      "average_precision": {
          name: evaluation.mean_average_precision(
              split.labels[:, column], ranks[:, column])
          for name, column in zip(class_names, columns)
          if split.labels[:, column].any()}}


def has_backup(folder: Path) -> bool:
  """Checks whether `fit_teacher` can resume from the folder."""
  return folder.is_dir() and any(folder.rglob("checkpoint"))


def predict(
    model: keras.Model, images: np.ndarray, pixel_range: tuple[float, float]
) -> np.ndarray:
  """Runs a model in inference mode.

  Args:
    model: a model with one output.
    images: uint8 `[images, height, width, 3]`.
    pixel_range: the model's values for black and for white.

  Returns:
    The model's output for all images.
  """
  # `model.predict` would add compiled functions to the model. Floats take four
  # times the memory, so only a batch at a time is converted.
  return np.concatenate([
      model(in_range(images[start:start + _BATCH], pixel_range),
            training=False).numpy()
      for start in range(0, len(images), _BATCH)])


class _Validation(keras.callbacks.Callback):
  """Prints validation figures after each epoch."""

  def __init__(self, data: Any, recipe: Recipe):
    super().__init__()
    self._data, self._recipe = data, recipe

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    """Prints the validation figures."""
    figures = teacher_figures(self.model, self._data.validation,
                              self._data.class_names, self._recipe)
    print(f"  epoch {epoch + 1}: loss {logs['loss']:.4f}, validation mean AP "
          f"{figures['map']:.3f}, F1 {figures['f1']:.3f}", flush=True)


def _regress(
    regression, features: np.ndarray, labels: np.ndarray, multi_label: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Fits a kernel `[features, classes]` and a bias `[classes]`."""
  if multi_label:
    fitted = [regression.fit(features, column) and
              (regression.coef_[0], regression.intercept_[0])
              for column in labels.T]
    return (np.stack([kernel for kernel, _ in fitted], axis=1),
            np.array([bias for _, bias in fitted]))
  regression.fit(features, labels.argmax(1))
  kernel, bias = regression.coef_.T, regression.intercept_
  if labels.shape[1] == 2:  # One column: log odds of class 1.
    kernel = np.hstack([-kernel / 2, kernel / 2])
    bias = np.concatenate([-bias / 2, bias / 2])
  return kernel, bias


@contextlib.contextmanager
def _frozen_batch_norm(model: keras.Model) -> Iterator[None]:
  layers = [layer for layer in model.layers if layer.trainable and isinstance(
      layer, keras.layers.BatchNormalization)]
  for layer in layers:
    layer.trainable = False
  try:
    yield
  finally:
    # A copy of the model would inherit the frozen state.
    for layer in layers:
      layer.trainable = True
