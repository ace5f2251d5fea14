"""Tests of inspect_file.py and `kap-inspect`: what is in anybody's file."""

import contextlib
import io
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

import keras_attr_preserve as kap
from keras_attr_preserve.export.commands import inspect_command
from keras_attr_preserve.export.runtime import arena, tflm_process
from keras_attr_preserve.export.runtime.inspect_file import inspect_file
from keras_attr_preserve.export.tflite.schema import signatures
from tests import export_helpers as helpers
from tests import tiny
from tests.places import SHARED

MODELS = Path(os.environ.get("KAP_MODEL_DIR", SHARED / "models"))


def int8_file() -> bytes:
  return helpers.converted("gap", "int8", target="microcontroller")


class OursTest(parameterized.TestCase):

  @parameterized.parameters(
      ("gap", "int8", "microcontroller"), ("gap", "float32", "phone"))
  def test_what_the_parts_say(self, tail, mode, target):
    content = helpers.converted(tail, mode, target=target)
    summary = inspect_file(content)
    model = helpers.parsed(content)
    for name, value in kap.export.file_sizes(content).items():
      self.assertEqual(getattr(summary, name), value)
    self.assertTrue(summary.sealed)
    self.assertEqual(summary.attribution["layer"], helpers.LAYER)
    self.assertEqual(summary.attribution["mode"], mode)
    self.assertEqual(
        [sum(counts.values()) for counts in summary.operators],
        [len(names) for names in helpers.operators(content)])
    self.assertEqual(
        [list(counts) for counts in summary.operators],
        [list(dict.fromkeys(names)) for names in helpers.operators(content)])
    self.assertEqual(set(summary.signatures), {"predict", "explain"})
    for name, spec in signatures(model).items():
      signature = summary.signatures[name]
      self.assertEqual(signature["subgraph"], spec.subgraph)
      self.assertEqual(set(signature["inputs"]), set(spec.inputs))
      self.assertEqual(set(signature["outputs"]), set(spec.outputs))
    self.assertLen(summary.tensors, sum(
        len(graph.tensors) for graph in model.subgraphs))
    self.assertEqual(sum(summary.types.values()), len(summary.tensors))
    self.assertIsNone(summary.litert_reason)
    self.assertEqual(summary.arena_phone, arena.phone_arena(content))

  def test_quantization(self):
    content = int8_file()
    summary = inspect_file(content)
    spec = signatures(helpers.parsed(content))["predict"].inputs["images"]
    image = summary.tensors[summary.signatures["predict"]["inputs"]["images"]]
    self.assertEqual(
        (image.kind, image.type, image.shape, image.scale, image.zero_point),
        ("input", "INT8", spec.shape, (spec.scale,) * 2, spec.zero_point))
    kernels = [tensor for tensor in summary.tensors
               if tensor.kind == "constant"
               and tensor.channels == helpers.WIDTH]
    self.assertNotEmpty(kernels)
    for tensor in kernels:
      self.assertLess(tensor.scale[0], tensor.scale[1])
    floats = inspect_file(helpers.converted()).tensors
    self.assertEqual({tensor.scale for tensor in floats}, {None})
    self.assertContainsSubset(
        {"input", "output", "constant", "between"},
        {tensor.kind for tensor in summary.tensors})

  @helpers.needs_tflm
  def test_for_a_microcontroller(self):
    content = int8_file()
    summary = inspect_file(content)
    self.assertTrue(summary.tflm)
    self.assertEqual(summary.arena_measured, arena.measure_arena(content))
    self.assertEqual(summary.arena_head, summary.arena_measured.head)
    self.assertLessEqual(summary.arena_live, summary.arena_head)
    with mock.patch.object(tflm_process, "installed", return_value=False):
      alone = inspect_file(content)
    self.assertIsNone(alone.arena_measured)
    self.assertEqual(alone.arena_head, summary.arena_head)
    self.assertTrue(alone.tflm)
    self.assertIn("tflite-micro is not installed", str(alone))

  @parameterized.parameters(
      ("gap", "float16", ["lacks DEQUANTIZE of FLOAT16"]),
      ("block", "float32", ["2 subgraphs, of which it takes one"]))
  def test_not_for_one(self, tail, mode, words):
    summary = inspect_file(helpers.converted(
        tail, mode, target="microcontroller" if mode == "float16" else "phone"))
    self.assertFalse(summary.tflm)
    self.assertIsNone(summary.arena_head)
    for word in words:
      self.assertIn(word, "; ".join(summary.tflm_reasons))
      self.assertIn(word, str(summary))

  def test_in_words(self):
    summary = inspect_file(int8_file())
    text = str(summary)
    for words in (f"bytes           {summary.bytes:,}; gzipped",
                  "of the weights are zero", "seal            whole",
                  "layer           act", "mode            int8", "CONV_2D x",
                  "images", "INT8 scale", "channels", "takes it        yes"):
      self.assertIn(words, text)
    self.assertEqual(
        json.loads(json.dumps(summary.to_dict()))["bytes"], summary.bytes)


