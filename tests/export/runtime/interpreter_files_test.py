"""Tests of interpreter.py: files that are damaged, and those of others."""

import functools

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from tests import export_helpers as helpers
from tests import tiny

ROADS = ("gap", "block")
interpreter = helpers.interpreter


@functools.cache
def plain(mode: str, output: str = "logits") -> bytes:
  """A file as TensorFlow alone makes it."""
  model = helpers.net()
  return helpers.plainly_converted(
      type(model)(model.inputs, {output: model.outputs[0]}), mode)


class FilesTest(parameterized.TestCase):

  def test_paths_and_bytes(self):
    content = helpers.converted()
    path = tiny.folder(self) / "net.tflite"
    path.write_bytes(content)
    want = interpreter().predict(helpers.images())
    for file in (path, str(path), content, bytearray(content)):
      np.testing.assert_array_equal(
          kap.export.Interpreter(file).predict(helpers.images()), want)

  def test_nothing_there(self):
    with self.assertRaisesRegex(FileNotFoundError, "missing.tflite"):
      kap.export.Interpreter("missing.tflite")
    with self.assertRaises(IsADirectoryError):
      kap.export.Interpreter(tiny.folder(self))

  @parameterized.parameters(None, 3, [[b"TFL3"]])
  def test_no_file(self, content):
    with self.assertRaisesRegex(TypeError, "tflite_model must be the bytes"):
      kap.export.Interpreter(content)

  def test_what_it_knows(self):
    runner = interpreter("block", "int8")
    self.assertEqual(runner.metadata, {
        "layer": "act", "method": "swa", "mode": "int8", "target": "phone",
        "road": "tail", "weights": "int8",
        "median_cosine": runner.metadata["median_cosine"], "measured_on": 32,
        "representative_range": [float(helpers.calibration().min()),
                                 float(helpers.calibration().max())],
        "reason": "reaches the median cosine 0.99"})
    self.assertEqual(set(runner.signatures), {"predict", "explain"})
    self.assertEqual(runner.input_shape, (8, 8, 2))

  def test_what_litert_refuses_only_when_it_runs(self):
    # Of a file with two subgraphs the second is made ready by its first call.
    model = helpers.parsed(helpers.converted("block"))
    second = next(signature.signatureKey.decode()
                  for signature in model.signatureDefs
                  if signature.subgraphIndex == 1)
    for operator in model.subgraphs[1].operators:
      if hasattr(operator.builtinOptions, "strideH"):
        operator.builtinOptions.strideH = 0
    runner = kap.export.Interpreter(helpers.packed(model))
    with self.assertRaisesRegex(
        ValueError, "tflite_model is refused by the runtime 'xnnpack'"):
      getattr(runner, second)(helpers.images(1))

  def test_logits_without_classes(self):
    model = helpers.parsed(helpers.converted())
    entry, = [signature for signature in model.signatureDefs
              if signature.signatureKey == b"explain"]
    graph = model.subgraphs[entry.subgraphIndex]
    tensor, = [graph.tensors[output.tensorIndex] for output in entry.outputs
               if output.name == b"logits"]
    tensor.shape = np.int32([])
    with self.assertRaises(ValueError):
      kap.export.Interpreter(helpers.packed(model)).explain(helpers.images(1))

  @parameterized.parameters(("gap", "int8"), ("block", "float32"))
  def test_flipped_bits_end_in_an_error(self, tail, mode):
    # Few, so in this process, which LiteRT, being C++, could end.
    content, images = helpers.converted(tail, mode), helpers.images(1)
    rng = np.random.default_rng(0)
    for i in range(60):
      damaged = bytearray(content)
      damaged[rng.integers(len(content) if i % 2 else 400)] ^= (
          1 << rng.integers(8))
      try:
        runner = kap.export.Interpreter(bytes(damaged))
        runner.predict(images)
        runner.explain(images)
      except ValueError:
        continue  # Anything else than a ValueError fails the test.

  @pytest.mark.slow("files")
  def test_flipped_bits_end_in_an_error_or_not_at_all(self):
    # In a process of its own: LiteRT is C++.
    folder = tiny.folder(self)
    for tail, mode in (("gap", "int8"), ("block", "float32")):
      (folder / f"{tail}.tflite").write_bytes(helpers.converted(tail, mode))
    done = helpers.run_python(
        _FLIP, "1000", *map(str, folder.glob("*.tflite")))
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertRegex(done.stdout, "2000 files")


# Reads damaged files and runs what can be run. Anything else than a ValueError
# or a result ends it with another exit code.
_FLIP = """
import numpy as np
import keras_attr_preserve as kap
count = int(sys.argv[1])
images = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
for path in sys.argv[2:]:
  rng = np.random.default_rng(0)
  content = open(path, "rb").read()
  for i in range(count):
    damaged = bytearray(content)
    place = rng.integers(len(content) if i % 2 else 400)
    damaged[place] ^= 1 << rng.integers(8)
    try:
      runner = kap.export.Interpreter(bytes(damaged))
      runner.predict(images)
      runner.explain(images)
    except ValueError:
      pass
print(count * len(sys.argv[2:]), "files")
"""


class ForeignTest(parameterized.TestCase):
  """Files that others have made."""

  @parameterized.parameters("float32", "int8")
  def test_without_signatures(self, mode):
    content = helpers.foreign(plain(mode))
    runner = kap.export.Interpreter(content)
    self.assertIsNone(runner.metadata)
    self.assertEqual(list(runner.signatures), [""])
    self.assertEqual(runner.input_shape, (8, 8, 2))
    images = helpers.images()
    np.testing.assert_array_equal(
        runner.predict(images), interpreter("gap", mode).predict(images))
    with self.assertRaisesRegex(
        ValueError, "tflite_model carries no attribution: it was not made by"):
      runner.explain(images)

  def test_with_a_signature_of_another_name(self):
    runner = kap.export.Interpreter(plain("float32", "scores"))
    np.testing.assert_allclose(
        runner.predict(helpers.images()),
        helpers.net().predict(helpers.images(), verbose=0), 1e-5, 1e-5)
    with self.assertRaisesRegex(ValueError, "carries no attribution"):
      runner.explain(helpers.images())

  def test_several_outputs_and_no_name_for_them(self):
    runner = kap.export.Interpreter(
        helpers.foreign(helpers.converted(target="microcontroller")))
    with self.assertRaisesRegex(
        ValueError, "has 2 outputs and no 'predict' signature"):
      runner.predict(helpers.images())

  def test_our_metadata_alone_is_not_enough(self):
    model = helpers.parsed(helpers.converted())
    model.signatureDefs = [signature for signature in model.signatureDefs
                           if signature.signatureKey == b"predict"]
    with self.assertRaisesRegex(
        ValueError, "carries no attribution|damaged|signature"):
      kap.export.Interpreter(helpers.packed(model)).explain(helpers.images())

  @helpers.needs_tflm
  def test_without_signatures_in_tflm(self):
    content = helpers.foreign(plain("int8"))
    np.testing.assert_array_equal(
        *(kap.export.Interpreter(content, runtime=runtime).predict(
            helpers.images(4)) for runtime in ("tflm", "reference")))


if __name__ == "__main__":
  absltest.main()
