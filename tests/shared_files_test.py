"""Files are made once for all processes of a run, and for no other run."""

import os
import subprocess
import sys

from absl.testing import absltest

from tests import tiny

# Says so whenever it makes a file; asks for each in several ways.
_MAKES = """
import sys, tests.shared_files as shared_files
@shared_files.shared
def letters(kind="small", **settings):
  print("makes", kind, flush=True)
  return f"{kind} {sorted(settings.items())} {sys.argv[1]}".encode()
for args, settings in (
    ([], {}), (["small"], {}), ([], {"kind": "small"}),
    (["large"], {"b": 1, "a": 2}), (["large"], {"a": 2, "b": 1})):
  print(letters(*args, **settings).decode(), flush=True)
input()
"""
_SMALL, _LARGE = "small [] {0}", "large [('a', 2), ('b', 1)] {0}"


def said(version: str, makes: bool) -> list[str]:
  small, large = (text.format(version) for text in (_SMALL, _LARGE))
  return [*["makes small"][:makes], small, small, small,
          *["makes large"][:makes], large, large]


class SharedTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.place = tiny.folder(self)

  def start(self, run: str | None, version: str) -> subprocess.Popen:
    """Starts a process that stays until it is spoken to."""
    environment = {name: value for name, value in os.environ.items()
                   if name != "PYTEST_XDIST_TESTRUNUID"}
    if run:
      environment["PYTEST_XDIST_TESTRUNUID"] = run
    process = subprocess.Popen(
        [sys.executable, "-c",
         f"import sys; sys.path[:0] = {sys.path!r}\n{_MAKES}", version],
        env={**environment, "TMPDIR": str(self.place)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self.addCleanup(process.communicate)
    return process

  def lines(self, process: subprocess.Popen, count: int) -> list[str]:
    return [process.stdout.readline().rstrip() for _ in range(count)]

  def test_one_process_makes_them_and_the_last_removes_them(self):
    first = self.start("run", "1")
    self.assertEqual(self.lines(first, 7), said("1", makes=True))
    second, other, alone = (self.start(*arguments) for arguments in (
        ("run", "2"), ("another", "3"), (None, "4")))
    # Made by the first, so with its mark.
    self.assertEqual(self.lines(second, 5), said("1", makes=False))
    self.assertEqual(self.lines(other, 7), said("3", makes=True))
    self.assertEqual(self.lines(alone, 7), said("4", makes=True))
    for process in (other, alone, first):
      process.communicate("\n")
    self.assertCountEqual(
        [path.name for path in self.place.iterdir()],
        ["shared_files_run", "shared_files_run.lock"])
    second.communicate("\n")
    self.assertEmpty([*self.place.iterdir()])


if __name__ == "__main__":
  absltest.main()
