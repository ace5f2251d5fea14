"""Compress Keras image classifiers and keep what they look at."""

from pathlib import Path as _Path

from keras_attr_preserve import attribution, evaluation
from keras_attr_preserve.compat import clone_model
from keras_attr_preserve.compression.calibrate_quantizers import (
  calibrate_quantizers,
)
from keras_attr_preserve.compression.equalize_kernels import equalize_kernels
from keras_attr_preserve.compression.iterative_pruning import IterativePruning
from keras_attr_preserve.compression.layer_sparsities import (
  layer_sparsities,
  prune_layers,
)
from keras_attr_preserve.compression.narrow import narrow
from keras_attr_preserve.compression.prune_filters import (
  filter_sparsities,
  prune_filters,
)
from keras_attr_preserve.compression.prune_with_reconstruction import (
  hold_zeros,
  prune_with_reconstruction,
)
from keras_attr_preserve.compression.recalibrate_batch_norm import (
  recalibrate_batch_norm,
)
from keras_attr_preserve.models.from_keras3 import from_keras3
from keras_attr_preserve.models.held_weights import strip
from keras_attr_preserve.models.saving import load_model, save_model
from keras_attr_preserve.models.unnest import unnest
from keras_attr_preserve.training import objectives
from keras_attr_preserve.training.agreement_logger import AgreementLogger
from keras_attr_preserve.training.hints import Hints
from keras_attr_preserve.training.objectives import Distillation
from keras_attr_preserve.training.preserve_attribution import (
  PreserveAttribution,
)
from keras_attr_preserve.training.train_step import TrainStep
from keras_attr_preserve.training.wcam import WCAM
from keras_attr_preserve.utils.left_whole import LayersLeftWhole

# A wheel holds the export package inside this one. In a checkout it lies beside
# it, at the top level, and is found through the checkout's root.
_root = _Path(__file__).absolute().parent.parent
if (_root / "export" / "conversion").exists():
  __path__.append(str(_root))

from keras_attr_preserve import export  # noqa: E402  after __path__ is set.
from keras_attr_preserve.export.verification.compare_models import (  # noqa: E402
  compare_models,
)

__version__ = "0.1.0"

__all__ = [
  "WCAM",
  "AgreementLogger",
  "Distillation",
  "Hints",
  "IterativePruning",
  "LayersLeftWhole",
  "PreserveAttribution",
  "TrainStep",
  "attribution",
  "calibrate_quantizers",
  "clone_model",
  "compare_models",
  "equalize_kernels",
  "evaluation",
  "export",
  "filter_sparsities",
  "from_keras3",
  "hold_zeros",
  "layer_sparsities",
  "load_model",
  "narrow",
  "objectives",
  "prune_filters",
  "prune_layers",
  "prune_with_reconstruction",
  "recalibrate_batch_norm",
  "save_model",
  "strip",
  "unnest",
]
