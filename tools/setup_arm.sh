#!/bin/sh
# Installs what `make arm-test` needs where it is missing, on Debian and Ubuntu:
# a compiler for Cortex-M, its C library, and an emulator of boards.
set -eu

missing=""
for pair in arm-none-eabi-gcc:gcc-arm-none-eabi \
    qemu-system-arm:qemu-system-arm gcc:gcc g++:g++; do
  command -v "${pair%%:*}" > /dev/null || missing="$missing ${pair##*:}"
done
# The library is no program: ask the compiler for its file.
library=$(arm-none-eabi-gcc -print-file-name=rdimon.specs 2> /dev/null || true)
[ -f "$library" ] || missing="$missing libnewlib-arm-none-eabi"

if [ -z "$missing" ]; then
  echo "All that is needed for Cortex-M is installed."
  exit 0
fi
if ! command -v apt-get > /dev/null; then
  echo "Install what these Debian packages hold:$missing" >&2
  exit 1
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -q
# shellcheck disable=SC2086  # A list of packages.
$as_root apt-get install -q -y --no-install-recommends $missing
