// AVX-512 F, BW, VL, DQ (Skylake-X and later): no byte permutes, so windows, indices and values live in 16-bit lanes. A row operand is a
// pair of registers: columns 0, 2 and columns 1, 3 of 16 rows, which `vpmaddwd` sums to one int32 a row.
#pragma once
#include "kernels/isa/avx512_common.h"

namespace tq::kernels::avx512 {

inline constexpr char kName[] = "avx512";
inline constexpr int kDirectTokens = 2;
inline constexpr int kTogether = 1, kAhead = 1;
inline constexpr int kPanelRegisters = 4, kPanelTokens = 4;
inline constexpr int kOffset = 0;

struct Row {
  __m512i even, odd;
};
using Acts = Row;
inline constexpr int kRowBytes = 128;

inline Row load_row(const int8_t* p) { return {load_bytes(p), load_bytes(p + 64)}; }
inline void store_row(int8_t* p, Row w) {
  _mm512_storeu_si512(p, w.even);
  _mm512_storeu_si512(p + 64, w.odd);
}
// The even and the odd bytes of 16-bit lanes, sign-extended.
inline Row widen(__m512i bytes) { return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)}; }
inline Acts load_acts(const int8_t* p) { return widen(broadcast4(p)); }
inline I32 dot(I32 acc, Row w, Acts a) {
  acc = _mm512_add_epi32(acc, _mm512_madd_epi16(w.even, a.even));
  return _mm512_add_epi32(acc, _mm512_madd_epi16(w.odd, a.odd));
}
template <int C>
F32 column(Row w) {
  const __m512i pair = C % 2 ? w.odd : w.even;
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(C < 2 ? _mm512_slli_epi32(pair, 16) : pair, 16));
}

// The codebook as 16-bit values: 64 entries are the two sources of `vpermt2w`.
class Table {
 public:
  explicit Table(const int8_t* codebook)
      : low_(_mm512_cvtepi8_epi16(load_half(codebook))), high_(_mm512_cvtepi8_epi16(load_half(codebook + 32))) {}
  __m512i operator()(__m512i index) const { return _mm512_permutex2var_epi16(low_, index, high_); }

 private:
  __m512i low_, high_;
};

// A 128-bit lane is 16 steps. Their bits, at most 57 for k <= 3, are brought to both quadwords, the second shifted by 4, so that every
// window starts at bit 0..4 of some byte and lies within two bytes. With the bits below it cleared, (window << s) * (M << (4 - s)) has the
// codebook's index in its upper 6 bits: what stands above the window leaves the 16-bit product.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : table_(codebook) {
    fill_registers<3>(spread_, [](auto n) {
      constexpr int g = decltype(n)::size;
      return register_of<uint16_t>([](int i) { return 4 * K * g - start(g) / 2 + K * (i / 8) + (K < 4 ? i % 4 : i % 8); });
    });
    spread_last_ = register_of<uint16_t>([](int i) {  // word 16 K - 16 is the first of the first source, the tile's start the second source
      const int word = 4 * K * 3 + K * (i / 8) + (K < 4 ? i % 4 : i % 8) - (16 * K - 16);
      return word < 16 ? word : 32 + word - 16;
    });
    shift_ = register_of<uint64_t>([](int i) { return K < 4 ? 4 * (i % 2) : 0; });
    fill_registers<2>(gather_, [](auto odd) {
      return register_of<uint8_t>([](int i) {
        const int at = bit(i / 2, decltype(odd)::size);
        return at / 8 + (at % 8 > 4 ? 8 : 0) + i % 2;
      });
    });
    fill_registers<2>(mask_, [](auto odd) { return register_of<uint16_t>([](int i) { return 0xFFFF << shift(i, decltype(odd)::size); }); });
    fill_registers<2>(factor_, [](auto odd) {
      return register_of<uint16_t>([](int i) { return tqn::multiplier(K) << (4 - shift(i, decltype(odd)::size)); });
    });
  }
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const __m512i bits = _mm512_srlv_epi64(spread(tile, g), shift_);
    *w = {table_(index(bits, 0)), table_(index(bits, 1))};
  }

 private:
  // Of a lane's window: its first bit, and how far that stands from a byte's start.
  static constexpr int bit(int lane, int odd) { return K * (2 * (lane % 8) + odd); }
  static constexpr int shift(int lane, int odd) { return bit(lane, odd) % 8 > 4 ? bit(lane, odd) % 8 - 4 : bit(lane, odd) % 8; }
  // Byte from which a register of the first three is loaded, within the tile.
  static constexpr int start(int g) { return K == 1 ? 0 : 8 * K * g; }
  __m512i spread(const uint8_t* tile, int g) const {
    if (g < 3) return _mm512_permutexvar_epi16(spread_[g], K < 4 ? load32(tile + start(g)) : load_bytes(tile + start(g)));
    return _mm512_permutex2var_epi16(load32(tile + tqn::tile_bytes(K) - 32), spread_last_, load32(tile));
  }
  __m512i index(__m512i bits, int odd) const {
    const __m512i window = _mm512_and_si512(_mm512_shuffle_epi8(bits, gather_[odd]), mask_[odd]);
    return _mm512_srli_epi16(_mm512_mullo_epi16(window, factor_[odd]), 10);
  }
  Table table_;
  __m512i spread_[3], spread_last_, shift_, gather_[2], mask_[2], factor_[2];
};

// Six bits a step: 12 bytes a 128-bit lane, no multiplication; the window is cut by a multiplication that moves it to the top.
template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : table_(codebook) {
    fill_registers<2>(
        spread_, [](auto last) { return register_of<uint16_t>([](int i) { return 8 * decltype(last)::size + 6 * (i / 8) + i % 8; }); });
    fill_registers<2>(gather_,
                      [](auto odd) { return register_of<uint8_t>([](int i) { return bit(i / 2, decltype(odd)::size) / 8 + i % 2; }); });
    fill_registers<2>(factor_,
                      [](auto odd) { return register_of<uint16_t>([](int i) { return 1 << (10 - bit(i, decltype(odd)::size) % 8); }); });
  }
  void operator()(const uint8_t* tile, int g, Row* w) const {
    const __m512i bits = _mm512_permutexvar_epi16(spread_[g == 3], load_bytes(tile + (g == 3 ? 128 : 48 * g)));
    *w = {table_(index(bits, 0)), table_(index(bits, 1))};
  }

 private:
  static constexpr int bit(int lane, int odd) { return 6 * (2 * (lane % 8) + odd); }
  __m512i index(__m512i bits, int odd) const {
    return _mm512_srli_epi16(_mm512_mullo_epi16(_mm512_shuffle_epi8(bits, gather_[odd]), factor_[odd]), 10);
  }
  Table table_;
  __m512i spread_[2], gather_[2], factor_[2];
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  void operator()(const uint8_t* tile, int g, Row* w) const { *w = widen(load_bytes(tile + 64 * g)); }
};

// Decoders give the rows in their own order.
template <int K>
void restore_rows(void*) {}

}  // namespace tq::kernels::avx512

#include "kernels/isa/dot_panel.h"
#include "kernels/isa/one_dot.h"
