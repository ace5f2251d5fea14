"""Fills in the C sources: templates, arrays, constants.

The files of `c_sources` are C. `kapnet` and `KAPNET` stand for the model's
name, and `@word@` for a text.
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
  """Returns `name` if C sources can have this name.

  Args:
    name: prefix of every file and identifier.

  Returns:
    The name itself.

  Raises:
    TypeError, ValueError: the name is too long, or not made of letters, digits
      and single underscores between them.
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
    sources: files of `c_sources`, in order.
    name: the model's name.
    words: texts by the word of `@word@`; may hold `kapnet`.

  Returns:
    The text.

  Raises:
    KeyError: a word is missing.
  """
  text = "".join((_SOURCES / source).read_text() for source in sources)
  return re.sub(r"@(\w+)@", lambda match: named(
      str(words[match[1]]), name) if match[1] != "name" else name,
                named(text, name))


def named(text: str, name: str) -> str:
  """Replaces `kapnet` and `KAPNET` by a model's name."""
  return text.replace("KAPNET", name.upper()).replace("kapnet", name)


def array(name: str, values: np.ndarray) -> str:
  """Writes a constant array.

  Args:
    name: the array's identifier; may hold `kapnet`.
    values: integers; all axes after the first become one.

  Returns:
    The array's definition in C99.
  """
  rows = values.reshape(len(values), -1) if values.ndim > 1 else values[None]
  sizes = f"[{rows.shape[0]}][{rows.shape[1]}]" if values.ndim > 1 else (
      f"[{len(values)}]")
  bodies = [_wrapped(", ".join(_number(value, values.dtype) for value in row))
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
    return "(-2147483647 - 1)"  # The plain literal is wider.
  return str(value)


def _wrapped(text: str) -> str:
  return re.sub(r"(.{1,76})(?: |$)", r"  \1\n", text)


def float_literal(value: float) -> str:
  """Writes a float literal that reads back as the same float32."""
  text = np.format_float_scientific(np.float32(value), unique=True, trim="0")
  return text + "f"


def string_literal(text: str) -> str:
  """Writes any string as a C literal in ASCII."""
  body = "".join(
      chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?'
      else f"\\{byte:03o}" for byte in text.encode())
  return f'"{body}"'
