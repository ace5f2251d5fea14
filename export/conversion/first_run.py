"""Runs each file once before the user gets it."""

import numpy as np

from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.export.runtime.interpreter import Interpreter
from keras_attr_preserve.models.tap import Tap

__all__ = ["FirstRun"]

# The error allowed, as a share of the largest logit, in modes whose weights are
# all floats. Half precision loses .001. The converter silently clips weights
# above 65504, the largest number of half precision.
_OFF = {"float32": 0.1, "float16": 0.1}


class FirstRun:
  """Runs the files of one Keras model, each signature on one image."""

  def __init__(self, model: keras.Model, layer: str, mode: str,
               images: np.ndarray | None):
    """Runs the model itself, whose outputs have the expected shapes.

    Args:
      model: the model that is converted, of a fixed input size.
      layer: the layer that is explained.
      mode: the mode of the files. Logits are compared with the model's in
        "float32" and "float16".
      images: `[images, height, width, channels]`; the first is run. None makes
        an image of random pixels, 0..1, or 0..255 where the model takes
        integers.

    Raises:
      ValueError: the model's own scores or features are not finite.
    """
    self._name, self._mode = model.name, mode
    self._image = _random_image(model) if images is None else images[:1]
    tapped = Tap(model, [layer])(tf.constant(self._image))
    features, = tapped.features
    outputs = {"logits": tapped.logits, "predictions": tapped.output,
               "features": features}
    for name, values in outputs.items():
      if not np.isfinite(values).all():
        raise ValueError(
            f"model {model.name!r} gives {name} that are not finite on "
            + ("an image of random pixels" if images is None else
               "the first of representative_images")
            + ": look for weights that are NaN, infinite or far too large.")
    self._logits = tapped.logits.numpy()
    self._shapes = {
        **{name: tuple(values.shape) for name, values in outputs.items()},
        "map": tuple(features.shape[:3]),
        "sensitivity": (1, 1, 1, features.shape[3])}

  def check(self, content: bytes) -> None:
    """Runs every signature of a file once.

    Args:
      content: a whole file, with its metadata.

    Raises:
      ValueError: the file does not load, a signature does not run, an output
        has another shape or is not finite, or logits of floats are far off.
    """
    try:
      interpreter = Interpreter(content)
      outputs = {name: self._run(interpreter, name)
                 for name in interpreter.signatures}
    except ValueError as error:
      raise self._fault(f"does not run: {error}") from error
    for signature, results in outputs.items():
      for name, values in results.items():
        whose = f"gives as {name} of {signature!r} numbers"
        if values.shape != self._shapes[name]:
          raise self._fault(
              f"{whose} of shape {list(values.shape)} in place of "
              f"{list(self._shapes[name])}")
        if not np.isfinite(values).all():
          raise self._fault(f"{whose} that are not finite")
      off = np.abs(results["logits"] - self._logits).max()
      most = np.abs(self._logits).max()
      if off > _OFF.get(self._mode, np.inf) * most:
        raise self._fault(
            f"gives in {signature!r} logits that are {off:.3g} off the "
            f"model's, of which the largest is {most:.3g}")

  def _run(self, interpreter: Interpreter, name: str) -> dict[str, np.ndarray]:
    signature = interpreter.signatures[name]
    feeds = {}
    for key, spec in signature.inputs.items():
      # The first class: a backward pass of all zeros would test nothing.
      values = np.eye(*spec.shape, dtype=np.float32) if (
          key == "class_weights") else self._image
      feeds[key] = spec.encode(values)
    numbers = interpreter.numbers(name, feeds)
    return {key: spec.decode(numbers[key])
            for key, spec in signature.outputs.items()}

  def _fault(self, what: str) -> ValueError:
    return ValueError(
        f"the file made of model {self._name!r} is not handed over, since it "
        f"{what.rstrip('.')}; pass another mode, a later layer, or method "
        "'ewa'.")


def _random_image(model: keras.Model) -> np.ndarray:
  """Returns an image, float32 `[1, ...]`, of the shape that the model takes."""
  given = model.inputs[0]
  pixels = np.random.default_rng(0).uniform(size=[1, *given.shape[1:]])
  if tf.as_dtype(given.dtype).is_integer:
    pixels = np.floor(256 * pixels)
  return pixels.astype(np.float32)
