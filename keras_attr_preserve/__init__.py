"""Compress Keras image classifiers and keep what they look at."""

from pathlib import Path as _Path

from keras_attr_preserve import attribution, evaluation, objectives
from keras_attr_preserve.agreement_logger import AgreementLogger
from keras_attr_preserve.batch_norm import recalibrate_batch_norm
from keras_attr_preserve.callbacks import PreserveAttribution
from keras_attr_preserve.compat import clone_model
from keras_attr_preserve.filter_pruning import (
  filter_sparsities,
  prune_filters,
)
from keras_attr_preserve.held_weights import strip
from keras_attr_preserve.hints import Hints
from keras_attr_preserve.iterative_pruning import IterativePruning
from keras_attr_preserve.keras3 import from_keras3
from keras_attr_preserve.kernel_equalization import equalize_kernels
from keras_attr_preserve.layer_sparsity import layer_sparsities, prune_layers
from keras_attr_preserve.left_whole import LayersLeftWhole
from keras_attr_preserve.narrowing import narrow
from keras_attr_preserve.objectives import Distillation
from keras_attr_preserve.quantizer_calibration import calibrate_quantizers
from keras_attr_preserve.reconstruction import (
  hold_zeros,
  prune_with_reconstruction,
)
from keras_attr_preserve.regularizer import WCAM
from keras_attr_preserve.saving import load_model, save_model
from keras_attr_preserve.training import TrainStep
from keras_attr_preserve.unnesting import unnest

# A wheel holds the export package inside this one. In a checkout it lies beside
# it, at the top level, and is found through the checkout's root.
_root = _Path(__file__).absolute().parent.parent
if (_root / "export" / "converting").exists():
  __path__.append(str(_root))

from keras_attr_preserve import export  # noqa: E402  after __path__ is set.
from keras_attr_preserve.export.judging.compare import (  # noqa: E402
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
