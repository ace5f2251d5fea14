"""Test vectors: images with a device's right answers, bit for bit."""

import numpy as np

from keras_attr_preserve.export.firmware.device_model import DeviceModel

__all__ = ["VECTOR_IMAGES", "test_vectors"]

VECTOR_IMAGES = 4
"""The number of images in the test vectors; each costs flash on a board."""


def test_vectors(device: DeviceModel, images: np.ndarray) -> dict[
    str, np.ndarray]:
  """Runs images through the file, and its outputs through NumPy's maps.

  Each image is explained for its top class, for another class, and for the top
  class against the runner-up. The last image is also explained for zero
  weights, which must give a dead map. Equal-weighted maps depend on no class,
  so each image has one.

  Args:
    device: the file.
    images: float32 `[images, height, width, channels]`.

  Returns:
    For each image `inputs`, `logits`, `features`, int8, and its `top` class.
    For each map the number of its image in `images`, its class in `targets`, -1
    for a contrast, and `weights` of the logits, int8. Also for each map its
    `status`, and `maps`, uint8, and `raw`, uint32. Where the file
    differentiates, each map also has `class_weights` and `sensitivity`, int8.
  """
  inputs = device.encode(images)
  plain = device.run(inputs)
  top = [device.top_class(row) for row in plain["logits"]]
  cases = []
  for number, row in enumerate(plain["logits"]):
    last = number == len(images) - 1
    cases += [(number, *case) for case in _cases(
        device, row, top[number], number, last)]
  which, targets, weights = (list(column) for column in zip(*cases))
  outputs = {name: plain[name][which] for name in plain}
  gradients = {}
  if device.kind == "gradient":
    gradients["class_weights"] = np.stack([device.ask(row) for row in weights])
    outputs = device.run(inputs[which], gradients["class_weights"])
    gradients["sensitivity"] = outputs["sensitivity"].reshape(len(which), -1)
  maps = [device.map(outputs, number, row)
          for number, row in enumerate(weights)]
  return {
      "inputs": inputs,
      "logits": plain["logits"],
      "features": plain["features"],
      "top": np.int32(top),
      "images": np.int32(which),
      "targets": np.int32(targets),
      "weights": np.stack(weights),
      "status": np.int32([row.status for row in maps]),
      "maps": np.stack([row.map for row in maps]),
      "raw": np.stack([row.raw for row in maps]),
      **gradients,
  }


def _cases(device, logits, top, number, last):
  """Yields each case's target, or -1, and its weights of the logits."""
  yield top, device.target_weights(top)
  if device.kind == "ewa":
    return
  other = number % device.classes
  if other == top:
    other = (other + 1) % device.classes
  yield other, device.target_weights(other)
  contrast = np.zeros(device.logits, np.int8)
  if device.logits > 1:
    order = np.argsort(-logits.astype(int), kind="stable")
    contrast[order[:2]] = 1, -1
  else:
    contrast[0] = 3  # Equals 1: a map is divided by its largest value.
  yield -1, contrast
  if last:
    yield -1, np.zeros(device.logits, np.int8)
