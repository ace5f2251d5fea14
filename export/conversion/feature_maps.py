"""Attribution maps of a file's features, computed by a Keras model's tail."""

import numpy as np
from ai_edge_litert import interpreter as litert

from keras_attr_preserve import map_formulas
from keras_attr_preserve.compat import keras, tf
from keras_attr_preserve.evaluation.agreement import agreement
from keras_attr_preserve.export.tflite.schema import read_model, signatures
from keras_attr_preserve.models.layer_changes import changed
from keras_attr_preserve.models.layers import locate
from keras_attr_preserve.models.scores import top_class_seed
from keras_attr_preserve.models.tap import Tap, sensitivities

__all__ = ["FeatureMaps"]

_BATCH = 16


class FeatureMaps:
  """Judges the features of files by their attribution maps.

  Attributes:
    images: the images to explain.
    targets: the model's top class of each image, as weights of the logits.
  """

  def __init__(
      self, model: keras.Model, layer: str, method: str, images: np.ndarray):
    """Computes the model's own maps.

    Args:
      model: a model in floats; not changed.
      layer: the layer that is explained.
      method: "swa" or "ewa".
      images: `[images, height, width, channels]`.
    """
    self._tap = Tap(model, [layer])
    self._layer, self._method = locate(model, layer)[1], method
    self.images = images
    self.targets = np.concatenate([
        top_class_seed(self._tap(tf.constant(images[i:i + _BATCH])).logits)
        for i in range(0, len(images), _BATCH)])
    self.reference = self._maps(None)

  @property
  def alive(self) -> int:
    """The number of images whose map is not all zero."""
    return int(np.any(self.reference, axis=(1, 2)).sum())

  def cosines(self, content: bytes) -> np.ndarray:
    """Compares the maps of a file's features with the model's own.

    Args:
      content: a file with a signature "explain" from images to features.

    Returns:
      The cosine for each image; NaN where the model's own map is all zero.
    """
    entry = signatures(read_model(content))["explain"]
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner("explain")
    encoded = entry.inputs["images"].encode(self.images)
    features = np.concatenate([
        run(images=encoded[i:i + 1])["features"] for i in range(len(encoded))])
    maps = self._maps(entry.outputs["features"].decode(features))
    return agreement(self.reference, maps)["cosine"]

  def _maps(self, features: np.ndarray | None) -> np.ndarray:
    maps = []
    for i in range(0, len(self.images), _BATCH):
      batch = slice(i, i + _BATCH)
      maps.append(self._map(
          tf.constant(self.images[batch]), self.targets[batch],
          None if features is None else features[batch]))
    return np.concatenate(maps)

  def _map(self, images, targets, features) -> np.ndarray:
    def change(output):
      if features is None:
        return output
      # The sum has the file's values, and gradients flow through `output`.
      return output + tf.stop_gradient(features - output)
    with tf.GradientTape() as tape, changed({self._layer: change}):
      tape.watch(images)
      tapped = self._tap(images)
    given, = tapped.features
    if self._method == "ewa":
      return map_formulas.equal_weighted_map(given).numpy()
    sensitivity, = sensitivities(tape, tapped, targets)
    return map_formulas.sensitivity_weighted_map(given, sensitivity).numpy()
