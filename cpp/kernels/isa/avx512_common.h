// What both AVX-512 vocabularies share: all but dot products, fields of bytes and look-ups. A register of bytes is a plane of two tiles
// side by side, whose sums meet when a strip is done; in a panel it is 16 rows of one tile.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "format/cache.h"
#include "format/matrix.h"
#include "kernels/body/dispatch.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kLanes = 16;
inline constexpr int kSide = 2, kHalves = 1, kParts = 1;
inline constexpr int kPanelRegisters = 4;
inline constexpr int kRowBytes = 64;
inline constexpr int kFloatRegisters = 32;

using F32 = __m512;
using I32 = __m512i;
using Row = __m512i;
using Acts = __m512i;

inline F32 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
inline F32 set1(float x) { return _mm512_set1_ps(x); }
inline F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32 maximum(F32 a, F32 b) { return _mm512_max_ps(a, b); }
inline F32 minimum(F32 a, F32 b) { return _mm512_min_ps(a, b); }
inline F32 absolute(F32 a) { return _mm512_abs_ps(a); }
inline F32 round_even(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32 select_less(F32 a, F32 b, F32 yes, F32 no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
inline F32 pow2(F32 n) { return _mm512_scalef_ps(set1(1), n); }
inline float sum(F32 x) { return _mm512_reduce_add_ps(x); }
inline float largest(F32 x) { return _mm512_reduce_max_ps(x); }

// Each stage adds the partner at distance 1, 2, 4, 8; the upper one of a pair counts negative.
inline F32 hadamard_lanes(F32 x) {
  const float m = -1;
  x = _mm512_fmadd_ps(x, _mm512_setr_ps(1, m, 1, m, 1, m, 1, m, 1, m, 1, m, 1, m, 1, m), _mm512_permute_ps(x, 0xB1));
  x = _mm512_fmadd_ps(x, _mm512_setr_ps(1, 1, m, m, 1, 1, m, m, 1, 1, m, m, 1, 1, m, m), _mm512_permute_ps(x, 0x4E));
  x = _mm512_fmadd_ps(x, _mm512_setr_ps(1, 1, 1, 1, m, m, m, m, 1, 1, 1, 1, m, m, m, m), _mm512_shuffle_f32x4(x, x, 0xB1));
  return _mm512_fmadd_ps(x, _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, m, m, m, m, m, m, m, m), _mm512_shuffle_f32x4(x, x, 0x4E));
}

// A register filled by a function of the lane's number: at compile time, because decoders are set up once a strip.
template <class T>
struct alignas(64) Lanes {
  T lane[64 / sizeof(T)];
  template <class F>
  constexpr explicit Lanes(F f) : lane() {
    for (int i = 0; i < int(64 / sizeof(T)); i++) lane[i] = T(f(i));
  }
};
template <class T, class F>
__m512i register_of(F) {
  static constexpr Lanes<T> lanes(F{});
  return _mm512_load_si512(lanes.lane);
}
// Registers 0 .. N - 1; f(Group<n>) gives one from lambdas that capture nothing.
template <int N, class F>
void fill_registers(__m512i* registers, const F& f) {
  if constexpr (N > 1) fill_registers<N - 1>(registers, f);
  registers[N - 1] = f(Group<N - 1>{});
}

template <int D>
F32 exchange_low(F32 a, F32 b) {
  return _mm512_permutex2var_ps(a, register_of<int32_t>([](int i) { return i & D ? 16 + i - D : i; }), b);
}
template <int D>
F32 exchange_high(F32 a, F32 b) {
  return _mm512_permutex2var_ps(a, register_of<int32_t>([](int i) { return i & D ? 16 + i : i + D; }), b);
}

inline float f16_value(uint16_t bits) { return _cvtsh_ss(bits); }
inline float bf16_value(uint16_t bits) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(uint32_t(bits) << 16)))); }
inline __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline F32 gather(const float* x, const uint16_t* at) { return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(load_half(at)), x, 4); }
inline F32 lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline F32 load_f16(const uint16_t* p) { return _mm512_cvtph_ps(load_half(p)); }
inline F32 load_bf16(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(p)), 16)); }
inline void store_f16(uint16_t* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_i8(int8_t* p, F32 integers) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(integers)));
}

