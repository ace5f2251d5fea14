"""Experiments in few seconds: programs in this process, eager steps."""

import contextlib
import importlib
import io
import logging as python_logging
import subprocess
import sys
from unittest import mock

import tensorflow as tf
from absl import app, flags, logging

FLAGS = flags.FLAGS


def run_inside(name: str, *arguments: str) -> subprocess.CompletedProcess:
  """Runs `python -m examples.NAME` without a process of its own.

  What `app.run` does is done here: it can be called but once in a process.
  """
  module, command = f"examples.{name}", [f"{name}.py", *arguments]
  code, out, err = 0, io.StringIO(), io.StringIO()
  with (_quiet_again(), _without_flags_of_others(),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
    # Its flags are defined anew, each with its default.
    sys.modules.pop(module, None)
    try:
      program = importlib.import_module(module)
      code = program.main(app.parse_flags_with_usage(command)) or 0
    except app.UsageError as error:
      code = error.exitcode
      print(error, file=err)
    except SystemExit as error:
      code = error.code
  return subprocess.CompletedProcess(
      command, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def eager():
  """Has functions run as they stand: a few steps end before one is traced."""
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(False)


def _without_flags_of_others():
  """Hides all flags but absl's: programs have flags of the same names."""
  absl_flags = flags.FlagValues()
  for module, defined in FLAGS.flags_by_module_dict().items():
    if module.startswith("absl."):
      for flag in defined:
        absl_flags[flag.name] = flag
  return mock.patch.dict(FLAGS.__dict__, absl_flags.__dict__)


@contextlib.contextmanager
def _quiet_again():
  """Gives loggers the levels back that programs change."""
  tensorflow = python_logging.getLogger("tensorflow")
  levels = logging.get_verbosity(), tensorflow.level
  try:
    yield
  finally:
    logging.set_verbosity(levels[0])
    tensorflow.setLevel(levels[1])
