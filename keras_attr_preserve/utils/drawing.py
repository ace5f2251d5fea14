"""Draws images and their attribution maps side by side."""

from collections.abc import Sequence

import numpy as np

from keras_attr_preserve.compat import tf

__all__ = ["labelled_png", "side_by_side"]

# Red, green and blue at equal steps of a map's value, from 0 to 1.
_RAMP = np.array([(24, 26, 110), (0, 112, 150), (70, 180, 95), (255, 236, 70)])
_COLOUR_SHARE = 0.6
_LEAST_SIDE = 128
_GAP = 4
_STRIP = 18


def side_by_side(
    images: np.ndarray,
    *maps: np.ndarray,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
  """Draws each image and, beside it, its maps over the grey image.

  Each map is divided by its maximum. Its colours get brighter from dark blue
  (0) over green to yellow (1). A dead map is all blue. Images of at most 64
  pixels a side are enlarged by a whole factor, and the maps are resized
  (bilinear) to them.

  Args:
    images: `[images, height, width, channels]`, of any range; 3 channels are
      red, green and blue, any other number is drawn as their mean in grey.
    *maps: each `[images, map height, map width]`; negative values are drawn as
      0.
    value_range: the values drawn black and white; None for the smallest and the
      largest value of the images.

  Returns:
    uint8 `[images, height, width of all panels and white gaps, 3]`.
  """
  low, high = value_range or (images.min(), images.max())
  pixels = np.clip((images - low) / (high - low or 1), 0, 1)
  scale = max(1, _LEAST_SIDE // max(images.shape[1:3]))
  pixels = 255 * pixels.repeat(scale, 1).repeat(scale, 2)
  grey = np.repeat(pixels.mean(-1, keepdims=True), 3, -1)
  panels = [pixels if images.shape[-1] == 3 else grey]
  gap = np.full((*grey.shape[:2], _GAP, 3), 255.0)
  for column in maps:
    colours = _colours(_resized(column, grey.shape[1:3]))
    panels += [gap, _COLOUR_SHARE * colours + (1 - _COLOUR_SHARE) * grey]
  return np.concatenate(panels, axis=2).round().astype(np.uint8)


def labelled_png(
    images: np.ndarray,
    *maps: np.ndarray,
    heads: Sequence[str],
    labels: Sequence[str],
    value_range: tuple[float, float] | None = None,
) -> bytes:
  """Draws rows of images and maps, each under a line of text, as a PNG.

  Args:
    images: as for `side_by_side`.
    *maps: as for `side_by_side`.
    heads: the columns' names for the first line, plain ASCII.
    labels: a line for each image, plain ASCII.
    value_range: as for `side_by_side`.

  Returns:
    The content of the PNG file.
  """
  rows = side_by_side(images, *maps, value_range=value_range)
  width = rows.shape[2]
  step = (width + _GAP) / len(heads)
  bands = [_strip(width, {round(i * step): head
                          for i, head in enumerate(heads)})]
  for row, label in zip(rows, labels):
    bands += [_strip(width, {0: label}), row]
  # Text that is wider than the images is not cut.
  width = max(band.shape[1] for band in bands)
  return tf.io.encode_png(np.concatenate([
      np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)),
             constant_values=255) for band in bands])).numpy()


def _strip(width: int, texts: dict[int, str]) -> np.ndarray:
  """Draws texts on a white strip, each from its column of pixels on."""
  import cv2  # Imported here, because only this function needs it.

  font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4
  ends = [start + cv2.getTextSize(text, font, size, 1)[0][0] + 2 * _GAP
          for start, text in texts.items()]
  strip = np.full((_STRIP, max(width, *ends), 3), 255, np.uint8)
  for start, text in texts.items():
    cv2.putText(strip, text, (start + _GAP, _STRIP - 6), font, size, (0, 0, 0),
                1, cv2.LINE_AA)
  return strip


def _resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes maps and divides each by its largest value, to 0..1."""
  maps = np.maximum(tf.image.resize(
      maps[..., None], size, antialias=True)[..., 0].numpy(), 0)
  peak = maps.max(axis=(1, 2), keepdims=True)
  return maps / np.where(peak > 0, peak, 1)


def _colours(values: np.ndarray) -> np.ndarray:
  """Turns values in 0..1 into red, green and blue in 0..255, on a last axis."""
  stops = np.linspace(0, 1, len(_RAMP))
  return np.stack(
      [np.interp(values, stops, channel) for channel in _RAMP.T], -1)
