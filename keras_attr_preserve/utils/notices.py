"""Warnings that point at the line of the caller's own that they are about."""

import inspect
import warnings

__all__ = ["notice"]

_INNER = ("keras_attr_preserve", "tf_keras", "tensorflow")
"""Packages whose lines say nothing to a caller, Keras between two of ours."""


def notice(message: str | Warning) -> None:
  """Warns at the line that called this library, however deep the fault lies.

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
