#!/usr/bin/env bash
# Runs the contract tests on the versions that setup.py promises, each in an
# environment of its own: tools/test_versions.sh [oldest|newest] [TEST ...]
#
# "oldest" is the lower bound of every package on Python 3.10; "newest" is what
# pip takes today on Python 3.12. make test runs on this computer's Python.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  oldest | newest) which=("$1"); shift ;;
  *) which=(oldest newest) ;;
esac
tests=("$@")
[[ ${#tests[@]} -gt 0 ]] || tests=(tests)

# Prints the path of an interpreter of this version.
interpreter() {
  local candidate
  for candidate in "python$1" \
    "$(pyenv root 2>/dev/null || true)"/versions/"$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit(
        '%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python $1 is needed, and is not on the PATH or under pyenv." >&2
  return 1
}

for name in "${which[@]}"; do
  version=3.12
  [[ $name == newest ]] || version=3.10
  python=$(interpreter "$version")
  venv=.venv-versions/$name
  if [[ ! -e $venv/complete || setup.py -nt $venv/complete ]]; then
    echo "Installing the $name versions into $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [[ $name == oldest ]]; then
      "$venv/bin/python" tools/oldest_versions.py > "$venv/oldest.txt"
      "${pip[@]}" --constraint "$venv/oldest.txt" --editable ".[examples,test]"
    else
      "${pip[@]}" --editable ".[examples,test]"
    fi
    "${pip[@]}" --only-binary=:all: --pre tflite-micro 2>/dev/null ||
      echo "tflite-micro does not install here: its checks are left out"
    touch "$venv/complete"
  fi
  echo "Contract tests, $name versions:"
  "$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null |
    grep -E "^(tensorflow|tf_keras|tensorflow-model-optimization|numpy|ai-edge)"
  TF_CPP_MIN_LOG_LEVEL=3 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
    "$venv/bin/python" -m pytest -q -n 2 --dist worksteal -m "not slow" \
    -p no:cacheprovider "${tests[@]}"
done
