// AVX-512 F, BW, VL, DQ (Skylake-X and later): what AVX2 does, on two tiles at a time.
#pragma once

namespace tq::kernels::avx512 {

inline constexpr char kName[] = "avx512";
inline constexpr int kDirectTokens = 1;
inline constexpr int kPanelTokens = 3, kFloatTokens = 6;
inline constexpr int kOffset = 0;
inline constexpr bool kPairSums = true;

}  // namespace tq::kernels::avx512

#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512 {

using Pairs = __m512i;
inline Pairs no_pairs() { return _mm512_setzero_si512(); }
inline Pairs add_pairs(Pairs sum, Row w, Acts a) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, a)); }
inline I32 add_widened(I32 acc, Pairs pairs) { return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return add_widened(acc, _mm512_maddubs_epi16(w, a)); }
// Signed values give their signs to the activations: magnitudes of at most 128 and 127 keep pair sums within 32512.
inline I32 dot(I32 acc, Row w, Acts a) {
  const __m512i signed_acts = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  return add_widened(acc, _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_acts));
}

inline PairSums add_products(PairSums sum, Wide v, Wide w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(v, w)); }

template <int, int>
Bytes next_lane(Bytes b, const uint8_t*) {
  return {_mm512_alignr_epi8(_mm512_shuffle_i64x2(b.v, b.v, 0xB1), b.v, 1)};
}
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  constexpr int all = (1 << Bits) - 1, own = (1 << (8 - Shift)) - 1;
  const __m512i shifted = Shift ? _mm512_srli_epi16(low.v, Shift) : low.v;
  if constexpr (Shift + Bits <= 8) return {_mm512_and_si512(shifted, _mm512_set1_epi8(all))};
  const __m512i own_bits = _mm512_and_si512(shifted, _mm512_set1_epi8(own)), others = _mm512_slli_epi16(high.v, 8 - Shift);
  return {_mm512_ternarylogic_epi64(own_bits, others, _mm512_set1_epi8(char(all & ~own)), 0xF8)};  // own_bits | others & mask
}

// A shuffle ignores bits 4 to 6 of an index, and no index reaches bit 7.
class Tables {
 public:
  explicit Tables(const int8_t* codebook) : first_(repeat16(codebook)), second_(repeat16(codebook + tqn::kTableSize)) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    return {_mm512_add_epi8(_mm512_shuffle_epi8(first_, at.first.v), _mm512_shuffle_epi8(second_, at.second.v))};
  }

 private:
  __m512i first_, second_;
};

// As in avx2_common.h: where index - 16 q is not negative, the difference of quarter q from the one before it is added.
class Codebook {
 public:
  explicit Codebook(const int8_t* codebook) {
    __m512i below = _mm512_setzero_si512();
    for (int q = 0; q < 4; q++) {
      const __m512i quarter = repeat16(codebook + 16 * q);
      difference_[q] = _mm512_xor_si512(quarter, below);
      below = quarter;
    }
  }
  Bytes operator()(Bytes at) const {
    __m512i value = _mm512_shuffle_epi8(difference_[0], at.v);
    for (int q = 1; q < 4; q++)
      value = _mm512_xor_si512(value, _mm512_shuffle_epi8(difference_[q], _mm512_sub_epi8(at.v, _mm512_set1_epi8(char(16 * q)))));
    return {value};
  }

 private:
  __m512i difference_[4];
};

}  // namespace tq::kernels::avx512

#include "kernels/isa/dot_panel.h"
