"""Converts a model to a .tflite file that also gives attribution maps."""

from typing import Any

import numpy as np

from keras_attr_preserve.compat import check_model, keras
from keras_attr_preserve.export.conversion import phone
from keras_attr_preserve.export.conversion.converter import MODES, run_converter
from keras_attr_preserve.export.conversion.first_run import FirstRun
from keras_attr_preserve.export.conversion.linear_tail import (
  has_constant_sensitivity,
  head_is_found,
)
from keras_attr_preserve.export.conversion.map_accuracy import (
  BARS,
  MapAccuracy,
  representative_range,
)
from keras_attr_preserve.export.conversion.selective import (
  selective as convert_selectively,
)
from keras_attr_preserve.export.conversion.signatures import ExplainedModel
from keras_attr_preserve.export.tflite.schema import annotate
from keras_attr_preserve.models.held_weights import strip
from keras_attr_preserve.models.inputs import model_input
from keras_attr_preserve.models.layers import is_quantize_aware
from keras_attr_preserve.models.model_files import shortened
from keras_attr_preserve.training.wcam import WCAM, check_wcam
from keras_attr_preserve.utils.notices import notice

__all__ = ["MODES", "ROADS", "TARGETS", "convert"]

ROADS = {"phone": ("auto", *phone.ROADS, "features"),
         "microcontroller": ("auto", "features", "gradient")}
"""The roads to a map that a caller may choose, for each target."""
TARGETS = tuple(ROADS)
_NOT_CONVERTED = ("float16", "bfloat16", "float64")
_ALIASES = {"predict": ("explain", ("logits", "predictions"))}


