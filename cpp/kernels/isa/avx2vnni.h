// AVX2 with AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and later). Row operands are unsigned: value + 128.
#pragma once
#include <immintrin.h>

namespace tq::kernels::avx2vnni {

inline constexpr char kName[] = "avx2vnni";
inline constexpr int kOffset = 128;

inline __m256i dot(__m256i acc, __m256i w, __m256i a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }

}  // namespace tq::kernels::avx2vnni

#include "kernels/isa/avx2_common.h"
