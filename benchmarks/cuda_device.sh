#!/bin/sh
# Builds the CUDA backend on a machine with an NVIDIA GPU, tests it, checks it with compute-sanitizer and measures it.
#   benchmarks/cuda_device.sh [FILE.gguf]     with a file: its logits and greedy text on the device against the CPU
# PARTS: what to do after building, by default "tests sanitize kernels shapes split"; BUILD: build folder; ARCH: CMAKE_CUDA_ARCHITECTURES
# (90a: Hopper). Needs cmake, ninja and nvcc. The GPU's settings stay as they are. Comparisons with cuBLAS appear when the loader finds
# libcublas (LD_LIBRARY_PATH).
set -e
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build/cuda-device}
ARCH=${ARCH:-90a}
PARTS=${PARTS:-tests sanitize kernels shapes split}
TESTS="test_cuda_linear test_cuda_ops test_cuda_delta test_cuda_cache test_cuda_encode"

wanted() {
  case " $PARTS " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

mkdir -p "$BUILD"
cmake -S . -B "$BUILD" -G Ninja -DTQ_PYTHON=OFF -DTQ_TESTS=ON -DTQ_BENCHMARKS=ON -DTQ_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$ARCH" > "$BUILD/configure.log" 2>&1 \
  || { cat "$BUILD/configure.log"; exit 1; }
# shellcheck disable=SC2086
ninja -C "$BUILD" tq_cuda cuda_kernels cuda_model cuda_split $TESTS | tail -1

if wanted tests; then
  for test in $TESTS; do
    "$BUILD/$test"
  done
fi

# Small cases of every kernel; the whole tests would take the checkers minutes.
if wanted sanitize && command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    quiet=$([ "$tool" = memcheck ] && echo "--report-api-errors no") || true  # a test runs out of memory on purpose
    for test in $TESTS; do
      echo "compute-sanitizer $tool: $test"
      # shellcheck disable=SC2086
      TQ_TEST_SMALL=1 compute-sanitizer --tool "$tool" $quiet --error-exitcode 1 --print-limit 5 "$BUILD/$test" | tail -2
    done
  done
fi

if wanted kernels; then
  "$BUILD/cuda/cuda_kernels"
fi
if wanted shapes; then
  "$BUILD/cuda/cuda_model" shapes
fi
if wanted split; then
  two=$([ "$(nvidia-smi -L | wc -l)" -gt 1 ] && echo "cuda:0*8,cuda:1") || true
  # shellcheck disable=SC2086
  "$BUILD/cuda/cuda_split" llama-3.2-1b 4 cuda "cpu*4,cuda" $two
fi
if [ -n "$1" ]; then
  "$BUILD/cuda/cuda_model" compare "$1"
fi
