"""Scores of attribution maps: against other maps, masks and the model."""

from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.evaluation.faithfulness import (
    Curves,
    deletion,
    insertion,
    road,
    sensitivity_n,
)
from keras_attr_preserve.evaluation.localization import (
    VOID,
    box_masks,
    centre_prior,
    localization,
    mask_pairs,
)
from keras_attr_preserve.evaluation.mean_average_precision import (
    mean_average_precision,
)
from keras_attr_preserve.evaluation.report import Report, ShortfallError
from keras_attr_preserve.evaluation.runtime_comparison import Comparison
from keras_attr_preserve.evaluation.sanity import cascading_randomization
from keras_attr_preserve.evaluation.statistics import (
    confidence_interval,
    random_floor,
)

__all__ = [
    "VOID",
    "Comparison",
    "Curves",
    "Report",
    "ShortfallError",
    "agreement",
    "box_masks",
    "cascading_randomization",
    "centre_prior",
    "confidence_interval",
    "deletion",
    "insertion",
    "localization",
    "mask_pairs",
    "mean_average_precision",
    "random_floor",
    "road",
    "sensitivity_n",
]
