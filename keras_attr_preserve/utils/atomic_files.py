"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["make_folder", "replace_folder", "take_name", "write_whole"]


def make_folder(folder: str | os.PathLike, name: str = "folder") -> Path:
  """Creates a folder that can be written to, parents too.

  Args:
    folder: its path; it may exist.
    name: the argument's name, for the error.

  Returns:
    The path.

  Raises:
    OSError: it cannot be created or written to.
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
  """Writes a file so that its name never holds half of it.

  The content goes to a file beside it first, which then takes the name; an
  interrupted or failed write leaves what was there before.

  Args:
    path: the file's final name, in a folder that exists.
    content: all of it; text is written as UTF-8.

  Returns:
    The path.

  Raises:
    OSError: the disk is full, or the folder cannot be written to.
  """
  path = Path(path)
  data = content.encode() if isinstance(content, str) else content
  handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(part, 0o666 & ~_umask())
    os.replace(part, path)
  except BaseException:
    os.unlink(part)
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
  """Writes a folder of files so that its name never holds some of them.

  The files go to a folder beside it first, which then takes the name; what was
  there is removed after that, and put back if that fails.

  Args:
    folder: its path; parents are made. It may exist if it is empty or holds
      nothing but files of the allowed names.
    files: contents by name; text is written as UTF-8.
    allowed: names of files that may be replaced.
    dry_run: whether only to check, beforehand, that it could be done.

  Returns:
    The path.

  Raises:
    ValueError: the folder holds something else, or a name leads out of it.
    OSError: the disk is full, or the place cannot be written to.
  """
  for name in files:
    # Names may come from files that others have made.
    if name in ("", ".", "..") or {"/", "\\", "\0"} & {*name}:
      raise ValueError(
          f"files must have plain names, which stay in their folder; got "
          f"{name!r}.")
  path = Path(folder).absolute()
  if path.exists():
    path = path.resolve()
    others = sorted(one.name for one in path.iterdir()
                    if one.name not in allowed or one.is_dir()
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
  """Moves what was written to its name, which a folder must be empty for.

  Args:
    part: the file or folder that was written.
    path: the name; a file of that name is replaced.
    old: where a folder of that name goes, on the same disk; it is put back if
      the move fails.

  Raises:
    OSError: it cannot be moved.
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
