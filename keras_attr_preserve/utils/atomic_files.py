"""Writes files and folders completely or not at all."""

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["make_folder", "replace_folder", "take_name", "write_whole"]


def make_folder(folder: str | os.PathLike, name: str = "folder") -> Path:
  """Creates a writable folder and its parents.

  Args:
    folder: the path; the folder may exist.
    name: the argument's name, for the error.

  Returns:
    The path.

  Raises:
    OSError: the folder cannot be created or written to.
  """
  path = Path(folder)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise OSError(
        f"{name} must be a folder that can be written to; {str(path)!r}: "
        f"{error.strerror or error}.") from error
  return path


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
  """Writes a file so that its path never holds half the content.

  The content first goes to a temporary file beside it, which then takes the
  name. An interrupted or failed write leaves the previous file.

  Args:
    path: the file's final path, in a folder that exists.
    content: the whole content; text is written as UTF-8.

  Returns:
    The path.

  Raises:
    OSError: the disk is full, or the folder cannot be written to.
  """
  path = Path(path)
  data = content.encode() if isinstance(content, str) else content
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
  return path


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def replace_folder(
    folder: str | os.PathLike,
    files: Mapping[str, bytes | str],
    allowed: Collection[str],
    *,
    dry_run: bool = False,
) -> Path:
  """Writes a folder of files so that its path never holds only some of them.

  The files first go to a temporary folder beside it, which then takes the name.
  After that the old folder is removed; if the move fails, it is put back.

  Args:
    folder: its path; parents are made. An existing folder must be empty or hold
      only files of the allowed names.
    files: contents by name; text is written as UTF-8.
    allowed: names of files that may be replaced.
    dry_run: whether to check only that the folder could be written.

  Returns:
    The path.

  Raises:
    ValueError: the folder holds other files, or a name leads out of it.
    OSError: the disk is full, or the parent folder cannot be written to.
  """
  for name in files:
    # Names may come from untrusted files.
    if name in ("", ".", "..") or {"/", "\\", "\0"} & {*name}:
      raise ValueError(
          f"files must have plain names, which stay in their folder; got "
          f"{name!r}.")
  path = Path(folder).absolute()
  if path.exists():
    path = path.resolve()
    others = sorted(entry.name for entry in path.iterdir()
                    if entry.name not in allowed or entry.is_dir()
                    ) if path.is_dir() else [path.name]
    if others:
      raise ValueError(
          "folder must be new, empty, or of an earlier call with the same "
          f"name; {str(path)!r} is or holds something else: "
          f"{', '.join(others[:3])}.")
  make_folder(path.parent, "folder")
  if dry_run:
    return path
  with tempfile.TemporaryDirectory(
      dir=path.parent, prefix=f".{path.name}.") as place:
    new, old = Path(place) / "new", Path(place) / "old"
    new.mkdir()
    for name, content in files.items():
      write_whole(new / name, content)
    take_name(new, path, old)
  return path


def take_name(part: Path, path: Path, old: Path) -> None:
  """Moves a written file or folder to its final path.

  Args:
    part: the file or folder that was written.
    path: the final path; a file there is replaced.
    old: a folder at `path` moves here first, on the same disk; it is put back
      if the move fails.

  Raises:
    OSError: the move fails.
  """
  if not path.is_dir():
    os.replace(part, path)
    return
  os.replace(path, old)
  try:
    os.replace(part, path)
  except BaseException:
    os.replace(old, path)
    raise