def convert(
    model: keras.Model,
    wcam: WCAM,
    *,
    mode: str = "int8",
    representative_images: np.ndarray | None = None,
    target: str = "phone",
    road: str = "auto",
    selective: float | None = None,
) -> bytes:
  """Converts a model to TFLite, with `explain` beside `predict`.

  The file explains the first of the WCAM's layers, in builtin operators. Every
  signature is run once before the file is returned.

  For phones, `predict` gives `logits`, and `predictions` where the model ends
  in a softmax or sigmoid. It has no operator more than the bare model.

  `explain` takes `images` and, for SWA, `class_weights [1, classes]`. Zeros
  mean the top class, a one-hot vector means a class, and 1 and -1 mean "this
  rather than that". It gives the same logits to the last bit. It gives
  `map [1, height, width]` in floats, not negative, in Grad-CAM's units, ready
  to be drawn. It also gives `features` and, for SWA, `sensitivity [1, 1, 1,
  channels]`.
  Roads to that map:

  - "tail": the map comes from the file's features, in floats, by the backward
    pass through the layers behind the explained layer. For pooling and a linear
    layer this pass is one product with the head's weights.
  - "whole": features and map come from the whole model in floats, run beside
    the integer model. Most weights are shared with `predict`. This road serves
    where the file's features differ too much from the Keras model's, or where a
    branch reaches the logits without passing the layer.
  - "features": no map in the file; see below.

  For microcontrollers the file has one subgraph, all of one number type, that
  serves both signatures:

  - "features": the file gives features, which it computes anyway. The map is
    computed outside: for SWA with the file's head weights, for EWA from the
    features alone. SWA needs a tail of pooling and a linear layer, which may
    have a hidden layer with a ReLU before it.
  - "gradient": for any other tail, the backward pass in the file's number
    type; `explain` takes `class_weights` and gives `sensitivity`.

  Args:
    model: a `tf_keras` model; pruning and clustering wrappers are stripped from
      a copy. The model does not change, but for pruned weights that are not yet
      zero: they become zero, as in any of its calls; see `kap.strip`.
    wcam: its first student layer and method are used.
    mode: "float32"; "float16", weights stored in half precision; "dynamic",
      weights in int8, computing in float; "int8", integers throughout, inputs
      and outputs too. Or "int16x8", as "int8" with activations, inputs and
      outputs of 16 bits. Integer ranges come from quantization-aware training
      or else from the representative images. The runtimes "builtin",
      "reference" and "tflm" compute "int16x8" in integers; "xnnpack" leaves it
      to "builtin".
    representative_images: `[images, height, width, channels]`, a hundred or
      more training images, in the range the model takes. Or batches of them: a
      function for TFLite's converter, a generator or a `tf.data.Dataset`, with
      or without labels. "int16x8" needs them. "int8" needs them unless the
      model is quantize-aware and no backward pass is in integers. In any mode
      the file's maps are compared on them with the Keras model's.
    target: "phone" or "microcontroller".
    road: one of the above, or "auto". For phones "auto" takes the first of
      "tail" and "whole" whose maps reach a median cosine to the Keras model's
      on the representative images: .999, or .99 in the integer modes. Without
      images it takes the first possible. For microcontrollers it takes
      "features" where possible.
    selective: the median cosine that the maps must reach, for mode "int8". The
      layers that break them stay in floats, at the cost of bytes. The function
      `selective` also tells which layers, and the effect of each. None
      quantizes all.

  Returns:
    The bytes of the .tflite file. Its metadata "keras_attr_preserve" say layer,
    method, mode, target, road and the reason for the road. They also say the
    median cosine, and the number and range of the images it was measured on.

  Raises:
    TypeError, ValueError: an argument is not as above; representative images
      are needed and missing; TFLite cannot express the tail; the road does not
      lead to this model's map; the file does not run, or gives numbers that are
      not finite.
    ShortfallError: the cosine `selective` cannot be reached.
  """
  model, images = _checked(
      model, wcam, mode, representative_images, target, road)
  if selective is not None:
    return _selective(model, wcam, mode, images, target, road, selective)
  layer = wcam.student_layers[0]
  facts = {"layer": layer, "method": wcam.method, "mode": mode,
           "target": target}
  explained = ExplainedModel(model, layer, images)
  first_run = FirstRun(model, layer, mode, images)
  if target == "phone" and road != "features":
    return phone.phone_file(
        _with_features(explained, mode, images), explained, facts, images,
        first_run, road)

  ewa = wcam.method == "ewa"
  # Sensitivity varies by image if the head has a hidden layer; few images
  # suffice to find that head.
  if road != "gradient" and (
      ewa or has_constant_sensitivity(model, layer) or head_is_found(
          _with_features(explained, mode, None if images is None
                         else images[:4]), model, layer)):
    content = _with_features(explained, mode, images)
    if ewa or head_is_found(content, model, layer):
      return _annotated(
          content, {**facts, "road": "features"}, explained, images, first_run)
  if road == "features":
    raise ValueError(
        f"road 'features' does not lead to the map of layer {layer!r}: what "
        "follows it is more than pooling, a linear layer, and a hidden one "
        "with a ReLU before that.")
  content = _with_gradient(explained, facts, images)
  return _annotated(
      content, {**facts, "road": "gradient"}, explained, images, first_run)


def _selective(model, wcam, mode, images, target, road, require) -> bytes:
  if mode != "int8" or road != "auto":
    raise ValueError(
        "selective is for mode 'int8' and road 'auto'; got mode "
        f"{mode!r}, road {road!r}.")
  return convert_selectively(
      model, wcam, images, require=require, target=target).content


