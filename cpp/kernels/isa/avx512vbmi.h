// AVX-512 with VBMI (byte permutes, multishift) and VNNI (Ice Lake, Zen 4 and later). Row operands are unsigned: value + 128.
#pragma once
#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512vbmi {

inline constexpr char kName[] = "avx512vbmi";
inline constexpr int kDirectTokens = 4;
inline constexpr int kTogether = 1, kAhead = 1;
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

inline __m512i load_codebook(const int8_t* codebook) { return _mm512_xor_si512(load_bytes(codebook), _mm512_set1_epi8(-128)); }

// Eight steps (two rows) are a chunk: K bytes, with their windows at most 40 bits from the chunk's first. Plain loads bring most chunks to
// the start, or near the start, of a quadword; so registers take the chunks in the order below, and only the rest is gathered by byte
// permutes. Rows are brought back to their order when a strip's sums are done. offset: of the load, or gathered.
inline constexpr int kGathered = -1;
struct ChunkRegister {
  int offset;
  int chunk[8];
};
template <int K>
inline constexpr ChunkRegister kChunks[4] = {};
template <>
inline constexpr ChunkRegister kChunks<1>[4] = {// the tile's 32 bytes stand twice in a register
                                                {0, {0, 8, 16, 24, 1, 9, 17, 25}},
                                                {0, {2, 10, 18, 26, 3, 11, 19, 27}},
                                                {0, {4, 12, 20, 28, 5, 13, 21, 29}},
                                                {kGathered, {6, 14, 22, 30, 7, 15, 23, 31}}};
template <>
inline constexpr ChunkRegister kChunks<2>[4] = {{0, {0, 4, 8, 12, 16, 20, 24, 28}},
                                                {0, {1, 5, 9, 13, 17, 21, 25, 29}},
                                                {0, {2, 6, 10, 14, 18, 22, 26, 30}},
                                                {kGathered, {3, 7, 11, 15, 19, 23, 27, 31}}};
template <>
inline constexpr ChunkRegister kChunks<3>[4] = {{0, {0, 3, 6, 8, 11, 14, 16, 19}},
                                                {4, {2, 4, 7, 10, 12, 15, 18, 20}},
                                                {kGathered, {1, 5, 9, 13, 17, 21, 22, 23}},
                                                {kGathered, {24, 25, 26, 27, 28, 29, 30, 31}}};
template <>
inline constexpr ChunkRegister kChunks<4>[4] = {{0, {0, 2, 4, 6, 8, 10, 12, 14}},
                                                {4, {1, 3, 5, 7, 9, 11, 13, 15}},
                                                {64, {16, 18, 20, 22, 24, 26, 28, 30}},
                                                {kGathered, {17, 19, 21, 23, 25, 27, 29, 31}}};

// Cuts the windows' low and high six bits by multishift and adds the two table look-ups.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(load_codebook(codebook)) {
    fill_registers<4>(gather_, [](auto n) {
      return register_of<uint8_t>([](int i) { return (K * kChunks<K>[decltype(n)::size].chunk[i / 8] + i % 8) % int(tqn::tile_bytes(K)); });
    });
    fill_registers<4>(low_shift_,
                      [](auto n) { return register_of<uint8_t>([](int i) { return start(decltype(n)::size, i / 8) + K * (i % 8); }); });
    fill_registers<4>(high_shift_,
                      [](auto n) { return register_of<uint8_t>([](int i) { return start(decltype(n)::size, i / 8) + K * (i % 8) + 6; }); });
    low_ = register_of<uint8_t>([](int i) { return tqn::low_table(i, tqn::multiplier(K)); });
    high_ = register_of<uint8_t>([](int i) { return tqn::high_table(i, tqn::multiplier(K)); });
  }
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const __m512i bits = chunks(tile, g);
    const __m512i low = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(low_shift_[g], bits), low_);
    const __m512i high = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(high_shift_[g], bits), high_);
    *w = _mm512_permutexvar_epi8(_mm512_add_epi8(low, high), codebook_);  // the permute ignores bits 6 and 7
  }

 private:
  // Bit of a quadword at which its chunk starts.
  static constexpr int start(int g, int lane) {
    const ChunkRegister& r = kChunks<K>[g];
    return r.offset == kGathered ? 0 : 8 * (K * r.chunk[lane] - r.offset - 8 * (K == 1 ? lane % 4 : lane));
  }
  __m512i chunks(const uint8_t* tile, int g) const {
    const int offset = kChunks<K>[g].offset;
    const __m512i first = K == 1 ? _mm512_broadcast_i64x4(load_half(tile)) : load_bytes(tile + (offset == kGathered ? 0 : offset));
    if (offset != kGathered) return first;
    if constexpr (K <= 2) return _mm512_permutexvar_epi8(gather_[g], first);
    return _mm512_permutex2var_epi8(first, gather_[g], K == 3 ? load32(tile + 64) : load_bytes(tile + 64));
  }
  __m512i gather_[4], low_shift_[4], high_shift_[4], low_, high_, codebook_;
};

// Where a chunk's rows stand: quadword 8 * register + lane.
template <int K>
constexpr int place(int chunk) {
  for (int g = 0; g < 4; g++)
    for (int lane = 0; lane < 8; lane++)
      if (kChunks<K>[g].chunk[lane] == chunk) return 8 * g + lane;
  return 0;
}
template <int K>
constexpr int from_upper(int q) {  // lanes of output q that come from registers 2 and 3
  int mask = 0;
  for (int i = 0; i < 8; i++) mask |= (place<K>(8 * q + i) >= 16) << i;
  return mask;
}

// Rows (64 lanes of 32 bits) from the registers' order to their own.
template <int K>
void restore_rows(void* rows) {
  if constexpr (K <= 4) {
    char* p = static_cast<char*>(rows);
    const __m512i a = load_bytes(p), b = load_bytes(p + 64), c = load_bytes(p + 128), d = load_bytes(p + 192);
    const auto store_quarter = [&](auto quarter) {
      constexpr int q = quarter.size;
      const __m512i from = register_of<int64_t>([](int i) { return place<K>(8 * q + i) % 16; });
      _mm512_storeu_si512(p + 64 * q, _mm512_mask_blend_epi64(from_upper<K>(q), _mm512_permutex2var_epi64(a, from, b),
                                                              _mm512_permutex2var_epi64(c, from, d)));
    };
    store_quarter(Group<0>{}), store_quarter(Group<1>{}), store_quarter(Group<2>{}), store_quarter(Group<3>{});
  }
}

template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(load_codebook(codebook)) {
    fill_registers<2>(
        gather_, [](auto last) { return register_of<uint8_t>([](int i) { return 16 * decltype(last)::size + 6 * (i / 8) + i % 8; }); });
    shift_ = register_of<uint8_t>([](int i) { return 6 * (i % 8); });
  }
  // Group g is 48 bytes from byte 48 g; the last one is read from 16 bytes before, to stay within the tile.
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const __m512i bits = _mm512_permutexvar_epi8(gather_[g == 3], load_bytes(tile + (g == 3 ? 128 : 48 * g)));
    *w = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shift_, bits), codebook_);
  }

 private:
  __m512i gather_[2], shift_, codebook_;
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  void operator()(const uint8_t* tile, int g, Row* w) const { *w = _mm512_xor_si512(load_bytes(tile + 64 * g), _mm512_set1_epi8(-128)); }
};

}  // namespace tq::kernels::avx512vbmi

#include "kernels/isa/dot_panel.h"
#include "kernels/isa/one_dot.h"
