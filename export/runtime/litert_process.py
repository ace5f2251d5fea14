"""Tries files in LiteRT, in separate processes; this module is also a script.

LiteRT is C++ and trusts a file: a damaged file can end the process or ask for
all memory. So a file without our seal is first loaded and run once here, where
only this process dies. The script imports neither TensorFlow nor this package,
and starts in a tenth of a second.

    python litert_process.py RUNTIME < files

Each file comes as eight bytes of length and its content. The script answers
each with a line of JSON: the fault, or null.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

__all__ = ["try_files"]

TIMEOUT = 60.0  # Seconds for each file, to load it and to run it once.
MEMORY = 8 << 30  # Bytes of address space.


def try_files(
    files: Sequence[bytes], runtime: str = "xnnpack") -> list[str | None]:
  """Loads each file and runs each of its signatures once, on zeros.

  Args:
    files: the bytes of each file.
    runtime: "xnnpack", "builtin" or "reference"; see `Interpreter`.

  Returns:
    For each file its fault; None if it runs.
  """
  reasons = []
  while len(reasons) < len(files):
    results = _in_one_process(files[len(reasons):], runtime)
    if results[-1] is not None and len(results) > 1:
      # An earlier file may have damaged the process: try this one alone.
      results[-1] = _in_one_process(
          files[len(reasons) + len(results) - 1:][:1], runtime)[0]
    reasons += results
  return reasons


def _in_one_process(
    files: Sequence[bytes], runtime: str) -> list[str | None]:
  """Tries files until one fails."""
  reasons = []
  with tempfile.TemporaryFile() as said, subprocess.Popen(
      [sys.executable, __file__, runtime], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=said) as process:
    for content in files:
      late = threading.Event()
      timer = threading.Timer(TIMEOUT, lambda: (late.set(), process.kill()))  # noqa: B023
      timer.start()
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(len(content).to_bytes(8, "little") + content)
        process.stdin.flush()
      line = process.stdout.readline()
      timer.cancel()
      if line:
        reasons.append(json.loads(line))
      else:
        reasons.append(
            f"it did not end within {TIMEOUT:g} seconds" if late.is_set()
            else f"it ended the process with {process.wait()}")
      if reasons[-1] is not None:
        break
    with contextlib.suppress(BrokenPipeError):
      process.stdin.close()
    process.kill()
  return reasons


def _fault(content: bytes, runtime: str) -> str | None:
  """In the process: returns a file's fault, or None."""
  import numpy as np
  from ai_edge_litert import interpreter as litert

  kinds = litert.OpResolverType
  resolver = {
      "xnnpack": kinds.BUILTIN,
      "builtin": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
      "reference": kinds.BUILTIN_REF}[runtime]
  try:
    interpreter = litert.Interpreter(
        model_content=content, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for name in interpreter.get_signature_list():
      runner = interpreter.get_signature_runner(name)
      runner(**{key: np.zeros(details["shape"], details["dtype"])
                for key, details in runner.get_input_details().items()})
    if not interpreter.get_signature_list():
      interpreter.invoke()
  except (IndexError, MemoryError, OverflowError, RuntimeError, TypeError,
          UnicodeError, ValueError) as error:
    if runtime == "reference" and "Didn't find op for builtin" in f"{error}":
      return _fault(content, "builtin")  # As `runtimes.LiteRT` runs it.
    return f"{error}" or type(error).__name__
  return None


def main(runtime: str) -> None:
  """Reads files from stdin and writes lines to stdout."""
  with contextlib.suppress(ImportError):  # Not on Windows.
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Other prints must not mix with the answers.
  while length := sys.stdin.buffer.read(8):
    content = sys.stdin.buffer.read(int.from_bytes(length, "little"))
    print(json.dumps(_fault(content, runtime)), file=answers, flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
