// AVX-512 with VBMI (byte permutes, multishift) and VNNI (Ice Lake, Zen 4 and later). Row operands are unsigned: value + 128.
#pragma once
#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512vbmi {

inline constexpr char kName[] = "avx512vbmi";
inline constexpr int kDirectTokens = 4;
inline constexpr int kPanelRegisters = 4, kPanelTokens = 6;
inline constexpr int kOffset = 128;

using Row = __m512i;
using Acts = __m512i;
inline constexpr int kRowBytes = 64;

inline Row load_row(const int8_t* p) { return load_bytes(p); }
inline void store_row(int8_t* p, Row w) { _mm512_storeu_si512(p, w); }
inline Acts load_acts(const int8_t* p) { return broadcast4(p); }
inline I32 dot(I32 acc, Row w, Acts a) { return _mm512_dpbusd_epi32(acc, w, a); }
template <int C>
inline F32 column(Row w) {
  const __m512i byte = _mm512_and_si512(_mm512_srli_epi32(w, 8 * C), _mm512_set1_epi32(255));
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(byte, _mm512_set1_epi32(kOffset)));
}

// A register filled by a function of the byte's number.
template <class F>
inline __m512i bytes_of(const F& f) {
  alignas(64) uint8_t bytes[64];
  for (int i = 0; i < 64; i++) bytes[i] = uint8_t(f(i));
  return _mm512_load_si512(bytes);
}
inline __m512i load_codebook(const int8_t* codebook) { return _mm512_xor_si512(load_bytes(codebook), _mm512_set1_epi8(-128)); }

// Eight steps a quadword: the K + 1 .. K + 2 bytes that hold their windows, cut by multishift into the windows' low and high six bits.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(load_codebook(codebook)) {
    for (int g = 0; g < 4; g++) gather_[g] = bytes_of([g](int i) { return (8 * K * g + K * (i / 8) + i % 8) % tqn::tile_bytes(K); });
    low_shift_ = bytes_of([](int i) { return K * (i % 8); });
    high_shift_ = bytes_of([](int i) { return K * (i % 8) + 6; });
    low_ = bytes_of([](int i) { return tqn::low_table(i, tqn::multiplier(K)); });
    high_ = bytes_of([](int i) { return tqn::high_table(i, tqn::multiplier(K)); });
  }
  Row operator()(const uint8_t* tile, int g) const {
    const __m512i bits = gather(tile, g);
    const __m512i low = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(low_shift_, bits), low_);
    const __m512i high = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(high_shift_, bits), high_);
    return _mm512_permutexvar_epi8(_mm512_add_epi8(low, high), codebook_);  // the permute ignores bits 6 and 7
  }

 private:
  __m512i gather(const uint8_t* tile, int g) const {
    if constexpr (K == 1) return _mm512_permutexvar_epi8(gather_[g], load32(tile));
    if constexpr (K == 2) return _mm512_permutexvar_epi8(gather_[g], load_bytes(tile));
    if constexpr (K == 3) return _mm512_permutex2var_epi8(load_bytes(tile), gather_[g], load32(tile + 64));
    if constexpr (K == 4) return _mm512_permutex2var_epi8(load_bytes(tile), gather_[g], load_bytes(tile + 64));
  }
  __m512i gather_[4], low_shift_, high_shift_, low_, high_, codebook_;
};

template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(load_codebook(codebook)) {
    for (int last = 0; last < 2; last++) gather_[last] = bytes_of([last](int i) { return 16 * last + 6 * (i / 8) + i % 8; });
    shift_ = bytes_of([](int i) { return 6 * (i % 8); });
  }
  // Group g is 48 bytes from byte 48 g; the last one is read from 16 bytes before, to stay within the tile.
  Row operator()(const uint8_t* tile, int g) const {
    const __m512i bits = _mm512_permutexvar_epi8(gather_[g == 3], load_bytes(tile + (g == 3 ? 128 : 48 * g)));
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shift_, bits), codebook_);
  }

 private:
  __m512i gather_[2], shift_, codebook_;
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  Row operator()(const uint8_t* tile, int g) const { return _mm512_xor_si512(load_bytes(tile + 64 * g), _mm512_set1_epi8(-128)); }
};

}  // namespace tq::kernels::avx512vbmi