inline I32 set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
inline I32 load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_i32(int32_t* p, I32 x) { _mm512_storeu_si512(p, x); }
inline F32 to_f32(I32 x) { return _mm512_cvtepi32_ps(x); }

inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline Row load_row(const int8_t* p) { return load_bytes(p); }
inline void store_row(int8_t* p, Row w) { _mm512_storeu_si512(p, w); }
inline Acts broadcast_acts(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
// Those of a tile in the lower half, those of the next in the upper half, or zeros.
inline Acts load_acts(const int8_t* p, bool both) {
  int32_t four[2] = {0, 0};
  std::memcpy(four, p, both ? 8 : 4);
  return _mm512_mask_set1_epi32(_mm512_set1_epi32(four[0]), 0xFF00, four[1]);
}
template <int C, int Offset>
F32 column(Row w) {
  if constexpr (Offset == 128)
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_and_si512(_mm512_srli_epi32(w, 8 * C), _mm512_set1_epi32(255)), set1_i32(Offset)));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srai_epi32(_mm512_slli_epi32(w, 24 - 8 * C), 24), set1_i32(Offset)));
}

struct Bytes {
  __m512i v;
  friend Bytes operator+(Bytes a, Bytes b) { return {_mm512_add_epi8(a.v, b.v)}; }
};
template <int>
Bytes load_plane(const uint8_t* tile, const uint8_t* second) {
  return {_mm512_inserti64x4(_mm512_castsi256_si512(load_half(tile)), load_half(second), 1)};
}
inline Bytes with_offset(Bytes b) { return {_mm512_add_epi8(b.v, _mm512_set1_epi8(char(kOffset)))}; }
inline __m512i repeat16(const int8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

inline Row part(Bytes w, int) { return w.v; }
inline void store_values(int8_t* p, Bytes w) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(w.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + tqn::kTileSteps), _mm512_extracti64x4_epi64(w.v, 1));
}
inline void store_sums(int32_t* acc, const I32* sums, int32_t start) {
  const __m256i both = _mm256_add_epi32(_mm512_castsi512_si256(*sums), _mm512_extracti64x4_epi64(*sums, 1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc), _mm256_add_epi32(both, _mm256_set1_epi32(start)));
}

// Caches in codes, as in avx2_common.h: two pairs of positions at a time, so that memory is read in order; the pairs of a channel side by
// side, so that their weights are one broadcast.
inline constexpr int kPairs = 2, kValueBlocks = 2;
inline Row with_key_offset(Row w) { return kOffset ? _mm512_xor_si512(w, _mm512_set1_epi8(char(kOffset))) : w; }
using Wide = __m512i;
using PairSums = __m512i;
inline Wide wide(__m256i values) {
  return _mm512_permutexvar_epi32(register_of<int32_t>([](int i) { return i / 2 + i % 2 * 8; }), _mm512_cvtepi8_epi16(values));
}
inline Wide wide_8(const uint8_t* p) { return wide(load_half(p)); }
inline Wide pair_weights(const int16_t* w) {
  int64_t both;
  std::memcpy(&both, w, 8);
  return _mm512_set1_epi64(both);
}
inline PairSums no_sums() { return _mm512_setzero_si512(); }
inline void store_channels(int32_t* out, PairSums sum) {
  const __m512i total = _mm512_add_epi32(sum, _mm512_srli_epi64(sum, 32));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32(total));
}

class Levels {
 public:
  Levels() : values_(repeat16(tqn::cache::kLevel)), rows_(kOffset ? _mm512_xor_si512(values_, _mm512_set1_epi8(char(kOffset))) : values_) {}
  Row lower_row(Row codes) const { return _mm512_shuffle_epi8(rows_, _mm512_and_si512(codes, _mm512_set1_epi8(15))); }
  Row upper_row(Row codes) const { return lower_row(_mm512_srli_epi16(codes, 4)); }
  Wide wide_4(const uint8_t* p, bool upper) const {
    const __m256i codes = upper ? _mm256_srli_epi16(load_half(p), 4) : load_half(p);
    return wide(_mm256_shuffle_epi8(_mm512_castsi512_si256(values_), _mm256_and_si256(codes, _mm256_set1_epi8(15))));
  }

 private:
  __m512i values_, rows_;
};

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
