#!/bin/sh
# Builds the package with its server into a virtual environment: container/build.sh TARGET [-C cmake.define.NAME=VALUE ...]
# Needs a C++ compiler and Python with venv; run from the repository's root. The Dockerfile runs it, and so may anybody.
set -eu
target=$1
shift
python3 -m venv "$target"
"$target/bin/python" -m pip install --no-cache-dir --disable-pip-version-check ".[server,grammar]" "$@"
"$target/bin/tqn" --version
"$target/bin/python" -c "import turboquant_native.server.app"
