#!/bin/sh
# Kernels under a compiler that knows address spaces and C++14, without their operations (syntax/metal_stdlib): a pointer of MSL must name
# the memory that it points to. Each file by itself, then all put together as a Mac gets them. Also that a mistake would be noticed.
# Arguments: clang++, the root of the sources, the file of all kernels.
set -eu
check() {
  "$1" -target aarch64-linux-gnu -std=c++14 -fsyntax-only -nostdinc -ffreestanding -Werror -Wno-unknown-attributes -Wno-unused-value -D__METAL_VERSION__=300 -DTQ_SYNTAX_ONLY=1 \
    -I"$2/tests/metal/syntax" -I"$2/metal" -I"$2/cpp" -x c++ -
}
for file in "$2"/metal/*.metal; do printf '#include "%s"\n' "$file" | check "$1" "$2"; done
if grep -q '#include "' "$3"; then
  echo "$3 includes files, which Metal's compiler would not find" >&2
  exit 1
fi
check "$1" "$2" <"$3"
if printf '#include <metal_stdlib>\ninline float* own(device float* p) { return p; }\n' | check "$1" "$2" 2>/dev/null; then
  echo "a device pointer passes for a thread's own" >&2
  exit 1
fi
