"""Imports only go down: the floors of the house, read with ast."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from absl.testing import absltest

import keras_attr_preserve

PACKAGE = "keras_attr_preserve"
FLOORS = (
    ("compat", "files", "image_sources", "wcam", "gradient_rules", "progress",
     "notices"),
    ("call_swap", "drawing", "images", "scores", "left_whole"),
    ("layers", "iterative_pruning", "layer_sparsity", "channel_graph",
     "keras3_layers", "model_files", "layer_moments", "preserving",
     "batch_statistics", "inner_functions"),
    ("inputs", "layer_fitting", "staged_inputs", "channel_costs",
     "augmentation", "layer_inputs", "heads", "held_weights"),
    ("float_images",),
    ("tap", "teacher_cache", "channel_slicing", "keras3", "saving",
     "batch_norm", "reconstruction", "kernel_equalization",
     "quantizer_calibration", "unnesting"),
    ("regularizer", "attribution", "narrowing"),
    ("objectives", "evaluation", "meters", "guidance", "weighting",
     "hints", "channel_gates", "channel_reconstruction"),
    ("training", "filter_pruning", "step_function"),
    ("callbacks", "agreement_logger"),
    ("export",),
    ("examples",),
    ("tests",),
)
# The rooms of export, from the ground up. Neighbours do not see each other.
EXPORT_FLOORS = (
    ("files",),
    ("running",),
    ("reading",),
    ("converting",),
    ("judging", "microcontrollers"),
    ("commands",),
)
HEAVY = ("tf_explain", "cv2", "matplotlib", "tensorboard", "sklearn", "scipy",
         "tflite_micro", "keras")


def _roots() -> dict[str, Path]:
  """The folders to read, by the package name of each."""
  package = Path(keras_attr_preserve.__file__).parent
  tests = Path(__file__).parent
  roots = {PACKAGE: package, f"{PACKAGE}.export": package.parent / "export",
           "examples": tests.parent / "examples", "tests": tests}
  # Installed from a wheel, export lies inside the package.
  return {name: folder for name, folder in roots.items() if folder.is_dir()}


@functools.cache
def _modules() -> dict[str, ast.Module]:
  """Every module's syntax tree, by its full name."""
  trees = {}
  for package, folder in _roots().items():
    for path in sorted(folder.rglob("*.py")):
      parts = path.relative_to(folder).with_suffix("").parts
      if parts[-1] == "__init__":
        parts = parts[:-1]
      trees[".".join((package, *parts))] = ast.parse(path.read_text())
  return trees


def _statements(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
  """A tree's nodes, no expressions: these import nothing.

  Args:
    tree: a module's.
    functions: whether also what runs only when a function is called.
  """
  nodes = [tree]
  while nodes:
    node = nodes.pop()
    yield node
    nodes += [
        child for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.expr) and (functions or not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef))]


@functools.cache
def _imports(
    tree: ast.AST, module: str, functions: bool = True) -> frozenset[str]:
  """Full names that a tree imports; `from a import b` gives a.b."""
  names = set()
  for node in _statements(tree, functions):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{module}: a relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return frozenset(names)


def _room(name: str) -> str | None:
  """The room of a module: keras_attr_preserve.models.layers -> layers."""
  parts = name.split(".")
  if parts[0] == PACKAGE:
    return parts[1] if len(parts) > 1 else PACKAGE
  return parts[0] if parts[0] in ("examples", "tests") else None


def _floor(room: str) -> int:
  return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def _faults(modules: dict[str, ast.Module]) -> list[str]:
  known = {room for rooms in FLOORS for room in rooms}
  faults = []
  for module, tree in modules.items():
    room = _room(module)
    if room == PACKAGE:
      continue  # The package's own __init__ gathers every public name.
    if room not in known:
      faults.append(f"{module} stands on no floor of FLOORS")
      continue
    for name in sorted(_imports(tree, module)):
      other = _room(name)
      if other is None or other == room:
        continue
      if other not in known:
        # The package itself (its public names), or a name that it exports.
        if _floor(room) < _floor("examples"):
          faults.append(f"{module} imports {name}, the package that holds it")
      elif _floor(other) >= _floor(room):
        faults.append(f"{module} imports {name}, which is not below it")
  return faults


