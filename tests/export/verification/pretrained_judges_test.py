"""Real models on every runtime, asked by judges that nothing was trained on.

Where they are found, and when the tests skip: see pretrained_test.
"""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime.interpreter import RUNTIMES
from keras_attr_preserve.models.layers import last_spatial_layer
from tests import export_helpers as helpers
from tests import tiny
from tests.export.conversion import pretrained_test as nets


def _pictures(name):
  """A model's path, calibration images, and images to verify on."""
  if name == "vww":
    return (nets.VWW / "vww_96.h5", nets.voc(0, 100, 96) / 255,
            nets.voc(2, 32, 96) / 255)
  return (nets.RESNET / "pretrainedResnet.h5", nets.cifar("train", 100),
          nets.cifar("test", 32))


class JudgedTest(parameterized.TestCase):

  # Measured with 20 judged images, the lowest of the four runtimes (they are
  # within .01): see the bounds below.
  @parameterized.parameters(
      ("vww", {"cosine": 0.99, "occlusion_cosine": 0.9, "rise_cosine": 0.98}),
      ("resnet", {
          "cosine": 0.99, "occlusion_cosine": 0.95, "rise_cosine": 0.98}))
  @pytest.mark.slow("photographs")
  @helpers.needs_tflm
  def test_int8_on_every_runtime(self, name, least):
    path, calibration, images = _pictures(name)
    model = nets.load(path)
    wcam = kap.WCAM(last_spatial_layer(model))
    content = kap.export.convert(
        model, wcam, mode="int8", representative_images=calibration,
        target="microcontroller")
    every = kap.export.verify(
        content, model, wcam, images, runtime="all",
        judges=("occlusion", "rise"), judge_images=3)
    self.assertEqual(list(every.reports), list(RUNTIMES))
    every.require(prediction_agreement=0.85, dead=0, **least)
    # The real microcontroller's interpreter is within the last bit of the
    # reference kernels: measured .984 and .991 of the logits equal.
    row = every.differences["reference", "tflm"]
    self.assertLessEqual(row["steps"], 1)
    # A few logits below those two, for other versions of the kernels.
    self.assertGreater(row["equal_logits"], 0.95)
    folder = tiny.folder(self)
    every.save(folder)
    for runtime, report in every.reports.items():
      pixels = tf.io.decode_png(
          (folder / runtime / "worst.png").read_bytes()).numpy()
      self.assertGreater(pixels.std(), 20)
      self.assertLen(set(report.examples.numbers), 5)
      self.assertEqual(np.nanargmin(report.scores["cosine"]),
                       report.examples.numbers[0])


if __name__ == "__main__":
  absltest.main()
