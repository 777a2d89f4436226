// The instruction sets that processor and operating system support together, asked once.
#pragma once

namespace tq {

struct Processor {
  bool avx2 = false;             // with FMA, F16C and BMI2
  bool avx_vnni = false;         // VNNI on AVX's registers
  bool avx512 = false;           // F, BW, DQ, VL; only beside avx2
  bool avx512_vbmi = false;      // VBMI and VNNI; only beside avx512
  bool dot_product = false;      // Arm's SDOT
  bool matrix_products = false;  // Arm's SMMLA
};

const Processor& processor();

}  // namespace tq
