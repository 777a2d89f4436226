// What both 256-bit vocabularies share: all but the dot product.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "format/matrix.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kLanes = 8;
inline constexpr int kDirectTokens = 1;
inline constexpr int kTogether = 2, kAhead = 8;
inline constexpr int kPanelRegisters = 2, kPanelTokens = 4;
inline constexpr int kRowBytes = 32;

using F32 = __m256;
using I32 = __m256i;
using Row = __m256i;
struct Acts {
  __m256i value, magnitude;
  Acts() = default;
  Acts(__m256i a) : value(a), magnitude(_mm256_abs_epi8(a)) {}
};

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
inline Acts load_acts(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
template <int C>
F32 column(Row w) {
  const __m256i byte = _mm256_and_si256(_mm256_srli_epi32(w, 8 * C), _mm256_set1_epi32(255));
  const __m256i value =
      kOffset ? _mm256_sub_epi32(byte, _mm256_set1_epi32(kOffset)) : _mm256_srai_epi32(_mm256_slli_epi32(w, 24 - 8 * C), 24);
  return _mm256_cvtepi32_ps(value);
}

// Two registers that are decoded side by side: the chain of one is longer than the scheduler is deep.
struct Pair {
  __m256i v[kTogether];
};
template <class F, class... P>
Pair each(const F& f, const P&... p) {
  return {{f(p.v[0]...), f(p.v[1]...)}};
}

// Codebook look-up: a shuffle gives 0 where its index is negative, so quarter q >= 1 of the codebook is reached by adding (xor) its
// difference from quarter q - 1 wherever index - 16 q is not negative.
class Table {
 public:
  explicit Table(const int8_t* codebook) {
    __m128i below = _mm_setzero_si128();
    for (int q = 0; q < 4; q++) {
      const __m128i quarter = _mm_add_epi8(load16(codebook + 16 * q), _mm_set1_epi8(char(kOffset)));
      difference_[q] = _mm256_broadcastsi128_si256(_mm_xor_si128(quarter, below));
      below = quarter;
    }
  }
  Pair operator()(Pair index) const {
    const auto look_up = [](__m256i difference, Pair at) {
      return each([=](__m256i i) { return _mm256_shuffle_epi8(difference, i); }, at);
    };
    Pair value = look_up(difference_[0], index);
    for (int q = 1; q < 4; q++) {
      index = each([](__m256i i) { return _mm256_sub_epi8(i, _mm256_set1_epi8(16)); }, index);
      value = each([](__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }, value, look_up(difference_[q], index));
    }
    return value;
  }

 private:
  __m256i difference_[4];
};

template <class T, class F>
__m256i register_of(const F& f) {
  alignas(32) T lanes[32 / sizeof(T)];
  for (int i = 0; i < int(32 / sizeof(T)); i++) lanes[i] = T(f(i));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes));
}

// Eight bytes of a tile's circular string.
template <int K>
uint64_t circular8(const uint8_t* tile, int byte) {
  constexpr int bytes = int(tqn::tile_bytes(K));
  uint64_t low, high;
  if (byte + 8 <= bytes) return std::memcpy(&low, tile + byte, 8), low;
  std::memcpy(&low, tile + bytes - 8, 8);
  std::memcpy(&high, tile, 8);
  const int beyond = byte + 8 - bytes;
  return low >> (8 * beyond) | high << (64 - 8 * beyond);
}
// Sixteen bytes, of which ten are looked at, so that at most two stand at the tile's start.
template <int K>
__m128i circular16(const uint8_t* tile, int byte) {
  constexpr int bytes = int(tqn::tile_bytes(K));
  if (byte + 16 <= bytes) return load16(tile + byte);
  return _mm_set_epi64x(int64_t(circular8<K>(tile, (byte + 8) % bytes)), int64_t(circular8<K>(tile, byte)));
}

