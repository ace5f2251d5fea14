"""Scores of attribution maps: against each other, and against masks."""

from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.evaluation.localization import (
    VOID,
    centre_prior,
    localization,
    mask_pairs,
)
from keras_attr_preserve.evaluation.prediction import mean_average_precision
from keras_attr_preserve.evaluation.report import Report, ShortfallError

__all__ = [
    "VOID",
    "Report",
    "ShortfallError",
    "agreement",
    "centre_prior",
    "localization",
    "mask_pairs",
    "mean_average_precision",
]
