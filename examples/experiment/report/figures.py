"""The variants and the figures of an experiment: order, names and units."""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
  "FIGURES", "TABLE", "TASK", "UNCOMPRESSED", "Figure", "arm_name", "figure",
  "in_order", "strength_text",
]

_ARMS = {
    "teacher": "teacher",
    "centre_prior": "centre prior",
    "fine_tune": "fine-tuned only",
    "plain": "plain",
    "plain_bn": "plain + BN",
    "distillation": "logit distillation",
    "distillation_bn": "logit distillation + BN",
    "ewa": "EWA",
    "e2kd": "e2KD",
    "e2kd_bn": "e2KD + BN",
    "catkd": "CAT-KD",
    "swa": "SWA",
    "swa_stochastic": "SWA stochastic",
    "swa_distillation": "SWA + distillation",
    "agreement": "agreement held",
    "hints": "hints + distillation",
    "swa_hints": "SWA + hints",
    "swa_hints_bn": "SWA + hints + BN",
    "swa_hints_distillation": "SWA + hints + distillation",
    "swa_hints_distillation_bn": "SWA + hints + distillation + BN",
}

UNCOMPRESSED = ("teacher", "centre_prior", "fine_tune")
"""Variants for reference, which no table compares with the compressed ones."""


class Figure(NamedTuple):
  """A figure of a results row.

  Attributes:
    key: its name in the row.
    title: its title in tables and plots.
    better: 1 if more is better, -1 if less is better, 0 for neither.
    teachers: the teacher's value, if it is the same for every model; None if
      the teacher's row has it.
    scale: the factor on a value that is shown.
    decimals: the number of decimals shown.
  """

  key: str
  title: str
  better: int = 1
  teachers: float | None = None
  scale: float = 1.0
  decimals: int = 3


FIGURES = (
    Figure("map", "mean AP"),
    Figure("accuracy", "accuracy"),
    Figure("f1", "F1"),
    Figure("map_chance", "mean AP by chance", better=0),
    Figure("same_top_class", "same top class", teachers=1.0),
    Figure("cosine_mean", "cosine", teachers=1.0),
    Figure("cosine_p5", "cosine p5", teachers=1.0),
    Figure("spearman_mean", "Spearman", teachers=1.0),
    Figure("ssim_mean", "SSIM", teachers=1.0),
    Figure("top_k_iou_mean", "top-k IoU", teachers=1.0),
    Figure("dead", "dead maps", better=-1),
    Figure("roc_auc", "ROC-AUC"),
    Figure("pointing", "pointing"),
    Figure("pointing_15", "pointing, 15 px"),
    Figure("energy_inside", "energy inside"),
    Figure("gradient_cosine_mean", "int. gradients cosine", teachers=1.0),
    Figure("gradient_spearman_mean", "int. gradients Spearman", teachers=1.0),
    Figure("gradient_roc_auc", "int. gradients ROC-AUC"),
    Figure("occlusion_cosine_mean", "occlusion cosine", teachers=1.0),
    Figure("occlusion_spearman_mean", "occlusion Spearman", teachers=1.0),
    Figure("occlusion_roc_auc", "occlusion ROC-AUC"),
    Figure("sparsity", "sparsity", better=0),
    Figure("parameters", "parameters, thousands", 0, scale=1e-3, decimals=1),
    Figure("macs", "MACs, millions", better=0, scale=1e-6, decimals=2),
    Figure("bytes", "file, kB", better=-1, scale=1e-3, decimals=1),
    Figure("bytes_gzipped", "gzipped, kB", -1, scale=1e-3, decimals=1),
    Figure("seconds", "seconds", better=-1, decimals=0),
)
"""All figures of a row, in the order of the CSV's columns."""

TASK = ("map", "accuracy", "f1")
TABLE = (
    *TASK, "cosine_mean", "cosine_p5", "spearman_mean", "roc_auc", "pointing",
    "gradient_cosine_mean", "gradient_spearman_mean", "occlusion_cosine_mean",
    "occlusion_roc_auc", "dead", "same_top_class", "bytes_gzipped")
"""The columns of the table that compares the variants."""

_BY_KEY = {entry.key: entry for entry in FIGURES}


def figure(key: str) -> Figure:
  """Finds a figure by its name in a row, with or without "float_".

  Raises:
    ValueError: there is no such figure.
  """
  entry = _BY_KEY.get(key.removeprefix("float_"))
  if entry is None:
    raise ValueError(f"figure must be one of {[*_BY_KEY]}; got {key!r}.")
  return entry._replace(key=key)


def arm_name(arm: str) -> str:
  """Returns a variant's displayed name; an unknown name stays as it is."""
  return _ARMS.get(arm, arm)


def in_order(arms: Iterable[str]) -> list[str]:
  """Sorts variants in the order of the tables; unknown ones last, by name."""
  order = [*_ARMS]
  return sorted(set(arms), key=lambda arm: (
      order.index(arm) if arm in order else len(order), arm))


def strength_text(compression: str, strength: float) -> str:
  """Formats a strength: "90 %" removed, "1/4" of the width, "8 bits"."""
  if "narrow" in compression:
    return f"1/{strength:g}"
  if 0 <= strength < 1:
    return f"{100 * strength:g} %"
  if compression in ("ptq", "qat", "calibrated_qat"):
    return f"{strength:g} bits"
  return f"{strength:g}"
