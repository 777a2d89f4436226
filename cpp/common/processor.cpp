// By CPUID and XGETBV themselves: compilers' __builtin_cpu_supports leans on a constructor of their run-time library, which not every one
// runs (zig's says that there is nothing), and knows names that differ from one to the next.
#include "common/processor.h"

#include <cstddef>
#include <cstdint>
#if TQ_X86
#include <cpuid.h>
#elif TQ_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif TQ_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace tq {
namespace {

#if TQ_X86
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }  // zeros where there is no such leaf
};

constexpr bool has(uint64_t word, int bit) { return word >> bit & 1; }
// All bits of a mask.
constexpr bool has_all(uint64_t word, uint64_t mask) { return (word & mask) == mask; }

// XCR0: the registers that the operating system saves.
uint64_t saved_registers() {
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

Processor examine() {
  const CpuId basic(1, 0), extended(7, 0), further(7, 1);
  constexpr int kOsxsave = 27, kAvx = 28, kFma = 12, kF16c = 29;                                      // basic.ecx
  constexpr int kAvx2 = 5, kBmi2 = 8, kAvx512f = 16, kAvx512dq = 17, kAvx512bw = 30, kAvx512vl = 31;  // extended.ebx
  constexpr int kVbmi = 1, kVnni = 11;                                                                // extended.ecx
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
  const uint64_t saved = has(basic.ecx, kOsxsave) ? saved_registers() : 0;
  Processor found;
  found.avx2 = has_all(saved, kYmm) && has(basic.ecx, kAvx) && has(basic.ecx, kFma) && has(basic.ecx, kF16c) && has(extended.ebx, kAvx2) &&
               has(extended.ebx, kBmi2);
  found.avx_vnni = found.avx2 && has(further.eax, 4);
  found.avx512 = found.avx2 && has_all(saved, kZmm) && has(extended.ebx, kAvx512f) && has(extended.ebx, kAvx512dq) &&
                 has(extended.ebx, kAvx512bw) && has(extended.ebx, kAvx512vl);
  found.avx512_vbmi = found.avx512 && has(extended.ecx, kVbmi) && has(extended.ecx, kVnni);
  return found;
}
#elif TQ_ARM && defined(__APPLE__)
Processor examine() {
  Processor found;
  found.dot_product = true;  // every 64-bit machine of Apple's has it
  int value = 0;
  size_t bytes = sizeof value;
  found.matrix_products = sysctlbyname("hw.optional.arm.FEAT_I8MM", &value, &bytes, nullptr, 0) == 0 && value;
  return found;
}
#elif TQ_ARM && defined(__linux__)
Processor examine() {
  Processor found;
  found.dot_product = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  found.matrix_products = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
  return found;
}
#else
Processor examine() { return {}; }
#endif

}  // namespace

const Processor& processor() {
  static const Processor found = examine();
  return found;
}

}  // namespace tq
