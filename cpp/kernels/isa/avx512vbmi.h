// AVX-512 with VBMI (byte permutes) and VNNI (Ice Lake, Zen 4 and later). Row operands are unsigned: small values, or value + 128.
#pragma once

namespace tq::kernels::avx512vbmi {

inline constexpr char kName[] = "avx512vbmi";
inline constexpr int kDirectTokens = 2, kRepeatedTokens = 4;
inline constexpr int kPanelTokens = 6, kFloatTokens = 6;
inline constexpr int kOffset = 128;
inline constexpr bool kPairSums = false;

}  // namespace tq::kernels::avx512vbmi

#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512vbmi {

inline I32 dot(I32 acc, Row w, Acts a) { return _mm512_dpbusd_epi32(acc, w, a); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return dot(acc, w, a); }
inline PairSums add_products(PairSums sum, Wide v, Wide w) { return _mm512_dpwssd_epi32(sum, v, w); }

template <int, int>
Bytes next_lane(Bytes b, const uint8_t*) {
  const __m512i next = register_of<uint8_t>([](int i) { return i / 32 * 32 + (i + 1) % 32; });
  return {_mm512_permutexvar_epi8(next, b.v)};
}
// Nothing is masked: permutes ignore the upper bits of an index.
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  const __m512i shifted = Shift ? _mm512_srli_epi16(low.v, Shift) : low.v;
  if constexpr (Shift + Bits <= 8) return {shifted};
  const __m512i own = _mm512_set1_epi8((1 << (8 - Shift)) - 1);
  return {_mm512_ternarylogic_epi64(own, shifted, _mm512_slli_epi16(high.v, 8 - Shift), 0xCA)};  // own ? shifted : high
}

// Tables stand in a register four times: bits 4 and 5 of an index do not matter, bits 6 and 7 are ignored.
class Tables {
 public:
  explicit Tables(const int8_t* codebook) : first_(repeat16(codebook)), second_(repeat16(codebook + tqn::kTableSize)) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    return {_mm512_add_epi8(_mm512_permutexvar_epi8(at.first.v, first_), _mm512_permutexvar_epi8(at.second.v, second_))};
  }

 private:
  __m512i first_, second_;
};

inline constexpr bool kSplitSigns = false;
class Codebook {
 public:
  explicit Codebook(const int8_t* codebook) : values_(_mm512_xor_si512(load_bytes(codebook), _mm512_set1_epi8(-128))) {}
  template <int Shift>
  Bytes at(Bytes low, Bytes high) const {
    return {_mm512_permutexvar_epi8(field<6, Shift>(low, high).v, values_)};
  }

 private:
  __m512i values_;
};

}  // namespace tq::kernels::avx512vbmi

#include "kernels/isa/dot_panel.h"
#include "kernels/isa/no_pairs.h"
