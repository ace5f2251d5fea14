"""Draws images with maps of some variants: successes and failures, by rule."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from examples.experiment.report.figures import arm_name
from examples.experiment.report.pictures import map_grid

__all__ = ["Choice", "choose_pictures", "success_and_failure_grid"]


class Choice(NamedTuple):
  """A chosen image: its index, the reason, and the gain in cosine."""

  index: int
  reason: str
  gain: float


def choose_pictures(
    cosines: np.ndarray, plain: np.ndarray, *, each: int = 2
) -> list[Choice]:
  """Chooses images by a variant's gain over plain compression.

  The rule takes the largest gains, the middle gains, and the largest losses. If
  nothing is lost, it takes the smallest gains in place of the losses.

  Args:
    cosines: `[images]`, of the variant's maps to the teacher's. NaN means that
      the teacher has no map; the rule never chooses such an image.
    plain: `[images]`, the same for the maps of compression alone.
    each: the number of images of each kind; at most a third of the images with
      a gain.

  Returns:
    The images, sorted by falling gain. Images with the same gain keep their
    order.

  Raises:
    ValueError: the shapes differ, or fewer than three images have a gain.
  """
  arm_cosines, plain_cosines = (
      np.asarray(cosines, float), np.asarray(plain, float))
  if arm_cosines.ndim != 1 or arm_cosines.shape != plain_cosines.shape:
    raise ValueError(
        "cosines and plain must be [images] of one length; got "
        f"{list(arm_cosines.shape)} and {list(plain_cosines.shape)}.")
  if each < 1:
    raise ValueError(f"each must be 1 or more; got {each}.")
  gains = arm_cosines - plain_cosines
  order = np.argsort(-gains, kind="stable")  # NaN comes last.
  order = order[:np.isfinite(gains).sum()]
  if len(order) < 3:
    raise ValueError(
        f"cosines must hold three pictures or more; got {len(order)}.")
  each = min(each, len(order) // 3)
  middle = (len(order) - each) // 2
  groups = {
      "most gained": order[:each],
      "middle": order[middle:middle + each],
      "most lost" if gains[order[-1]] < 0 else "least gained": order[-each:],
  }
  return [Choice(int(index), reason, float(gains[index]))
          for reason, indices in groups.items() for index in indices]


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
  """Draws maps of some variants on images where one gains most to least.

  Args:
    images: `[images, height, width, 1 or 3]`, uint8, or floats in 0..1.
    masks: bool `[images, height, width]`, of the explained class; None draws no
      masks.
    maps: maps `[images, any, any]` by variant, in drawing order; "teacher" is
      optional. Values below 0 are drawn as 0.
    cosines: `[images]` to the teacher's maps, by variant; at least for `arm`
      and `plain`.
    arm: the variant whose gains over `plain` choose the images; see
      `choose_pictures`.
    plain: the variant of compression alone.
    each: the number of images of each kind.
    labels: the name of the explained class in each image.
    about: the experiment and the compression, for the title.

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
  which = [choice.index for choice in chosen]
  return map_grid(
      pictures[which], None if masks is None else masks[which],
      {arm_name(name): np.maximum(values, 0)[which]
       for name, values in maps.items()},
      [f"{labels[choice.index]}\n{choice.reason}\n{choice.gain:+.2f}"
       for choice in chosen],
      f"{about + ': ' if about else ''}pictures by what {arm_name(arm)} gains "
      f"in cosine over {arm_name(plain)}",
      {arm_name(name): [_note(values[index], maps[name][index])
                        for index in which]
       for name, values in cosines.items()
       if name in maps and name != "teacher"})


def _note(cosine: float, values: np.ndarray) -> str:
  return f"cosine {cosine:.2f}" + ("" if np.any(values > 0) else ", dead map")


def _check_arms(maps, cosines, needed: Sequence[str], images: int) -> None:
  """Rejects missing maps and cosines, and any that do not fit the images."""
  for name in needed:
    if name not in cosines or name not in maps:
      raise ValueError(
          f"maps and cosines must have {name!r}; got {[*maps]} and "
          f"{[*cosines]}.")
  for name, values in maps.items():
    shape = np.shape(values)
    if len(shape) != 3 or shape[0] != images or not np.isfinite(values).all():
      raise ValueError(
          f"maps of {name!r} must be finite [{images}, height, width]; got "
          f"{list(shape)}.")
  for name, values in cosines.items():
    if np.shape(values) != (images,):
      raise ValueError(
          f"cosines of {name!r} must be [{images}]; got "
          f"{list(np.shape(values))}.")


def _checked_images(images: np.ndarray) -> np.ndarray:
  """Returns the images in 0..1 with three channels."""
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
