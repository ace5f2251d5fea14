"""Imports only go down: the floors of the house, read with ast."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

from absl.testing import absltest, parameterized

import keras_attr_preserve

PACKAGE = "keras_attr_preserve"
# From the ground up. Folders of one floor do not import each other.
FLOORS = (
    ("compat",), ("map_formulas",), ("utils",), ("models",), ("attribution",),
    ("evaluation", "compression"), ("training",),
    ("export.tflite",), ("export.runtime",), ("export.tensors",),
    ("export.third_party", "export.conversion"),
    ("export.verification", "export.diagnosis", "export.firmware"),
    ("export.commands",), ("examples",), ("tests",))
HEIGHT = {folder: i for i, floor in enumerate(FLOORS) for folder in floor}
HEAVY = ("tf_explain", "cv2", "matplotlib", "tensorboard", "sklearn", "scipy",
         "tflite_micro", "keras")


@functools.cache
def _modules() -> dict[str, ast.Module]:
  """Every module's syntax tree, by its full name."""
  package = Path(keras_attr_preserve.__file__).parent
  checkout = Path(__file__).parents[1]
  # Installed from a wheel, export lies inside the package.
  folders = {PACKAGE: package, f"{PACKAGE}.export": package.parent / "export",
             "examples": checkout / "examples", "tests": checkout / "tests"}
  trees = {}
  for name, folder in folders.items():
    for path in sorted(folder.rglob("*.py")):
      parts = path.relative_to(folder).with_suffix("").parts
      if parts[-1] == "__init__":
        parts = parts[:-1]
      trees[".".join((name, *parts))] = ast.parse(path.read_text())
  return trees


def _imports(
    tree: ast.AST, functions: bool = True) -> Iterator[tuple[str, ...]]:
  """Full names that each import of a tree may mean, the longest first.

  Args:
    tree: a module's.
    functions: whether also what runs only when a function is called.
  """
  nodes = [tree]
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Import):
      yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "a relative import"
      yield from ((f"{node.module}.{alias.name}", node.module)
                  for alias in node.names)
    nodes += [
        child for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.expr) and (functions or not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef))]


def _folder(name: str) -> str | None:
  """The folder of FLOORS that a module stands in; "" for none of ours."""
  parts = name.split(".")
  if parts[0] != PACKAGE:
    return parts[0] if parts[0] in HEIGHT else None
  return ".".join(parts[1:3] if parts[1:2] == ["export"] else parts[1:2])


def _faults(modules: dict[str, ast.Module]) -> list[str]:
  faults = []
  for module, tree in modules.items():
    own = _folder(module)
    if own in ("", "export"):
      continue  # These gather the public names.
    if own not in HEIGHT:
      faults.append(f"{module} stands on no floor of FLOORS")
      continue
    for names in _imports(tree):
      other = _folder(names[0])
      if other in (None, own):
        continue
      if HEIGHT.get(other, HEIGHT["examples"] - 0.5) >= HEIGHT[own]:
        faults.append(f"{module} imports {names[0]}, which is not below it")
  return faults


class FloorsTest(parameterized.TestCase):

  def test_imports_only_go_down(self):
    self.assertEmpty(_faults(_modules()))

  def test_every_folder_is_read(self):
    self.assertEqual(
        {_folder(name) for name in _modules()}, {*HEIGHT, "", "export"})

  @parameterized.parameters(
      ("map_formulas", "import keras_attr_preserve.models.tap", 1),
      ("models.layers", "from keras_attr_preserve import training", 1),
      ("models.tap",
       "def f():\n  import keras_attr_preserve.training.hints", 1),
      ("evaluation.report", "from keras_attr_preserve import compression", 1),
      ("export.tflite.seal", "from keras_attr_preserve.export.runtime import x",
       1),
      ("export.diagnosis.drift",
       "from keras_attr_preserve.export.firmware.device_model import x", 1),
      ("training.teacher", "from keras_attr_preserve import WCAM", 1),
      ("training.teacher", "from tests import tiny", 1),
      ("attic.box", "", 1),
      ("models.layers", "from keras_attr_preserve import map_formulas", 0),
      ("evaluation.report",
       "from keras_attr_preserve.evaluation.ranks import x",
       0),
      ("training.teacher", "import numpy\nfrom tensorflow import keras", 0))
  def test_a_fault_would_be_seen(self, module, code, count):
    self.assertLen(
        _faults({f"{PACKAGE}.{module}": ast.parse(code)}), count)

  def test_no_two_modules_import_each_other(self):
    modules = _modules()
    graph = {module: {name for names in _imports(tree) for name in names
                      if name in modules and name != module}
             for module, tree in modules.items()
             if _folder(module) not in ("", "export")}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError.

  def test_nothing_imports_export_by_its_folder(self):
    for module, tree in _modules().items():
      for names in _imports(tree):
        self.assertNotEqual(names[0].split(".")[0], "export", module)

  def test_heavy_packages_are_imported_where_they_are_needed(self):
    for module, tree in _modules().items():
      if _folder(module) in ("examples", "tests"):
        continue
      for names in _imports(tree, functions=False):
        self.assertNotIn(names[0].split(".")[0], HEAVY, module)

  def test_a_heavy_import_would_be_seen(self):
    tree = ast.parse(
        "import os\nif os:\n  import cv2.x\ndef f():\n  import sklearn")
    self.assertEqual(
        {*_imports(tree, functions=False)}, {("os",), ("cv2.x",)})

  def test_private_tensorflow_stays_in_one_module(self):
    users = {module for module, tree in _modules().items()
             if _folder(module) != "tests" and any(
                 names[0].startswith("tensorflow.python")
                 for names in _imports(tree))}
    self.assertEqual(users, {f"{PACKAGE}.models.gradient_rules"})


if __name__ == "__main__":
  absltest.main()
