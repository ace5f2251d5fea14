#!/usr/bin/env bash
# Builds the wheel, installs it into an environment of its own and tests it from
# outside the checkout: tools/test_wheel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${1:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --quiet)
# A copy, so that the build leaves nothing in the checkout.
git archive HEAD | tar -x -C "$work" --one-top-level=source
"${pip[@]}" wheel --no-deps --wheel-dir "$work" "$work/source"
"${pip[@]}" install "$(echo "$work"/*.whl)[test]"
rm -rf "$work/source"

mkdir "$work/elsewhere"
cp -r "$checkout/tests" "$work/elsewhere/tests"
cd "$work/elsewhere"
export TF_CPP_MIN_LOG_LEVEL=3 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
"$work/venv/bin/python" -m pytest -q -n 2 --dist worksteal -m "not slow" \
  -p no:cacheprovider tests/package_test.py tests/map_formulas_test.py \
  tests/export/conversion/convert_test.py \
  tests/export/commands/verify_command_test.py
"$work/venv/bin/kap-verify" --help >/dev/null
