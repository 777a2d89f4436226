#!/bin/sh
# no_streams.sh NM LIBRARY: streams look their facets up in whichever libstdc++ the process loaded first, and crash where the core was linked
# with another copy of it. So the core uses none.
symbols=$("$1" -uC "$2") || exit 1
streams=$(printf '%s\n' "$symbols" | grep -E 'std::(__cxx11::)?(basic_[a-z]*(stream|buf)|locale|ios_base)' | sort -u)
if [ -n "$streams" ]; then
  echo "the core refers to streams:"
  echo "$streams"
  exit 1
fi
