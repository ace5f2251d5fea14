"""Warnings that point at the line in the caller's own code."""

import inspect
import warnings

__all__ = ["notice"]

_INNER = ("keras_attr_preserve", "tf_keras", "tensorflow")
"""Packages whose lines a warning skips; Keras may stand between two of them."""


def notice(message: str | Warning) -> None:
  """Warns at the line that called this library, from any depth.

  Args:
    message: a sentence, or a warning of another category than `UserWarning`.
  """
  frame = inspect.currentframe()
  while frame.f_back is not None and (
      frame.f_globals.get("__name__", "").split(".")[0] in _INNER):
    frame = frame.f_back
  warnings.warn_explicit(
      message, UserWarning, frame.f_code.co_filename, frame.f_lineno,
      frame.f_globals.get("__name__"),
      frame.f_globals.setdefault("__warningregistry__", {}))
