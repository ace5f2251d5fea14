"""The seal of a file that `convert` wrote: a digest that reveals damage.

The file's description holds the SHA-256 of all its bytes, taken with the 64
digits themselves as zeros. A second mark, the name of our metadata, lies at the
other end of the weights. A file with only one of the two was sealed and is
damaged. So every flipped bit and every cut is found before a runtime in C++
sees the bytes. The seal is no signature: anybody who changes a file on purpose
can seal it again.
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
  """Writes the digest into a file with our description; leaves other files.

  Args:
    content: the file's bytes, final except for the digest.

  Returns:
    The file's bytes.
  """
  match = _SEAL.search(content)
  if match is None:
    return content
  return b"".join((content[:match.start(1)], _digest(content, match),
                   content[match.end(1):]))


def check_seal(content: bytes) -> bool:
  """Checks a file's seal.

  Args:
    content: the file's bytes.

  Returns:
    True if the seal is whole. False if the file never had a seal, or if it was
    cut off before the first of the two marks.

  Raises:
    ValueError: the file is damaged, or was changed after it was sealed.
  """
  digests = _SEAL.findall(content)
  if not digests and _NAME not in content:
    return False
  only = _SEAL.search(content) if len(digests) == 1 else None
  if only is None or only.group(1) != _digest(content, only):
    raise ValueError(
        f"tflite_model is damaged: its {len(content)} bytes are not those that "
        "were written and sealed. Copy it again, or convert again.")
  return True


def _digest(content: bytes, match: re.Match) -> bytes:
  digest = hashlib.sha256(content[:match.start(1)])
  digest.update(b"0" * _DIGITS)
  digest.update(content[match.end(1):])
  return digest.hexdigest().encode()
