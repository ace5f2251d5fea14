"""Runs an int8 file as a microcontroller does: integers in, maps out."""

from functools import cached_property
from typing import Any

import numpy as np

from keras_attr_preserve.export.firmware.integer_head import (
  integer_head,
  sensitivity_limit,
)
from keras_attr_preserve.export.firmware.integer_maps import (
  IntegerMap,
  ask_weighted,
  explain_features,
  explain_sensitivity,
  explain_squares,
  target_weights,
  top_class,
)
from keras_attr_preserve.export.runtime.interpreter import (
  Interpreter,
  tflm_installed,
)
from keras_attr_preserve.export.runtime.safe_load import checked_model
from keras_attr_preserve.export.tflite.head import read_head
from keras_attr_preserve.export.tflite.schema import read_metadata, signatures
from keras_attr_preserve.models.inputs import ImageInput, shape_input

__all__ = ["DeviceModel"]


class DeviceModel:
  """A file for a microcontroller, run on this computer.

  TensorFlow Lite for Microcontrollers runs it where the package tflite-micro is
  installed, else LiteRT's reference kernels. Both give the same features. A
  logit may be one step off, since LiteRT rounds a dense layer's sums another
  way. From the same features and logits the maps equal bit for bit the maps of
  the C sources that `microcontroller` writes.

  Attributes:
    content: the file's bytes.
    metadata: layer, method and road.
    kind: source of the map: "linear" or "hidden", the file's own head;
      "gradient", sensitivities that the file computes; "ewa".
    inputs: the specs of the file's inputs, by name.
    outputs: the specs of its outputs, by name.
    head: the head in integers; None for the kinds "gradient" and "ewa".
    runtime: the runtime that runs the file.
  """

  def __init__(self, content: bytes, runtime: str | None = None):
    """Reads a file.

    Args:
      content: made by `convert` in mode "int8" for the target
        "microcontroller".
      runtime: see `Interpreter`; None for "tflm" if it is installed, else
        "reference".

    Raises:
      TypeError, ValueError: `content` is no such file.
    """
    self.content = content
    self.runtime = runtime or (
        "tflm" if tflm_installed() else "reference")
    model = checked_model(content, self.runtime)
    metadata = read_metadata(model)
    target = (metadata or {}).get("target")
    if target != "microcontroller" or len(model.subgraphs) != 1:
      raise ValueError(
          "tflite_model must be made by kap.export.convert for the target "
          f"'microcontroller', with one subgraph; got target {target!r} and "
          f"{len(model.subgraphs)} subgraphs.")
    explain = signatures(model)["explain"]
    self.metadata = metadata
    self.inputs, self.outputs = explain.inputs, explain.outputs
    for name, spec in (*self.inputs.items(), *self.outputs.items()):
      if spec.dtype != np.int8:
        raise ValueError(
            f"tflite_model: {name!r} must be int8, as mode 'int8' gives it; "
            f"got {spec.dtype}.")
    self.head = None
    self.kind = "ewa" if metadata["method"] == "ewa" else metadata["road"]
    if self.kind == "features":
      head = read_head(model, explain.subgraph, self.outputs["logits"].position,
                       self.outputs["features"].position)
      self.head = integer_head(
          content, model, explain.subgraph, head, self.outputs["features"])
      self.kind = "linear" if head.hidden is None else "hidden"
    sensitivity_limit(self.outputs["features"].shape[3])

  @property
  def input(self) -> ImageInput:
    """The file's input; channels last for an ambiguous shape."""
    return shape_input(self.inputs["images"].shape[1:], "tflite_model",
                       default="channels_last")

  @property
  def logits(self) -> int:
    """The number of logits."""
    return self.outputs["logits"].shape[-1]

  @property
  def classes(self) -> int:
    """The number of classes."""
    return max(self.logits, 2)

  @property
  def one(self) -> int:
    """The number of steps of the input `class_weights` in 1."""
    return round(1 / self.inputs["class_weights"].scale)

  @property
  def raw_unit(self) -> float:
    """The unit of a raw value, times 2**exponent, in Grad-CAM's units."""
    features = self.outputs["features"]
    _, height, width, channels = features.shape
    if self.kind == "ewa":
      return features.scale**2 / channels
    if self.kind == "gradient":
      return features.scale * self.outputs["sensitivity"].scale
    return features.scale * self.head.unit / (height * width)

  def encode(self, images: np.ndarray, name: str = "images") -> np.ndarray:
    """Turns images into the numbers of the file's input.

    Args:
      images: float32 `[images, height, width, channels]`, in the model's range.
      name: the argument's name, for the error.

    Returns:
      int8 of the same shape.

    Raises:
      TypeError, ValueError: images of another shape or range, or with NaN.
    """
    images = self.input.check(images, name)
    spec = self.inputs["images"]
    low, high = spec.range
    slack = (high - low) / 2
    least, most = float(images.min()), float(images.max())
    if least < low - slack or most > high + slack or (
        0 < most - least < 2 * spec.scale):
      raise ValueError(
          f"{name} must be in the range the model was trained on; the file "
          f"takes {low:.4g}..{high:.4g} in steps of {spec.scale:.4g}, got "
          f"{least:.4g}..{most:.4g}.")
    return spec.encode(images)

  def run(
      self, images: np.ndarray, class_weights: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Runs the file.

    Args:
      images: int8 `[images, height, width, channels]`.
      class_weights: int8 `[images, logits]`, from `ask`, for the kind
        "gradient"; None weighs every logit by 0.

    Returns:
      The outputs, int8, by name: "logits", "features" and, for the kind
      "gradient", "sensitivity".
    """
    feeds = {"images": images}
    if self.kind == "gradient":
      spec = self.inputs["class_weights"]
      feeds["class_weights"] = np.full(
          [len(images), self.logits], spec.zero_point, np.int8
      ) if class_weights is None else class_weights
    return self._interpreter.numbers("explain", feeds)

  def ask(self, class_weights: np.ndarray) -> np.ndarray:
    """Encodes int8 weights of the logits, `[logits]`, for the file's input."""
    return ask_weighted(
        class_weights, self.inputs["class_weights"].zero_point, self.one)

  def target_weights(self, target: int) -> np.ndarray:
    """Returns the weights of the logits, int8, that explain one class."""
    return target_weights(target, self.logits)

  def top_class(self, logits: np.ndarray) -> int:
    """Returns the top class of one image's logits, int8 `[logits]`."""
    return top_class(logits, self.outputs["logits"].zero_point)

  def map(self, outputs: dict[str, np.ndarray], number: int,
          class_weights: np.ndarray) -> IntegerMap:
    """Makes a map as the C sources do.

    Args:
      outputs: the result of `run`, for the kind "gradient" with these weights.
      number: the number of the image.
      class_weights: int8 `[logits]`.

    Returns:
      The map.
    """
    features = outputs["features"][number]
    zero_point = self.outputs["features"].zero_point
    if self.kind == "ewa":
      return explain_squares(zero_point, features)
    if self.kind == "gradient":
      return explain_sensitivity(
          (zero_point, self.outputs["sensitivity"].zero_point), features,
          outputs["sensitivity"][number].reshape(-1))
    return explain_features(self.head, zero_point, features, class_weights)

  def explain(
      self, images: np.ndarray, targets: Any = None
  ) -> tuple[list[IntegerMap], np.ndarray]:
    """Explains images as the device does.

    Args:
      images: float32 `[images, height, width, channels]`, in the model's range.
      targets: None for the file's top class; a class for each image.

    Returns:
      A map for each image, and the classes explained.
    """
    images = self.encode(images)
    outputs = self.run(images)
    if targets is None:
      targets = [self.top_class(logits) for logits in outputs["logits"]]
    weights = [self.target_weights(int(target)) for target in targets]
    if self.kind == "gradient":
      outputs = self.run(images, np.stack([self.ask(row) for row in weights]))
    return [self.map(outputs, number, row)
            for number, row in enumerate(weights)], np.asarray(targets)

  @property
  def kernels(self) -> str:
    """The kernels that run the file; see `Interpreter.runtime`."""
    return self._interpreter.runtime

  @cached_property
  def _interpreter(self) -> Interpreter:
    return Interpreter(self.content, runtime=self.runtime)
