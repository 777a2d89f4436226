#include "quant/isa.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/processor.h"

namespace tq::quant {

extern const Isa kScalar;
#if defined(TQ_X86)
extern const Isa kAvx2, kAvx512;
#endif

namespace {

std::vector<const Isa*> usable_isas() {
  std::vector<const Isa*> usable;
#if defined(TQ_X86)
  if (processor().avx512) usable.push_back(&kAvx512);
  if (processor().avx2) usable.push_back(&kAvx2);
#endif
  usable.push_back(&kScalar);
  return usable;
}

const Isa& choose() {
  const char* variable = std::getenv("TQ_ISA");
  const std::string_view wanted = variable ? variable : "";
  if (wanted.empty()) return *all_isas().front();
  std::string names;
  for (const Isa* isa : all_isas()) {
    if (wanted.starts_with(isa->name)) return *isa;  // the kernels tell more kinds of AVX-512 apart
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw Error(Cause::invalid_argument, "TQ_ISA: \"" + std::string(wanted) + "\" is unknown or not usable here; the encoder runs " + names);
}

}  // namespace

std::span<const Isa* const> all_isas() {
  static const std::vector<const Isa*> usable = usable_isas();
  return usable;
}

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace tq::quant
