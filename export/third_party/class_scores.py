"""Finds the class scores in a third party's .tflite file.

Such a file has one or several outputs, mostly behind a softmax. Some files have
one class more than their model: "background".
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_attr_preserve.export.tensors.file_tensors import (
    FileTensor,
    FileTensors,
)

__all__ = ["ClassScores", "find_scores", "follow", "likely_preprocess"]

# These operators keep the order of the classes.
_COPIES = frozenset({"QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE"})
_SQUASHES = frozenset({"SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"})
# The outputs of these operators are new scores.
_WEIGHTED = frozenset({
    "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})

_RANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "images * 255": lambda images: images * 255,
    "images / 255": lambda images: images / 255,
    "(images + 1) * 127.5": lambda images: (images + 1) * 127.5,
    "images / 127.5 - 1": lambda images: images / 127.5 - 1,
    "(images + 1) / 2": lambda images: (images + 1) / 2,
    "images * 2 - 1": lambda images: images * 2 - 1,
    "images[..., ::-1]": lambda images: images[..., ::-1],
}


@dataclasses.dataclass(frozen=True)
class ClassScores:
  """The class scores of a file.

  Attributes:
    output: the file's output, after a softmax or sigmoid if the file has one.
    logits: the input of the softmax or sigmoid; without one, the output.
    classes: the number of classes.
    squash: the operator between logits and output, such as "SOFTMAX"; "" for
      none.
  """

  output: FileTensor
  logits: FileTensor
  classes: int
  squash: str

  def __str__(self):
    if not self.squash:
      return f"the output, {self.logits}"
    return f"what goes into {self.squash}, {self.logits}"


def find_scores(
    file: FileTensors, classes: int | None = None,
    output: int | str | None = None,
) -> ClassScores:
  """Finds a file's class scores, and the logits behind its softmax.

  Args:
    file: the file.
    classes: the number of the teacher's classes, None if unknown; the file may
      have one more.
    output: number or name of the output tensor with the class scores; None
      where only one output fits.

  Returns:
    The class scores.

  Raises:
    ValueError: no output fits, or several; or the output is computed from
      probabilities and has no logits.
  """
  if output is not None:
    chosen = [file.find(output)]
  else:
    fits = [file.tensors[index] for index in file.outputs
            if index in file.tensors
            and _classes(file.tensors[index]) is not None]
    chosen = [
        tensor for tensor in fits if classes in (None, _classes(tensor))] or [
            tensor for tensor in fits if _classes(tensor) == classes + 1]
  if len(chosen) != 1 or _classes(chosen[0]) is None:
    listed = [f"{tensor} {list(tensor.spec.shape)}" for tensor in (
        file.tensors[index] for index in file.outputs
        if index in file.tensors)]
    want = "" if classes is None else f" for {classes} classes"
    raise ValueError(
        f"tflite_model has {len(chosen)} outputs that could be its class "
        f"scores{want}; it gives {listed}. Name one by `output`.")
  logits, squash = _before_squash(file, chosen[0])
  return ClassScores(chosen[0], logits, _classes(chosen[0]), squash)


def follow(scores: np.ndarray, reference: np.ndarray) -> float:
  """Correlates the logits of two models.

  Each image's mean and each class's mean are subtracted first.

  Args:
    scores: `[images, classes]`.
    reference: the same shape.

  Returns:
    The correlation, -1..1. NaN where the images are too few to tell (fewer than
    four more numbers than means), or all alike.
  """
  images, classes = scores.shape
  if (images - 1) * max(classes - 1, 1) < 4:
    return float("nan")
  residuals, expected = (_centred(np.asarray(logits, np.float64))
                         for logits in (scores, reference))
  size = np.linalg.norm(residuals) * np.linalg.norm(expected)
  return float((residuals * expected).sum() / size) if size else float("nan")


def likely_preprocess(
    run: Callable[[np.ndarray], np.ndarray], images: np.ndarray,
    reference: np.ndarray, least: float,
) -> str | None:
  """Finds the preprocessing for which a file's scores follow the teacher's.

  Args:
    run: maps images in the file's range to the file's logits; raises ValueError
      for images out of that range.
    images: images in the teacher's range.
    reference: the teacher's logits.
    least: the least correlation that counts.

  Returns:
    A Python expression of `images`; None where no usual one reaches `least`.
  """
  correlations = {}
  for text, change in _RANGES.items():
    try:
      correlations[text] = follow(run(change(images)), reference)
    except ValueError:  # The images are out of the file's range.
      continue
  best = max(correlations,
             key=lambda text: np.nan_to_num(correlations[text], nan=-1),
             default=None)
  return best if best and correlations[best] >= least else None


def _classes(tensor: FileTensor) -> int | None:
  """Returns the number of classes that a tensor scores; None for no scores."""
  sizes = [size for size in tensor.spec.shape[1:] if size != 1]
  if len(tensor.spec.shape) < 2 or len(sizes) > 1:
    return None
  return sizes[0] if sizes else 1


def _before_squash(
    file: FileTensors, output: FileTensor) -> tuple[FileTensor, str]:
  """Walks back from an output to its logits."""
  tensor = output
  while tensor.operator in _COPIES:
    before = file.source(tensor.index)
    if before is None:
      return output, ""
    tensor = before
  if tensor.operator not in _SQUASHES:
    if _from_probabilities(file, tensor):
      raise ValueError(
          f"tflite_model computes its class scores, {output}, from the "
          "probabilities of a softmax or sigmoid, so that they are no logits; "
          "name an output before that by `output`, or convert the model again "
          "without it.")
    return output, ""
  logits = file.source(tensor.index)
  return (output, "") if logits is None else (logits, tensor.operator)


def _from_probabilities(file: FileTensors, tensor: FileTensor) -> bool:
  """Returns whether every source of a tensor lies behind a squash."""
  if tensor.operator in _SQUASHES:
    return True
  sources = file.sources(tensor.index)
  return bool(sources) and tensor.operator not in _WEIGHTED and all(
      _classes(source) is not None and _from_probabilities(file, source)
      for source in sources)


def _centred(scores: np.ndarray) -> np.ndarray:
  scores = scores - scores.mean(0)
  return scores if scores.shape[1] == 1 else scores - scores.mean(
      1, keepdims=True)