class ForeignTest(parameterized.TestCase):

  def test_others_files(self):
    content = helpers.foreign(int8_file())
    summary = inspect_file(bytearray(content))
    self.assertFalse(summary.sealed)
    self.assertIsNone(summary.attribution)
    self.assertEqual(summary.signatures, {})
    self.assertIn("none: a third party's file", str(summary))
    self.assertIn("none; the first subgraph takes and gives", str(summary))

  def test_what_litert_refuses(self):
    model = helpers.parsed(helpers.foreign(int8_file()))
    for operator in model.subgraphs[0].operators:
      if hasattr(operator.builtinOptions, "strideH"):
        operator.builtinOptions.strideH = 0
    summary = inspect_file(helpers.packed(model))
    self.assertIsNotNone(summary.litert_reason)
    self.assertIn("stride", str(summary))

  @parameterized.parameters(b"", b"none" * 9, b"\x1c\0\0\0TFL3" + bytes(90))
  def test_no_file(self, content):
    with self.assertRaisesRegex(ValueError, "tflite_model"):
      inspect_file(content)

  def test_damaged(self):
    content = bytearray(helpers.converted())
    content[len(content) // 2] ^= 1
    with self.assertRaisesRegex(ValueError, "tflite_model is damaged"):
      inspect_file(content)
    with self.assertRaises(TypeError):
      inspect_file("net.tflite")

  @pytest.mark.slow("files")
  def test_other_people_s_files(self):
    """Inspected, all of them, and each runtime's word is heard."""
    paths = sorted(MODELS.rglob("*.tflite"))
    if not paths:
      self.skipTest(f"no models in {MODELS}; see KAP_MODEL_DIR")
    for path in paths:
      summary = inspect_file(path.read_bytes())
      self.assertIn(path.stem and "operators", str(summary))
      self.assertIsNone(summary.attribution)
      if path.stem == "person_detect":
        self.assertIsNotNone(summary.litert_reason)
        with self.assertRaisesRegex(
            ValueError, "damaged, or refused by the runtime 'xnnpack': "):
          kap.export.Interpreter(path)
      else:
        self.assertIsNone(summary.litert_reason, path)
      if path.stem == "mobilenet_v1_0.25_128_quant":
        self.assertEqual(summary.tflm_reasons, [
            "it lacks CONV_2D of UINT8, DEPTHWISE_CONV_2D of UINT8"])


class CommandTest(parameterized.TestCase):

  def run_main(self, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = inspect_command.main(["kap-inspect", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()

  def path(self, content):
    path = tiny.folder(self) / "net.tflite"
    path.write_bytes(content)
    return path

  def test_text_and_json(self):
    content = helpers.converted()
    path = self.path(content)
    self.assertEqual(
        self.run_main(path), (0, f"{inspect_file(content)}\n", ""))
    code, out, err = self.run_main(path, "--output=json")
    self.assertEqual((code, err), (0, ""))
    self.assertEqual(json.loads(out), json.loads(json.dumps(
        inspect_file(content).to_dict())))
    self.assertEqual(self.run_main(path)[1], f"{inspect_file(content)}\n")

  @parameterized.parameters(
      ([], "one .tflite file must be given; got none"),
      (["a", "b"], "got a b"), (["missing.tflite"], "missing.tflite"),
      (["a", "--output=xml"], "output"), (["a", "--layer=x"], "layer"))
  def test_bad_input(self, arguments, words):
    code, out, err = self.run_main(*arguments)
    self.assertEqual((code, out), (2, ""))
    self.assertRegex(err, f"^kap-inspect: bad input: .*{words}")

  def test_damaged_files(self):
    content = helpers.converted()
    rng = np.random.default_rng(0)
    path = self.path(content)
    for _ in range(30):
      damaged = bytearray(content)
      damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
      path.write_bytes(damaged)
      code, out, err = self.run_main(path)
      self.assertEqual((code, out), (2, ""))
      self.assertIn("tflite_model", err)

  @parameterized.parameters("--help", "-h")
  def test_help(self, flag):
    code, out, _ = self.run_main(flag)
    self.assertEqual(code, 0)
    self.assertIn("kap-inspect net.tflite", out)
    self.assertIn("--output", out)

  @pytest.mark.slow("binaries")  # Without other packages: import_test.
  def test_as_a_process(self):
    done = helpers.run_module(
        "keras_attr_preserve.export.commands.inspect_command",
        [str(self.path(int8_file()))])
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("TFLite Micro", done.stdout)


if __name__ == "__main__":
  absltest.main()
