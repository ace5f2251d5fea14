r"""The command `kap-inspect`: describes any .tflite file.

    kap-inspect net.tflite
    kap-inspect net.tflite --output=json

Prints its size and sparsity, signatures, operators, tensors with their
quantization, and the memory it needs. Also prints whether TensorFlow Lite for
Microcontrollers takes it, and the source of its attribution. Exits 0, or 2 on
bad input.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from keras_attr_preserve.export.commands.run_command import run_command
from keras_attr_preserve.export.runtime.inspect_file import inspect_file

__all__ = ["main", "run"]


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_enum(
      "output", "text", ["text", "json"], "How to print it.",
      flag_values=values)
  return values


def _inspected(values: flags.FlagValues, files: list[str]) -> str:
  if len(files) != 1:
    raise ValueError(
        f"one .tflite file must be given; got {' '.join(files) or 'none'}.")
  report = inspect_file(Path(files[0]).read_bytes())
  return json.dumps(report.to_dict(), indent=2) if (
      values.output == "json") else str(report)


def main(argv: Sequence[str]) -> int:
  """Inspects the file and prints the report.

  Args:
    argv: the program and its arguments.

  Returns:
    The exit code: 0 or 2.
  """
  return run_command("kap-inspect", __doc__, _flags(), argv, _inspected)


def run() -> None:
  """Runs the installed command."""
  sys.exit(main(sys.argv))


if __name__ == "__main__":
  run()
