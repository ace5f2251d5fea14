"""Compares two sets of attribution maps, image by image."""

from collections.abc import Sequence

import numpy as np

from keras_attr_preserve.compat import tf
from keras_attr_preserve.evaluation.ranks import average_ranks, kendall

__all__ = ["AGREEMENT", "agreement", "dead_maps"]

_USUAL = ("cosine", "pearson", "spearman", "ssim", "top_k_iou", "l2")
AGREEMENT = (*_USUAL, "kendall", "sign", "rmse")
"""The scores of maps against maps."""

_OF_ORDER = ("pearson", "spearman", "kendall")


def agreement(
    reference: np.ndarray,
    maps: np.ndarray,
    *,
    top_share: float = 0.1,
    scores: Sequence[str] = _USUAL,
) -> dict[str, np.ndarray]:
  """Compares maps pairwise.

  No score depends on a map's scale (its units). A map that is all zero has no
  direction. If the reference is all zero, every score is NaN. If only the other
  map is, the scores mean no agreement: 0, for L2 the square root of 2, for RMSE
  1. A constant map, also of a single position, has no order. If the reference
  is constant, the correlations are NaN; if only the other map is, they are 0.

  Args:
    reference: `[images, height, width]`, finite.
    maps: the same shape.
    top_share: share of the positions that "top_k_iou" compares, 0..1.
    scores: names out of `AGREEMENT`.

  Returns:
    For each name a float64 array `[images]`:
    - cosine: of the maps as vectors, 0..1 for maps without negative values.
    - pearson: correlation over positions, -1..1.
    - spearman: correlation of ranks, -1..1; ties get their average rank.
    - ssim: structural similarity of the maps divided by their maxima, at most
      1. The Gaussian window has 11 positions, or all positions of a smaller map
      (Wang et al. 2004; `tf.image.ssim`).
    - top_k_iou: overlap of the strongest positions, 0..1; position breaks ties
      at the edge, in both maps alike.
    - l2: distance of the unit maps, 0..sqrt(2) for maps without negatives.
    - kendall: Kendall's tau-b, -1..1. It is the share of pairs of positions in
      the same order, minus the share in opposite order, without ties.
    - sign: share of the positions with the same sign, 0..1; 0 counts as a sign.
    - rmse: root mean square difference of the maps, each divided by its largest
      magnitude; 1 where only `maps` is dead.

  Raises:
    ValueError: shapes that differ or are not three-dimensional, or NaN.
  """
  reference, maps = _checked(reference, "reference"), _checked(maps, "maps")
  if reference.shape != maps.shape:
    raise ValueError(
        f"maps must have the reference's shape {list(reference.shape)}; got "
        f"{list(maps.shape)}.")
  if not 0 < top_share <= 1:
    raise ValueError(f"top_share must be in (0, 1]; got {top_share}.")
  unknown = [name for name in scores if name not in AGREEMENT]
  if unknown or not len(scores):
    raise ValueError(f"scores must be out of {AGREEMENT}; got {list(scores)}.")
  expected, actual = _flat(reference), _flat(maps)
  formulas = {
      "cosine": lambda: _cosine(expected, actual),
      "pearson": lambda: _cosine(_centred(expected), _centred(actual)),
      "spearman": lambda: _cosine(_centred(average_ranks(expected)),
                                  _centred(average_ranks(actual))),
      "ssim": lambda: _ssim(reference, maps),
      "top_k_iou": lambda: _top_iou(expected, actual, top_share),
      "l2": lambda: np.linalg.norm(_unit(expected) - _unit(actual), axis=1),
      "kendall": lambda: kendall(expected, actual),
      "sign": lambda: (np.sign(expected) == np.sign(actual)).mean(1),
      "rmse": lambda: np.sqrt(((expected - actual) ** 2).mean(1)),
  }
  nothing, lost = dead_maps(reference), dead_maps(maps)
  flat, flattened = _constant(expected), _constant(actual)
  worst = {"l2": np.sqrt(2), "rmse": 1.0}
  results = {}
  for name in scores:
    values = formulas[name]()
    if name in _OF_ORDER:
      values[flattened] = 0
      values[flat] = np.nan
    values[lost] = worst.get(name, 0)
    values[nothing] = np.nan
    results[name] = values
  return results


def dead_maps(maps: np.ndarray) -> np.ndarray:
  """Says which maps are zero everywhere, bool `[images]`."""
  return ~np.any(maps, axis=(1, 2))


def _checked(maps: np.ndarray, name: str) -> np.ndarray:
  maps = np.asarray(maps, np.float64)
  if maps.ndim != 3 or not maps.size:
    raise ValueError(
        f"{name} must be [images, height, width]; got {list(maps.shape)}.")
  if not np.isfinite(maps).all():
    raise ValueError(f"{name} must be finite; got NaN or infinity.")
  return maps


def _constant(rows: np.ndarray) -> np.ndarray:
  return (rows == rows[:, :1]).all(1)


def _flat(maps: np.ndarray) -> np.ndarray:
  """Flattens each map and divides it by its largest magnitude."""
  flat = maps.reshape(len(maps), -1)
  peak = np.abs(flat).max(1, keepdims=True)
  return flat / np.where(peak > 0, peak, 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.where(norm > 0, norm, 1)


def _centred(vectors: np.ndarray) -> np.ndarray:
  return vectors - vectors.mean(1, keepdims=True)


def _cosine(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
  return np.einsum("ip,ip->i", _unit(expected), _unit(actual))


def _ssim(reference: np.ndarray, maps: np.ndarray) -> np.ndarray:
  def image(one):
    return _flat(one).reshape(one.shape)[..., None].astype(np.float32)
  return tf.image.ssim(
      image(reference), image(maps), max_val=1.0,
      filter_size=min(11, *reference.shape[1:])).numpy().astype(np.float64)


def _top_iou(
    expected: np.ndarray, actual: np.ndarray, share: float) -> np.ndarray:
  count = max(1, round(share * expected.shape[1]))
  def strongest(vectors):
    chosen = np.argsort(-vectors, axis=1, kind="stable")[:, :count]
    marks = np.zeros(vectors.shape, bool)
    np.put_along_axis(marks, chosen, True, axis=1)
    return marks
  first, second = strongest(expected), strongest(actual)
  return (first & second).sum(1) / (first | second).sum(1)
