// The part of TQN's layout (tqn.h, docs/format.md) that kernels of every language read: constants and the formula of the trellis formats,
// in the common subset of C++20, CUDA C++ and the Metal shading language (C++14; values at program scope lie in an address space of their
// own).
#pragma once
#if defined(__METAL_VERSION__)
#include <metal_stdlib>
#define TQN_FN constexpr inline
#define TQN_VALUE static constant constexpr const
#define TQN_MEMORY device
#else
#include <stddef.h>
#include <stdint.h>
#if defined(__CUDACC__)
#define TQN_FN __host__ __device__ constexpr inline
#else
#define TQN_FN constexpr inline
#endif
#define TQN_VALUE inline constexpr
#define TQN_MEMORY
#endif

namespace tqn {

TQN_VALUE uint32_t kVersion = 2;
TQN_VALUE int kTileRows = 64;
TQN_VALUE int kTileCols = 4;
TQN_VALUE int kTileSteps = kTileRows * kTileCols;
TQN_VALUE int kLaneSteps = 8;
TQN_VALUE int kTileLanes = kTileSteps / kLaneSteps;  // bytes of a plane
TQN_VALUE int kWindowBits = 12;                      // of the trellis formats; TQN6 cuts windows of 6 bits
TQN_VALUE int kStates = 1 << kWindowBits;
TQN_VALUE int kTableSize = 16;     // entries of T and of U, which a trellis format's codebook holds in this order
TQN_VALUE int kCodebookSize = 64;  // values of the codebook of TQN6
TQN_VALUE int kMaxTrellisBits = 4;
TQN_VALUE int kMaxInputs = 65536;    // int32 accumulators cannot overflow: 65536 * 127 * 128 < 2^31
TQN_VALUE int kActivationMax = 127;  // activations are int8 in [-127, 127]

TQN_FN bool is_trellis(int k) { return k >= 1 && k <= kMaxTrellisBits; }
// TQN8 stores its int8 values themselves; every other format looks them up.
TQN_FN bool has_codebook(int k) { return k != 8; }
TQN_FN int codebook_size(int k) { return is_trellis(k) ? 2 * kTableSize : k == 6 ? kCodebookSize : 0; }
// Entries of T and U are 0 .. largest_entry(k), so that values are at most that, up and down, and sums of T and U are small unsigned bytes.
TQN_FN int largest_entry(int k) { return k == 4 ? 31 : 15; }
TQN_FN int offset(int k) { return largest_entry(k); }
TQN_FN uint32_t tile_bytes(int k) { return uint32_t(32 * k); }

template <int B>
struct Bit {};
template <class V>
struct Indices {
  V first, second;  // of T and of U, modulo 16
};
// The one formula of the trellis formats, for integers and for vectors: n(Bit<b>()) is the nibble of the window from bit b; with nibbles
// below 16 the sums stay below 128.
template <int K>
struct TableIndices;
template <>
struct TableIndices<1> {
  template <class N>
  TQN_FN static auto of(N n) {
    const auto ends = n(Bit<0>()) + n(Bit<8>());
    return Indices<decltype(ends + ends)>{ends + n(Bit<3>()), ends + n(Bit<6>())};
  }
};
template <>
struct TableIndices<2> {
  template <class N>
  TQN_FN static auto of(N n) {
    const auto n0 = n(Bit<0>());
    const auto ends = (n0 + n0) + n(Bit<8>());
    return Indices<decltype(ends + ends)>{ends, ends + n(Bit<2>())};
  }
};
template <>
struct TableIndices<3> {
  template <class N>
  TQN_FN static auto of(N n) {
    const auto n0 = n(Bit<0>()), n9 = n(Bit<9>());
    const auto twice = n0 + n0, last = n9 + n9;  // twice a nibble, modulo 16: its fourth bit, beyond the window, is gone
    return Indices<decltype(twice + last)>{(twice + last) + n(Bit<3>()), twice + n(Bit<6>())};
  }
};
template <>
struct TableIndices<4> {
  template <class N>
  TQN_FN static auto of(N n) {
    const auto ends = n(Bit<0>()) + n(Bit<8>());
    return Indices<decltype(ends + ends)>{ends + n(Bit<4>()), ends};
  }
};
// Bits from a step's first that TableIndices looks at.
TQN_FN int reach(int k) { return k == 3 ? 13 : kWindowBits; }

// Addressing in a tile. k is a valid format everywhere below.
TQN_FN int step_of(int row_in_tile, int col_in_tile) { return kLaneSteps * (row_in_tile % 8 * kTileCols + col_in_tile) + row_in_tile / 8; }
TQN_FN int row_of_step(int t) { return t % kLaneSteps * 8 + t / (kLaneSteps * kTileCols); }
TQN_FN int col_of_step(int t) { return t / kLaneSteps % kTileCols; }
// Where byte b of a tile's circular string stands.
TQN_FN int place_of_byte(int k, int b) { return b % k * kTileLanes + b / k % kTileLanes; }

// `bits` <= 12 bits of a tile's circular bit string from bit `start` (0 <= start < 256k). Tile: bytes in the order of the planes.
template <class Tile>
TQN_FN uint32_t tile_bits(Tile tile, int k, int start, int bits) {
  const int b = start >> 3;
  const uint32_t three =
      uint32_t(tile[place_of_byte(k, b)]) | uint32_t(tile[place_of_byte(k, b + 1)]) << 8 | uint32_t(tile[place_of_byte(k, b + 2)]) << 16;
  return (three >> (start & 7)) & ((1u << bits) - 1);
}
template <class Tile>
TQN_FN uint32_t window(Tile tile, int k, int step) {
  return tile_bits(tile, k, k * step, k == 6 ? 6 : kWindowBits);
}

struct WindowNibbles {
  uint32_t window;
  template <int B>
  TQN_FN int operator()(Bit<B>) const {
    return int(window >> B & 15);
  }
};
template <int K>
TQN_FN int window_value(uint32_t window, TQN_MEMORY const int8_t* codebook) {
  const Indices<int> at = TableIndices<K>::of(WindowNibbles{window});
  return codebook[at.first % kTableSize] + codebook[kTableSize + at.second % kTableSize] - offset(K);
}
// The value of a 12-bit window, k = 1 .. 4.
TQN_FN int window_value(int k, uint32_t window, TQN_MEMORY const int8_t* codebook) {
  return k == 1   ? window_value<1>(window, codebook)
         : k == 2 ? window_value<2>(window, codebook)
         : k == 3 ? window_value<3>(window, codebook)
                  : window_value<4>(window, codebook);
}

// The int8 value of one step.
template <class Tile>
TQN_FN int value(Tile tile, int k, int step, TQN_MEMORY const int8_t* codebook) {
  if (k == 8) return int8_t(tile[place_of_byte(k, step)]);
  const uint32_t w = window(tile, k, step);
  return k == 6 ? codebook[w] : window_value(k, w, codebook);
}

}  // namespace tqn
