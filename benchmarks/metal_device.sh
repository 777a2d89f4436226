#!/bin/sh
# One command for the owner of a Mac with an M1 or later: builds, tests the Metal backend on the device, measures it, and writes a report to
# send to the project.
#   benchmarks/metal_device.sh [FILE.gguf]     with a file: `tqn bench` on it and its greedy text on the GPU against the CPU
# Needs Xcode's command line tools (xcode-select --install) and Python >= 3.10. REPORT: where the report goes (metal-report.txt).
# Elsewhere it tries itself: the emulator of the tests in the GPU's place, small sizes.
set -u
case ${1:-} in "" | /*) MODEL=${1:-} ;; *) MODEL=$PWD/$1 ;; esac
cd "$(dirname "$0")/.." || exit
REPORT=${REPORT:-metal-report.txt}
VENV=${VENV:-build/metal-venv}
BUILD=${BUILD:-build/metal-device}
SMALL=""
[ "$(uname)" = Darwin ] || SMALL=small
failed=""

# A part of the report: its title, then a command.
part() {
  title=$1
  shift
  echo "== $title"
  { echo "== $title"; "$@" 2>&1; code=$?; echo "(exit $code)"; } >"$REPORT.part"
  code=$(sed -n '$s/(exit \(.*\))/\1/p' "$REPORT.part")
  cat "$REPORT.part" >>"$REPORT"
  rm -f "$REPORT.part"
  [ "$code" = 0 ] || failed="$failed; $title"
}
machine() {
  uname -srm
  if [ -z "$SMALL" ]; then
    sysctl -n machdep.cpu.brand_string hw.memsize
    sw_vers
    system_profiler SPDisplaysDataType | grep -E "Chipset|Cores|Metal"
    xcrun --version
  fi
  git log -1 --format="commit %h of %cs" || echo "no git repository"
}
install() {
  python3 -m venv "$VENV" && "$VENV/bin/pip" install -q cmake ninja . -r tests/requirements.txt
}
build() {
  "$VENV/bin/cmake" -S . -B "$BUILD" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/$VENV/bin/ninja" -DTQ_PYTHON=OFF -DTQ_TESTS=ON -DTQ_BENCHMARKS=ON \
    && "$VENV/bin/cmake" --build "$BUILD"
}
compare() {
  for gpu in "" --gpu; do
    # shellcheck disable=SC2086
    "$VENV/bin/tqn" run "$MODEL" --raw -p "The capital of France is" -n 64 --temperature 0 $gpu >"$BUILD/text$gpu" || return 1
  done
  cmp "$BUILD/text" "$BUILD/text--gpu" && echo "64 greedy tokens are the same"
}

: >"$REPORT"
part "machine" machine
part "the package" install
part "the C++ build" build
if [ -n "$SMALL" ]; then
  export TQ_METAL_EMULATOR="$PWD/$BUILD/tests/metal/libtq_metal_emulator.so"
  export TQ_TEST_METAL_EMULATOR="$TQ_METAL_EMULATOR"
fi
part "tqn doctor" "$VENV/bin/tqn" doctor
part "tests: operations and kernels" "$VENV/bin/ctest" --test-dir "$BUILD" --output-on-failure -R metal
part "tests: whole models on the device" "$VENV/bin/python" -m pytest -q tests/python/test_metal.py
part "kernels" "$BUILD/metal_kernels" $SMALL
if [ -z "$SMALL" ]; then
  part "a model of random weights, GPU" "$VENV/bin/tqn" bench --synthetic llama-3.2-1b --bits 3 --gpu
  part "a model of random weights, CPU" "$VENV/bin/tqn" bench --synthetic llama-3.2-1b --bits 3
fi
if [ -n "$MODEL" ]; then
  part "$MODEL: speed" "$VENV/bin/tqn" bench "$MODEL" --gpu
  part "$MODEL: text" compare
fi
echo
echo "The report is in $REPORT: please attach it to an issue of the project."
[ -z "$failed" ] || { echo "failed$failed"; exit 1; }
