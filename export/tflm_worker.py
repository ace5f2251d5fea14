"""Runs a .tflite file in the TFLite Micro interpreter: a script of its own.

    python tflm_worker.py FOLDER

FOLDER holds `model.tflite`, `in.npz` (arrays named by the input's position, the
first axis the images) and `outputs.json` (positions of the outputs wanted);
`out.npz` is written there. It imports neither TensorFlow nor this package, so
that it starts fast.
"""

import importlib.util
import json
import sys
from pathlib import Path


def installed() -> bool:
  """Says whether the package tflite-micro is there, without loading it."""
  return importlib.util.find_spec("tflite_micro") is not None


def main(folder: str) -> None:
  """Runs every image through the file."""
  import numpy as np
  from tflite_micro import runtime

  path = Path(folder)
  interpreter = runtime.Interpreter.from_bytes(
      (path / "model.tflite").read_bytes())
  with np.load(path / "in.npz") as file:
    inputs = {int(name): file[name] for name in file.files}
  wanted = json.loads((path / "outputs.json").read_text())
  rows = {position: [] for position in wanted}
  for i in range(len(next(iter(inputs.values())))):
    for position, images in inputs.items():
      interpreter.set_input(images[i:i + 1], position)
    interpreter.invoke()
    for position in wanted:
      rows[position].append(interpreter.get_output(position).copy())
  np.savez(path / "out.npz", **{
      str(position): np.concatenate(row) for position, row in rows.items()})


if __name__ == "__main__":
  main(sys.argv[1])
