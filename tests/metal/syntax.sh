#!/bin/sh
# Kernels under a compiler that knows address spaces and C++14, without their operations (syntax/metal_stdlib): a pointer of MSL must name
# the memory that it points to. Also that this would be noticed. Arguments: clang++, the root of the sources.
set -eu
check() {
  "$1" -target aarch64-linux-gnu -std=c++14 -fsyntax-only -nostdinc -ffreestanding -Werror -Wno-unknown-attributes -Wno-unused-value -D__METAL_VERSION__=300 -DTQ_SYNTAX_ONLY=1 \
    -I"$2/tests/metal/syntax" -I"$2/metal" -I"$2/cpp" -x c++ -
}
all=$(cd "$2/metal" && ls *.metal)
for file in $all; do printf '#include "%s"\n' "$file"; done | check "$1" "$2"
if printf '#include <metal_stdlib>\ninline float* own(device float* p) { return p; }\n' | check "$1" "$2" 2>/dev/null; then
  echo "a device pointer passes for a thread's own" >&2
  exit 1
fi
