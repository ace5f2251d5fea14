"""Keeps what version 0.1 made: models, files, result rows, names.

    PYTHONPATH=. .venv/bin/python tools/keep_0_1.py

It writes tests/fixtures/version_0_1.zip and tests/fixtures/names_0_1.json.
"""

import ast
import inspect
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tf_keras as keras

import keras_attr_preserve as kap
from keras_attr_preserve.saving import save_model
from tests import export_helpers, saving_test, tiny

FOLDER = Path("tests/fixtures")
# Phone: the two ways to a map and the file without one. One subgraph: two.
SOURCES = {"phone": ("tail", "whole", "features"),
           "microcontroller": ("features", "gradient")}


def models(add):
  """Saves a model of each compressed kind, and what it answers."""
  for name, kind, ending in saving_test.CASES:
    if ending == "" and kind not in ("plain", "pruned", "pqat"):
      continue  # A SavedModel is large; three kinds show what differs.
    model = saving_test._made(kind)
    with tempfile.TemporaryDirectory() as folder:
      path = save_model(model, Path(folder) / f"{name}{ending}")
      if path.is_dir():
        for file in sorted(path.rglob("*")):
          if file.is_file():
            add(f"models/{name}/{file.relative_to(path)}", file.read_bytes())
      else:
        add(f"models/{path.name}", path.read_bytes())
    add(f"models/{name}.npy", npy(model(saving_test.PICTURES).numpy()))


def npy(array):
  """Returns the bytes of an .npy file."""
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def files(add):
  """Converts in every mode, for each way to a map, and keeps the answers."""
  images = tiny.images(4, 1, 8)
  calibration = tiny.images(32, 2, 8)
  add("images.npy", npy(images))
  for mode in export_helpers.MODES:
    for target, roads in SOURCES.items():
      for road in roads:
        for method in ("swa", "ewa"):
          if road == "gradient" and (method == "ewa" or mode == "int16x8"):
            continue
          tail = "flatten" if road == "gradient" else "gap"
          name = f"files/{target}-{road}-{method}-{mode}"
          model = tiny.conv_net(tail=tail, size=8, width=4, head="softmax")
          try:
            content = kap.export.convert(
                model, kap.WCAM("act", method=method), mode=mode, target=target,
                road=road, representative_images=calibration)
          except ValueError as error:
            print(name, str(error)[:150])
            continue
          add(f"{name}.tflite", content)
          explained = kap.export.Interpreter(content).explain(images)
          add(f"{name}-logits.npy", npy(explained.logits))
          if explained.maps is not None:
            add(f"{name}-maps.npy", npy(explained.maps))


def rows(add):
  """One row of each page of results."""
  for path in sorted(Path("docs/results/rows").glob("*/results.jsonl")):
    lines = path.read_text().splitlines()
    add(f"rows/{path.parent.name}.jsonl",
        ("\n".join(lines[:3]) + "\n").encode())


def names():
  """Public names with their keywords, and every program's flags."""
  public = {}
  for prefix, module in (("kap", kap), ("kap.attribution", kap.attribution),
                         ("kap.evaluation", kap.evaluation),
                         ("kap.objectives", kap.objectives),
                         ("kap.export", kap.export)):
    for name in module.__all__:
      thing = getattr(module, name)
      full = f"{prefix}.{name}"
      if inspect.ismodule(thing):
        public[full] = []
        continue
      public[full] = parameters(thing)
      if inspect.isclass(thing):
        for method, value in vars(thing).items():
          if not method.startswith("_") and callable(value):
            public[f"{full}.{method}"] = parameters(value)
          elif not method.startswith("_") and isinstance(value, property):
            public[f"{full}.{method}"] = []
        for field in getattr(thing, "_fields", ()) or getattr(
            thing, "__dataclass_fields__", ()):
          public.setdefault(f"{full}.{field}", [])
  flags = {}
  for folder in ("examples", "export/commands"):
    for path in sorted(Path(folder).rglob("*.py")):
      defined = sorted({
          node.args[0].value for node in ast.walk(ast.parse(path.read_text()))
          if isinstance(node, ast.Call) and node.args
          and getattr(node.func, "attr", "").startswith("DEFINE_")
          and isinstance(node.args[0], ast.Constant)})
      if defined:
        flags[str(path)] = defined
  return {"names": public, "flags": flags}


def parameters(thing):
  """Names the parameters of a callable."""
  try:
    return [name for name in inspect.signature(thing).parameters
            if name not in ("self", "cls")]
  except (TypeError, ValueError):
    return []


def main():
  """Writes both files."""
  keras.utils.set_random_seed(0)
  FOLDER.mkdir(exist_ok=True)
  (FOLDER / "names_0_1.json").write_text(json.dumps(names(), indent=1) + "\n")
  with zipfile.ZipFile(
      FOLDER / "version_0_1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    def add(name, content):
      archive.writestr(zipfile.ZipInfo(name), content,
                       zipfile.ZIP_DEFLATED)
    files(add)
    rows(add)
    models(add)


if __name__ == "__main__":
  main()
