// AVX2 with FMA and F16C (Haswell, Zen and later). `vpmaddubsw` multiplies unsigned by signed bytes and sums pairs in 16 bits: the trellis
// formats' small values go straight in; signed values give their signs to the activations, so that magnitudes of at most 128 and 127 keep
// the pair sums within 32512.
#pragma once

namespace tq::kernels::avx2 {

inline constexpr char kName[] = "avx2";
inline constexpr int kOffset = 0, kPanelTokens = 3, kFloatTokens = 6;
inline constexpr bool kPairSums = true;

}  // namespace tq::kernels::avx2

#include "kernels/isa/avx2_common.h"

namespace tq::kernels::avx2 {

using Pairs = __m256i;
inline Pairs no_pairs() { return _mm256_setzero_si256(); }
inline Pairs add_pairs(Pairs sum, Row w, Acts a) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a)); }
inline I32 add_widened(I32 acc, Pairs pairs) { return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
inline I32 dot(I32 acc, Row w, Acts a) { return add_widened(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))); }
inline I32 dot(I32 acc, Split w, Acts a) { return add_widened(acc, _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(a, w.sign))); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return add_widened(acc, _mm256_maddubs_epi16(w, a)); }

inline PairSums add_products(PairSums sum, Wide v, Wide w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(v, w)); }

}  // namespace tq::kernels::avx2

#include "kernels/isa/dot_panel.h"
