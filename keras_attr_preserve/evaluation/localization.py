"""Compares maps with ground-truth masks, for (image, class) pairs."""

import math

import numpy as np

from keras_attr_preserve.compat import tf
from keras_attr_preserve.evaluation.ranks import average_ranks

__all__ = ["VOID", "box_masks", "centre_prior", "localization", "mask_pairs"]

VOID = 255
"""The label of pixels without a class, not even the background."""


def mask_pairs(
    label_maps: np.ndarray, class_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Lists the (image, class) pairs that can be judged.

  A pair is skipped if its class marks no pixel, or every pixel that is not
  void: it then has no inside or no outside. Judge all models on the same pairs.

  Args:
    label_maps: `[images, height, width]`, integers; `VOID` is left out.
    class_ids: `[classes]`, the label of each class in the label maps.

  Returns:
    Image numbers and class numbers, two integer arrays `[pairs]`.

  Raises:
    ValueError: the label maps are not integers of three dimensions, there is no
      class, or a class is void.
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
      [(label_maps == class_id).sum((1, 2)) for class_id in class_ids], axis=1)
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
    maps: `[pairs, height, width]`, finite, not negative; first resized to the
      masks' size, bilinear.
    masks: bool `[pairs, height, width]`, each with pixels inside and outside.
    valid: bool, same shape; False marks void pixels, which never count. None
      for no void pixels.
    tolerance: pixels by which the pointing game may miss, 0 or more.

  Returns:
    For each name a float64 array `[pairs]`:
    - roc_auc: probability that a pixel inside scores above a pixel outside;
      ties count half, so a dead map gets 0.5.
    - pointing: whether the strongest valid pixel lies inside the mask or within
      the tolerance of it; for tied pixels the share inside.
    - energy_inside: share of the map's sum that lies inside; 0 for a dead map.
    - average_precision: mean precision at each pixel inside, of pixels ranked
      by the map. Tied pixels share a threshold, so a dead map gets the mask's
      share of the image.
    - best_iou: overlap of the mask with the pixels at or above a threshold, for
      the best threshold.

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
  """Turns each box into a mask.

  Args:
    boxes: `[boxes, 4]`: top, left, bottom, right, in pixels; a pixel is inside
      if its middle is.
    height: of the image.
    width: of the image.

  Returns:
    bool `[boxes, height, width]`.

  Raises:
    ValueError: another shape, or a box that holds no pixel or all pixels.
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
  """Returns a map of the centre, as a baseline for localization.

  It only assumes that objects stand in the middle. Report its scores beside
  every localization score.

  Args:
    height: number of rows.
    width: number of columns.

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
  """Returns average precision and the largest overlap over all thresholds."""
  order = np.argsort(-values, kind="stable")
  ordered = values[order]
  last = np.append(ordered[1:] != ordered[:-1], True)  # The last of each tie.
  hit_counts = np.cumsum(hits[order])[last]
  taken = np.flatnonzero(last) + 1
  gained = np.diff(hit_counts, prepend=0)
  precision = (gained * hit_counts / taken).sum() / hits.sum()
  return precision, (hit_counts / (taken + hits.sum() - hit_counts)).max()


def _grown(mask: np.ndarray, radius: int) -> np.ndarray:
  """Marks the pixels within a Euclidean distance of a mask."""
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