def _checked(
    model: Any, wcam: Any, mode: Any, images: Any, target: Any, road: Any
) -> tuple[keras.Model, np.ndarray | None]:
  """Checks the arguments of `convert`; returns stripped model and images."""
  check_model(model)
  check_wcam(wcam)
  if mode not in MODES:
    raise ValueError(f"mode must be one of {MODES}; got {mode!r}.")
  if target not in TARGETS:
    raise ValueError(f"target must be one of {TARGETS}; got {target!r}.")
  if road not in ROADS[target]:
    raise ValueError(
        f"road must be one of {ROADS[target]} for target {target!r}; got "
        f"{road!r}.")
  if road == "gradient" and wcam.method == "ewa":
    raise ValueError(
        "road 'gradient' leads to a map of method 'swa'; wcam has 'ewa'.")
  for layer in model.submodules:
    if getattr(layer, "compute_dtype", None) in _NOT_CONVERTED:
      raise ValueError(
          f"model {model.name!r} computes in {layer.compute_dtype}, which "
          "TFLite's converter does not take: build it under the policy float32 "
          "and set the same weights; mode='float16' then stores them in half "
          "precision.")
  model = strip(model)
  quantize_aware = is_quantize_aware(model)
  if mode == "int16x8" and quantize_aware:
    raise ValueError(
        "mode 'int16x8' is for models that are not quantize-aware: this one "
        "has learned the ranges of 8 bits; pass mode='int8'.")
  taken = model_input(model)
  if images is not None:
    images = taken.check(images, "representative_images")
  elif mode in ("int8", "int16x8") and not quantize_aware:
    raise ValueError(
        f"representative_images must be given for mode {mode!r} unless the "
        "model is quantize-aware: the ranges of its activations are measured "
        "on them. Pass a hundred training images or more; got None.")
  elif None in taken.shape:
    raise ValueError(
        f"representative_images must be given: {taken.whose} takes images of "
        f"any size, {list(taken.shape)}, and the file takes those of one, "
        "theirs; got None.")
  return model, images


def _with_features(
    explained: ExplainedModel, mode: str, images: np.ndarray | None) -> bytes:
  """Makes a file of one subgraph that gives scores and features."""
  samples = None if images is None else lambda: (
      {"images": image[None]} for image in images)
  return run_converter(explained.explain_features(), mode, samples)


def _with_gradient(
    explained: ExplainedModel, facts: dict[str, Any], images: np.ndarray | None
) -> bytes:
  """Makes a file of one subgraph that includes the backward pass."""
  layer, mode = facts["layer"], facts["mode"]
  if mode == "int16x8":
    raise ValueError(
        f"mode 'int16x8' cannot lead to the map of layer {layer!r} in one "
        "subgraph: more than pooling and a linear layer follows it, and TFLite "
        "has no comparisons of 16 bits for a backward pass. Pass mode='int8', "
        "target='phone', or a later layer.")
  if mode == "int8" and images is None:
    raise ValueError(
        f"representative_images must be given: what follows layer {layer!r} is "
        "more than pooling and a linear layer, so the file runs a backward "
        "pass, whose ranges are measured on them; got None.")
  try:
    return run_converter(
        explained.explain_gradient(), mode,
        None if images is None else lambda: explained.calibration(images))
  except ValueError as error:
    raise ValueError(
        f"layer {layer!r}: TFLite cannot express the model, or the backward "
        f"pass of what follows the layer; a later layer, or method 'ewa', "
        f"needs less. {shortened(error)}") from error


def _annotated(
    content: bytes, facts: dict[str, Any], explained: ExplainedModel,
    images: np.ndarray | None, first_run: FirstRun) -> bytes:
  """Adds the metadata of a file of one subgraph, with the measured cosine."""
  known = {"median_cosine": None, "measured_on": 0}
  trial = annotate(content, facts, _ALIASES)
  first_run.check(trial)
  if images is not None:
    accuracy = MapAccuracy(
        explained.model, facts["layer"], facts["method"], images)
    cosine = accuracy.median_cosine(trial)
    known = {"median_cosine": None if np.isnan(cosine) else round(cosine, 6),
             "measured_on": accuracy.count, **representative_range(images)}
    bar = BARS[facts["mode"]]
    if cosine < bar:
      notice(
          f"The maps of road {facts['road']!r} reach a median cosine of "
          f"{cosine:.4f} to the Keras model's; {bar} is wanted. A later "
          "layer, or method 'ewa', loses less.")
  return annotate(content, {**facts, **known}, _ALIASES)
