"""The table of `drift`, a row per layer."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from keras_attr_preserve.utils.atomic_files import make_folder, write_whole

__all__ = ["Drift", "LayerDrift"]


@dataclasses.dataclass(frozen=True)
class LayerDrift:
  """One layer of the file, compared with the Keras model's.

  Attributes:
    layer: the layer's name, or "(input)" for the images as the file rounds
      them.
    tensor: number and name of the file's tensor.
    matched: "numbers", or "name" where the numbers differ too much for a match.
    place: the layer's place in the order of computing, 0 for the input.
    error: error of the features, `|file - Keras| / |Keras|` over all images.
    cosine: cosine of the file's and Keras's features, mean over images.
    snr: signal to noise of the features, `20 log10(|Keras| / |file - Keras|)`,
      in dB.
    added: the layer's own error: `|file - Keras'| / |Keras'|`, where Keras' is
      the Keras layer's output for the file's inputs of that layer.
    harm: 1 - cosine of the WCAM's maps of the Keras model with and without this
      layer's own error alone, mean over images, 0..1. Rows are ranked by harm.
    sensitivity: cosine of the sensitivities at this layer, median over images;
      NaN after the scores and for method "ewa".
    map: cosine of the two maps at this layer, median over images; NaN for a
      layer without a spatial map, and after the scores.
  """

  layer: str
  tensor: str
  matched: str
  place: int
  error: float
  cosine: float
  snr: float
  added: float
  harm: float
  sensitivity: float
  map: float


@dataclasses.dataclass(frozen=True)
class Drift:
  """The differences of a file from its Keras model, most harmful layer first.

  Attributes:
    rows: one row per layer, ranked by `harm`, then by `added`.
    left_out: layers without a tensor in the file: fused with a later layer, or
      indistinguishable from another.
    facts: images, layer, method, runtime, road; `map` and `sensitivity`, the
      median cosines of the file's own to the Keras model's, None if missing;
      `not_measured`, the missing ones of road, map and sensitivity, and why.
  """

  rows: tuple[LayerDrift, ...]
  left_out: tuple[str, ...]
  facts: Mapping[str, Any]

  @property
  def in_order(self) -> list[LayerDrift]:
    """The rows in the order of computing."""
    return sorted(self.rows, key=lambda row: row.place)

  def __str__(self) -> str:
    """Returns the facts and a line per layer, the most harmful first."""
    lines = [f"{name.replace('_', ' '):<22}{value}"
             for name, value in self.facts.items() if value not in (None, "")]
    lines += ["", f"{'layer':<28}{'place':>6}{'harm':>10}{'added':>9}"
              f"{'error':>9}{'cosine':>9}{'SNR dB':>8}{'sensit.':>9}{'map':>9}"]
    lines += [
        f"{row.layer:<28}{row.place:>6}{row.harm:>10.2g}{row.added:>9.2%}"
        f"{row.error:>9.2%}{row.cosine:>9.4f}{row.snr:>8.1f}"
        f"{row.sensitivity:>9.4f}{row.map:>9.4f}"
        + (" (by name)" if row.matched == "name" else "")
        for row in self.rows]
    if self.left_out:
      lines.append(f"{len(self.left_out)} layers have no tensor of their own: "
                   f"{', '.join(self.left_out[:4])}"
                   + (", ..." if len(self.left_out) > 4 else ""))
    return "\n".join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Plain values; NaN and infinity become None."""
    return {**self.facts, "left_out": list(self.left_out),
            "rows": [{name: _plain(value) for name, value
                      in dataclasses.asdict(row).items()}
                     for row in self.rows]}

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `drift.json`, everything, and `drift.csv`, a row per layer.

    Args:
      folder: created if need be; files of these names are replaced.

    Raises:
      OSError: the folder cannot be written to.
    """
    path = make_folder(folder)
    table = io.StringIO()
    names = [field.name for field in dataclasses.fields(LayerDrift)]
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(self.to_dict()["rows"])
    write_whole(path / "drift.csv", table.getvalue())
    write_whole(path / "drift.json",
                json.dumps(self.to_dict(), indent=2) + "\n")


def _plain(value: Any) -> Any:
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
