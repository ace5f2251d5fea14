"""Test vectors: what a device must answer to some images, bit for bit."""

import numpy as np

from keras_attr_preserve.export.firmware.device_model import DeviceModel

__all__ = ["VECTOR_IMAGES", "test_vectors"]

VECTOR_IMAGES = 4
"""How many of the test images become vectors: they cost flash on a board."""


def test_vectors(device: DeviceModel, images: np.ndarray) -> dict[
    str, np.ndarray]:
  """Runs images through the file, and what it gives through NumPy's maps.

  Each image is explained for its top class, for another one, and for the top
  class against the runner-up; the last image also for nothing at all, which
  must give a dead map. Equal-weighted maps know no class, and are one an image.

  Args:
    device: the file.
    images: float32 `[images, height, width, channels]`.

  Returns:
    For each image `inputs`, `logits`, `features`, int8, and its `top` class;
    for each map the number of its image in `images`, its class in `targets`, -1
    for a contrast, `weights` of the logits, int8, the `status`, and the `maps`,
    uint8, and `raw`, uint32. Where the file differentiates, each map also has
    `class_weights` and `sensitivity`, int8.
  """
  inputs = device.encode(images)
  plain = device.run(inputs)
  top = [device.top_class(one) for one in plain["logits"]]
  cases = []
  for number, one in enumerate(plain["logits"]):
    last = number == len(images) - 1
    cases += [(number, *case) for case in _cases(
        device, one, top[number], number, last)]
  which, targets, weights = (list(column) for column in zip(*cases))
  outputs = {name: plain[name][which] for name in plain}
  found = {}
  if device.kind == "gradient":
    found["class_weights"] = np.stack([device.ask(one) for one in weights])
    outputs = device.run(inputs[which], found["class_weights"])
    found["sensitivity"] = outputs["sensitivity"].reshape(len(which), -1)
  maps = [device.map(outputs, number, one)
          for number, one in enumerate(weights)]
  return {
      "inputs": inputs,
      "logits": plain["logits"],
      "features": plain["features"],
      "top": np.int32(top),
      "images": np.int32(which),
      "targets": np.int32(targets),
      "weights": np.stack(weights),
      "status": np.int32([one.status for one in maps]),
      "maps": np.stack([one.map for one in maps]),
      "raw": np.stack([one.raw for one in maps]),
      **found,
  }


def _cases(device, logits, top, number, last):
  """Yields a target, or -1, and weights of the logits."""
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
    contrast[0] = 3  # As good as 1: a map is divided by its largest.
  yield -1, contrast
  if last:
    yield -1, np.zeros(device.logits, np.int8)
