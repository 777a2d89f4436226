// AVX2 with FMA and F16C (Haswell, Zen and later). Row operands are signed bytes; a dot product gives one operand the signs of the other,
// because `vpmaddubsw` takes one unsigned operand: magnitudes of at most 128 and 127 keep its 16-bit pair sums within 32512, so that it
// never saturates.
#pragma once

namespace tq::kernels::avx2 {

inline constexpr char kName[] = "avx2";
inline constexpr int kOffset = 0;

}  // namespace tq::kernels::avx2

#include "kernels/isa/avx2_common.h"

namespace tq::kernels::avx2 {

inline I32 add_pairs(I32 acc, __m256i pairs) { return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
inline I32 dot(I32 acc, Row w, Acts a) { return add_pairs(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a.value, w))); }

// The activations' magnitudes serve all rows, which saves an instruction; but a code of -128 cannot be negated.
inline I32 codebook_dot(I32 acc, Row w, Acts a) { return add_pairs(acc, _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.value))); }
inline bool suits_codebook_dot(const int8_t* codebook) {
  bool suits = true;
  for (int i = 0; i < tqn::kCodebookSize; i++) suits &= codebook[i] != -128;
  return suits;
}

}  // namespace tq::kernels::avx2

#include "kernels/isa/dot_panel.h"
