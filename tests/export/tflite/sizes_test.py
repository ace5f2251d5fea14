"""Tests of sizes.py: the sizes of a file."""

import gzip
import io

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.tflite.sizes import file_sizes
from tests import export_helpers as helpers
from tests import tiny
from tests.shared_files import shared


def sparse_net(tail="gap", seed=0):
  """A model with a known share of zeros: 3 of 4 of each kernel, no bias."""
  model = tiny.conv_net(tail=tail, size=helpers.SIZE, width=16, seed=seed)
  for layer in model.layers:
    if layer.weights and "bn" not in layer.name:
      kernel = layer.weights[0].numpy()
      kernel.flat[np.arange(kernel.size) % 4 != 0] = 0
      # Large enough not to be rounded to zero.
      kernel = np.where(kernel, np.sign(kernel) * (1 + np.abs(kernel)), 0)
      layer.weights[0].assign(kernel)
  return model


@shared
def sparse_file(mode: str) -> bytes:
  return kap.export.convert(
      sparse_net(), helpers.wcam(), mode=mode,
      representative_images=helpers.calibration() if "int" in mode else None)


class FileSizesTest(parameterized.TestCase):

  @parameterized.parameters("float16", "int8")
  def test_sparsity(self, mode):
    self.check_sparsity(mode)

  @parameterized.parameters("float32", "dynamic", "int16x8")
  @pytest.mark.slow("files")
  def test_sparsity_in_other_modes(self, mode):
    self.check_sparsity(mode)

  def check_sparsity(self, mode):
    self.assertAlmostEqual(file_sizes(sparse_file(mode))["sparsity"], 0.75)

  # How often operators read each kernel. The one graph of a microcontroller's
  # file goes backwards through all but the first; so does a phone's second
  # graph, which runs all forwards again and "conv2" twice, for its ReLU's mask.
  def test_sparsity_with_a_backward_pass(self):
    self.check_backward_pass("phone", {"conv": 2, "conv2": 4, "logits": 3})

  @pytest.mark.slow("files")
  def test_sparsity_with_a_backward_pass_of_a_microcontroller(self):
    self.check_backward_pass(
        "microcontroller", {"conv": 1, "conv2": 2, "logits": 2})

  def check_backward_pass(self, target, counts):
    model = tiny.conv_net(tail="block", size=helpers.SIZE, width=16)
    zeros = total = forwards = size = 0
    for name, share in {"conv": 3, "conv2": 1, "logits": 2}.items():
      kernel = model.get_layer(name).kernel
      values = 1 + np.abs(kernel.numpy())
      values.flat[np.arange(values.size) % 4 < share] = 0
      kernel.assign(values)
      zeros += counts[name] * values.size * share // 4
      total += counts[name] * values.size
      forwards += values.size * share // 4
      size += values.size
    content = kap.export.convert(
        model, helpers.wcam(), mode="float32", target=target)
    self.assertAlmostEqual(file_sizes(content)["sparsity"], zeros / total)
    # The forward pass alone would give another share.
    self.assertGreater(abs(forwards / size - zeros / total), 0.02)

  def test_a_dense_net(self):
    # Random float32 weights are not 0.
    self.assertLess(file_sizes(helpers.converted())["sparsity"], 0.01)

  def test_bytes(self):
    content = helpers.converted("gap", "int8")
    sizes = file_sizes(content)
    self.assertEqual(set(sizes), {"bytes", "bytes_gzipped", "sparsity"})
    self.assertEqual(sizes["bytes"], len(content))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
      file.write(content)
    self.assertEqual(sizes["bytes_gzipped"], len(packed.getvalue()))
    self.assertEqual(sizes, file_sizes(bytearray(content)))  # And again.

  def test_gzip_rewards_sparsity(self):
    # The dense model is of the same shape.
    sparse, dense = (file_sizes(content)["bytes_gzipped"] for content in (
        sparse_file("int8"), helpers.converted("gap", "int8")))
    self.assertLess(sparse, dense)

  def test_no_tflite_file(self):
    with self.assertRaisesRegex(ValueError, "must be a .tflite file"):
      file_sizes(b"nothing of that kind")
    with self.assertRaisesRegex(TypeError, "must be the bytes"):
      file_sizes("net.tflite")
    with self.assertRaisesRegex(ValueError, "damaged"):
      file_sizes(helpers.converted()[:1000])

  def test_flipped_bits(self):
    content = helpers.converted("gap", "int8")
    rng = np.random.default_rng(0)
    for i in range(200):
      damaged = bytearray(content)
      damaged[rng.integers(len(content) if i % 2 else 400)] ^= (
          1 << rng.integers(8))
      try:
        sizes = file_sizes(bytes(damaged))
      except ValueError:
        continue  # Anything else than a ValueError fails the test.
      self.assertBetween(sizes["sparsity"], 0, 1)


if __name__ == "__main__":
  absltest.main()
