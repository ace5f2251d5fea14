"""Scores of maps against ground-truth masks, for (image, class) pairs."""

import math

import numpy as np

from keras_attr_preserve.compat import tf
from keras_attr_preserve.evaluation.ranks import average_ranks

__all__ = ["VOID", "box_masks", "centre_prior", "localization", "mask_pairs"]

VOID = 255
"""The label of pixels that belong to no class, not even the background."""


def mask_pairs(
    label_maps: np.ndarray, class_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Lists the (image, class) pairs that can be judged.

  A pair whose class marks no pixel, or every pixel that is not void, has no
  inside or no outside, and is skipped. Judge every model on the same pairs.

  Args:
    label_maps: `[images, height, width]`, integers; `VOID` is left out.
    class_ids: `[classes]`, the label of each class in the maps.

  Returns:
    Image numbers and class numbers, two integer arrays `[pairs]`.

  Raises:
    ValueError: the label maps are not integers of three dimensions, or there is
      no class, or one is void.
  """
  label_maps = np.asarray(label_maps)
  if label_maps.ndim != 3 or label_maps.dtype.kind not in "iu":
    raise ValueError(
        "label_maps must be integers [images, height, width]; got "
        f"{label_maps.dtype} of shape {list(label_maps.shape)}.")
  class_ids = np.asarray(class_ids)
  if class_ids.ndim != 1 or not class_ids.size or (
      class_ids.dtype.kind not in "iu" or (class_ids == VOID).any()):
    raise ValueError(
        f"class_ids must be labels [classes], none of them {VOID}, the void's; "
        f"got {class_ids.tolist()}.")
  known = (label_maps != VOID).sum((1, 2))
  inside = np.stack(
      [(label_maps == one).sum((1, 2)) for one in class_ids], axis=1)
  return np.nonzero((inside > 0) & (inside < known[:, None]))


def localization(
    maps: np.ndarray,
    masks: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    tolerance: int = 0,
) -> dict[str, np.ndarray]:
  """Judges one map for each mask.

  Args:
    maps: `[pairs, height, width]`, finite, not negative; brought to the masks'
      size first, bilinear.
    masks: bool `[pairs, height, width]`, each with pixels in and out.
    valid: bool, same shape; False marks void pixels, which count nowhere. None
      for no void.
    tolerance: pixels by which the pointing game may miss, 0 or more.

  Returns:
    For each name a float64 array `[pairs]`:
    - roc_auc: chance that a pixel inside scores above one outside, ties half
      (a dead map gets 0.5).
    - pointing: whether the strongest valid pixel lies inside, or within the
      tolerance of it; among tied ones the share that does.
    - energy_inside: share of the map's sum that lies inside; 0 for a dead map.
    - average_precision: of pixels ranked by the map, mean precision at each
      pixel inside; tied pixels come at one threshold, so that a dead map gets
      the mask's share of the picture.
    - best_iou: overlap of the mask with what lies at or above a threshold, at
      the threshold that suits it best.

  Raises:
    ValueError: shapes that do not fit, a mask without an inside or an outside,
      or maps that are not finite.

  References:
    Zhang et al. 2018 (pointing game); Wang et al. 2020, Score-CAM (energy).
  """
  maps = np.asarray(maps, np.float32)
  masks = np.asarray(masks)
  if masks.dtype != bool or masks.ndim != 3:
    raise ValueError(
        "masks must be bool [pairs, height, width]; got "
        f"{masks.dtype} of shape {list(masks.shape)}.")
  if maps.ndim != 3 or len(maps) != len(masks):
    raise ValueError(
        f"maps must be [{len(masks)}, height, width], one for each mask; got "
        f"{list(maps.shape)}.")
  if not np.isfinite(maps).all() or (maps < 0).any():
    raise ValueError("maps must be finite and not negative.")
  valid = np.ones(masks.shape, bool) if valid is None else np.asarray(valid)
  if valid.dtype != bool or valid.shape != masks.shape:
    raise ValueError(
        f"valid must be bool of the masks' shape {list(masks.shape)}; got "
        f"{valid.dtype} of shape {list(valid.shape)}.")
  if tolerance < 0:
    raise ValueError(f"tolerance must be 0 or more; got {tolerance}.")
  maps = _resize(maps, masks.shape[1:])
  rows = [_judge(*row, tolerance) for row in zip(maps, masks, valid)]
  return {name: np.array([row[name] for row in rows])
          for name in ("roc_auc", "pointing", "energy_inside",
                       "average_precision", "best_iou")}


def box_masks(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Turns boxes into masks, one each.

  Args:
    boxes: `[boxes, 4]`: top, left, bottom, right, in pixels; a pixel is inside
      where its middle is.
    height: of the picture.
    width: of the picture.

  Returns:
    bool `[boxes, height, width]`.

  Raises:
    ValueError: another shape, or a box that holds no pixel or all.
  """
  boxes = np.asarray(boxes, np.float64)
  if boxes.ndim != 2 or boxes.shape[1] != 4:
    raise ValueError(
        "boxes must be [boxes, 4]: top, left, bottom, right; got shape "
        f"{list(boxes.shape)}.")
  top, left, bottom, right = boxes.T[:, :, None]
  rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
  down = (rows >= top) & (rows < bottom)
  across = (columns >= left) & (columns < right)
  masks = down[:, :, None] & across[:, None, :]
  share = masks.mean((1, 2))
  bad = np.flatnonzero((share == 0) | (share == 1))
  if len(bad):
    raise ValueError(
        f"boxes must each hold a pixel of the {height}x{width} picture and "
        f"leave one out; box {bad[0]} is {boxes[bad[0]].tolist()}.")
  return masks


def centre_prior(height: int, width: int) -> np.ndarray:
  """A map that knows nothing but that objects stand in the middle.

  Put its scores beside every localization score.

  Args:
    height: positions down.
    width: positions across.

  Returns:
    A Gaussian of a quarter of each side, float32 `[height, width]`, peak 1.
  """
  def bell(size):
    return np.exp(-8 * ((np.arange(size) + 0.5) / size - 0.5) ** 2)
  return np.outer(bell(height), bell(width)).astype(np.float32)


def _resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if maps.shape[1:] == tuple(size):
    return maps
  return tf.image.resize(maps[..., None], size).numpy()[..., 0]


def _judge(
    values: np.ndarray, mask: np.ndarray, valid: np.ndarray, tolerance: int
) -> dict[str, float]:
  inside, outside = mask & valid, ~mask & valid
  if not inside.any() or not outside.any():
    raise ValueError(
        "masks must each hold a pixel inside and one outside that are not "
        "void; choose the pairs with mask_pairs.")
  known = values[valid]
  ranks = average_ranks(known[None])[0]
  hits = inside[valid]
  count = hits.sum()
  wins = ranks[hits].sum() - count * (count + 1) / 2
  peaks = valid & (values == known.max())
  total = known.sum(dtype=np.float64)
  precision, overlap = _thresholds(known, hits)
  return {
      "roc_auc": wins / (count * (len(hits) - count)),
      "pointing": (_grown(inside, tolerance) & peaks).sum() / peaks.sum(),
      "energy_inside": (
          values[inside].sum(dtype=np.float64) / total if total else 0.0),
      "average_precision": precision,
      "best_iou": overlap,
  }


def _thresholds(values: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
  """Average precision, and the largest overlap, over all thresholds."""
  order = np.argsort(-values, kind="stable")
  ordered = values[order]
  last = np.append(ordered[1:] != ordered[:-1], True)  # Of each run of ties.
  found = np.cumsum(hits[order])[last]
  taken = np.flatnonzero(last) + 1
  gained = np.diff(found, prepend=0)
  precision = (gained * found / taken).sum() / hits.sum()
  return precision, (found / (taken + hits.sum() - found)).max()


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
  """Marks the pixels within a Euclidean distance of the mask."""
  if not radius:
    return mask
  grown = np.zeros_like(mask)
  height, width = mask.shape
  sums = np.cumsum(
      np.pad(mask, ((0, 0), (radius + 1, radius))), axis=1, dtype=np.int32)
  furthest = min(radius, height - 1)
  for down in range(-furthest, furthest + 1):
    reach = math.isqrt(radius**2 - down**2)
    low, high = radius - reach, radius + reach + 1
    near = sums[:, high:high + width] > sums[:, low:low + width]
    grown[max(0, down):height - max(0, -down)] |= (
        near[max(0, -down):height - max(0, down)])
  return grown