def _export_faults(modules: dict[str, ast.Module]) -> list[str]:
  """Imports within export that do not go down."""
  def floor(name):
    parts = name.split(".")
    if parts[:2] != [PACKAGE, "export"] or len(parts) < 3:
      return None, None
    return parts[2], next((i for i, rooms in enumerate(EXPORT_FLOORS)
                           if parts[2] in rooms), None)

  faults = []
  for module, tree in modules.items():
    room, height = floor(module)
    if room is None:
      continue
    if height is None:
      faults.append(f"{module} stands on no floor of EXPORT_FLOORS")
      continue
    for name in sorted(_imports(tree, module)):
      other, theirs = floor(name)
      if other not in (None, room) and (theirs is None or theirs >= height):
        faults.append(f"{module} imports {name}, which is not below it")
  return faults


class FloorsTest(absltest.TestCase):

  def test_imports_only_go_down(self):
    self.assertEmpty(_faults(_modules()))

  def test_imports_within_export_only_go_down(self):
    modules = _modules()
    self.assertEmpty(_export_faults(modules))
    rooms = {name.split(".")[2] for name in modules
             if name.startswith(f"{PACKAGE}.export.")}
    self.assertEqual(rooms, {one for rooms in EXPORT_FLOORS for one in rooms})
    for module, code in (
        ("files.seal", "from keras_attr_preserve.export.running import arena"),
        ("judging.drift",
         "from keras_attr_preserve.export.firmware.device_model import x"),
        ("attic.box", "")):
      self.assertLen(_export_faults(
          {f"{PACKAGE}.export.{module}": ast.parse(code)}), 1, module)

  def test_every_room_is_read(self):
    rooms = {_room(name) for name in _modules()}
    self.assertContainsSubset(
        {"compat", "wcam", "layers", "evaluation", "attribution", "training",
         "callbacks", "export"}, rooms)

  def test_a_fault_would_be_seen(self):
    for module, code in (
        ("wcam", "from keras_attr_preserve.compat import tf"),  # No neighbour.
        ("layers", "from keras_attr_preserve import training"),
        ("layers", "def f():\n  import keras_attr_preserve.training.preserve_attribution"),
        ("attribution.cam", "from keras_attr_preserve import evaluation"),
        ("training", "from tests import tiny"),
        ("training", "from keras_attr_preserve import WCAM"),
        ("surprise", "")):
      self.assertLen(
          _faults({f"{PACKAGE}.{module}": ast.parse(code)}), 1, (module, code))
    for module, code in (
        ("layers", "from keras_attr_preserve import wcam"),
        ("evaluation.a", "from keras_attr_preserve.evaluation.b import c"),
        ("callbacks", "import numpy\nfrom tensorflow import keras")):
      self.assertEmpty(
          _faults({f"{PACKAGE}.{module}": ast.parse(code)}), (module, code))

  def test_nothing_imports_export_by_its_folder(self):
    for module, tree in _modules().items():
      for name in _imports(tree, module):
        self.assertNotEqual(name.split(".")[0], "export", module)

  def test_heavy_packages_are_imported_where_they_are_needed(self):
    for module, tree in _modules().items():
      if _room(module) in ("examples", "tests"):
        continue
      for name in _imports(tree, module, functions=False):
        self.assertNotIn(name.split(".")[0], HEAVY, module)

  def test_a_heavy_import_would_be_seen(self):
    tree = ast.parse(
        "import os\nif os:\n  import cv2.x\ndef f():\n  import sklearn")
    self.assertEqual(
        _imports(tree, "m", functions=False), {"os", "cv2.x"})

  def test_private_tensorflow_stays_in_one_module(self):
    users = {module for module, tree in _modules().items()
             if _room(module) != "tests" and any(
                 name.startswith("tensorflow.python")
                 for name in _imports(tree, module))}
    self.assertEqual(users, {f"{PACKAGE}.gradient_rules"})


if __name__ == "__main__":
  absltest.main()
