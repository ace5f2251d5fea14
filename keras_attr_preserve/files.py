"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

__all__ = ["make_folder", "write_whole"]


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
