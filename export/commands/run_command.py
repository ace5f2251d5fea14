"""Runs a command with its own flags, its errors and exit codes."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

__all__ = ["run_command"]

_BAD_INPUT = (OSError, TypeError, ValueError, ImportError, KeyError,
              flags.Error)
_HELP = {"-h", "--help", "--helpshort", "--helpfull"}


def run_command(
    name: str,
    doc: str,
    values: flags.FlagValues,
    argv: Sequence[str],
    work: Callable[[flags.FlagValues, list[str]], Any],
) -> int:
  """Parses a command's flags, does its work and prints the result.

  Args:
    name: the command's name.
    doc: the text for --help.
    values: the command's flags, new for each call. Commands share names of
      flags, and absl's global flags do not allow that.
    argv: the program and its arguments.
    work: called with the flags and the remaining arguments; returns the result.

  Returns:
    The exit code: 0, or 2 on bad input, with the error in one line on stderr.
  """
  if _HELP & set(argv[1:]):
    print(doc, values.get_help(include_special_flags=False), sep="\n")
    return 0
  try:
    result = work(values, values(list(argv))[1:])
  except _BAD_INPUT as error:
    print(f"{name}: bad input: {error}", file=sys.stderr)
    return 2
  print(result)
  return 0
