"""Filling in the C sources: templates, arrays, constants.

The files of `c_sources` are C with `kapnet` and `KAPNET` where the model's name
goes, and `@word@` where a text goes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["array", "check_name", "filled", "float_literal", "named",
           "string_literal"]

_SOURCES = Path(__file__).absolute().parent / "c_sources"
_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t",
          "uint32": "uint32_t", "int64": "int64_t"}


def check_name(name: str) -> str:
  """Returns `name` if C sources can be named so.

  Args:
    name: what every file and identifier begins with.

  Returns:
    The name itself.

  Raises:
    TypeError, ValueError: it is not of letters, digits and single underscores
      between them, or too long.
  """
  if not isinstance(name, str):
    raise TypeError(f"name must be a str; got {type(name).__name__}.")
  if len(name) > 40 or not re.fullmatch(
      r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*", name):
    raise ValueError(
        "name must be a C identifier: at most 40 ASCII letters and digits, "
        f"a letter first, single underscores between; got {name!r}.")
  return name


def filled(sources: Sequence[str], name: str, words: Mapping[str, Any]) -> str:
  """Joins templates and fills them in.

  Args:
    sources: files of `c_sources`, one after the other.
    name: of the model.
    words: what stands for `@word@`; may hold `kapnet` itself.

  Returns:
    The text.

  Raises:
    KeyError: a word is missing.
  """
  text = "".join((_SOURCES / one).read_text() for one in sources)
  return re.sub(r"@(\w+)@", lambda match: named(
      str(words[match[1]]), name) if match[1] != "name" else name,
                named(text, name))


def named(text: str, name: str) -> str:
  """Puts a model's name where `kapnet` and `KAPNET` stand."""
  return text.replace("KAPNET", name.upper()).replace("kapnet", name)


def array(name: str, values: np.ndarray) -> str:
  """Writes a constant array.

  Args:
    name: its identifier; may hold `kapnet`.
    values: integers; all axes but the first are written as one.

  Returns:
    Its definition in C99.
  """
  rows = values.reshape(len(values), -1) if values.ndim > 1 else values[None]
  sizes = f"[{rows.shape[0]}][{rows.shape[1]}]" if values.ndim > 1 else (
      f"[{len(values)}]")
  bodies = [_wrapped(", ".join(_number(one, values.dtype) for one in row))
            for row in rows.tolist()]
  body = bodies[0]
  if values.ndim > 1:
    body = "{\n" + "},\n{\n".join(bodies) + "}"
  return (f"static const {_TYPES[values.dtype.name]} {name}{sizes} = {{\n"
          f"{body}}};\n")


def _number(value: int, dtype: np.dtype) -> str:
  if dtype == np.uint32:
    return f"{value}u"
  if dtype == np.int64:
    return f"INT64_C({value})"
  if dtype == np.int32 and value == -2**31:
    return "(-2147483647 - 1)"  # The literal alone would be wider.
  return str(value)


def _wrapped(text: str) -> str:
  return re.sub(r"(.{1,76})(?: |$)", r"  \1\n", text)


def float_literal(value: float) -> str:
  """Writes a float so that reading it back gives the same float32."""
  text = np.format_float_scientific(np.float32(value), unique=True, trim="0")
  return text + "f"


def string_literal(text: str) -> str:
  """Writes a string as C has it, in ASCII whatever it holds."""
  body = "".join(
      chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?'
      else f"\\{byte:03o}" for byte in text.encode())
  return f'"{body}"'
