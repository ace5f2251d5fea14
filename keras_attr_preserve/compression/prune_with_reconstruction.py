"""Pruning without training: what is left of a layer makes up for what goes."""

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
  """Prunes a copy of a model, each layer refitted to what it computed before.

      shares = layer_sparsities(teacher, 0.5)
      student = prune_with_reconstruction(teacher, shares, x_train[:512])

  Layer after layer, from the pictures on, the weights go whose loss the others
  make up for best, and those others take the values that bring the layer's
  outputs nearest to the teacher's, in least squares over all positions, from
  the inputs that the layers pruned before it now give. Neither labels nor
  training are needed; biases and all other layers stay as they are. To train on
  with the zeros where they are, see `hold_zeros`.

  Args:
    model: a built Functional or Sequential `tf_keras` model, stripped of
      tfmot's wrappers; left as it came.
    sparsities: by layer name, 0 or more and below 1, as `layer_sparsities`
      gives; layers that are not named stay whole, and at least one weight of
      each stays. Conv1D and Conv2D, of one group and with channels last, and
      Dense. Kernels of other layers, and of models held as layers, are warned
      of, as by `layer_sparsities`, unless named with 0.
    images: `[count, height, width, channels]`, or `[count, steps, channels]`
      for a model of signals; some hundred of those to train on, in the range
      the model takes. A layer with more inputs than it sees
      positions in them, at most 100 of each, is warned of: a Dense behind a
      Flatten sees one.
    batch_size: how many to run at a time.
    progress: True for a line on stderr, False for none; None for one on a
      terminal where it takes long; or a function of layers done and to be done.

  Returns:
    A new, uncompiled model of the same layers, zeros in their kernels.

  Raises:
    TypeError, ValueError: an argument is not as above, or the model computes
      what is not finite.

  References:
    Hassibi and Stork 1992, "Second order derivatives for network pruning:
    Optimal Brain Surgeon"; Frantar and Alistarh 2022, "Optimal Brain
    Compression", https://arxiv.org/abs/2208.11580, section 3, layer by layer;
    He et al. 2017, https://arxiv.org/abs/1707.06168, section 3.2, from the
    inputs that pruned layers give.
  """
  images = check_calibration(check_model(model), images, batch_size)
  check_sparsities(model, sparsities)
  student = clone_model(model)
  wanted, taken = (StagedInputs(model, images, batch_size) for _ in range(2))
  # The copy's layers: the model's may be called in others, too.
  layers = [one for one in student.layers if sparsities.get(one.name)]
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
        taken.batches(layer.name), wanted.batches(layer.name), layer)
    fitted = prune_linear(
        kernel.reshape(-1, kernel.shape[-1]), moments,
        kept=max(1, kernel.size - round(share * kernel.size)))
    weights = [fitted.reshape(kernel.shape), *rest]
    layer.set_weights(weights)
    taken.set_weights(layer.name, weights)
    report(done)
  return student


def hold_zeros(model: keras.Model) -> keras.Model:
  """Wraps a copy of a pruned model so that its zeros stay while it trains.

      student = hold_zeros(prune_with_reconstruction(teacher, shares, images))
      student.compile(...)
      student.fit(..., callbacks=[PreserveAttribution(teacher, wcam),
                                  tfmot.sparsity.keras.UpdatePruningStep()])
      student = kap.strip(student)

  Args:
    model: a built `tf_keras` model, stripped of tfmot's wrappers; left as it
      came. The zeros in kernels of its Conv1D, Conv2D, Conv2DTranspose and
      Dense layers are held. Those of other layers, and of models that it holds,
      are not, and are warned of, as by `layer_sparsities`.

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
  # The schedule may not fire: training may go on from a later step than 0.
  wrapped = prune_layers(
      model, shares, lambda share: tfmot.sparsity.keras.ConstantSparsity(
          share, begin_step=0, end_step=0))
  for layer in wrapped.layers:
    if hasattr(layer, "pruning_step"):
      kernel = layer.layer.kernel
      masks = [one for one in layer.weights
               if "mask" in one.name and one.shape == kernel.shape]
      masks[0].assign(kernel.numpy() != 0)
  return wrapped


def _why_not_held(layer: keras.layers.Layer) -> str | None:
  """Says why zeros of a layer are not held; None where there are none."""
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
