"""Occlusion: how much a score falls when a patch is covered."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_attr_preserve.attribution.black_box import Predict, Scorer, probed
from keras_attr_preserve.models.inputs import ImageInput
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["occlusion"]

_Spot = tuple[slice, slice]


def occlusion(
    predict: Predict,
    images: np.ndarray,
    targets: Any = None,
    *,
    patch: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    baseline: float | np.ndarray | None = None,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
    progress: Progress = None,
) -> np.ndarray:
  """Explains a score by covering the image, a patch at a time.

      M(p) = mean over the patches r that cover pixel p of
             y(x) - y(x with r covered)

  M is positive where covering lowers the score. Patches are a stride apart,
  from the top left corner on. If the last patch leaves pixels uncovered, one
  more patch stands at the edge.

  The method needs only scores, so it works with any runtime. Give logits if
  possible. The probability of a sure class barely moves when a patch is
  covered, and depends on every other class's score. With probabilities, a model
  and a file may seem to agree better or worse than they do.

  Each image runs once for each patch: 225 times with the defaults on 32x32 or
  96x96 pixels. Memory holds one batch.

  Args:
    predict: takes float32 images in the same layout, returns scores `[n,
      classes]`: `model`, `Interpreter(file).predict`, a lambda.
    images: `[images, height, width, channels]`, `[images, channels, height,
      width]` or `[images, height, width]`, in the range `predict` takes.
    targets: None for the top class by `predict`, a class number, class numbers
      `[images]`, or float weights of the scores `[images, classes]`. With one
      column of scores, the top class is 1 from a logit of 0 or a probability of
      0.5 on.
    patch: pixels down and across; None for an eighth of each side.
    stride: pixels from patch to patch, at most the patch; None for half of it.
    baseline: the cover: a number, or an array that broadcasts to the images,
      such as `[channels]`, or blurred images; None for the mean colour of all
      the images.
    logits: whether the scores are logits; it matters only for scores of one
      column. There class 0 has the score -z of a logit z, or 1 - p of a
      probability p. None works if `predict` is a `tf_keras` model or
      `Interpreter(file).predict`, or if scores leave 0..1, as logits do.
    data_format: "channels_last" or "channels_first"; None to take it from a
      model's layers or the images' shape. By shape, a last axis of 1, 3 or 4
      holds the channels, or such a first axis if the others are longer than 4.
      Otherwise it is the axis beside two equal ones, or else the shortest.
    batch_size: images per call of `predict`.
    progress: True for a line on stderr, False for none; None for a line if it
      runs long on a terminal; or a function, called with the number of runs
      done and the number of all runs.

  Returns:
    Signed maps, float32 `[images, height, width]`, in units of the score.

  Raises:
    TypeError, ValueError: an argument is not as above; or one column of scores
      could be logits or probabilities.

  References:
    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2. There
    the map has a value per patch; here a pixel has the mean of its patches.
  """
  taken, images = probed(predict, images, data_format)
  cover = taken.pixels(_baseline(baseline, images, taken))
  images = taken.pixels(images)
  sides = images.shape[1:3]
  patch = _pair("patch", patch, [max(1, side // 8) for side in sides], sides)
  stride = _pair("stride", stride, [(length + 1) // 2 for length in patch],
                 patch)
  score = Scorer(predict, images, targets, batch_size, taken, logits)
  spots = list(itertools.product(*map(_spans, sides, patch, stride)))
  report = reporter(progress, "occlusion", len(images) * len(spots))

  falls = np.zeros(images.shape[:3])
  done = 0
  for which, where in _batches(len(images), spots, batch_size):
    batch = images[which]  # A copy.
    for image, i, spot in zip(batch, which, where):
      image[spot] = cover[i][spot]
    for i, spot, fall in zip(which, where,
                             score.plain[which] - score(batch, which)):
      falls[i][spot] += fall
    done += len(which)
    report(done)
  counts = np.zeros(sides)
  for spot in spots:
    counts[spot] += 1
  return (falls / counts).astype(np.float32)


def _pair(
    name: str, value: Any, default: list[int], most: tuple[int, ...]
) -> list[int]:
  """Returns pixels down and across, checked."""
  pair = default if value is None else (
      list(value) if isinstance(value, tuple | list) else [value, value])
  if len(pair) != 2 or not all(
      isinstance(pixels, int | np.integer) and not isinstance(pixels, bool)
      and 1 <= pixels <= limit for pixels, limit in zip(pair, most)):
    raise ValueError(
        f"{name} must be a number or two of 1..{most[0]} down and "
        f"1..{most[1]} across; got {value!r}.")
  return pair


def _baseline(
    baseline: Any, images: np.ndarray, taken: ImageInput) -> np.ndarray:
  if baseline is None:
    pixels = taken.pixels(images)
    return taken.own(np.broadcast_to(pixels.mean((0, 1, 2)), pixels.shape))
  cover = np.asarray(baseline)
  try:
    cover = np.broadcast_to(cover.astype(np.float32), images.shape)
    fits = bool(np.isfinite(cover).all())
  except (TypeError, ValueError):
    fits = False
  if not fits:
    raise ValueError(
        "baseline must be None, a finite number, or a finite array that "
        f"broadcasts to {list(images.shape)}; got {cover.dtype} of shape "
        f"{list(cover.shape)}.")
  return cover


def _spans(side: int, patch: int, stride: int) -> list[slice]:
  starts = list(range(0, side - patch + 1, stride))
  if starts[-1] + patch < side:
    starts.append(side - patch)
  return [slice(start, start + patch) for start in starts]


def _batches(
    count: int, spots: list[_Spot], size: int
) -> Iterator[tuple[np.ndarray, list[_Spot]]]:
  """Yields image numbers and spots, every pair once, `size` at a time."""
  pairs = itertools.product(range(count), spots)
  while batch := list(itertools.islice(pairs, size)):
    yield np.array([i for i, _ in batch]), [spot for _, spot in batch]
