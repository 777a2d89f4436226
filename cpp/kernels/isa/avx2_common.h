// What both 256-bit vocabularies share: all but the dot product.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "format/cache.h"
#include "format/matrix.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kLanes = 8;
inline constexpr int kDirectTokens = 1, kRepeatedTokens = 2;
inline constexpr int kSide = 1, kHalves = 1, kParts = 1;
inline constexpr int kPanelRegisters = 2;
inline constexpr int kRowBytes = 32;
inline constexpr int kFloatRegisters = 16;

using F32 = __m256;
using I32 = __m256i;
using Row = __m256i;
using Acts = __m256i;

inline F32 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
inline F32 set1(float x) { return _mm256_set1_ps(x); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
inline F32 maximum(F32 a, F32 b) { return _mm256_max_ps(a, b); }
inline F32 minimum(F32 a, F32 b) { return _mm256_min_ps(a, b); }
inline F32 absolute(F32 a) { return _mm256_andnot_ps(set1(-0.f), a); }
inline F32 round_even(F32 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 select_less(F32 a, F32 b, F32 yes, F32 no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline F32 pow2(F32 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline float sum(F32 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(F32 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// Each stage adds the partner at distance 1, 2, 4; the upper one of a pair has its own sign flipped.
inline F32 hadamard_lanes(F32 x) {
  const float m = -0.f;
  x = _mm256_add_ps(_mm256_permute_ps(x, 0xB1), _mm256_xor_ps(x, _mm256_setr_ps(0, m, 0, m, 0, m, 0, m)));
  x = _mm256_add_ps(_mm256_permute_ps(x, 0x4E), _mm256_xor_ps(x, _mm256_setr_ps(0, 0, m, m, 0, 0, m, m)));
  return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), _mm256_xor_ps(x, _mm256_setr_ps(0, 0, 0, 0, m, m, m, m)));
}

template <int D>
F32 exchange_low(F32 a, F32 b) {
  if constexpr (D == 4) return _mm256_permute2f128_ps(a, b, 0x20);
  if constexpr (D == 2) return _mm256_blend_ps(a, _mm256_permute_ps(b, 0x4E), 0xCC);
  return _mm256_blend_ps(a, _mm256_permute_ps(b, 0xB1), 0xAA);
}
template <int D>
F32 exchange_high(F32 a, F32 b) {
  if constexpr (D == 4) return _mm256_permute2f128_ps(a, b, 0x31);
  if constexpr (D == 2) return _mm256_blend_ps(_mm256_permute_ps(a, 0x4E), b, 0xCC);
  return _mm256_blend_ps(_mm256_permute_ps(a, 0xB1), b, 0xAA);
}

inline float f16_value(uint16_t bits) { return _cvtsh_ss(bits); }
inline float bf16_value(uint16_t bits) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(uint32_t(bits) << 16)))); }
inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i repeat16(__m128i x) { return _mm256_broadcastsi128_si256(x); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store32(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline F32 gather(const float* x, const uint16_t* at) { return _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(load16(at)), 4); }
inline F32 lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
inline F32 load_f16(const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); }
inline F32 load_bf16(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16)); }
inline void store_f16(uint16_t* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_i8(int8_t* p, F32 integers) {
  const __m256i i = _mm256_cvtps_epi32(integers);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

inline I32 set1_i32(int32_t x) { return _mm256_set1_epi32(x); }
inline I32 load_i32(const int32_t* p) { return load32(p); }
inline void store_i32(int32_t* p, I32 x) { store32(p, x); }
inline F32 to_f32(I32 x) { return _mm256_cvtepi32_ps(x); }

inline Row load_row(const int8_t* p) { return load32(p); }
inline void store_row(int8_t* p, Row w) { store32(p, w); }
inline Acts broadcast_acts(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
inline Acts load_acts(const int8_t* p, bool) { return broadcast_acts(p); }
template <int C, int Offset>
F32 column(Row w) {
  if constexpr (Offset == 128)
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(w, 8 * C), _mm256_set1_epi32(255)), set1_i32(Offset)));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srai_epi32(_mm256_slli_epi32(w, 24 - 8 * C), 24), set1_i32(Offset)));
}

struct Bytes {
  __m256i v;
  friend Bytes operator+(Bytes a, Bytes b) { return {_mm256_add_epi8(a.v, b.v)}; }
};
template <int>
Bytes load_plane(const uint8_t* p, const uint8_t*) {
  return {load32(p)};
}
template <int, int>
Bytes next_lane(Bytes b, const uint8_t*) {
  return {_mm256_alignr_epi8(_mm256_permute2x128_si256(b.v, b.v, 1), b.v, 1)};
}
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  constexpr int all = (1 << Bits) - 1, own = (1 << (8 - Shift)) - 1;
  const __m256i shifted = Shift ? _mm256_srli_epi16(low.v, Shift) : low.v;
  if constexpr (Shift + Bits <= 8) return {_mm256_and_si256(shifted, _mm256_set1_epi8(all))};
  return {_mm256_or_si256(_mm256_and_si256(shifted, _mm256_set1_epi8(own)),
                          _mm256_and_si256(_mm256_slli_epi16(high.v, 8 - Shift), _mm256_set1_epi8(char(all & ~own))))};
}
inline Bytes with_offset(Bytes b) { return {_mm256_add_epi8(b.v, _mm256_set1_epi8(char(kOffset)))}; }

