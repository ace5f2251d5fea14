"""Every tolerance in a test says what it allows.

A tolerance is a number in an argument such as `atol=` or `places=`, or a
fraction that a value is held to by an assertion. Its reason stands in a comment
on its lines or right above them, and serves the same tolerance in the
statements that follow at once. A constant with a comment serves wherever it is
named.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from absl.testing import absltest

TESTS = Path(__file__).parent
ARGUMENTS = {"atol", "rtol", "delta", "places", "decimal", "tolerance"}


def comment_lines(text: str) -> set[int]:
  """Gives the lines with a comment that tells a reader something."""
  tokens = tokenize.generate_tokens(io.StringIO(text).readline)
  return {token.start[0] for token in tokens
          if token.type == tokenize.COMMENT
          and not token.string.startswith(("# noqa", "# pylint"))}


def _is_number(node: ast.AST, kinds: tuple) -> bool:
  if isinstance(node, ast.UnaryOp):
    node = node.operand
  return isinstance(node, ast.Constant) and type(node.value) in kinds


def _is_assertion(call: ast.Call) -> bool:
  name = getattr(call.func, "attr", getattr(call.func, "id", ""))
  return name.startswith("assert")


def tolerances(statement: ast.stmt) -> Iterator[str]:
  """Lists the tolerances in numbers of a simple statement, as text."""
  for node in ast.walk(statement):
    if isinstance(node, ast.Assert):
      yield from _fractions([node.test])
    if not isinstance(node, ast.Call):
      continue
    for keyword in node.keywords:
      if keyword.arg in ARGUMENTS and _is_number(keyword.value, (int, float)):
        yield ast.unparse(keyword)
    if _is_assertion(node):
      name = getattr(node.func, "attr", "")
      if name in ("assertLess", "assertLessEqual", "assertGreater",
                  "assertGreaterEqual", "assertBetween"):
        for argument in node.args[1:]:
          if _is_number(argument, (float,)):
            yield f"{name} {ast.unparse(argument)}"
      yield from _fractions(node.args)


def _fractions(arguments: list[ast.expr]) -> Iterator[str]:
  """Lists the fractions that something is compared with inside arguments."""
  for argument in arguments:
    for node in ast.walk(argument):
      if isinstance(node, ast.Compare) and any(
          isinstance(o, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for o in node.ops):
        for side in (node.left, *node.comparators):
          if _is_number(side, (float,)):
            yield f"compare {ast.unparse(side)}"


def unexplained(text: str) -> list[int]:
  """Lists the lines of statements with a tolerance and no reason."""
  comments = comment_lines(text)
  lines = text.splitlines()
  own = {line for line in comments if lines[line - 1].lstrip().startswith("#")}
  bad = []
  for parent in ast.walk(ast.parse(text)):
    for body in (getattr(parent, field, None)
                 for field in ("body", "orelse", "finalbody")):
      if isinstance(body, list):
        bad.extend(_unexplained_in(body, comments, own))
  return sorted(bad)


def _unexplained_in(
    body: list[ast.stmt], comments: set[int], own: set[int]) -> list[int]:
  bad, explained, end = [], set(), None
  for statement in body:
    head = statement
    if end is None or statement.lineno != end + 1:
      explained = set()
    end = statement.end_lineno
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.If, ast.For,
                              ast.While, ast.Try)):
      explained = set()
      continue  # Their own bodies come by themselves.
    if isinstance(statement, ast.With):
      explained = set()
      for item in statement.items:
        head = ast.Expr(item.context_expr)
        if set(tolerances(head)) and not comments & set(
            range(statement.lineno - 1, statement.body[0].lineno)):
          bad.append(statement.lineno)
      continue
    stated = set(tolerances(head))
    reasons = comments & set(range(statement.lineno, statement.end_lineno + 1))
    if reasons or statement.lineno - 1 in own:
      explained |= stated
    elif stated - explained:
      bad.append(statement.lineno)
  return bad


class TolerancesTest(absltest.TestCase):

  def test_every_tolerance_says_what_it_allows(self):
    bad = [f"{path.relative_to(TESTS.parent)}:{line}"
           for path in sorted(TESTS.rglob("*.py"))
           for line in unexplained(path.read_text())]
    self.assertEmpty(bad, "\n" + "\n".join(bad))

  def test_the_rule_on_examples(self):
    for text, lines in (
        ("f(a, atol=1e-3)", [1]),
        ("f(a, atol=1e-3)  # Rounding.", []),
        ("f(a, atol=1e-3)  # noqa: E501", [1]),
        ("# Rounding.\nf(a, atol=1e-3)\nf(b, atol=1e-3)\n", []),
        ("# Rounding.\nf(a, atol=1e-3)\nf(b, atol=1e-2)\n", [3]),
        ("# Rounding.\nf(a, atol=1e-3)\n\nf(b, atol=1e-3)\n", [4]),
        ("f(a, atol=ROUNDING)", []),
        ("assertLess(a, 3)", []),
        ("self.assertLess(a, 3e-4)", [1]),
        ("self.assertGreater(3e-4, b)", []),
        ("self.assertBetween(a, 0.5, 1)", [1]),
        ("self.assertTrue((a < 1e-3).all())", [1]),
        ("assert a > 0.9", [1]),
        ("x = y if z < 0.5 else 1", []),
        ("for a in b:\n  self.assertLess(a, 1e-3)\n", [2]),
        ("with f(delta=0.1):\n  pass", [1]),
    ):
      with self.subTest(text):
        self.assertEqual(unexplained(text), lines)


if __name__ == "__main__":
  absltest.main()
