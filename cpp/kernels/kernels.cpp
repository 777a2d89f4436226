// The choice of an instruction set, once, at run time.
#include "kernels/kernels.h"

#include <cstdlib>
#include <string>

#include "common/error.h"
#include "common/processor.h"

namespace tq::kernels {

namespace scalar {
extern const Kernels table;
}
#if TQ_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx2vnni {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512vbmi {
extern const Kernels table;
}
#elif TQ_ARM
namespace neon {
extern const Kernels table;
}
namespace neoni8mm {
extern const Kernels table;
}
#endif

namespace {

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
  [[maybe_unused]] const Processor& machine = processor();
#if TQ_X86
  if (machine.avx512_vbmi) usable.push_back(&avx512vbmi::table);
  if (machine.avx512) usable.push_back(&avx512::table);
  if (machine.avx_vnni) usable.push_back(&avx2vnni::table);
  if (machine.avx2) usable.push_back(&avx2::table);
#elif TQ_ARM
  if (machine.dot_product && machine.matrix_products) usable.push_back(&neoni8mm::table);
  if (machine.dot_product) usable.push_back(&neon::table);
#endif
  usable.push_back(&scalar::table);
  return usable;
}

const Kernels& choose() {
  const char* wanted = std::getenv("TQ_ISA");
  return wanted && *wanted ? kernels_named(wanted) : *all_kernels().front();
}

}  // namespace

std::span<const Kernels* const> all_kernels() {
  static const std::vector<const Kernels*> usable = usable_kernels();
  return usable;
}

const Kernels& kernels_named(std::string_view isa) {
  std::string names;
  for (const Kernels* k : all_kernels()) {
    if (k->isa == isa) return *k;
    names += (names.empty() ? "" : ", ") + std::string(k->isa);
  }
  throw Error(Cause::invalid_argument, "TQ_ISA: \"" + std::string(isa) + "\" is unknown or not usable here; this machine runs " + names);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tq::kernels
