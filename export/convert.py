"""Turning a model into a .tflite file with its attribution on board."""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot

from keras_attr_preserve.attribution.batches import class_weights
from keras_attr_preserve.compat import check_model, keras, tf
from keras_attr_preserve.export.flatbuffer import (
  annotate,
  read_model,
  signatures,
)
from keras_attr_preserve.export.head import head_weights
from keras_attr_preserve.export.signatures import ExplainedModel
from keras_attr_preserve.images import check_images
from keras_attr_preserve.regularizer import WCAM, check_wcam
from keras_attr_preserve.tap import Tap, sensitivities

__all__ = ["MODES", "convert", "is_quantize_aware", "strip"]

MODES = ("float32", "float16", "dynamic", "int8")


def convert(
    model: keras.Model,
    wcam: WCAM,
    *,
    mode: str = "int8",
    representative_images: np.ndarray | None = None,
    one_subgraph: bool = False,
) -> bytes:
  """Converts a model to TFLite, with `explain` beside `predict`.

  The file explains the first of the WCAM's layers. Two roads lead to its map:

  - "features": the file hands out the features, which it computes anyway, and
    the map is put together from them, from the file's own head weights or, for
    EWA, from nothing else. The graph has not one operator more than the bare
    model's. Taken for EWA, and for SWA where only pooling and a linear layer
    follow the features.
  - "gradient": for any other tail, `explain` also runs the backward pass of the
    tail, in builtin operators, and hands out the sensitivity of a score.

  The files of the first road have one subgraph that serves both signatures, as
  TFLite Micro needs. Those of the second have two, so that `predict` pays
  nothing, unless `one_subgraph` asks for one.

  Args:
    model: a `tf_keras` model; pruning and clustering wrappers are stripped from
      a copy. It is left as it came.
    wcam: what was matched; its first student layer and method are used.
    mode: "float32"; "float16", weights stored in half precision; "dynamic",
      weights in int8, computing in float; "int8", integers throughout, inputs
      and outputs too, by the ranges that quantization-aware training learned
      or, for other models, by those of the representative images.
    representative_images: `[images, height, width, channels]`, a hundred or
      more, from the training data, in the range the model takes. Needed for
      "int8" unless the model is quantize-aware and its map takes the first
      road.
    one_subgraph: whether a file of the second road, too, must run on TFLite
      Micro.

  Returns:
    The bytes of the .tflite file. Its metadata "keras_attr_preserve" says
    layer, method and road.

  Raises:
    TypeError, ValueError: an argument is not as above, no representative images
      where they are needed, or a tail that TFLite cannot express.
  """
  check_model(model)
  check_wcam(wcam)
  if any(layer.compute_dtype == "float16" for layer in model.layers):
    raise ValueError(
        f"model {model.name!r} computes in float16, which TFLite's converter "
        "does not take: build it under the policy float32 and set the same "
        "weights; mode='float16' then stores them in half precision.")
  if mode not in MODES:
    raise ValueError(f"mode must be one of {MODES}; got {mode!r}.")
  model = strip(model)
  layer = wcam.student_layers[0]
  if mode == "int8" and representative_images is None and not (
      is_quantize_aware(model)):
    raise ValueError(
        "representative_images must be given for mode 'int8' unless the model "
        "is quantize-aware: the ranges of its activations are measured on "
        "them. Pass a hundred training images or more; got None.")
  if representative_images is not None:
    representative_images = check_images(
        representative_images, model.inputs[0].shape[1:],
        "representative_images")
  facts = {"layer": layer, "method": wcam.method, "mode": mode}
  explained = ExplainedModel(model, layer)

  if wcam.method == "ewa" or _has_constant_sensitivity(model, layer):
    content = _converted(
        {"explain": explained.explain_features()}, explained, mode,
        representative_images)
    if wcam.method == "ewa" or _head_is_found(content, model, layer):
      return annotate(content, {**facts, "road": "features"},
                      {"predict": ("explain", ("logits", "predictions"))})

  if mode == "int8" and representative_images is None:
    raise ValueError(
        f"representative_images must be given: what follows layer {layer!r} is "
        "more than pooling and a linear layer, so the file runs a backward "
        "pass, whose ranges are measured on them; got None.")
  functions = {"explain": explained.explain_gradient()}
  if not one_subgraph:
    functions["predict"] = explained.predict()
  try:
    content = _converted(functions, explained, mode, representative_images)
  except ValueError as error:
    raise ValueError(
        f"layer {layer!r}: TFLite cannot express the model, or the backward "
        f"pass of what follows the layer; a later layer, or method 'ewa', "
        f"needs less. {_shortened(error)}") from error
  aliases = {"predict": ("explain", ("logits", "predictions"))}
  return annotate(content, {**facts, "road": "gradient"},
                  aliases if one_subgraph else {})


