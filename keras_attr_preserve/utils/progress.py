"""Progress messages of long computations."""

import sys
import time
from collections.abc import Callable

__all__ = ["Progress", "reporter"]

Progress = bool | Callable[[int, int], None] | None
"""True prints a line on stderr, False prints none. None prints one only on a
terminal and only for long computations. A function gets the number done and the
total, for example of images."""

_LONG = 10.0  # Seconds.


def reporter(
    progress: Progress, name: str, total: int, unit: str = "pictures run"
) -> Callable[[int], None]:
  """Returns a function to call with the number done so far.

  Args:
    progress: see `Progress`.
    name: the beginning of the line.
    total: the number of items to do.
    unit: the items, and a verb for the work.

  Raises:
    TypeError: `progress` is neither a function nor a truth value nor None.
  """
  if callable(progress):
    return lambda done: progress(done, total)
  if progress not in (None, True, False):
    raise TypeError(
        "progress must be None, True, False or a function of (done, total); "
        f"got {progress!r}.")
  if progress is False or (progress is None and not sys.stderr.isatty()):
    return lambda done: None
  began = time.monotonic()
  width = 0

  def line(done: int) -> None:
    nonlocal width
    passed = time.monotonic() - began
    if progress is None and passed < _LONG:
      return
    text = f"{name}: {done} of {total} {unit}"
    if passed >= _LONG and 0 < done < total:
      text += f", {passed / done * (total - done):.0f} s left"
    # Spaces overwrite the rest of a longer earlier line.
    print("\r" + text.ljust(width), end="\n" if done == total else "",
          file=sys.stderr, flush=True)
    width = len(text)
  return line
