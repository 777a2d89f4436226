#!/bin/sh
# isa_symbols.sh NM LIBRARY: code compiled for one instruction set must leave nothing behind that the linker could use for every machine. A weak
# symbol (an inline function or a template that was not inlined) in an object named *_ISA.cpp must belong to that instruction set's namespace.
status=0
for isa in avx2 avx2vnni avx512 avx512vbmi neon neoni8mm; do
  shared=$("$1" -C "$2" | awk -v isa="$isa" '/\.o:$/ { inside = $0 ~ "_" isa "\\.cpp\\.o:" } inside && / [WVu] / && $0 !~ "::" isa "::"')
  if [ -n "$shared" ]; then
    echo "$isa objects share these symbols with the whole program:"
    echo "$shared"
    status=1
  fi
done
exit $status
