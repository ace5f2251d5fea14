#!/usr/bin/env bash
# Tests with Bazel: tools/bazel/test.sh [flag]... [target]...
#
# TensorFlow and the rest come from $PYTHON, a python3; else from .venv; else
# from the first python3 on PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
  echo "tools/bazel/test.sh: $*" >&2
  exit 1
}

bazel=$(command -v bazel || command -v bazelisk) ||
  fail "no bazel found: apt-get install bazel-bootstrap bazel-rules-java," \
    "or install bazelisk for a newer Bazel"

python=${PYTHON:-}
if [[ -z $python && -x .venv/bin/python3 ]]; then
  python=.venv/bin/python3
fi
python=${python:-python3}
bin=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))') ||
  fail "$python does not run: set PYTHON to a python3"
export PATH="$bin:$PATH"

# Bazel does not see the packages: without their versions it would keep a
# test's result when one of them changes.
packages=$(python3 -c "
import zlib
from importlib import metadata
names = sorted(f'{d.name}=={d.version}' for d in metadata.distributions())
print(zlib.crc32(str(names).encode()))")

flags=(--test_env=PATH "--test_env=PACKAGES=$packages"
  --test_output=errors --local_test_jobs=2)
version=$("$bazel" --version)
major=${version#bazel }
major=${major%%.*}
if [[ $major =~ ^[0-9]+$ ]] && ((major >= 7)); then
  # Newer rules start python3 in an environment of their own, which hides the
  # packages of a virtual environment.
  site=$(python3 -c \
    "import sys; print(':'.join(p for p in sys.path if '-packages' in p))")
  flags+=("--test_env=PYTHONPATH=$site")
else
  # Debian's Bazel, which names no version, downloads these unless told not to.
  java=/usr/share/bazel/rules/java
  [[ -d $java ]] || fail "no $java: apt-get install bazel-rules-java"
  flags+=("--override_repository=rules_java=$java")
  for name in rules_cc rules_python remote_coverage_tools; do
    flags+=("--override_repository=$name=$PWD/tools/bazel/stubs/$name")
  done
  # Its Linux sandbox buries a failing test's output under its own.
  flags+=(--spawn_strategy=processwrapper-sandbox)
fi

exec "$bazel" test "${flags[@]}" "${@:-//:all}"