// A shuffle ignores bits 4 to 6 of an index, and no index reaches bit 7.
class Tables {
 public:
  explicit Tables(const int8_t* codebook) : first_(repeat16(load16(codebook))), second_(repeat16(load16(codebook + tqn::kTableSize))) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    return {_mm256_add_epi8(_mm256_shuffle_epi8(first_, at.first.v), _mm256_shuffle_epi8(second_, at.second.v))};
  }

 private:
  __m256i first_, second_;
};

// Magnitudes, and bytes with the signs of the values, never 0.
inline constexpr bool kSplitSigns = true;
struct Split {
  __m256i magnitude, sign;
};

// What the bits of an index above its lowest N tell: the index folded (N low bits to be xored in) and the value's sign.
template <int N>
struct Upper {
  int8_t folded[16], sign[16];
  constexpr Upper() : folded(), sign() {
    for (int i = 0; i < 16; i++) {
      const int at = (i << N) % tqn::kCodebookSize;
      folded[i] = int8_t(at < 32 ? at : 63 - at);
      sign[i] = at < 32 ? -1 : 1;
    }
  }
};

// Entry 63 - i is the negative of entry i, so 32 magnitudes do: the upper half of the indices is folded onto the lower one. A shuffle
// gives 0 where its index is negative: where the folded index is below 16 the difference (xor) of outer from inner magnitudes is added.
// Of an index across two bytes the bits in the upper byte are looked up instead, which saves putting it together.
class Codebook {
 public:
  explicit Codebook(const int8_t* codebook)
      : inner_(repeat16(_mm_abs_epi8(load16(codebook + 16)))),
        difference_(_mm256_xor_si256(inner_, repeat16(_mm_abs_epi8(load16(codebook))))) {}
  template <int Shift>
  Split at(Bytes low, Bytes high) const {
    if constexpr (Shift <= 2) {
      const __m256i at = field<6, Shift>(low, high).v;
      return {magnitude(_mm256_min_epu8(at, _mm256_xor_si256(at, _mm256_set1_epi8(63)))),
              _mm256_sub_epi8(_mm256_set1_epi8(char(0x9F)), at)};
    } else {
      static constexpr Upper<8 - Shift> tables;
      const __m256i upper = _mm256_and_si256(high.v, _mm256_set1_epi8(15)), lower = field<8 - Shift, Shift>(low, high).v;
      const __m256i folded = _mm256_xor_si256(_mm256_shuffle_epi8(repeat16(load16(tables.folded)), upper), lower);
      return {magnitude(folded), _mm256_shuffle_epi8(repeat16(load16(tables.sign)), upper)};
    }
  }

 private:
  __m256i magnitude(__m256i folded) const {
    const __m256i outer = _mm256_shuffle_epi8(difference_, _mm256_add_epi8(folded, _mm256_set1_epi8(0x70)));
    return _mm256_xor_si256(_mm256_shuffle_epi8(inner_, folded), outer);
  }
  __m256i inner_, difference_;
};

inline Row part(Bytes w, int) { return w.v; }
inline Split part(Split w, int) { return w; }
inline void store_values(int8_t* p, Bytes w) { store32(p, w.v); }
inline void store_values(int8_t* p, Split w) { store_values(p, with_offset({_mm256_sign_epi8(w.magnitude, w.sign)})); }
inline void store_sums(int32_t* acc, const I32* sums, int32_t start) { store_i32(acc, _mm256_add_epi32(*sums, set1_i32(start))); }

// Caches in codes: a row of four key channels, with the offset that dot() wants; pairs of positions of 8 value channels.
inline constexpr int kPairs = 1;
inline Row with_key_offset(Row w) { return kOffset ? _mm256_xor_si256(w, _mm256_set1_epi8(char(kOffset))) : w; }
using Wide = __m256i;
using PairSums = __m256i;
inline Wide wide_8(const uint8_t* p) { return _mm256_cvtepi8_epi16(load16(p)); }
inline Wide pair_weights(const int16_t* w) {
  int32_t both;
  std::memcpy(&both, w, 4);
  return _mm256_set1_epi32(both);
}
inline PairSums no_sums() { return _mm256_setzero_si256(); }
inline void store_channels(int32_t* out, PairSums sum) { store_i32(out, sum); }

class Levels {
 public:
  Levels()
      : values_(repeat16(load16(tqn::cache::kLevel))),
        rows_(kOffset ? _mm256_xor_si256(values_, _mm256_set1_epi8(char(kOffset))) : values_) {}
  Row lower_row(Row codes) const { return _mm256_shuffle_epi8(rows_, _mm256_and_si256(codes, _mm256_set1_epi8(15))); }
  Row upper_row(Row codes) const { return lower_row(_mm256_srli_epi16(codes, 4)); }
  Wide wide_4(const uint8_t* p, bool upper) const {
    const __m128i codes = upper ? _mm_srli_epi16(load16(p), 4) : load16(p);
    return _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm256_castsi256_si128(values_), _mm_and_si128(codes, _mm_set1_epi8(15))));
  }

 private:
  __m256i values_, rows_;
};

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
