// The choice of an instruction set, once, at run time.
#include "kernels/kernels.h"

#include <cstdlib>
#include <string>

#include "common/error.h"
#if TQ_X86
#include <cpuid.h>
#elif TQ_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif TQ_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

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

#if TQ_ARM
#if defined(__APPLE__)
bool has_dot_product() { return true; }  // every 64-bit machine of Apple's has it
bool has_matrix_products() {
  int found = 0;
  size_t bytes = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &bytes, nullptr, 0) == 0 && found;
}
#elif defined(__linux__)
bool has_dot_product() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
bool has_matrix_products() { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#else
bool has_dot_product() { return false; }
bool has_matrix_products() { return false; }
#endif
#endif

#if TQ_X86
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};
// Two features that not every compiler's __builtin_cpu_supports has a name for; both use AVX's registers, which "avx2" vouches for.
bool has_f16c() { return CpuId(1, 0).ecx >> 29 & 1; }
bool has_avx_vnni() { return CpuId(7, 1).eax >> 4 & 1; }
#endif

// __builtin_cpu_supports reads CPUID, and XCR0 for what the operating system saves.
std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#if TQ_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vbmi = avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (vbmi) usable.push_back(&avx512vbmi::table);
  if (avx512) usable.push_back(&avx512::table);
  if (avx2 && has_avx_vnni()) usable.push_back(&avx2vnni::table);
  if (avx2) usable.push_back(&avx2::table);
#elif TQ_ARM
  if (has_dot_product() && has_matrix_products()) usable.push_back(&neoni8mm::table);
  if (has_dot_product()) usable.push_back(&neon::table);
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
