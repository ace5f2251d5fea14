"""Puts small faults into the library and sees whether its tests fail.

    python tools/mutants.py --count=200 --seed=1 --jobs=2

A mutant is a module with one fault: an operator, a comparison, a constant or a
condition changed, a statement or a keyword left out. Each runs in a child of a
process that has imported TensorFlow, against the tests of its module, until the
first fails. Files are never changed: the child compiles the mutant in place of
the module. What survives is printed; tools/mutants_explained.txt says why a
survivor changes nothing that a user can see. The exit code is 1 where another
survives.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPLAINED = ROOT / "tools" / "mutants_explained.txt"
# Each module and its tests, the quickest first.
TARGETS = {
    "keras_attr_preserve/map_formulas.py": (
        "map_formulas",
        "training/wcam",
    ),
    "keras_attr_preserve/training/wcam.py": (
        "training/wcam",
        "training/weighted_targets",
        "training/training_gradient",
        "training/train_step",
    ),
    "keras_attr_preserve/training/train_step.py": (
        "training/train_step",
        "training/loss_weight",
        "training/hints",
        "training/distribution",
        "models/augmentation",
        "training/teacher_cache",
        "training/training_gradient",
        "training/faults",
        "training/preserve_attribution",
    ),
    "keras_attr_preserve/compression/least_squares/moments.py": (
        "compression/least_squares/moments",
        "compression/least_squares/layer_inputs",
        "compression/prune_with_reconstruction",
    ),
    "keras_attr_preserve/compression/least_squares/sparse_fit.py": (
        "compression/prune_with_reconstruction",
        "compression/least_squares/moments",
        "compression/filter_refitting",
    ),
    "keras_attr_preserve/compression/least_squares/layer_inputs.py": (
        "compression/least_squares/layer_inputs",
        "compression/least_squares/moments",
        "compression/prune_with_reconstruction",
        "compression/filter_refitting",
    ),
    "keras_attr_preserve/compression/least_squares/layer_by_layer.py": (
        "compression/least_squares/layer_by_layer",
        "compression/prune_with_reconstruction",
        "compression/filter_refitting",
    ),
    "export/verification/verify.py": (
        "export/verification/verify_runtimes",
        "export/verification/verify",
        "export/verification/black_box_judges",
        "export/verification/verify_third_party",
    ),
}
SECONDS = 300  # A mutant that takes longer loops: it is seen.
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}


def mutations(node: ast.AST) -> Iterator[ast.AST]:
  """Gives faulty copies of a node, without those of its children."""
  if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
    yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
  elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
    yield ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)
  elif isinstance(node, ast.BoolOp):
    yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
  elif isinstance(node, ast.Compare):
    for k, operator in enumerate(node.ops):
      swapped = list(node.ops)
      swapped[k] = SWAPS[type(operator)]()
      yield ast.Compare(node.left, swapped, node.comparators)
  elif isinstance(node, ast.UnaryOp) and isinstance(
      node.op, (ast.Not, ast.USub)):
    yield node.operand
  elif isinstance(node, ast.Constant):
    if isinstance(node.value, bool):
      yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
      yield ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
      yield ast.Constant(node.value * 2 + 1)
  elif isinstance(node, (ast.If, ast.IfExp)):
    for constant in (True, False):
      changed = copy.copy(node)
      changed.test = ast.Constant(constant)
      yield changed
  elif isinstance(node, ast.Call):
    for k in range(len(node.keywords)):
      yield ast.Call(node.func, node.args,
                     node.keywords[:k] + node.keywords[k + 1:])
  elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
    yield ast.Pass()
  elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
    yield node.value


def _mutable(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
  """Gives (parent, field, index) of what may be mutated, in order.

  Type hints, raised errors and their texts stay as they are.
  """
  for field, value in ast.iter_fields(tree):
    if field in ("annotation", "returns", "decorator_list", "ctx"):
      continue
    values = value if isinstance(value, list) else [value]
    for index, child in enumerate(values):
      if not isinstance(child, ast.AST) or isinstance(
          child, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        continue
      yield tree, field, index if isinstance(value, list) else None
      yield from _mutable(child)


def mutants(text: str) -> Iterator[tuple[int, str, str]]:
  """Gives every mutant of a module: line, what changed, whole text."""
  tree, lines = ast.parse(text), text.splitlines()
  for parent, field, index in list(_mutable(tree)):
    value = getattr(parent, field)
    child = value if index is None else value[index]
    for faulty in mutations(child):
      _put(parent, field, index, faulty)
      before, after = (_head(node) for node in (child, faulty))
      change = f"{before}  ->  {after}  in  {lines[child.lineno - 1].strip()}"
      yield child.lineno, change, ast.unparse(ast.fix_missing_locations(tree))
      _put(parent, field, index, child)


def _put(parent, field, index, node):
  if index is None:
    setattr(parent, field, node)
  else:
    getattr(parent, field)[index] = node


def _head(node: ast.AST) -> str:
  return ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]


class _Mutant(importlib.abc.MetaPathFinder):
  """Hands a mutant to whoever imports its module.

  It stands in a file of its own, since AutoGraph reads the source of what it
  converts by file and line.
  """

  def __init__(self, path: Path, text: str):
    self.path = str(path)
    self.file = Path(tempfile.mkdtemp()) / path.name
    self.file.write_text(text)

  def find_spec(self, fullname, path, target=None):
    spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
    if spec is None or spec.origin is None or (
        os.path.realpath(spec.origin) != self.path):
      return None
    return importlib.util.spec_from_file_location(fullname, self.file)


def start(path: str, text: str, log: int) -> int:
  """Runs a module's tests on a mutant in a child; returns its process."""
  child = os.fork()
  if child:
    return child
  os.setsid()
  os.dup2(log, 1)
  os.dup2(log, 2)
  import pytest

  mutant = _Mutant(ROOT / path, text)
  sys.meta_path.insert(0, mutant)
  code = 2
  try:
    code = pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider",
                        "-p", "no:xdist"] + [
                            f"tests/{name}_test.py" for name in TARGETS[path]])
  finally:
    shutil.rmtree(mutant.file.parent)
    os._exit(int(code))


