#!/bin/sh
# Kernels under compilers that know MSL's rules, without their operations (syntax/metal_stdlib). Each file by itself, then all put together
# as a Mac gets them, as
#   - C++14 with address spaces: a pointer must name the memory that it points to; no exceptions, no type information, nothing in double
#   - C++ for OpenCL: MSL's address spaces in clang's own rules; no pointers to functions, no virtual functions, no half where none may be
# and without lambdas, which both would take. Also that each kind of mistake would be noticed. Whether a function calls itself is not checked.
# Arguments: clang++, the root of the sources, the file of all kernels.
set -eu
clangxx=$1 root=$2 kernels=$3
common() {
  "$clangxx" "$@" -fsyntax-only -Werror -Wno-unknown-attributes -Wno-unused-value -D__METAL_VERSION__=300 -DTQ_SYNTAX_ONLY=1 \
    -I"$root/tests/metal/syntax" -I"$root/metal" -I"$root/cpp" -
}
as_cpp14() { common -x c++ -target aarch64-linux-gnu -std=c++14 -nostdinc -ffreestanding -fno-exceptions -fno-rtti -Wdouble-promotion; }
as_opencl() { common -x cl -target spir64 -cl-std=clc++ -cl-no-stdinc -Xclang -cl-ext=+cl_khr_fp16; }
without_lambdas() { ! grep -nE '\[[&=]?[a-z_, &]*\] *(\(|\{)' >&2; }
fail() {
  echo "$1" >&2
  exit 1
}
must_fail() {  # a name of the mistake, a check, a source
  if printf '#include <metal_stdlib>\n%s\n' "$3" | "$2" >/dev/null 2>&1; then fail "$1 passes"; fi
}

for file in "$root"/metal/*.metal; do
  printf '#include "%s"\n' "$file" | as_cpp14
  printf '#include "%s"\n' "$file" | as_opencl
done
if grep -q '#include "' "$kernels"; then fail "$kernels includes files, which Metal's compiler would not find"; fi
as_cpp14 <"$kernels"
as_opencl <"$kernels"
without_lambdas <"$kernels" || fail "a lambda, which MSL does not have"

must_fail "a device pointer for a thread's own" as_cpp14 'inline thread float* own(device float* p) { return p; }'
must_fail "a threadgroup pointer for a device one" as_opencl 'inline device float* own(threadgroup float* p) { return p; }'
must_fail "an exception" as_cpp14 'inline void f() { throw 1; }'
must_fail "double" as_cpp14 'inline float f(float x) { return x * 2.0; }'
must_fail "a pointer to a function" as_opencl 'void g(); inline void f() { void (*p)() = g; p(); }'
must_fail "a virtual function" as_opencl 'struct A { virtual void f(); };'
must_fail "C++17" as_cpp14 'template <int N> int f() { if constexpr (N > 1) return 1; return 2; }'
must_fail "a lambda" without_lambdas 'inline int f(int a) { return [&](int b) { return a + b; }(1); }'
