"""Where a .tflite file of somebody else's has its class scores.

Such files have one or several outputs, mostly behind a softmax, and now and
then one class more than the model they were made from: "background".
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_attr_preserve.export.tensors.file_tensors import (
    FileTensor,
    FileTensors,
)

__all__ = ["ClassScores", "find_scores", "follow", "likely_preprocess"]

# Operators on the way from logits to an output that keep the order of classes.
_COPIES = frozenset({"QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE"})
_SQUASHES = frozenset({"SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"})
# What follows these are scores of their own.
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
    output: the file's output, after a softmax or sigmoid if it has one.
    logits: what goes into that; the output itself where it has none.
    classes: how many there are.
    squash: the operator between the two, such as "SOFTMAX"; "" for none.
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
    classes: how many the teacher has, None where it is not known; the file may
      have one more.
    output: the output with the class scores, by its tensor's number or name;
      None where only one fits.

  Returns:
    Where they are.

  Raises:
    ValueError: no output fits, or several; or it is computed from
      probabilities, so that it has no logits.
  """
  if output is not None:
    chosen = [file.find(output)]
  else:
    fits = [file.tensors[index] for index in file.outputs
            if index in file.tensors
            and _classes(file.tensors[index]) is not None]
    chosen = [one for one in fits if classes in (None, _classes(one))] or [
        one for one in fits if _classes(one) == classes + 1]
  if len(chosen) != 1 or _classes(chosen[0]) is None:
    listed = [f"{one} {list(one.spec.shape)}" for one in (
        file.tensors[index] for index in file.outputs
        if index in file.tensors)]
    want = "" if classes is None else f" for {classes} classes"
    raise ValueError(
        f"tflite_model has {len(chosen)} outputs that could be its class "
        f"scores{want}; it gives {listed}. Name one by `output`.")
  logits, squash = _before_squash(file, chosen[0])
  return ClassScores(chosen[0], logits, _classes(chosen[0]), squash)


def follow(scores: np.ndarray, reference: np.ndarray) -> float:
  """Correlates two nets' logits by what is special to an image and a class.

  Args:
    scores: `[images, classes]`.
    reference: the same shape.

  Returns:
    The correlation, -1..1, of what is left when each image's and each class's
    mean are taken away; NaN where the images are too few to tell (fewer than
    four more numbers than means), or all alike.
  """
  images, classes = scores.shape
  if (images - 1) * max(classes - 1, 1) < 4:
    return float("nan")
  ours, theirs = (_centred(np.asarray(one, np.float64))
                  for one in (scores, reference))
  size = np.linalg.norm(ours) * np.linalg.norm(theirs)
  return float((ours * theirs).sum() / size) if size else float("nan")


def likely_preprocess(
    run: Callable[[np.ndarray], np.ndarray], images: np.ndarray,
    reference: np.ndarray, least: float,
) -> str | None:
  """Looks for what makes a file's scores follow the teacher's.

  Args:
    run: images in the file's range to its logits; a ValueError says that they
      are not in that range.
    images: in the teacher's range.
    reference: the teacher's logits.
    least: the correlation that is taken for a hit.

  Returns:
    A Python expression of `images`; None where none of the usual ones does.
  """
  found = {}
  for text, change in _RANGES.items():
    try:
      found[text] = follow(run(change(images)), reference)
    except ValueError:  # Out of the file's range: not this one.
      continue
  best = max(found, key=lambda text: np.nan_to_num(found[text], nan=-1),
             default=None)
  return best if best and found[best] >= least else None


def _classes(tensor: FileTensor) -> int | None:
  """Returns how many classes a tensor could have scores of, if any."""
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
  """Says whether all that a tensor is computed from is behind a squash."""
  if tensor.operator in _SQUASHES:
    return True
  sources = file.sources(tensor.index)
  return bool(sources) and tensor.operator not in _WEIGHTED and all(
      _classes(one) is not None and _from_probabilities(file, one)
      for one in sources)


def _centred(scores: np.ndarray) -> np.ndarray:
  scores = scores - scores.mean(0)
  return scores if scores.shape[1] == 1 else scores - scores.mean(
      1, keepdims=True)
