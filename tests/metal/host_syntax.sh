#!/bin/sh
# The macOS half of the host under clang, against declarations of what it uses of Apple's frameworks (objc/). Also that a method that is
# not declared would be noticed. Arguments: clang++, the root of the sources.
set -eu
check() {
  "$1" -x objective-c++ -std=c++20 -fobjc-arc -fobjc-runtime=macosx-13 -fblocks -fsyntax-only -Wall -Wextra -Werror -Wno-nullability-completeness \
    -I"$2/tests/metal/objc" -I"$2/cpp" -I"$2/metal" -
}
printf '#include "device_apple.mm"\n' | check "$1" "$2"
if printf '#include "device_apple.mm"\nvoid wrong(id<MTLDevice> d) { [d newMagic]; }\n' | check "$1" "$2" 2>/dev/null; then
  echo "a method that Metal does not have passes" >&2
  exit 1
fi
