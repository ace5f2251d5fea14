"""Draws a grid of images: scenes, masks and maps side by side."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["map_grid"]


def map_grid(
    images: np.ndarray,
    masks: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    row_titles: Sequence[str],
    title: str,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> bytes:
  """Draws a row for each scene: the scene, its mask, and each model's map.

  Args:
    images: `[rows, height, width, 3]`, in 0..1.
    masks: bool `[rows, height, width]`; None draws no masks.
    columns: maps `[rows, any, any]`, not negative, by model name. Each map is
      drawn over the scene, from 0 to its own maximum.
    row_titles: the name of the explained class of each row.
    title: the title of the drawing.
    notes: a short text under a model's map, for each row.

  Returns:
    A PNG file's bytes.
  """
  # Imported here: the example's data needs no drawing library.
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  first = 1 if masks is None else 2
  rows, wide = len(images), first + len(columns)
  figure, axes = plt.subplots(
      rows, wide, figsize=(1.75 * wide, 1.95 * rows + 0.7), squeeze=False)
  figure.suptitle(title, fontsize=11)
  extent = (0, images.shape[2], images.shape[1], 0)
  for row in range(rows):
    axes[row, 0].imshow(images[row])
    axes[row, 0].set_ylabel(row_titles[row], fontsize=10)
    if masks is not None:
      axes[row, 1].imshow(masks[row], cmap="gray")
    grey = images[row].mean(-1)
    for column, (name, maps) in enumerate(columns.items(), start=first):
      axis = axes[row, column]
      axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
      peak = maps[row].max()
      axis.imshow(maps[row] / (peak or 1), cmap="inferno", vmin=0, vmax=1,
                  alpha=0.72, interpolation="bilinear", extent=extent)
      # A mask of one value has no border.
      if masks is not None and masks[row].any() and not masks[row].all():
        axis.contour(masks[row], levels=[0.5], colors="white", linewidths=0.7)
      if notes and name in notes:
        axis.set_xlabel(notes[name][row], fontsize=8)
  for axis, name in zip(
      axes[0], [*["scene", "mask"][:first], *columns]):
    axis.set_title(name, fontsize=9)
  for axis in axes.flat:
    axis.set_xticks([])
    axis.set_yticks([])
  figure.tight_layout()
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  plt.close(figure)
  return buffer.getvalue()
