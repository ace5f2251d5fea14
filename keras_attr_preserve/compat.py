"""Imports the Keras of tensorflow-model-optimization, and checks models.

tensorflow-model-optimization 0.8 works on Keras 2, published as `tf_keras`.
The library imports `tf_keras` only here.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

__all__ = ["at_least_float32", "check_keras", "check_model", "clone_model",
           "has_graph", "keras", "tf"]


def check_keras(model: Any, name: str = "model") -> keras.Model:
  """Returns `model` if it is a `tf_keras` model of any kind.

  Args:
    model: the caller's argument.
    name: the argument's name, for the error.

  Returns:
    The model itself.

  Raises:
    TypeError: the argument is a Keras 3 model, or no model at all.
  """
  if isinstance(model, keras.Model):
    return model
  kind = f"{type(model).__module__}.{type(model).__name__}"
  if any(base.__module__.startswith("keras.") for base in type(model).mro()):
    raise TypeError(
        f"{name} must be a tf_keras model, because "
        f"tensorflow-model-optimization takes no other; got the Keras 3 "
        f"model {kind}. Give kap.from_keras3({name}), the equal tf_keras "
        "model; or build or load it with `import tf_keras as keras` (or set "
        "TF_USE_LEGACY_KERAS=1 before importing tensorflow).")
  raise TypeError(f"{name} must be a tf_keras.Model; got {kind}.")


def check_model(model: Any, name: str = "model") -> keras.Model:
  """Returns `model` if it is a built `tf_keras` model with one output.

  Args:
    model: the caller's argument.
    name: the argument's name, for the error.

  Returns:
    The model itself.

  Raises:
    TypeError: the argument is a Keras 3 model, or no model at all.
    ValueError: the model is not built, has no layer graph, or has several
      outputs.
  """
  check_keras(model, name)
  if not has_graph(model):
    raise ValueError(
        f"{name} must be a Functional model, or a Sequential one with a known "
        f"input shape; {model.name!r} ({type(model).__name__}) has no layer "
        "graph yet. Give its first layer an input_shape.")
  if len(model.outputs) != 1:
    raise ValueError(
        f"{name} must have one output, the class scores; {model.name!r} has "
        f"{len(model.outputs)}.")
  return model


def has_graph(model: Any) -> bool:
  """Says whether a model is a graph of layers: Functional or Sequential."""
  return (isinstance(model, keras.Model) and model.built
          and bool(getattr(model, "inputs", None)))


def at_least_float32(tensor: tf.Tensor) -> tf.Tensor:
  """Casts half precision to float32, so that norms do not overflow."""
  if tensor.dtype in (tf.float16, tf.bfloat16):
    return tf.cast(tensor, tf.float32)
  return tensor


def clone_model(model: keras.Model) -> keras.Model:
  """Copies a model and its weights, so that the two share nothing.

  `prune_low_magnitude` wraps a model's own layers. So pruning a model also
  prunes other models with the same layers. Compress a copy instead:

      student = prune_low_magnitude(kap.clone_model(teacher), **schedule)

  Args:
    model: a built `tf_keras` model; it stays unchanged.

  Returns:
    A new, uncompiled model with equal weights.

  Raises:
    TypeError, ValueError: as for `check_model`; or the model has wrappers whose
      config is not complete.
  """
  check_model(model)
  for layer in model.layers:
    if hasattr(layer, "quantize_config") or getattr(
        layer, "preserve_sparsity", False):
      raise ValueError(
          f"model {model.name!r} is wrapped by tfmot in ways that a copy would "
          f"lose (layer {layer.name!r}); copy the net before it is wrapped, or "
          "by kap.save_model and kap.load_model.")
  copy = keras.models.clone_model(model)
  copy.set_weights(model.get_weights())
  return copy
