// TQ_ISA chooses the encoder's instruction set; a process chooses once, so this is a program of its own.
#include <cstdlib>

#include "check.h"
#include "quant/isa.h"

TEST("an unknown TQ_ISA is refused, a known one is taken") {
  setenv("TQ_ISA", "abacus", 1);
  CHECK_THROWS(tq::quant::isa(), tq::Cause::invalid_argument, "TQ_ISA: \"abacus\" is unknown or not usable here; the encoder runs");
  const auto& last = *tq::quant::all_isas().back();
  setenv("TQ_ISA", last.name.data(), 1);
  CHECK(&tq::quant::isa() == &last);
}