def strip(model: keras.Model) -> keras.Model:
  """Returns the model without pruning and clustering wrappers."""
  wrappers = {type(layer).__name__ for layer in model.layers}
  if "PruneLowMagnitude" in wrappers:
    model = tfmot.sparsity.keras.strip_pruning(model)
  if wrappers & {"ClusterWeights", "ClusterWeightsMHA"}:
    model = tfmot.clustering.keras.strip_clustering(model)
  return model


def is_quantize_aware(model: keras.Model) -> bool:
  """Says whether the model has quantization-aware training's quantizers."""
  return any(type(layer).__name__.startswith("QuantizeWrapper")
             for layer in model.layers)


def _converted(
    functions: dict[str, Any],
    explained: ExplainedModel,
    mode: str,
    images: np.ndarray | None,
) -> bytes:
  """Runs TensorFlow's converter on functions of one image."""
  with tempfile.TemporaryDirectory() as folder:
    # Gradients stay out of the file: TFLite has none, and tails that use a
    # custom one would not load.
    tf.saved_model.save(
        explained, folder,
        signatures={name: function.get_concrete_function()
                    for name, function in functions.items()},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False))
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=list(functions))
    if mode != "float32":
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
      converter.target_spec.supported_types = [tf.float16]
    if mode == "int8":
      converter.inference_input_type = tf.int8
      converter.inference_output_type = tf.int8
      if images is not None:
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _samples(
            functions, explained, images)
    try:
      return converter.convert()
    # The converter raises errors of its own, private kinds, and others.
    except Exception as error:
      raise ValueError(
          f"model: TFLite cannot express it. {_shortened(error)}") from error


def _shortened(error: Exception, keep: int = 200) -> str:
  """Both ends of an error, without the listing that may lie between."""
  text = " ".join(str(error).split())
  if len(text) <= 2 * keep:
    return text
  return f"{text[:keep]} ... {text[-keep:]}"


def _samples(functions, explained, images) -> Iterator[Any]:
  """Yields what the ranges are measured on, for each signature in turn."""
  few = len(images) < 30
  for number, image in enumerate(images):
    for name, function in functions.items():
      sample = {"images": image[None]}
      if len(function.input_signature) == 1:
        yield (name, sample) if len(functions) > 1 else sample
        continue
      # The backward pass of any class, for and against it, not of top classes
      # alone: each a third of the images, or all on all where these are few.
      weights = explained.calibration_weights(image[None], number)
      for one in weights if few else [weights[number % len(weights)]]:
        explain = {**sample, "class_weights": one}
        yield (name, explain) if len(functions) > 1 else explain


def _has_constant_sensitivity(model: keras.Model, layer: str) -> bool:
  """Says whether the gradient at a layer is the same for every image."""
  some = np.random.default_rng(0).uniform(
      -1, 1, [4, *model.inputs[0].shape[1:]]).astype(np.float32)
  for classes in range(min(2, model.outputs[0].shape[-1])):
    values = _sensitivity(model, layer, some, classes)
    if not np.allclose(values, values[:1], rtol=1e-4,
                       atol=1e-5 * np.abs(values).max()):
      return False
  return True


def _sensitivity(
    model: keras.Model, layer: str, images: np.ndarray, target: Any
) -> np.ndarray:
  tap = Tap(model, [layer])
  with tf.GradientTape() as tape:
    images = tf.convert_to_tensor(images)
    tape.watch(images)
    tapped = tap(images)
  seed = class_weights(target, len(images), tap.classes)
  values, = sensitivities(tape, tapped, seed)
  return values.numpy()[:, 0, 0]


def _head_is_found(
    content: bytes, model: keras.Model, layer: str) -> bool:
  """Says whether the file's head weights are the model's sensitivity."""
  parsed = read_model(content)
  explain = signatures(parsed)["explain"]
  weights = head_weights(
      parsed, explain.subgraph, explain.outputs["logits"].position,
      explain.outputs["features"].position)
  if weights is None:
    return False
  image = np.zeros([1, *model.inputs[0].shape[1:]], np.float32)
  for target in {0, len(weights) // 2, len(weights) - 1}:
    ours = _sensitivity(model, layer, image, np.eye(
        len(weights), dtype=np.float32)[[target]])[0]
    theirs = weights[target]
    # A share for the rounding of int8 weights; both may be zero.
    if np.linalg.norm(ours - theirs) > 0.15 * max(
        np.linalg.norm(ours), np.linalg.norm(theirs)):
      return False
  return True
