"""Tests whether a map marks the pixels that a score depends on.

The tests remove or add pixels and call a function from images to scores. So the
same code judges a `.tflite` file and a Keras model. Scores may be
probabilities, as in the papers, or logits, which do not saturate. Figures of
the two cannot be compared.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_attr_preserve.attribution.black_box import Predict, Scorer, probed
from keras_attr_preserve.compat import tf
from keras_attr_preserve.evaluation.imputation import impute

__all__ = ["Curves", "deletion", "insertion", "road", "sensitivity_n"]


class Curves(NamedTuple):
  """A score while pixels are removed or added, most important first.

  Attributes:
    shares: share of the pixels changed, `[steps + 1]`, from 0 to 1.
    scores: the explained score, float64 `[images, steps + 1]`.
  """

  shares: np.ndarray
  scores: np.ndarray

  @property
  def area(self) -> np.ndarray:
    """The mean score over the shares, by the trapezoidal rule, `[images]`."""
    means = (self.scores[:, 1:] + self.scores[:, :-1]) / 2
    return means @ np.diff(self.shares)


def deletion(
    predict: Predict,
    images: np.ndarray,
    maps: np.ndarray,
    targets: Any = None,
    *,
    steps: int = 20,
    baseline: float | np.ndarray = 0.0,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
) -> Curves:
  """Removes pixels, the most important first: a good map's area is small.

  Args:
    predict: takes float32 images of the layout of `images`, returns scores
      `[n, classes]`.
    images: `[images, height, width, channels]`, `[images, channels, height,
      width]` or `[images, height, width]`.
    maps: `[images, map height, map width]`, resized to the images' size
      (bilinear); position breaks ties.
    targets: None for the top class of `predict`, or as for `grad_cam`.
    steps: the number of equal steps.
    baseline: the value of removed pixels: a number, or an array that broadcasts
      to the images.
    logits: whether the scores are logits, as for `attribution.occlusion`.
    data_format: as for `occlusion`.
    batch_size: images per call.

  Returns:
    The curves; `area` is the score of the method.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421, section 4.
  """
  return _curves(predict, images, maps, targets, logits, steps, batch_size,
                 lambda image, cover, gone: np.where(gone, cover, image),
                 baseline, data_format)


def insertion(
    predict: Predict,
    images: np.ndarray,
    maps: np.ndarray,
    targets: Any = None,
    *,
    steps: int = 20,
    baseline: float | np.ndarray | None = None,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
) -> Curves:
  """Adds pixels, the most important first: a good map's area is large.

  Args:
    predict: see `deletion`.
    images: see `deletion`.
    maps: see `deletion`.
    targets: see `deletion`; the top class is that of the whole image.
    steps: see `deletion`.
    baseline: the image before the first step; None for the images blurred by a
      Gaussian of an eighth of the shorter side.
    logits: see `deletion`.
    data_format: see `deletion`.
    batch_size: see `deletion`.

  Returns:
    The curves; `area` is the score of the method.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421, section 4.
  """
  return _curves(predict, images, maps, targets, logits, steps, batch_size,
                 lambda image, cover, given: np.where(given, image, cover),
                 _blurred if baseline is None else baseline, data_format)


def road(
    predict: Predict,
    images: np.ndarray,
    maps: np.ndarray,
    targets: Any = None,
    *,
    steps: int = 10,
    noise: float = 0.01,
    seed: int = 0,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
) -> Curves:
  """Removes pixels and fills them in from their surroundings (ROAD).

  Pixels at a constant show the outline of the removed region, and the model was
  never trained on such images. Here each missing pixel is the weighted mean of
  its eight neighbours, solved for all at once, plus a little noise.

  Args:
    predict: see `deletion`.
    images: see `deletion`.
    maps: see `deletion`.
    targets: see `deletion`.
    steps: see `deletion`; the last step leaves one pixel.
    noise: the standard deviation of the noise, as a share of each image's own
      range.
    seed: of the noise.
    logits: see `deletion`.
    data_format: see `deletion`.
    batch_size: see `deletion`.

  Returns:
    The curves; a good map's area is small.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Rong et al. 2022, https://arxiv.org/abs/2202.00449, section 4.
  """
  if noise < 0:
    raise ValueError(f"noise must be 0 or more; got {noise}.")
  drawn = np.random.default_rng(seed)

  def without(image, cover, gone):
    del cover
    if gone.all():
      gone = gone.copy()
      gone[-1, -1] = False
    filled = impute(image, gone[..., 0])
    spread = noise * (image.max() - image.min())
    return np.where(gone, filled + drawn.normal(0, spread, image.shape), image)

  return _curves(predict, images, maps, targets, logits, steps, batch_size,
                 without, 0.0, data_format)


def sensitivity_n(
    predict: Predict,
    images: np.ndarray,
    maps: np.ndarray,
    targets: Any = None,
    *,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6),
    draws: int = 50,
    baseline: float | np.ndarray = 0.0,
    seed: int = 0,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
) -> np.ndarray:
  """Correlates a map's sum over pixels with the fall of the score without them.

      corr_S(sum_{i in S} M_i, y(x) - y(x without S)),  |S| = n

  The correlation runs over random sets S of n pixels, the same for every map.

  Args:
    predict: see `deletion`.
    images: see `deletion`.
    maps: see `deletion`; signs count.
    targets: see `deletion`.
    shares: the sizes n, as shares of all pixels, each above 0 and below 1.
    draws: the number of sets of each size, 3 or more.
    baseline: see `deletion`.
    seed: of the sets.
    logits: see `deletion`.
    data_format: see `deletion`.
    batch_size: see `deletion`.

  Returns:
    Pearson's correlation, float64 `[images, shares]`, -1..1; NaN where the map
    or the score is the same for all sets.

  Raises:
    TypeError, ValueError: an argument is not as above.

  References:
    Ancona et al. 2018, https://arxiv.org/abs/1711.06104, section 4.
  """
  if draws < 3:
    raise ValueError(f"draws must be 3 or more; got {draws}.")
  if not len(shares) or not all(0 < share < 1 for share in shares):
    raise ValueError(f"shares must be between 0 and 1; got {shares}.")
  taken, images, maps, covers = _checked(
      predict, images, maps, baseline, data_format)
  score = Scorer(predict, images, targets, batch_size, taken, logits)
  rng = np.random.default_rng(seed)
  pixels = maps[0].size
  correlations = np.empty([len(images), len(shares)])
  for column, share in enumerate(shares):
    count = max(1, round(share * pixels))
    sets = np.zeros([draws, pixels], bool)
    for row in sets:
      row[rng.choice(pixels, count, replace=False)] = True
    gone = sets.reshape(draws, *maps.shape[1:], 1)
    for i, (image, cover) in enumerate(zip(images, covers)):
      falls = score.plain[i] - np.concatenate([
          score(np.where(gone[s:s + batch_size], cover, image).astype(
              np.float32), i) for s in range(0, draws, batch_size)])
      correlations[i, column] = _correlation(sets @ maps[i].ravel(), falls)
  return correlations


def _curves(predict, images, maps, targets, logits, steps, batch_size,
            change, baseline, data_format) -> Curves:
  if isinstance(steps, bool) or steps < 1:
    raise ValueError(f"steps must be 1 or more; got {steps}.")
  taken, images, maps, covers = _checked(
      predict, images, maps, baseline, data_format)
  score = Scorer(predict, images, targets, batch_size, taken, logits)
  pixels = maps[0].size
  counts = np.round(np.linspace(0, pixels, steps + 1)).astype(int)
  scores = np.empty([len(images), steps + 1])
  for i, (image, values, cover) in enumerate(zip(images, maps, covers)):
    order = np.argsort(-values.ravel(), kind="stable")
    places = np.empty(pixels, int)
    places[order] = np.arange(pixels)
    places = places.reshape(*values.shape, 1)
    changed = np.stack([change(image, cover, places < count)
                        for count in counts]).astype(np.float32)
    scores[i] = np.concatenate([
        score(changed[s:s + batch_size], i)
        for s in range(0, len(changed), batch_size)])
  return Curves(counts / pixels, scores)


def _checked(predict, images, maps, baseline, data_format):
  """Returns the input of `predict`, and each image's pixels, map and cover."""
  taken, images = probed(predict, images, data_format)
  maps = np.asarray(maps, np.float64)
  if maps.ndim != 3 or len(maps) != len(images) or not maps.size:
    raise ValueError(
        f"maps must be [{len(images)}, height, width], one for each image; got "
        f"{list(maps.shape)}.")
  if not np.isfinite(maps).all():
    raise ValueError("maps must be finite; got NaN or infinity.")
  if baseline is _blurred:
    baseline = taken.own(_blurred(taken.pixels(images)))
  try:
    covers = taken.pixels(np.broadcast_to(
        np.asarray(baseline, np.float32), images.shape))
  except ValueError as error:
    raise ValueError(
        f"baseline must be a number or broadcast to {list(images.shape)}; got "
        f"an array of shape {list(np.shape(baseline))}.") from error
  images = taken.pixels(images)
  if maps.shape[1:] != images.shape[1:3]:
    maps = tf.image.resize(
        maps[..., None], images.shape[1:3]).numpy()[..., 0].astype(np.float64)
  return taken, images, maps, covers


def _blurred(images: np.ndarray) -> np.ndarray:
  """Blurs by a Gaussian of an eighth of the shorter side; repeats the edges."""
  radius = max(1, min(images.shape[1:3]) // 8)
  reach = 3 * radius
  bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
  bell /= bell.sum()
  for axis in (1, 2):
    width = [(0, 0)] * 4
    width[axis] = (reach, reach)
    padded = np.pad(images, width, mode="edge")
    size = images.shape[axis]
    images = sum(weight * np.take(padded, range(start, start + size), axis)
                 for start, weight in enumerate(bell))
  return images.astype(np.float32)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
  first, second = first - first.mean(), second - second.mean()
  size = np.linalg.norm(first) * np.linalg.norm(second)
  return float(first @ second / size) if size > 0 else float("nan")