// A half is 16 steps in 16-bit lanes: four rows. Its bits, at most 57 for k <= 3, stand in every quadword, each second one shifted by 4, so
// that each window starts at bit 0..4 of some byte and lies within two bytes. With the bits below it cleared, (window << s) * (M << (4 -
// s)) has the codebook's index in its upper 6 bits: what stands above the window leaves the 16-bit product.
template <int K>
class Halves {
 public:
  Halves() {
    const auto bit = [](int lane) { return K * lane; };
    const auto copy = [bit](int lane) { return K < 4 && bit(lane) % 8 > 4; };
    const auto shift = [bit, copy](int lane) { return bit(lane) % 8 - 4 * copy(lane); };
    shift_ = register_of<uint64_t>([](int i) { return 4 * (i % 2); });
    gather_ = register_of<uint8_t>([=](int i) { return bit(i / 2) / 8 + 8 * copy(i / 2) + i % 2; });
    mask_ = register_of<uint16_t>([=](int lane) { return 0xFFFF << shift(lane); });
    factor_ = register_of<uint16_t>([=](int lane) { return tqn::multiplier(K) << (4 - shift(lane)); });
  }
  __m256i operator()(const uint8_t* tile, int half) const {
    const __m256i window = _mm256_and_si256(_mm256_shuffle_epi8(bits(tile, 2 * K * half), gather_), mask_);
    return _mm256_srli_epi16(_mm256_mullo_epi16(window, factor_), 10);
  }

 private:
  __m256i bits(const uint8_t* tile, int byte) const {
    if constexpr (K == 4) return _mm256_broadcastsi128_si256(circular16<K>(tile, byte));
    return _mm256_srlv_epi64(_mm256_set1_epi64x(int64_t(circular8<K>(tile, byte))), shift_);
  }
  __m256i shift_, gather_, mask_, factor_;
};

// Six bits a step, 12 bytes a half; a multiplication moves each window to the top of its lane.
template <>
class Halves<6> {
 public:
  Halves() {
    const auto bit = [](int lane) { return 6 * lane; };
    for (int last = 0; last < 2; last++) gather_[last] = register_of<uint8_t>([=](int i) { return 4 * last + bit(i / 2) / 8 + i % 2; });
    factor_ = register_of<uint16_t>([=](int lane) { return 1 << (10 - bit(lane) % 8); });
  }
  // The last half is read from 4 bytes before, to stay within the tile.
  __m256i operator()(const uint8_t* tile, int half) const {
    const bool last = half == 15;
    const __m256i bits = _mm256_broadcastsi128_si256(load16(tile + 12 * half - 4 * last));
    return _mm256_srli_epi16(_mm256_mullo_epi16(_mm256_shuffle_epi8(bits, gather_[last]), factor_), 10);
  }

 private:
  __m256i gather_[2], factor_;
};

// Indices and look-ups are two stages: together their chain of instructions is longer than the scheduler is deep.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : table_(codebook) {}
  void operator()(const uint8_t* tile, int g, Row* w) const { look_up(indices(tile, g), w); }

  void prepare(const uint8_t* tiles, int64_t count) {
    for (int64_t i = 0; i < count; i++, tiles += tqn::tile_bytes(K))
#pragma GCC unroll 4
      for (int g = 0; g < 8; g += kTogether) {
        const Pair index = indices(tiles, g);
        for (int j = 0; j < kTogether; j++) store32(index_[i][g + j], index.v[j]);
      }
  }
  void prepared(int64_t i, int g, Row* w) const { look_up({{load32(index_[i][g]), load32(index_[i][g + 1])}}, w); }

 private:
  Pair indices(const uint8_t* tile, int g) const {
    const Pair first = {{halves_(tile, 2 * g), halves_(tile, 2 * g + 2)}}, second = {{halves_(tile, 2 * g + 1), halves_(tile, 2 * g + 3)}};
    return each([](__m256i a, __m256i b) { return _mm256_packus_epi16(a, b); }, first, second);
  }
  void look_up(const Pair& index, Row* w) const {
    const Pair value = table_(index);
    for (int j = 0; j < kTogether; j++) w[j] = value.v[j];
  }
  Table table_;
  Halves<K> halves_;
  alignas(32) uint8_t index_[kAhead][8][32];
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  void operator()(const uint8_t* tile, int g, Row* w) const {
    for (int i = 0; i < kTogether; i++) w[i] = _mm256_add_epi8(load32(tile + 32 * (g + i)), _mm256_set1_epi8(char(kOffset)));
  }
  void prepare(const uint8_t* tiles, int64_t) { tiles_ = tiles; }
  void prepared(int64_t i, int g, Row* w) const { (*this)(tiles_ + i * tqn::tile_bytes(8), g, w); }

 private:
  const uint8_t* tiles_ = nullptr;
};

// Packing two halves leaves their rows in the order 0 1 4 5 2 3 6 7.
template <int K>
void restore_rows(void* rows) {
  if (K == 8) return;
  for (int g = 0; g < 8; g++) {
    const __m256i r = load32(static_cast<char*>(rows) + 32 * g);
    store32(static_cast<char*>(rows) + 32 * g, _mm256_permute4x64_epi64(r, 0xD8));
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
