// TQN: the packed weight format. This file is the one definition of its layout (docs/format.md explains it), in the common subset of C++20
// and CUDA C++, so that host and device compile the same source.
//
//   value(t) = codebook[((window(t) * M) mod 4096) >> 6],   window(t) = 12 bits of the tile's circular bit string from bit k*t
//
// A matrix of n_out x n_in (rows padded to 64) is cut into strips of 64 rows; a strip is n_in / 4 tiles of 64 rows x 4 columns, from
// column 0 up, contiguous. Step t = 4 * row + column of a tile. Bits are LSB first in little-endian bytes.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__CUDACC__)
#define TQN_FN __host__ __device__ constexpr inline
#else
#define TQN_FN constexpr inline
#endif

namespace tqn {

inline constexpr uint32_t kVersion = 1;
inline constexpr int kTileRows = 64;
inline constexpr int kTileCols = 4;
inline constexpr int kTileSteps = kTileRows * kTileCols;
inline constexpr int kWindowBits = 12;  // of the trellis formats; TQN6 cuts windows of 6 bits
inline constexpr int kStates = 1 << kWindowBits;
inline constexpr int kCodebookSize = 64;
inline constexpr int kMaxTrellisBits = 4;
inline constexpr int kMaxInputs = 65536;    // int32 accumulators cannot overflow: 65536 * 127 * 128 < 2^31
inline constexpr int kActivationMax = 127;  // activations are int8 in [-127, 127]

// The weight formats, by bits a weight: the one list that dispatch, bindings, validation and messages follow.
template <int K>
struct Format {
  static constexpr int k = K;
};
template <int... Ks>
struct FormatList {
  static constexpr int count = sizeof...(Ks);
  static constexpr int bits[] = {Ks...};
  TQN_FN static bool has(int k) { return ((k == Ks) || ...); }
  // Calls f(Format<k>()), nothing where k is no format.
  template <class F>
  TQN_FN static void call(int k, const F& f) {
    (void)((k == Ks && (f(Format<Ks>()), true)) || ...);
  }
};
using Formats = FormatList<1, 2, 3, 4, 6, 8>;

TQN_FN bool is_format(int k) { return Formats::has(k); }
TQN_FN bool is_trellis(int k) { return k >= 1 && k <= kMaxTrellisBits; }
// TQN8 stores its int8 values themselves; every other format looks them up.
TQN_FN bool has_codebook(int k) { return k != 8; }

// The odd multiplier that hashes a window to a codebook entry; 0 for the formats without a trellis.
TQN_FN uint32_t multiplier(int k) { return k == 1 ? 1891u : k == 2 ? 3033u : k == 3 ? 1529u : k == 4 ? 963u : 0u; }

// Codebook index of a 12-bit window, and the two equivalent forms that kernels use.
TQN_FN uint32_t codebook_index(uint32_t window, uint32_t m) { return ((window * m) & (kStates - 1)) >> 6; }
TQN_FN uint32_t low_table(uint32_t low6, uint32_t m) { return ((low6 * m) >> 6) & 63; }  // index = (low_table[window & 63]
TQN_FN uint32_t high_table(uint32_t high6, uint32_t m) { return (high6 * m) & 63; }      //        + high_table[window >> 6]) mod 64

// Addressing. k is a valid format everywhere below.
TQN_FN uint32_t tile_bytes(int k) { return uint32_t(32 * k); }
TQN_FN uint64_t padded_rows(uint64_t n_out) { return (n_out + kTileRows - 1) / kTileRows * kTileRows; }
TQN_FN uint64_t strips(uint64_t n_out) { return padded_rows(n_out) / kTileRows; }
TQN_FN uint64_t tiles_per_strip(uint64_t n_in) { return n_in / kTileCols; }
TQN_FN uint64_t strip_bytes(uint64_t n_in, int k) { return tiles_per_strip(n_in) * tile_bytes(k); }
TQN_FN uint64_t tile_offset(uint64_t strip, uint64_t tile, uint64_t n_in, int k) {
  return strip * strip_bytes(n_in, k) + tile * tile_bytes(k);
}
TQN_FN int step_of(int row_in_tile, int col_in_tile) { return kTileCols * row_in_tile + col_in_tile; }

// `bits` <= 12 bits of a tile's circular bit string from bit `start` (0 <= start < 256k).
TQN_FN uint32_t tile_bits(const uint8_t* tile, int k, int start, int bits) {
  const int bytes = 32 * k, b = start >> 3;
  const uint32_t three = uint32_t(tile[b]) | uint32_t(tile[(b + 1) % bytes]) << 8 | uint32_t(tile[(b + 2) % bytes]) << 16;
  return (three >> (start & 7)) & ((1u << bits) - 1);
}
TQN_FN uint32_t window(const uint8_t* tile, int k, int step) { return tile_bits(tile, k, k * step, k == 6 ? 6 : kWindowBits); }

// The int8 value of one step.
TQN_FN int value(const uint8_t* tile, int k, int step, const int8_t* codebook) {
  if (k == 8) return int8_t(tile[step]);
  const uint32_t w = window(tile, k, step);
  return codebook[k == 6 ? w : codebook_index(w, multiplier(k))];
}

// Byte counts of a matrix's planes, or false where n_out, n_in or k are unusable or a product would wrap.
struct PlaneBytes {
  uint64_t codes = 0, row_scale = 0, codebook = 0;
};
TQN_FN bool plane_bytes(uint64_t n_out, uint64_t n_in, int k, PlaneBytes* out) {
  if (!is_format(k) || n_out == 0 || n_in == 0 || n_in % kTileCols != 0 || n_in > uint64_t(kMaxInputs)) return false;
  if (n_out > (uint64_t(1) << 40)) return false;  // 2^40 rows * 2^16 columns * 8 bits still fits 64 bits
  out->codes = strips(n_out) * strip_bytes(n_in, k);
  out->row_scale = padded_rows(n_out) * 2;
  out->codebook = has_codebook(k) ? kCodebookSize : 0;
  return true;
}

// splitmix64 (Steele, Lea, Flood 2014): the stream that gives a rotation its signs.
struct SplitMix64 {
  uint64_t state;
  TQN_FN uint64_t next() {
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
};

}  // namespace tqn
