// AVX2 with FMA and F16C (Haswell, Zen and later). Row operands are signed bytes; the dot product moves their signs to the activations,
// because `vpmaddubsw` takes one unsigned operand: |w| <= 128 and |a| <= 127 keep its 16-bit pair sums within 32512, so it never saturates.
#pragma once
#include <immintrin.h>

namespace tq::kernels::avx2 {

inline constexpr char kName[] = "avx2";
inline constexpr int kOffset = 0;

inline __m256i dot(__m256i acc, __m256i w, __m256i a) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace tq::kernels::avx2

#include "kernels/isa/avx2_common.h"
