"""Runs files in the TFLite Micro interpreter, in separate processes.

That interpreter prints, and ends its process on files that it cannot take. So
this module starts itself as a script. The script imports neither TensorFlow nor
this package and starts fast:

    python tflm_process.py FOLDER run|measure

FOLDER holds `model.tflite`. "run" reads `in.npz`, arrays named by the input's
position with the images as first axis, and `outputs.json`, the positions of the
outputs to read. It writes `out.npz`; "measure" writes `arena.json`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["installed", "measure", "run"]

# Far above a microcontroller's file: milliseconds for an image, megabytes.
TIMEOUT = 600.0
MEMORY = 8 << 30


def installed() -> bool:
  """Says whether the package tflite-micro is installed; does not load it."""
  return importlib.util.find_spec("tflite_micro") is not None


def run(
    tflite_model: bytes,
    inputs: Mapping[int, np.ndarray],
    outputs: Sequence[int],
) -> dict[int, np.ndarray]:
  """Runs a file on images.

  Args:
    tflite_model: the bytes of a file with one subgraph.
    inputs: arrays by position, in the tensors' own number types; the first axis
      is the images.
    outputs: the positions of the outputs to read.

  Returns:
    The outputs by position, a row for each image.

  Raises:
    ImportError: the package tflite-micro is not installed.
    ValueError: the interpreter refuses the file, dies, or does not end.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    np.savez(path / "in.npz", **{
        str(position): array for position, array in inputs.items()})
    (path / "outputs.json").write_text(json.dumps(list(outputs)))
    _call(tflite_model, path, "run")
    with np.load(path / "out.npz", allow_pickle=False) as out:
      return {position: out[str(position)] for position in outputs}


def measure(tflite_model: bytes) -> dict[str, int]:
  """Measures a file's arena; see `arena.MeasuredArena`.

  Args:
    tflite_model: the bytes of a file with one subgraph.

  Returns:
    "head", "tail" and "smallest", in bytes.

  Raises:
    ImportError, ValueError: as for `run`.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    _call(tflite_model, path, "measure")
    return json.loads((path / "arena.json").read_text())


def _call(tflite_model: bytes, folder: Path, command: str) -> None:
  """Runs the script; raises if it fails."""
  if not installed():
    raise ImportError(
        "runtime 'tflm' needs the package tflite-micro (Linux x86-64): "
        "pip install tflite-micro")
  (folder / "model.tflite").write_bytes(tflite_model)
  try:
    done = subprocess.run(
        [sys.executable, __file__, str(folder), command], capture_output=True,
        text=True, errors="replace", check=False, timeout=TIMEOUT)
  except subprocess.TimeoutExpired as error:
    raise ValueError(
        "tflite_model: the runtime 'tflm' did not end within "
        f"{error.timeout:g} seconds.") from error
  if done.returncode:
    raise ValueError(
        "tflite_model is refused by the runtime 'tflm' (exit "
        f"{done.returncode}): {_reason(done.stderr)}")


def _reason(text: str) -> str:
  """Returns the last lines of a failed process, before and in its traceback."""
  before, *trace = text.strip().split("Traceback (most recent call last)")
  lines = before.strip().splitlines()[-2:] + "".join(trace).splitlines()[-1:]
  return " / ".join(lines) or "it said nothing"


def _plenty(content: bytes) -> int:
  """Returns the bytes of a large arena; the default is too small for some."""
  return 10 * len(content) + (64 << 20)


def _run(folder: Path) -> None:
  """In the process: runs every image through the file."""
  from tflite_micro import runtime

  content = (folder / "model.tflite").read_bytes()
  interpreter = runtime.Interpreter.from_bytes(
      content, arena_size=_plenty(content))
  with np.load(folder / "in.npz", allow_pickle=False) as file:
    inputs = {int(name): file[name] for name in file.files}
  positions = json.loads((folder / "outputs.json").read_text())
  rows = {position: [] for position in positions}
  for i in range(len(next(iter(inputs.values())))):
    for position, images in inputs.items():
      interpreter.set_input(images[i:i + 1], position)
    interpreter.invoke()
    for position in positions:
      rows[position].append(interpreter.get_output(position).copy())
  np.savez(folder / "out.npz", **{
      str(position): np.concatenate(row) for position, row in rows.items()})


def _measure(folder: Path) -> None:
  """In the process: reads the interpreter's report, then tries less memory."""
  from tflite_micro import runtime

  content = (folder / "model.tflite").read_bytes()

  def fits(size: int) -> bool:
    # Forked, since too small an arena may end the process.
    child = os.fork()
    if not child:
      code = 1
      try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        runtime.Interpreter.from_bytes(content, arena_size=size)
        code = 0
      finally:
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0

  with open(folder / "said.txt", "w+b") as said:
    interpreter = runtime.Interpreter.from_bytes(
        content, arena_size=_plenty(content))
    stderr = os.dup(2)
    os.dup2(said.fileno(), 2)
    interpreter.print_allocations()
    os.dup2(stderr, 2)
    said.seek(0)
    sizes = dict(re.findall(
        r"Arena allocation (head|tail) (\d+) bytes", said.read().decode()))
  arena = {name: int(sizes[name]) for name in ("head", "tail")}
  # Steps of 16 bytes; an arena of `most` steps fits.
  least, most = 0, (sum(arena.values()) + 15) // 16
  while not fits(16 * most):
    least, most = most, 2 * most
  while most - least > 1:
    middle = (least + most) // 2
    least, most = (least, middle) if fits(16 * middle) else (middle, most)
  (folder / "arena.json").write_text(json.dumps(
      {**arena, "smallest": 16 * most}))


if __name__ == "__main__":
  import resource  # Not on Windows, where this script does not run.

  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  {"run": _run, "measure": _measure}[sys.argv[2]](Path(sys.argv[1]))
