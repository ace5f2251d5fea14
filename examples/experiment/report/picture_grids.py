"""Pictures with the maps of some arms: successes and failures, by rule."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from examples.experiment.report.figures import arm_name
from examples.experiment.report.pictures import map_grid

__all__ = ["Choice", "choose_pictures", "success_and_failure_grid"]


class Choice(NamedTuple):
  """A picture that the rule chose: which one, why, and by how much."""

  index: int
  reason: str
  gain: float


def choose_pictures(
    cosines: np.ndarray, plain: np.ndarray, *, each: int = 2
) -> list[Choice]:
  """Chooses pictures by how much an arm gains over plain compression.

  No hand takes part: the largest gains, those at the middle, and the largest
  losses, which are the smallest gains where nothing is lost.

  Args:
    cosines: `[images]`, of the arm's maps to the teacher's; NaN, where the
      teacher has no map, is never chosen.
    plain: `[images]`, the same of the maps of compression alone.
    each: how many of each kind; fewer where there are not three times as many.

  Returns:
    The pictures, from the largest gain down; of pictures with the same gain
    the earlier one comes first.

  Raises:
    ValueError: shapes that differ, or fewer than three pictures have a gain.
  """
  ours, theirs = np.asarray(cosines, float), np.asarray(plain, float)
  if ours.ndim != 1 or ours.shape != theirs.shape:
    raise ValueError(
        "cosines and plain must be [images] of one length; got "
        f"{list(ours.shape)} and {list(theirs.shape)}.")
  if each < 1:
    raise ValueError(f"each must be 1 or more; got {each}.")
  gains = ours - theirs
  order = np.argsort(-gains, kind="stable")  # NaN comes last.
  order = order[:np.isfinite(gains).sum()]
  if len(order) < 3:
    raise ValueError(
        f"cosines must hold three pictures or more; got {len(order)}.")
  each = min(each, len(order) // 3)
  middle = (len(order) - each) // 2
  parts = {
      "most gained": order[:each],
      "middle": order[middle:middle + each],
      "most lost" if gains[order[-1]] < 0 else "least gained": order[-each:],
  }
  return [Choice(int(index), reason, float(gains[index]))
          for reason, part in parts.items() for index in part]


def success_and_failure_grid(
    images: np.ndarray,
    masks: np.ndarray | None,
    maps: Mapping[str, np.ndarray],
    cosines: Mapping[str, np.ndarray],
    *,
    arm: str,
    plain: str = "plain",
    each: int = 2,
    labels: Sequence[str] | None = None,
    about: str = "",
) -> bytes:
  """Draws where some arms look, where one gains most, middling and least.

  Args:
    images: `[images, height, width, 1 or 3]`, uint8, or floats in 0..1.
    masks: bool `[images, height, width]`, of the class explained; None draws
      none.
    maps: maps `[images, any, any]` by arm, the teacher's among them if it is to
      be seen; drawn in this order. Values below 0 are drawn as 0.
    cosines: `[images]` to the teacher's maps, by arm; of `arm` and `plain` at
      least.
    arm: whose gains over `plain` choose the pictures; see `choose_pictures`.
    plain: the arm of compression alone.
    each: how many pictures of each kind.
    labels: what is explained in each picture.
    about: which experiment and compression, for the title.

  Returns:
    A PNG file's bytes.

  Raises:
    ValueError: an argument is not as above.
  """
  pictures = _checked_images(images)
  masks = None if masks is None else np.asarray(masks)
  if masks is not None and (
      masks.shape != pictures.shape[:3] or masks.dtype != bool):
    raise ValueError(
        f"masks must be bool {list(pictures.shape[:3])}; got {masks.dtype} "
        f"{list(masks.shape)}.")
  _check_arms(maps, cosines, (arm, plain), len(pictures))
  labels = ["image"] * len(pictures) if labels is None else labels
  if len(labels) != len(pictures):
    raise ValueError(
        f"labels must be {len(pictures)}, one an image; got {len(labels)}.")
  chosen = choose_pictures(cosines[arm], cosines[plain], each=each)
  which = [one.index for one in chosen]
  return map_grid(
      pictures[which], None if masks is None else masks[which],
      {arm_name(one): np.maximum(values, 0)[which]
       for one, values in maps.items()},
      [f"{labels[one.index]}\n{one.reason}\n{one.gain:+.2f}"
       for one in chosen],
      f"{about + ': ' if about else ''}pictures by what {arm_name(arm)} gains "
      f"in cosine over {arm_name(plain)}",
      {arm_name(one): [_note(values[index], maps[one][index])
                       for index in which]
       for one, values in cosines.items() if one in maps and one != "teacher"})


def _note(cosine: float, one: np.ndarray) -> str:
  return f"cosine {cosine:.2f}" + ("" if np.any(one > 0) else ", dead map")


def _check_arms(maps, cosines, needed: Sequence[str], images: int) -> None:
  """Refuses maps and cosines that are not one an image, or not there."""
  for one in needed:
    if one not in cosines or one not in maps:
      raise ValueError(
          f"maps and cosines must have {one!r}; got {[*maps]} and "
          f"{[*cosines]}.")
  for one, values in maps.items():
    shape = np.shape(values)
    if len(shape) != 3 or shape[0] != images or not np.isfinite(values).all():
      raise ValueError(
          f"maps of {one!r} must be finite [{images}, height, width]; got "
          f"{list(shape)}.")
  for one, values in cosines.items():
    if np.shape(values) != (images,):
      raise ValueError(
          f"cosines of {one!r} must be [{images}]; got "
          f"{list(np.shape(values))}.")


def _checked_images(images: np.ndarray) -> np.ndarray:
  """The images in 0..1 with three channels."""
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise ValueError(
        "images must be [images, height, width, 1 or 3]; got "
        f"{list(images.shape)}.")
  if images.dtype == np.uint8:
    images = images / 255
  elif not (images.min() >= 0 and images.max() <= 1):
    raise ValueError(
        f"images must be uint8, or floats in 0..1; got {images.min():g} to "
        f"{images.max():g}.")
  return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
