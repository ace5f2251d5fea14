"""Files that all workers of one run of the tests make once, together."""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# pytest-xdist gives the workers of a run the same value, and no other run.
_RUN = "PYTEST_XDIST_TESTRUNUID"


def shared(function: Callable[..., bytes]) -> Callable[..., bytes]:
  """As `functools.cache`, for all workers of pytest-xdist together.

  The files last no longer than the run: other code never meets them.

  Args:
    function: gives bytes that depend on nothing but its arguments, which are
      numbers, strings and None. Arguments left out count as their defaults.
  """
  signature = inspect.signature(function)

  @functools.cache
  def once(key: str, args: tuple, settings: tuple) -> bytes:
    def make():
      return function(*args, **dict(settings))
    return _of_all_workers(key, make) if _RUN in os.environ else make()

  @functools.wraps(function)
  def get(*args, **settings) -> bytes:
    bound = signature.bind(*args, **settings)
    bound.apply_defaults()
    args, settings = bound.args, tuple(sorted(bound.kwargs.items()))
    name = f"{function.__module__}.{function.__qualname__}"
    return once(repr((name, args, settings)), args, settings)

  return get


def _of_all_workers(key: str, make: Callable[[], bytes]) -> bytes:
  """Reads what another worker has made, waits for it, or makes it."""
  path = _folder() / hashlib.sha256(key.encode()).hexdigest()
  with _locked(path.with_suffix(".lock"), fcntl.LOCK_EX):
    if not path.exists():
      partial = path.with_suffix(".part")
      partial.write_bytes(make())
      partial.rename(path)  # Whole, even if the process dies.
    return path.read_bytes()


@functools.cache
def _folder() -> Path:
  """The run's folder; the last worker to leave removes it."""
  folder = Path(tempfile.gettempdir(), f"shared_files_{os.environ[_RUN]}")
  held = contextlib.ExitStack()
  in_use = Path(f"{folder}.lock")
  file = held.enter_context(_locked(in_use, fcntl.LOCK_SH))
  folder.mkdir(exist_ok=True)

  @atexit.register
  def leave():
    with held, contextlib.suppress(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(folder)
      in_use.unlink()

  return folder


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[BinaryIO]:
  """Holds a lock that the system gives back even if the process dies."""
  with path.open("ab") as file:
    fcntl.flock(file, kind)
    yield file
