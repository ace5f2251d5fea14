"""Tests of atomic_files.py: a name holds a whole file, or the old one."""

import os
import signal
import stat
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from keras_attr_preserve.utils import atomic_files
from tests import tiny

# Writes half of the content, then dies as by a power cut.
_KILLED = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
if sys.argv[3] == "write":
  whole = os.fdopen
  def half(handle, mode):
    file = whole(handle, mode)
    write = file.write
    class File:
      def __enter__(self): return self
      def __exit__(self, *_): pass
      def write(self, data):
        write(data[:len(data) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return File()
  files.os.fdopen = half
else:
  files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(sys.argv[2], "new " * 1000)
"""


class _FolderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.folder(self)


class WriteWholeTest(_FolderTest, parameterized.TestCase):

  def test_writes_text_and_bytes(self):
    path = self.folder / "a.txt"
    self.assertEqual(atomic_files.write_whole(path, "größe\n"), path)
    self.assertEqual(path.read_bytes(), b"gr\xc3\xb6\xc3\x9fe\n")
    self.assertEqual(
        atomic_files.write_whole(str(path), b"\x00\xff\r\n"), path)  # Replaced.
    self.assertEqual(path.read_bytes(), b"\x00\xff\r\n")
    self.assertEqual(os.listdir(self.folder), ["a.txt"])

  def test_a_name_without_a_folder_lands_in_the_current_one(self):
    before = os.getcwd()
    os.chdir(self.folder)
    try:
      atomic_files.write_whole("a.txt", "here")
    finally:
      os.chdir(before)
    self.assertEqual((self.folder / "a.txt").read_text(), "here")

  def test_the_mode_is_an_ordinary_file_s(self):
    before = os.umask(0o027)
    try:
      path = atomic_files.write_whole(self.folder / "a.txt", "")
      self.assertEqual(os.umask(0o027), 0o027)  # Left as it was.
    finally:
      os.umask(before)
    self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)

  @parameterized.parameters("write", "replace")
  def test_killed_half_way(self, where):
    for before in (None, "old"):
      path = self.folder / f"{before}.txt"
      if before is not None:
        path.write_text(before)
      process = subprocess.run(
          [sys.executable, "-c", _KILLED, atomic_files.__file__, str(path),
           where],
          check=False, timeout=60)
      self.assertEqual(process.returncode, -signal.SIGKILL)
      self.assertEqual(path.exists(), before is not None)
      if before is not None:
        self.assertEqual(path.read_text(), before)

  @parameterized.parameters("fsync", "replace")
  def test_a_failure_leaves_what_was_there_and_no_litter(self, call):
    path = self.folder / "a.txt"
    path.write_text("old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
      with mock.patch.object(
          atomic_files.os, call, side_effect=error), (
              self.assertRaises(type(error))):
        atomic_files.write_whole(path, "new")
      self.assertEqual(path.read_text(), "old")
      self.assertEqual(os.listdir(self.folder), ["a.txt"])

  def test_a_folder_of_that_name(self):
    (self.folder / "taken").mkdir()
    with self.assertRaises(OSError):
      atomic_files.write_whole(self.folder / "taken", "new")
    self.assertEqual(os.listdir(self.folder), ["taken"])

  def test_no_folder(self):
    with self.assertRaisesRegex(FileNotFoundError, "missing"):
      atomic_files.write_whole(self.folder / "missing" / "a.txt", "new")


class ReplaceFolderTest(_FolderTest, parameterized.TestCase):

  @parameterized.parameters(
      "../out", "/tmp/out", "a/b", "..\\out", "..", ".", "", "a\0b")
  def test_names_stay_in_the_folder(self, name):
    place = self.folder / "place"
    with self.assertRaisesRegex(
        ValueError, "files must have plain names, which stay in their folder"):
      atomic_files.replace_folder(
          place, {"a.txt": "whole", name: "out"}, ["a.txt"])
    self.assertEqual(os.listdir(self.folder), [])
    atomic_files.replace_folder(place, {"..a.txt": "whole"}, [])
    self.assertEqual(os.listdir(place), ["..a.txt"])


class MakeFolderTest(_FolderTest):

  def test_makes_parents_and_takes_what_exists(self):
    path = self.folder / "a" / "b"
    for _ in range(2):
      self.assertEqual(atomic_files.make_folder(str(path)), path)
      self.assertEqual(os.listdir(path), [])

  def test_a_file_of_that_name(self):
    path = self.folder / "a.txt"
    path.write_text("old")
    for folder in (path, path / "b"):
      with self.assertRaisesRegex(
          OSError, f"report must be a folder that can be written to; '{folder}'"
          ": .*(File exists|Not a directory)"):
        atomic_files.make_folder(folder, "report")
    self.assertEqual(path.read_text(), "old")

  def test_a_folder_that_cannot_be_written_to(self):
    path = self.folder / "closed"
    path.mkdir(mode=0o500)
    if os.access(path, os.W_OK):  # The superuser writes everywhere.
      error = PermissionError(13, "Permission denied")
      context = mock.patch.object(
          atomic_files.tempfile, "TemporaryFile", side_effect=error)
    else:
      context = mock.patch.object(atomic_files, "__doc__", atomic_files.__doc__)
    with context, self.assertRaisesRegex(
        OSError, "folder must be a folder that .*closed': Permission denied"):
      atomic_files.make_folder(path)


if __name__ == "__main__":
  absltest.main()
