"""Tests of the C sources as this computer's compilers take them."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from keras_attr_preserve.export.firmware.c_writing import (
  array,
  float_literal,
  string_literal,
)
from keras_attr_preserve.export.tflite.tflm_operators import RESOLVER_METHODS
from tests import c_programs, tiny
from tests import device_exports as exports

NAME = exports.NAME
_DUMP = r"""
#include <stdio.h>
#include "tiny_net_model.h"
int main(void) {
  unsigned long place = (unsigned long)(const void *)tiny_net_model;
  int i;
  for (i = 0; i < 3; ++i) fprintf(stderr, "%s\n", tiny_net_labels[i]);
  fprintf(stderr, "%lu", place % 16);
  return fwrite(tiny_net_model, 1, TINY_NET_MODEL_SIZE, stdout) == 0;
}
"""
# What the sources ask of TensorFlow Lite for Microcontrollers, and no more.
_INTERPRETER = """
#pragma once
#include <cstddef>
#include <cstdint>
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"
union TfLitePtrUnion { std::int8_t* int8; };
struct TfLiteTensor { TfLitePtrUnion data; };
namespace tflite {
class MicroInterpreter {
 public:
  MicroInterpreter(const Model*, const MicroOpResolver&, std::uint8_t*,
                   std::size_t);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(std::size_t);
  TfLiteTensor* output(std::size_t);
  std::size_t arena_used_bytes() const;
};
}
"""
_SCHEMA = """
#pragma once
namespace tflite {
struct Model;
const Model* GetModel(const void*);
}
"""
_RESOLVER = """
#pragma once
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
namespace tflite {
class MicroOpResolver {};
template <unsigned int tOpCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
%s
};
}
"""


def stubs(folder: Path) -> Path:
  """Writes headers that declare what the sources use of TFLite Micro."""
  lite = folder / "tensorflow" / "lite"
  (lite / "micro").mkdir(parents=True)
  (lite / "schema").mkdir()
  (lite / "schema" / "schema_generated.h").write_text(_SCHEMA)
  (lite / "micro" / "micro_interpreter.h").write_text(_INTERPRETER)
  (lite / "micro" / "micro_mutable_op_resolver.h").write_text(
      _RESOLVER % "\n".join(
          f"  TfLiteStatus {method}();"
          for method in RESOLVER_METHODS.values()))
  return folder


class WritingTest(parameterized.TestCase):

  def test_arrays(self):
    self.assertEqual(array("a", np.int8([1, -2])),
                     "static const int8_t a[2] = {\n  1, -2\n};\n")
    self.assertEqual(
        array("b", np.uint32([[1], [2**32 - 1]])),
        "static const uint32_t b[2][1] = {\n{\n  1u\n},\n{\n  4294967295u\n}};"
        "\n")
    self.assertIn("INT64_C(-5)", array("c", np.int64([-5])))
    self.assertIn("(-2147483647 - 1)", array("d", np.int32([-2**31])))
    long = array("e", np.arange(1000, dtype=np.int32))
    self.assertLess(max(map(len, long.splitlines())), 81)
    self.assertEqual(
        long.split("{")[1].replace("};", "").replace("\n", "").replace(" ", ""),
        ",".join(map(str, range(1000))))

  @parameterized.parameters(0.1, 1e-30, 1 / 255, 3.0, 1e20)
  def test_floats(self, value):
    text = float_literal(value)
    self.assertEndsWith(text, "f")
    self.assertEqual(np.float32(text[:-1]), np.float32(value))

  def test_strings(self):
    self.assertEqual(string_literal("cat"), '"cat"')
    self.assertEqual(string_literal('"\\?\n'), r'"\042\134\077\012"')
    self.assertEqual(string_literal("ö1"), r'"\303\2661"')


@c_programs.needs_compiler
class HostTest(parameterized.TestCase):

  # The first of flags: under the sanitizers of addresses and of undefined
  # behaviour.
  @parameterized.parameters(
      *((kind, ()) for kind in exports.QUICK),
      ("hidden", ("-O3", "-funsigned-char")))
  def test_maps_bit_for_bit(self, kind, flags):
    self.check_maps(kind, flags)

  @parameterized.parameters(
      *((kind, ()) for kind in exports.SLOW),
      ("single", ("-O3", "-funsigned-char")),
      ("gradient", ("-O2", "-std=c11")))
  @pytest.mark.slow("firmware")
  def test_maps_of_other_kinds(self, kind, flags):
    self.check_maps(kind, flags)

  def check_maps(self, kind, flags):
    done = c_programs.host_test(exports.exported(kind), NAME, *flags)
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    count = 4 if kind == "ewa" else 13
    self.assertEqual(
        done.stdout, f"passed: {count} maps of 4 images, 0 numbers differ\n")

  def test_a_wrong_expectation_is_found(self):
    folder = tiny.folder(self)
    for path in exports.exported("linear").iterdir():
      text = path.read_bytes()
      if path.name == f"{NAME}_vectors.h":
        text = text.replace(b" 255,", b" 254,", 1)
      (folder / path.name).write_bytes(text)
    done = c_programs.host_test(folder, NAME)
    self.assertEqual(done.returncode, 1)
    self.assertRegex(done.stdout, "^FAILED: 13 maps of 4 images, [1-3] numbers")

  @parameterized.parameters("-std=c99", "-std=c11", "-std=c++11", "-std=c++17")
  def test_the_array_is_the_file(self, standard):
    folder = tiny.folder(self)
    (folder / "dump.c").write_text(_DUMP)
    language = "c++" if "++" in standard else "c"
    c_programs.compiled(
        "g++" if "++" in standard else "gcc", "-x", language, standard, "-Wall",
        "-Wextra", "-Werror", "-pedantic", f"-I{exports.exported('linear')}",
        exports.exported("linear") / f"{NAME}_model.cc", folder / "dump.c",
        "-o", folder / "dump")
    done = subprocess.run([folder / "dump"], capture_output=True, check=True)
    content = (exports.exported("linear") / f"{NAME}.tflite").read_bytes()
    self.assertEqual(done.stdout, content)
    *labels, place = done.stderr.decode().split("\n")
    self.assertEqual(labels, exports.LABELS)
    self.assertEqual(place, "0")

  @parameterized.parameters(*exports.QUICK)
  def test_what_needs_tflite_micro_compiles(self, kind):
    self.check_what_needs_tflite_micro(kind)

  @parameterized.parameters(*exports.SLOW)
  @pytest.mark.slow("firmware")
  def test_what_other_kinds_compile_to(self, kind):
    self.check_what_needs_tflite_micro(kind)
    self.check_library(kind)

  def check_what_needs_tflite_micro(self, kind):
    folder = tiny.folder(self)
    c_programs.compiled(
        "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
        f"-I{stubs(folder)}", exports.exported(kind) / f"{NAME}_tflm_test.cc")
    text = (exports.exported(kind) / f"{NAME}_resolver.h").read_text()
    calls = exports.facts(kind)["operators"]
    self.assertIn(f"constexpr int {NAME}_operators = {len(calls)};", text)
    for call in calls:
      self.assertIn(f"resolver.{call}();", text)

  def test_two_models_in_one_program(self):
    folder, objects = tiny.folder(self), []
    exports.export_again(
        "hidden", folder / "b", name="other", labels=list("abc"))
    for place, name in ((exports.exported("linear"), NAME),
                        (folder / "b", "other")):
      for suffix in ("_explain.c", "_model.cc", "_test.c"):
        objects.append(folder / f"{name}{suffix}.o")
        c_programs.compiled("gcc", "-x", "c", "-std=c99", "-c",
                            place / f"{name}{suffix}", "-o", objects[-1])
    (folder / "main.c").write_text(
        f"int {NAME}_test_maps(void);\nint other_test_maps(void);\n"
        f"int main(void) {{ return {NAME}_test_maps() + other_test_maps(); }}")
    c_programs.compiled("gcc", folder / "main.c", *objects, "-o",
                        folder / "both")
    self.assertEqual(c_programs.run(folder / "both").returncode, 0)

  def test_a_class_that_is_none(self):
    folder = tiny.folder(self)
    place = exports.exported("linear")
    c_programs.compiled(
        "gcc", "-x", "c", "-std=c99", "-shared", "-fPIC",
        place / f"{NAME}_explain.c", place / f"{NAME}_model.cc", "-o",
        folder / "head.so")
    head = ctypes.CDLL(str(folder / "head.so"))
    features = (ctypes.c_int8 * (8 * 8 * 16))()
    size = exports.facts("linear")["bytes"]["explanation"]
    out = (ctypes.c_uint8 * size)(*([7] * size))
    for target in (-1, 3, 2**31 - 1, -2**31):
      status = getattr(head, f"{NAME}_explain_class")(features, target, out)
      self.assertEqual(status, 2)
      self.assertEqual(set(out), {7})  # Nothing was written.
    self.assertIn(getattr(head, f"{NAME}_explain_class")(features, 2, out),
                  (0, 1))

  @parameterized.parameters(*exports.QUICK)
  def test_the_head_uses_no_library(self, kind):
    self.check_library(kind)

  def check_library(self, kind):
    folder = tiny.folder(self)
    c_programs.compiled(
        "gcc", "-std=c99", "-Os", "-ffreestanding", "-c",
        exports.exported(kind) / f"{NAME}_explain.c", "-o", folder / "head.o")
    symbols = c_programs.run("nm", "-u", folder / "head.o").stdout.split()[1::2]
    allowed = {f"{NAME}_model"} if exports.KINDS[kind] in (
        "linear", "hidden") else set()
    self.assertEqual(set(symbols) - {"_GLOBAL_OFFSET_TABLE_"}, allowed)
    # Nor floats, nor memory that lives on.
    text = (exports.exported(kind) / f"{NAME}_explain.c").read_text()
    self.assertNotRegex(text, r"\b(float|double|malloc|memset|printf)\b")
    sizes = c_programs.run("size", folder / "head.o").stdout.splitlines()[1]
    self.assertEqual(sizes.split()[1:3], ["0", "0"])


if __name__ == "__main__":
  absltest.main()
