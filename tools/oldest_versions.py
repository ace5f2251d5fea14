"""Prints the oldest version of each package that setup.py allows, for pip.

    python tools/oldest_versions.py > oldest.txt
    pip install --constraint oldest.txt .

Of each it is the newest patch: 2.16.2 for 2.16.
"""

import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def oldest(text: str) -> list[str]:
  """Lists `name==version.*` for each `"name>=version"` of a setup.py."""
  return [f"{name}=={version}.*" for name, version in re.findall(
      r'"([A-Za-z][\w-]*)>=([\d.]+)"', text)]


if __name__ == "__main__":
  print("\n".join(sorted(set(oldest(SETUP.read_text())))))
