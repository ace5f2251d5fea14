"""What long computations say while they run."""

import sys
import time
from collections.abc import Callable

__all__ = ["Progress", "reporter"]

Progress = bool | Callable[[int, int], None] | None
"""True for a line on stderr, False for none; None for one on a terminal where
it takes long; or a function of what is done and to be done: pictures, say."""

_LONG = 10.0  # Seconds.


def reporter(
    progress: Progress, name: str, total: int, unit: str = "pictures run"
) -> Callable[[int], None]:
  """Returns what is to be called with the number done so far.

  Args:
    progress: see `Progress`.
    name: what the line begins with.
    total: how many are to be done.
    unit: what they are, and what is done to them.

  Raises:
    TypeError: neither a function nor a truth value.
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
    # What is longer and stood there before is written over.
    print("\r" + text.ljust(width), end="\n" if done == total else "",
          file=sys.stderr, flush=True)
    width = len(text)
  return line
