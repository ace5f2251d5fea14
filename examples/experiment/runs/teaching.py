"""Making a teacher: a model fitted to the labels, from scratch or pretrained."""

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
# Strengths of the head's regularization to choose from, weakest last.
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
  """Fits a model to a data set, and goes on where it was interrupted.

  A pretrained model has `head_first`, `freeze_batch_norm` and a small learning
  rate: the gradients of a random head, or statistics measured on a few batches
  anew, would destroy its features.

  Args:
    model: of `nets.build`; trained in place.
    data: a `Data`; learns from `train`, shows `validation` as it goes.
    recipe: how, in `recipe.steps` steps.
    epochs: parts of equal length that the steps are split into; the model is
      backed up and validated after each.
    head_first: whether `fit_head` comes first.
    freeze_batch_norm: whether the moving statistics and scales of all
      BatchNormalization layers stay as they are.
    backup: folder of the state to go on from, left there when done; None keeps
      none. What goes on draws its batches from the start of their order.
    verbose: as in Keras.

  Returns:
    The logs of the last epoch; none where the backup was of the end.

  Raises:
    ValueError: a class has no image to learn from, or nothing else.
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

  The penalty is the one of several that does best on `data.validation`.

  Args:
    model: ends in a Dense layer of logits.
    data: a `Data`.
    recipe: says the range of pixels and whether classes exclude each other.

  Returns:
    The mean average precision on the validation images.

  Raises:
    ValueError: a class has no image to learn from, or nothing else; or the
      model ends in another layer.
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
    model: gives logits.
    split: `images` and `labels` of a part.
    class_names: of the labels' columns.
    recipe: says the range of pixels and whether classes exclude each other.

  Returns:
    "pictures", how many there are; "map", "accuracy" and "f1" as
    `task_figures`; and "average_precision", of each class by name.
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
  """Says whether there is a state of `fit_teacher` to go on from."""
  return folder.is_dir() and any(folder.rglob("checkpoint"))


def predict(
    model: keras.Model, images: np.ndarray, pixel_range: tuple[float, float]
) -> np.ndarray:
  """Runs a model, as in inference.

  Args:
    model: gives one array.
    images: uint8 `[images, height, width, 3]`.
    pixel_range: what the model takes for black and for white.

  Returns:
    What it gives for all of them.
  """
  # By the model's own call: `predict` would compile functions into it. Floats
  # take four times the memory, so only a batch at a time.
  return np.concatenate([
      model(in_range(images[start:start + _BATCH], pixel_range),
            training=False).numpy()
      for start in range(0, len(images), _BATCH)])


class _Validation(keras.callbacks.Callback):
  """Says after each epoch how good the model is."""

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
  """Fits kernel `[features, classes]` and bias `[classes]`."""
  if multi_label:
    fitted = [regression.fit(features, column) and
              (regression.coef_[0], regression.intercept_[0])
              for column in labels.T]
    return (np.stack([kernel for kernel, _ in fitted], axis=1),
            np.array([bias for _, bias in fitted]))
  regression.fit(features, labels.argmax(1))
  kernel, bias = regression.coef_.T, regression.intercept_
  if labels.shape[1] == 2:  # One column, the second class's log odds.
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
    # A copy of the model would inherit it.
    for layer in layers:
      layer.trainable = True
