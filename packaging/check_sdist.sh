#!/bin/sh
# check_sdist.sh SDIST.tar.gz [PYTHON]: the source distribution becomes a wheel without git, without network and without CUDA. PYTHON has
# scikit-build-core, pybind11, cmake and ninja installed, which stand for what pip would fetch.
set -eu
sdist=$(realpath "$1")
python=${2:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -xzf "$sdist" -C "$folder"
cd "$folder"/*/
test ! -e .git
offline=""
if unshare -rn true 2>/dev/null; then offline="unshare -rn"; fi
PATH="$(dirname "$(command -v "$python")"):$PATH" GIT_DIR=/nonexistent $offline "$python" -m pip wheel . --no-deps --no-build-isolation --no-index -w "$folder/dist"
ls -l "$folder"/dist
"$python" -m zipfile -l "$(ls "$folder"/dist/*.whl)" | grep -q '_core' || { echo "the wheel holds no extension" >&2; exit 1; }
echo "sdist: built offline${offline:+ (no network in its namespace)}, without git"
