"""The seal of a file that `convert` wrote: a digest by which damage shows.

The file's description holds the SHA-256 of all its bytes, taken with the 64
digits themselves as zeros. A second mark, the name of our metadata, lies at the
other end of the weights: a file with one of the two and not the other has been
sealed and is damaged. So any flipped bit and any cut is found, before a runtime
in C++ sees the bytes. It is no signature: who changes a file on purpose can
seal it again.
"""

import hashlib
import re

__all__ = ["METADATA_NAME", "check_seal", "mark", "stamped"]

METADATA_NAME = "keras_attr_preserve"

_FIELD = METADATA_NAME.encode() + b" sha256 "
_DIGITS = 64
_SEAL = re.compile(_FIELD + b"([0-9a-f]{%d})" % _DIGITS)
# A string as flatbuffers store it: its length, itself, and a zero.
_NAME = (len(METADATA_NAME).to_bytes(4, "little") + METADATA_NAME.encode()
         + b"\0")


def mark() -> bytes:
  """Returns the description that a file has before it is stamped."""
  return _FIELD + b"0" * _DIGITS


def stamped(content: bytes) -> bytes:
  """Puts the digest into a file with our description; others stay as they are.

  Args:
    content: the file's bytes, all but the digest final.

  Returns:
    The file's bytes.
  """
  found = _SEAL.search(content)
  if found is None:
    return content
  return b"".join((content[:found.start(1)], _digest(content, found),
                   content[found.end(1):]))


def check_seal(content: bytes) -> bool:
  """Checks a file's seal.

  Args:
    content: the file's bytes.

  Returns:
    True where it is whole; False where the file has never had one, which also
    holds for a file of ours that was cut off before the first of the two marks.

  Raises:
    ValueError: the file is damaged, or was changed after it was sealed.
  """
  found = _SEAL.findall(content)
  if not found and _NAME not in content:
    return False
  only = _SEAL.search(content) if len(found) == 1 else None
  if only is None or only.group(1) != _digest(content, only):
    raise ValueError(
        f"tflite_model is damaged: its {len(content)} bytes are not those that "
        "were written and sealed. Copy it again, or convert again.")
  return True


def _digest(content: bytes, found: re.Match) -> bytes:
  digest = hashlib.sha256(content[:found.start(1)])
  digest.update(b"0" * _DIGITS)
  digest.update(content[found.end(1):])
  return digest.hexdigest().encode()
