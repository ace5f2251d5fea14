"""Compiling and running the C sources that the tests share.

A program is built on this computer, or for an emulated board of each Cortex-M
(tools/setup_arm.sh installs what that needs).
"""

import shutil
import subprocess
import tempfile
import types
import unittest
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_attr_preserve.export.firmware.c_files import explain_files
from keras_attr_preserve.export.firmware.c_test_files import test_files
from keras_attr_preserve.export.firmware.integer_maps import explain_features
from keras_attr_preserve.export.tflite.schema import TensorSpec

STRICT = ("-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wsign-conversion",
          "-pedantic", "-Wshadow", "-Wundef", "-Wmissing-prototypes")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# For each processor: the emulated board, where code and memory begin, and how
# much memory there is.
BOARDS = {
    "cortex-m0": ("microbit", 0, 0x20000000, 0x4000),
    "cortex-m0plus": ("mps2-an385", 0, 0x20000000, 0x400000),
    "cortex-m3": ("mps2-an385", 0, 0x20000000, 0x400000),
    "cortex-m4": ("mps2-an386", 0, 0x20000000, 0x400000),
    "cortex-m7": ("mps2-an500", 0, 0x20000000, 0x400000),
    "cortex-m33": ("mps2-an505", 0x10000000, 0x38000000, 0x400000),
}
_ARM = Path(__file__).absolute().parent / "arm"


def _needs(*programs: str):
  missing = [program for program in programs if not shutil.which(program)]
  return unittest.skipIf(missing, f"not installed: {', '.join(missing)}; "
                         "see tools/setup_arm.sh")


needs_compiler = _needs("gcc", "g++")
needs_arm = _needs("arm-none-eabi-gcc", "qemu-system-arm")


def run(*command, timeout: float = 120) -> subprocess.CompletedProcess:
  """Runs a program; its output is text."""
  return subprocess.run(
      [str(argument) for argument in command], capture_output=True, text=True,
      check=False, timeout=timeout)


def compiled(*command) -> subprocess.CompletedProcess:
  """Runs a compiler, which must have nothing to say."""
  done = run(*command)
  assert not done.returncode, done.stderr
  return done


def host_test(folder: Path, name: str, *flags: str) -> (
    subprocess.CompletedProcess):
  """Builds the test of an export on this computer, strictly, and runs it."""
  with tempfile.TemporaryDirectory() as place:
    objects = []
    if (folder / f"{name}_model.cc").exists():
      objects = [Path(place) / "model.o"]
      compiled("g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic",
               "-c", folder / f"{name}_model.cc", "-o", objects[0])
    compiled("gcc", "-std=c99", *STRICT, *(flags or ("-O1", *SANITIZED)),
             f"-D{name.upper()}_TEST_MAIN", folder / f"{name}_explain.c",
             folder / f"{name}_test.c", *objects, "-o", Path(place) / "test")
    return run(Path(place) / "test")


def board_test(folder: Path, name: str, processor: str) -> tuple[
    subprocess.CompletedProcess, int]:
  """Builds the test for a processor and runs it on an emulated board.

  Returns:
    The printed text, and the bytes of code and constants of the explain head.
  """
  board, code, memory, size = BOARDS[processor]
  gcc = ("arm-none-eabi-gcc", f"-mcpu={processor}", "-mthumb")
  with tempfile.TemporaryDirectory() as place:
    head, program = Path(place) / "head.o", Path(place) / "test.elf"
    compiled(*gcc, "-std=c99", "-Os", *STRICT, "-c",
             folder / f"{name}_explain.c", "-o", head)
    compiled(
        *gcc, "-O2", "-std=gnu99", f"-D{name.upper()}_TEST_MAIN",
        "--specs=rdimon.specs", "-T", _ARM / "board.ld",
        f"-Wl,--defsym=CODE={code},--defsym=RAM={memory}"
        f",--defsym=RAM_SIZE={size},--gc-sections,--no-warn-rwx-segments",
        _ARM / "start.c", head, folder / f"{name}_test.c", "-x", "c",
        folder / f"{name}_model.cc", "-o", program)
    sizes = run("arm-none-eabi-size", head).stdout.splitlines()[1].split()
    done = run(
        "qemu-system-arm", "-M", board, "-nographic", "-monitor", "none",
        "-serial", "none", "-semihosting-config", "enable=on,target=native",
        "-kernel", program)
    return done, sum(map(int, sizes[:2]))


def synthetic(head, shape, logits: int, zero_point: int = -128):
  """A stand-in for a `DeviceModel` whose head was made up.

  Args:
    head: an `IntegerHead`.
    shape: of the features, without the batch.
    logits: how many.
    zero_point: of the features.
  """
  features = TensorSpec(1, (1, *shape), np.dtype(np.int8), 0.1, zero_point)
  scores = TensorSpec(0, (1, logits), np.dtype(np.int8), 0.1, 0)
  return types.SimpleNamespace(
      kind="hidden" if head.hidden else "linear", head=head, logits=logits,
      outputs={"features": features, "logits": scores}, content=b"",
      metadata={"layer": "made up", "method": "swa"}, raw_unit=1.0)


def synthetic_test(
    device, features: np.ndarray, weights: np.ndarray, head=None) -> (
        tuple[subprocess.CompletedProcess, Mapping[str, np.ndarray]]):
  """Holds the C sources of a made-up head against NumPy's maps.

  Args:
    device: from `synthetic`.
    features: int8 `[images, height, width, channels]`.
    weights: int8 `[images, logits]`.
    head: the head that NumPy computes; None for the device's.

  Returns:
    What the test printed, and the vectors.
  """
  maps = [explain_features(
      head or device.head, device.outputs["features"].zero_point, *pair)
          for pair in zip(features, weights)]
  count = len(maps)
  vectors = {
      "inputs": np.zeros([count, 1], np.int8),
      "logits": np.zeros([count, device.logits], np.int8),
      "features": features, "top": np.zeros(count, np.int32),
      "images": np.arange(count, dtype=np.int32),
      "targets": np.full(count, -1, np.int32), "weights": weights,
      "status": np.int32([explanation.status for explanation in maps]),
      "maps": np.stack([explanation.map for explanation in maps]),
      "raw": np.stack([explanation.raw for explanation in maps])}
  with tempfile.TemporaryDirectory() as place:
    for name, text in {**explain_files(device, "net"),
                       **test_files(device, "net", vectors)}.items():
      (Path(place) / name).write_text(text)
    return host_test(Path(place), "net"), vectors
