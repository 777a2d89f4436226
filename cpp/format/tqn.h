// TQN: the packed weight format. This file and tqn_layout.h, its part for kernels in every language, are the one definition of its layout
// (docs/format.md explains it), in the common subset of C++20 and CUDA C++, so that host and device compile the same source.
//
//   value(t) = T[i(t)] + U[j(t)] - offset       i, j: sums, modulo 16, of nibbles of the 12-bit window of step t (table_indices)
//
// A matrix of n_out x n_in (rows padded to 64) is cut into strips of 64 rows; a strip is n_in / 4 tiles of 64 rows x 4 columns, from
// column 0 up, contiguous. A tile is 32 lanes, (row mod 8, column), of 8 steps, row / 8: step t = 8 * lane + row / 8. Its circular bit
// string holds k bits a step; a lane's k bytes of it stand in k planes of 32 bytes, so that what a vector unit loads are lanes side by
// side.
#pragma once

#include "format/tqn_layout.h"

namespace tqn {

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

// TableIndices and reach for code that knows C++17.
template <int K, class N>
TQN_FN auto table_indices(const N& n) {
  return TableIndices<K>::of(n);
}
template <int K>
inline constexpr int kReach = reach(K);

// Addressing. k is a valid format everywhere below.
TQN_FN uint64_t padded_rows(uint64_t n_out) { return (n_out + kTileRows - 1) / kTileRows * kTileRows; }
TQN_FN uint64_t strips(uint64_t n_out) { return padded_rows(n_out) / kTileRows; }
TQN_FN uint64_t tiles_per_strip(uint64_t n_in) { return n_in / kTileCols; }
TQN_FN uint64_t strip_bytes(uint64_t n_in, int k) { return tiles_per_strip(n_in) * tile_bytes(k); }
TQN_FN uint64_t tile_offset(uint64_t strip, uint64_t tile, uint64_t n_in, int k) {
  return strip * strip_bytes(n_in, k) + tile * tile_bytes(k);
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
  out->codebook = uint64_t(codebook_size(k));
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