def run(chosen: list, jobs: int) -> list[int]:
  """Runs mutants, several at a time; returns each one's exit code."""
  codes, running, waiting = [None] * len(chosen), {}, list(enumerate(chosen))
  while waiting or running:
    while waiting and len(running) < jobs:
      k, (path, _, _, text) = waiting.pop(0)
      log = tempfile.TemporaryFile()  # noqa: SIM115 - its child writes to it
      running[start(path, text, log.fileno())] = k, time.time(), log
    child, status = os.waitpid(-1, os.WNOHANG)
    if child:
      k, began, log = running.pop(child)
      codes[k] = os.waitstatus_to_exitcode(status)
      log.seek(0)
      failed = [line for line in log.read().decode(errors="replace").split("\n")
                if line.startswith(("FAILED", "ERROR"))]
      path, line, change, _ = chosen[k]
      print(f"{'SURVIVED' if codes[k] == 0 else 'killed'} {path}:{line}: "
            f"{change} [{time.time() - began:.0f} s"
            f"{', ' + failed[0][:120] if failed else ''}]", flush=True)
    else:
      time.sleep(0.1)
    for child, (_, began, _) in running.items():
      if time.time() - began > SECONDS:
        os.killpg(child, signal.SIGKILL)
  return codes


def main() -> int:
  """Runs the mutants asked for; 1 where one survives unexplained."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--count", type=int, default=200)
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--module", help="mutants of this module alone")
  parser.add_argument("--matching", help="mutants whose change has this text")
  parser.add_argument("--done", help="an output of before: what it has is left")
  flags = parser.parse_args()
  os.chdir(ROOT)
  sys.path.insert(0, str(ROOT))
  every = [
      (path, *mutant) for path in TARGETS if flags.module in (None, path)
      for mutant in mutants((ROOT / path).read_text())]
  if flags.matching:
    every = [one for one in every if flags.matching in one[2]]
  chosen = random.Random(flags.seed).sample(
      every, min(flags.count, len(every)))
  if flags.done:
    done = Path(flags.done).read_text()
    chosen = [one for one in chosen
              if f" {one[0]}:{one[1]}: {one[2]} [" not in done]
  print(f"{len(chosen)} of {len(every)} mutants, seed {flags.seed}", flush=True)

  # Imported once, for all children; nothing is computed before they part.
  import tensorflow_model_optimization  # noqa: F401

  explained = EXPLAINED.read_text() if EXPLAINED.exists() else ""
  codes = run(chosen, flags.jobs)
  survivors = [one for one, code in zip(chosen, codes) if code == 0]
  odd = [f"{path}: {change}" for path, _, change, _ in survivors
         if f"{path}: {change}" not in explained]
  print(f"{len(chosen) - len(survivors)} killed, {len(survivors)} survived, "
        f"{len(survivors) - len(odd)} of them explained")
  for one in odd:
    print(f"not explained: {one}")
  return bool(odd)


if __name__ == "__main__":
  sys.exit(main())
