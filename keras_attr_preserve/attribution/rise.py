"""RISE: maps from the scores of randomly masked images."""

from typing import Any

import numpy as np

from keras_attr_preserve.attribution.black_box import Predict, Scorer, probed
from keras_attr_preserve.compat import tf
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["rise"]


def rise(
    predict: Predict,
    images: np.ndarray,
    targets: Any = None,
    *,
    masks: int = 2000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    centred: bool = False,
    logits: bool | None = None,
    data_format: str | None = None,
    batch_size: int = 64,
    progress: Progress = None,
) -> np.ndarray:
  """Explains a score by showing random parts of the image.

      M(p) = 1 / (keep N) sum_i y(x * m_i) m_i(p)

  A mask m_i starts as a grid of cells, each 1 with probability `keep`, else 0.
  The grid is enlarged (bilinear) to one cell more than the image each way. The
  mask is cut out of it at a random shift. Masked pixels become 0.

  Every image gets the same masks, and so does every model with the same seed
  and settings. A difference of two models' maps is therefore one of the models.

  The formula works for any score. For probabilities the map is not negative. A
  logit has no natural zero. Its mean over the masks adds a constant to the map,
  and noise if the masks are few; neither says where the evidence is. `centred`
  subtracts the mean: M(p) = 1 / (keep N) sum_i (y_i - mean y) m_i(p). Use it to
  compare two maps of logits.

  Each image runs `masks` times. Memory holds one batch.

  Args:
    predict: as for `occlusion`.
    images: as for `occlusion`; 0 is taken for "nothing there".
    targets: as for `occlusion`.
    masks: their number N; the paper takes 4000 to 8000 for 224x224 images.
    cells: the grid's cells, both down and across.
    keep: the chance that a cell is shown, between 0 and 1.
    seed: seed of the masks, 0 or more.
    centred: whether to subtract each image's mean score over the masks.
    logits: as for `occlusion`.
    data_format: as for `occlusion`.
    batch_size: images per call of `predict`.
    progress: as for `occlusion`.

  Returns:
    Maps, float32 `[images, height, width]`, in units of the score.

  Raises:
    TypeError, ValueError: an argument is not as above; or one column of scores
      could be logits or probabilities.

  References:
    Petsiuk, Das and Saenko 2018, https://arxiv.org/abs/1806.07421, equation 6
    and section 3.2.
  """
  taken, images = probed(predict, images, data_format)
  images = taken.pixels(images)
  _check(masks, cells, keep, seed)
  rng = np.random.default_rng(seed)
  grids = (rng.random((masks, cells, cells)) < keep).astype(np.float32)
  lengths = [-(-side // cells) for side in images.shape[1:3]]
  shifts = rng.integers(0, lengths, (masks, 2))
  score = Scorer(predict, images, targets, batch_size, taken, logits)
  report = reporter(progress, "rise", masks * len(images))

  sums = np.zeros(images.shape[:3])
  shown = np.zeros(images.shape[1:3])
  totals = np.zeros(len(images))
  done = 0
  for start in range(0, masks, batch_size):
    rows = slice(start, start + batch_size)
    windows = _enlarged(grids[rows], lengths, shifts[rows], images.shape[1:3])
    shown += windows.sum(0)
    for i, image in enumerate(images):
      scores = score(image * windows[..., None], i)
      sums[i] += np.einsum("n,nhw->hw", scores, windows)
      totals[i] += scores.sum()
      done += len(windows)
      report(done)
  if centred:
    sums -= (totals / masks)[:, None, None] * shown
  return (sums / (keep * masks)).astype(np.float32)


def _check(masks: int, cells: int, keep: float, seed: int) -> None:
  for name, value, least in (
      ("masks", masks, 1), ("cells", cells, 1), ("seed", seed, 0)):
    if isinstance(value, bool) or not (
        isinstance(value, int | np.integer) and value >= least):
      raise ValueError(
          f"{name} must be a whole number of {least} or more; got {value!r}.")
  if not 0 < keep < 1:
    raise ValueError(f"keep must be between 0 and 1; got {keep!r}.")


def _enlarged(
    grids: np.ndarray, lengths: list[int], shifts: np.ndarray,
    size: tuple[int, ...],
) -> np.ndarray:
  """Turns grids `[n, cells, cells]` into masks `[n, height, width]`."""
  whole = [(grids.shape[1] + 1) * length for length in lengths]
  large = tf.image.resize(grids[..., None], whole).numpy()[..., 0]
  return np.stack([
      grid[down:down + size[0], across:across + size[1]]
      for grid, (down, across) in zip(large, shifts)])
