"""Pruning without training: a layer's other weights replace removed ones."""

from collections.abc import Mapping

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.compat import check_model, clone_model, keras
from keras_attr_preserve.compression.layer_sparsities import (
  NESTED,
  check_sparsities,
  is_prunable,
  prune_layers,
)
from keras_attr_preserve.compression.least_squares.layer_by_layer import (
  StagedInputs,
)
from keras_attr_preserve.compression.least_squares.layer_inputs import (
  input_moments,
  is_fittable,
)
from keras_attr_preserve.compression.least_squares.sparse_fit import (
  prune_linear,
)
from keras_attr_preserve.models.inputs import check_calibration
from keras_attr_preserve.utils.left_whole import tell_left_whole
from keras_attr_preserve.utils.progress import Progress, reporter

__all__ = ["hold_zeros", "prune_with_reconstruction"]


def prune_with_reconstruction(
    model: keras.Model,
    sparsities: Mapping[str, float],
    images: np.ndarray,
    *,
    batch_size: int = 32,
    progress: Progress = None,
) -> keras.Model:
  """Prunes a copy of a model and refits each layer to its old outputs.

      shares = layer_sparsities(teacher, 0.5)
      student = prune_with_reconstruction(teacher, shares, x_train[:512])

  Layers are pruned from input to output. Each layer loses the weights that its
  other weights can best replace. The others are refitted by least squares over
  all positions, so that the layer's outputs are nearest to the teacher's. The
  fit uses the inputs that the pruned layers before it give.

  Neither labels nor training are needed. Biases and all other layers stay. To
  train further and keep the zeros, see `hold_zeros`.

  Args:
    model: a built Functional or Sequential `tf_keras` model, stripped of
      tfmot's wrappers; not changed.
    sparsities: by layer name, 0 or more and below 1, as `layer_sparsities`
      gives. Allowed are Conv1D and Conv2D, of one group and with channels last,
      and Dense. Other layers stay whole, and at least one weight of each layer
      stays. A warning, as by `layer_sparsities`, names kernels of other layers
      and nested models, unless they are given 0.
    images: `[count, height, width, channels]`, or `[count, steps, channels]`
      for a model of signals. Some hundred training images, in the range the
      model takes. At most 100 positions of each image are used; a Dense after a
      Flatten has one. A warning names a layer with more inputs than positions.
    batch_size: images a batch.
    progress: True for a line on stderr, False for none; None for a line on a
      terminal if it takes long; or a function of layers done and to be done.

  Returns:
    A new, uncompiled model of the same layers, zeros in their kernels.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model computes
      values that are not finite.

  References:
    Hassibi and Stork 1992, "Second order derivatives for network pruning:
    Optimal Brain Surgeon". Frantar and Alistarh 2022, "Optimal Brain
    Compression", https://arxiv.org/abs/2208.11580, section 3 (layer by layer).
    He et al. 2017, https://arxiv.org/abs/1707.06168, section 3.2 (fitting on
    the outputs of pruned layers).
  """
  images = check_calibration(check_model(model), images, batch_size)
  check_sparsities(model, sparsities)
  student = clone_model(model)
  teacher_inputs, student_inputs = (
      StagedInputs(model, images, batch_size) for _ in range(2))
  # The copy's layers, since the model's may be called in other models.
  layers = [layer for layer in student.layers if sparsities.get(layer.name)]
  for layer in layers:
    _check_layer(layer)
  tell_left_whole("prune_with_reconstruction", model, _why_not_refitted,
                  known=[*sparsities])
  report = reporter(
      progress, "prune_with_reconstruction", len(layers), "layers refitted")
  for done, layer in enumerate(layers, 1):
    share = sparsities[layer.name]
    kernel, *rest = layer.get_weights()
    moments = input_moments(
        student_inputs.batches(layer.name), teacher_inputs.batches(layer.name),
        layer)
    fitted = prune_linear(
        kernel.reshape(-1, kernel.shape[-1]), moments,
        kept=max(1, kernel.size - round(share * kernel.size)))
    weights = [fitted.reshape(kernel.shape), *rest]
    layer.set_weights(weights)
    student_inputs.set_weights(layer.name, weights)
    report(done)
  return student


def hold_zeros(model: keras.Model) -> keras.Model:
  """Wraps a copy of a pruned model so that training keeps its zeros.

      student = hold_zeros(prune_with_reconstruction(teacher, shares, images))
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam),
                                  tfmot.sparsity.keras.UpdatePruningStep()])
      student = kap.strip(student)

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers; not changed.
      Zeros in kernels of its Conv1D, Conv2D, Conv2DTranspose and Dense layers
      are held. Zeros of other layers and of nested models are not. A warning
      names these, as by `layer_sparsities`.

  Returns:
    A new, uncompiled model, wrapped by tfmot's `prune_low_magnitude`.

  Raises:
    TypeError, ValueError: an argument is not as above, or there are no zeros.
  """
  shares = {}
  for layer in check_model(model).layers:
    if is_prunable(layer):
      kernel = layer.get_weights()[0]
      shares[layer.name] = np.count_nonzero(kernel == 0) / kernel.size
  shares = {name: share for name, share in shares.items() if 0 < share < 1}
  if not shares:
    raise ValueError(
        f"model {model.name!r} has no zeros in a kernel to hold; prune it "
        "first.")
  tell_left_whole("hold_zeros", model, _why_not_held, known=[*shares])
  # The schedule may not fire if training begins at a later step than 0.
  wrapped = prune_layers(
      model, shares, lambda share: tfmot.sparsity.keras.ConstantSparsity(
          share, begin_step=0, end_step=0))
  for layer in wrapped.layers:
    if hasattr(layer, "pruning_step"):
      kernel = layer.layer.kernel
      masks = [weight for weight in layer.weights
               if "mask" in weight.name and weight.shape == kernel.shape]
      masks[0].assign(kernel.numpy() != 0)
  return wrapped


def _why_not_held(layer: keras.layers.Layer) -> str | None:
  """Says why zeros of a layer are not held; None if it has none."""
  zeros = 0 if is_prunable(layer) else sum(
      int(np.count_nonzero(weight.numpy() == 0)) for weight in layer.weights
      if len(weight.shape) > 1)
  return f"{zeros} zeros of it are not held" if zeros else None


def _why_not_refitted(layer: keras.layers.Layer) -> str | None:
  """Says why a layer cannot be refitted; None if it can."""
  if isinstance(layer, keras.Model):
    return NESTED
  return None if is_fittable(layer) else "it cannot be refitted"


def _check_layer(layer: keras.layers.Layer) -> None:
  if not is_fittable(layer):
    raise ValueError(
        "sparsities must name Conv1D and Conv2D layers of one group, channels "
        "last, and Dense layers, each called once, or they cannot be refitted; "
        f"{layer.name!r} ({type(layer).__name__}) is not one: leave it out, or "
        "name it in layer_sparsities' exclude.")
