#!/usr/bin/env bash
# Creates .venv with all that the project needs: tools/setup_venv.sh [PYTHON]
#
# Safe to run again: what an interrupted run left behind is taken up or made
# anew. The Makefile calls it where .venv is missing or out of date.
set -euo pipefail
cd "$(dirname "$0")/.."

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
python=
for candidate in "${1:-python3}" python3.12 python3.11 python3.10; do
  if "$candidate" -c "$supported" 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [[ -z $python ]]; then
  echo "Python 3.10, 3.11 or 3.12 is needed; ${1:-python3} is" \
    "$("${1:-python3}" --version 2>&1). Say which: make PYTHON=/path/to/python3" >&2
  exit 1
fi

if ! .venv/bin/python -c "$supported" 2>/dev/null ||
  ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv
  if ! "$python" -m venv .venv 2>/dev/null; then
    # Debian and Ubuntu keep venv in a package of its own.
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "Installing python$version-venv, which $python lacks"
    as_root=()
    [[ $(id -u) == 0 ]] || as_root=(sudo)
    if ! { "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" apt-get install -y -qq "python$version-venv"; }; then
      echo "Install Python's venv, then run make again" \
        "(Debian, Ubuntu: apt-get install python3-venv)" >&2
      exit 1
    fi
    rm -rf .venv
    "$python" -m venv .venv
  fi
fi

echo "Installing the packages into .venv (a minute or two the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --editable ".[examples,test]"
# Wheels of the TFLite Micro interpreter exist for Linux on x86-64 only.
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --only-binary=:all: --pre tflite-micro 2>/dev/null ||
  echo "tflite-micro does not install here: its checks are left out"
touch .venv/complete
