"""Tests of safe_load.py and litert_process.py: no file ends the caller."""

import functools
import os
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema

import keras_attr_preserve as kap
from keras_attr_preserve.export.runtime import litert_process, safe_load
from keras_attr_preserve.export.runtime.safe_load import checked_model
from tests import export_helpers as helpers
from tests import tiny
from tests.places import SHARED

MODELS = Path(os.environ.get("KAP_MODEL_DIR", SHARED / "models"))


@functools.cache
def foreign(mode: str = "int8") -> bytes:
  """A file that others have made."""
  model = helpers.net()
  return helpers.foreign(helpers.plainly_converted(
      type(model)(model.inputs, {"logits": model.outputs[0]}), mode))


@functools.cache
def weightless(mode: str = "int8") -> bytes:
  """A file whose convolution has no weights.

  XNNPACK reads address 0 and ends the process, or LiteRT refuses the file
  first (both seen with ai-edge-litert 2.3.0).
  """
  model = helpers.parsed(foreign(mode))
  operator = model.subgraphs[0].operators[0]
  operator.inputs = [operator.inputs[0], -1, operator.inputs[2]]
  return helpers.packed(model)


# LiteRT's worker, but for files whose description says what becomes of it: no
# damage is known to end the process of every LiteRT.
_ENDING = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location(
    "worker", {litert_process.__file__!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
true_fault, spoilt = worker._fault, []

def fault(content, runtime):
  if b"ends the process" in content or spoilt:
    os.abort()
  spoilt[:] = [1] * (b"spoils the process" in content)
  return true_fault(content, runtime)

worker._fault = fault
worker.main(sys.argv[1])
"""


def ending_worker(test: absltest.TestCase) -> None:
  """Has files of some descriptions end the worker's process in a test."""
  path = tiny.folder(test) / "worker.py"
  path.write_text(_ENDING)
  test.enter_context(mock.patch.object(litert_process, "__file__", str(path)))


@functools.cache
def described(description: bytes, mode: str = "int8") -> bytes:
  """A whole file of others that bears a description."""
  model = helpers.parsed(foreign(mode))
  model.description = description
  return helpers.packed(model)


def ending() -> bytes:
  return described(b"ends the process")


def damaged_tables(content: bytes, count: int, seed: int = 0) -> list[bytes]:
  """Damages a file's tables; the weights stay."""
  tables = np.ones(len(content), bool)
  model = schema.Model.GetRootAs(content)
  for i in range(model.BuffersLength()):
    table = model.Buffers(i)._tab
    if table.Offset(4):
      start = table.Vector(table.Offset(4))
      tables[start:start + table.VectorLen(table.Offset(4))] = False
  rng = np.random.default_rng(seed)
  files = []
  for i in range(count):
    file, place = bytearray(content), int(rng.choice(np.flatnonzero(tables)))
    if i % 3 == 0:
      file[place] ^= 1 << rng.integers(8)
    elif i % 3 == 1:
      file[place:place + 4] = rng.choice(
          [bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0"])
    else:
      file = file[:rng.integers(len(file))]
    files.append(bytes(file))
  return files


# Reads files and runs what can be run, as a user would. Anything else than a
# ValueError or a result ends it with another exit code.
_USE = """
import numpy as np
import keras_attr_preserve as kap
refused = 0
for path in sys.argv[2:]:
  try:
    runner = kap.export.Interpreter(path, runtime=sys.argv[1])
    shape = runner.input_shape
    low, high = next(iter(runner.signatures.values())).inputs[
        runner._image_name].range
    high = min(high, 1.0)
    images = np.random.default_rng(0).uniform(max(low, -1.0), high, (1, *shape))
    runner.predict(images)
  except (TypeError, ValueError):
    refused += 1
print(refused, "refused")
"""


class CheckedModelTest(parameterized.TestCase):

  def test_a_whole_file_of_ours_needs_no_trial(self):
    with mock.patch.object(litert_process, "try_files") as tried:
      for kind in (bytes, bytearray):
        content = kind(helpers.converted(
            "gap", "int8", target="microcontroller"))
        self.assertLen(checked_model(content).subgraphs, 1)
    tried.assert_not_called()

  def test_others_are_tried_once_for_each_runtime(self):
    safe_load._tried.clear()
    with mock.patch.object(
        litert_process, "try_files", return_value=[None]) as tried:
      for _ in range(3):
        for runtime in ("xnnpack", "reference", "tflm"):
          checked_model(foreign(), runtime)
    self.assertEqual(
        [call.args[1] for call in tried.call_args_list],
        ["xnnpack", "reference"])
    safe_load._tried.clear()
    for runtime in helpers.LITERT_RUNTIMES:
      self.assertLen(checked_model(foreign(), runtime).subgraphs, 1)

  @parameterized.parameters(*helpers.LITERT_RUNTIMES)
  def test_one_that_ends_the_process(self, runtime):
    ending_worker(self)
    # Twice: the second call repeats the error.
    for _ in range(2):
      with self.assertRaisesRegex(
          ValueError, "^tflite_model is damaged, or refused by the runtime "
          f"'{runtime}': it ended the process with -6$"):
        kap.export.Interpreter(ending(), runtime=runtime)
    with self.assertRaisesRegex(
        ValueError, "^tflite_model is damaged.*: it ended the process with -6"):
      kap.export.verify(ending(), helpers.net(), helpers.wcam(),
                        helpers.images(2), runtime=runtime)

  @parameterized.parameters("float32", "int8")
  def test_one_that_may_crash_litert(self, mode):
    with self.assertRaisesRegex(
        ValueError, "^tflite_model is damaged, or refused by the runtime "
        "'xnnpack': (it ended the process with -|Tensor at index 1)"):
      kap.export.Interpreter(weightless(mode))

  def test_one_that_litert_refuses(self):
    model = helpers.parsed(foreign())
    for operator in model.subgraphs[0].operators:
      if hasattr(operator.builtinOptions, "strideH"):
        operator.builtinOptions.strideH = 0
    with self.assertRaisesRegex(
        ValueError, "refused by the runtime 'reference': .*stride"):
      checked_model(helpers.packed(model), "reference")

  @parameterized.parameters(
      (b"",), (b"TFL3",), (b"none" * 99,), (b"\x1c\0\0\0TFL3" + bytes(99),),
      (b"\x1c\0\0\0TFL3" + b"\xff" * 99,))
  def test_no_file(self, content):
    with self.assertRaisesRegex(ValueError, "tflite_model"):
      checked_model(content)

  @parameterized.parameters(None, 3, "net.tflite")
  def test_no_bytes(self, content):
    with self.assertRaisesRegex(TypeError, "tflite_model must be the bytes"):
      checked_model(content)

  def test_a_file_with_no_subgraph(self):
    model = helpers.parsed(foreign())
    model.subgraphs = []
    with self.assertRaisesRegex(ValueError, "it has no subgraph"):
      checked_model(helpers.packed(model))

  def test_tensors_larger_than_memory(self):
    model = helpers.parsed(foreign("float32"))
    for tensor in model.subgraphs[0].tensors:
      if model.buffers[tensor.buffer].data is None and len(tensor.shape) == 4:
        tensor.shape = np.int32([1, 1 << 14, 1 << 14, tensor.shape[3]])
    with self.assertRaisesRegex(ValueError, "tflite_model is damaged"):
      checked_model(helpers.packed(model))


class WorkerTest(absltest.TestCase):

  def test_a_crash_spoils_no_other_file(self):
    ending_worker(self)
    good, bad = foreign(), ending()
    reasons = litert_process.try_files([good, bad, good, bad, bad, good, b""])
    self.assertEqual(
        reasons[:-1], [None, "it ended the process with -6"] * 2 + [
            "it ended the process with -6", None])
    self.assertIsNotNone(reasons[-1])  # LiteRT's own words.

  def test_nor_does_one_that_spoils_the_process(self):
    """The file after it would end the process, but not one of its own."""
    ending_worker(self)
    spoiling = described(b"spoils the process")
    self.assertEqual(
        litert_process.try_files([spoiling, foreign(), spoiling, ending()]),
        [None, None, None, "it ended the process with -6"])

  def test_none(self):
    self.assertEqual(litert_process.try_files([]), [])

  def test_one_that_does_not_end(self):
    start = time.monotonic()
    with mock.patch.object(litert_process, "TIMEOUT", 0.001):
      self.assertEqual(litert_process.try_files([foreign()]),
                       ["it did not end within 0.001 seconds"])
    self.assertLess(time.monotonic() - start, 30)

  def test_without_tensorflow_and_this_package(self):
    """So that it starts fast: measured at 0.07 s."""
    code = """
import runpy
for name in ("tensorflow", "tf_keras", "keras_attr_preserve"):
  sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = helpers.run_python(code, litert_process.__file__, "xnnpack")
    self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

  def test_a_process_that_cannot_start(self):
    with mock.patch.object(litert_process.sys, "executable", "/bin/false"):
      self.assertEqual(litert_process.try_files([foreign()]),
                       ["it ended the process with 1"])


class FuzzTest(parameterized.TestCase):
  """A process that uses damaged files lives to its end.

  The few files of a quick test are used in this one.
  """

  def use(self, files, runtime, at_least):
    images = np.random.default_rng(0).uniform(-1, 1, [1, 8, 8, 2])
    refused = 0
    for content in files:
      try:
        kap.export.Interpreter(content, runtime=runtime).predict(images)
      except (TypeError, ValueError):
        refused += 1
    self.assertGreaterEqual(refused, at_least)

  def use_in_another_process(self, files, runtime, at_least):
    folder = tiny.folder(self)
    paths = []
    for i, content in enumerate(files):
      paths.append(folder / f"{i}.tflite")
      paths[-1].write_bytes(content)
    done = helpers.run_python(_USE, runtime, *map(str, paths), timeout=3000)
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertGreaterEqual(
        int(done.stdout.splitlines()[-1].split()[0]), at_least, done.stdout)

  @parameterized.parameters(("xnnpack", 15), ("reference", 6))
  def test_some_files_of_others(self, runtime, count):
    files = damaged_tables(foreign(), count)
    self.use([*files, weightless()], runtime, at_least=count // 3)

  def test_some_files_of_ours(self):
    content = helpers.converted("gap", "int8", target="microcontroller")
    files = damaged_tables(content, 100)
    self.use(files, "xnnpack",
             at_least=sum(file != content for file in files))

  @parameterized.parameters("xnnpack", "reference")
  @pytest.mark.slow("files")
  def test_files_of_others(self, runtime):
    files = [*damaged_tables(foreign(), 45), weightless(),
             weightless("float32")]
    self.use_in_another_process(files, runtime, at_least=20)

  @pytest.mark.slow("files")
  def test_files_of_ours(self):
    content = helpers.converted("gap", "int8", target="microcontroller")
    files = damaged_tables(content, 1000)
    self.use_in_another_process(
        files, "xnnpack", at_least=sum(file != content for file in files))

  @pytest.mark.slow("files")
  def test_thousands(self):
    """Of 2,400 measured, 1,946 did not parse and 128 were refused.

    One ended the process that tried it, four on the reference kernels.
    """
    paths = [MODELS / "tflm" / "micro_speech_quantized.tflite",
             MODELS / "tflm" / "trained_lstm_int8.tflite"]
    for seed, path in enumerate(paths):
      if not path.exists():
        self.skipTest(f"no {path}; see KAP_MODEL_DIR")
      files = damaged_tables(path.read_bytes(), 1200, seed)
      self.use_in_another_process(files, "xnnpack", at_least=400)


if __name__ == "__main__":
  absltest.main()
